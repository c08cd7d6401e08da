"""Scanouts and pointers by themselves: who shows what, and what is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_pixels import FakePixelStore
from vgpud.config import DEFAULT_HOSTMEM
from vgpud.device.outcome import CursorImage, ShowSurface
from vgpud.device.resource import Budget, Image, ResourceTable
from vgpud.device.scanout import CURSOR_BYTES, NOTHING, Cursors, Scanouts
from vgpud.errors import GuestError
from vgpuwire import Ctrl, CtrlHdr, CursorPos, Rect, UpdateCursor

WHOLE = Rect(0, 0, 32, 32)


def resource(number: int) -> Image:
    return Image(number, FakePixelStore().create_surface(32, 32, 1), 4096)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["show", "disable", "drop"]), st.integers(0, 3), st.integers(0, 2)
        )
    )
)
def test_heads_and_resources_always_agree(steps: list[tuple[str, int, int]]) -> None:
    scanouts, resources = Scanouts(), [resource(n) for n in range(3)]
    on: dict[int, int] = {}
    for step, head, number in steps:
        if step == "show":
            messages = scanouts.show(head, resources[number], resources[number].surface, WHOLE)
            assert messages == (ShowSurface(head, resources[number].surface, WHOLE),)
            on[head] = number
        elif step == "disable":
            off = (ShowSurface(head, None, NOTHING),) if head in on else ()
            assert scanouts.disable(head) == off
            on.pop(head, None)
        else:
            heads = sorted(head for head in on if on[head] == number)
            assert [m.scanout_id for m in scanouts.drop(resources[number])] == heads
            on = {head: other for head, other in on.items() if other != number}
        for number, one in enumerate(resources):
            heads = sorted(head for head in on if on[head] == number)
            assert sorted(one.scanouts) == heads
            assert [m.scanout_id for m in scanouts.damage(one, WHOLE)] == heads


def test_a_refused_rectangle_changes_nothing() -> None:
    scanouts, one, two = Scanouts(), resource(1), resource(2)
    scanouts.show(0, one, one.surface, WHOLE)
    for rect in (Rect(0, 0, 15, 32), Rect(1, 0, 32, 32)):
        with pytest.raises(GuestError) as error:
            scanouts.show(0, two, two.surface, rect)
        assert error.value.code == Ctrl.RESP_ERR_INVALID_PARAMETER
    assert (one.scanouts, two.scanouts) == ({0}, set())


def test_pointers_are_forgotten_at_a_reset() -> None:
    table = ResourceTable(Budget(DEFAULT_HOSTMEM))
    surface = FakePixelStore().create_surface(64, 64, 1)
    surface.pixels[:] = b"\x11" * CURSOR_BYTES
    table.add(Image(5, surface, CURSOR_BYTES))
    cursors = Cursors()

    def pixels(number: int) -> bytes:
        hdr = CtrlHdr(Ctrl.CMD_UPDATE_CURSOR, 0, 0, 0, 0)
        message = cursors.update(UpdateCursor(hdr, CursorPos(0, 1, 2), number, 0, 0), table)
        assert isinstance(message, CursorImage)
        return message.pixels

    assert pixels(6) == bytes(CURSOR_BYTES)
    assert pixels(5) == pixels(6) == b"\x11" * CURSOR_BYTES
    cursors.clear()
    assert pixels(6) == bytes(CURSOR_BYTES)
