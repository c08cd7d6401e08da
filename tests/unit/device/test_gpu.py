"""The device as a whole: whatever a guest sends is answered, and an error changes nothing."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.support.fake_pixels import PAGE, FakeBacking, FakePicture, entries
from tests.unit.device.driver import (
    FORMATS,
    GOOD,
    OK,
    U32,
    Box,
    Driver,
    assign_uuid,
    attach,
    command,
    create_2d,
    create_blob,
    detach,
    flush,
    furnished,
    set_scanout,
    set_scanout_blob,
    snapshot,
    transfer,
    unref,
    update_cursor,
)
from vgpud.device.gpu import FEATURES
from vgpud.device.outcome import Ask, CursorImage, CursorMove, Damage, Outcome, ShowSurface, Silence
from vgpud.device.resource import Blob, Image

SIZES = {
    0x1100: 24,
    0x1101: 408,
    0x1104: 1056,
    0x1105: 40,
    **dict.fromkeys(range(4608, 4614), 24),
}
"""Bytes of each response."""


def settle(driver: Driver, request: bytes) -> Outcome:
    """Execute and, where the display is asked, let nobody answer."""
    due = driver.device.execute(request)
    return driver.device.answer(due, Silence.LATE) if isinstance(due, Ask) else due


def check(driver: Driver, request: bytes) -> int:
    """Any request has an answer of the right size; an error changes nothing. Returns its kind."""
    before = snapshot(driver.device)
    outcome = settle(driver, request)
    (kind,) = struct.unpack_from("<I", outcome.response)
    assert len(outcome.response) == SIZES[kind]
    if kind >= 0x1200:
        assert outcome.display == ()
        assert snapshot(driver.device) == before
    return int(kind)


def test_the_device_offers_what_it_does() -> None:
    assert int(FEATURES) == 0b1110, "EDID, RESOURCE_UUID and RESOURCE_BLOB"


@pytest.mark.parametrize("body", [b"", bytes(256)])
def test_every_opcode_that_is_not_a_command_is_refused(body: bytes) -> None:
    driver = furnished()
    commands = {*range(0x100, 0x108), *range(0x10A, 0x10E)}
    before = snapshot(driver.device)
    for kind in {*range(0x0401), 0x1100, 0x1200, U32} - commands:
        answer = driver.run(command(kind, body))
        assert (answer.kind, answer.display) == (0x1200, ()), hex(kind)
    assert snapshot(driver.device) == before


@pytest.mark.parametrize("body", [b"", bytes(8), bytes(256), b"\xff" * 256])
@pytest.mark.parametrize("heads", [1, 16, None])
def test_every_command_is_answered_whatever_is_in_it(body: bytes, heads: int | None) -> None:
    driver = furnished() if heads == 16 else Driver(heads=heads)
    for kind in range(0x100, 0x110):
        check(driver, command(kind, body))


@pytest.mark.parametrize("name", sorted(GOOD))
def test_every_command_cut_at_every_byte_is_answered(name: str) -> None:
    driver = furnished()
    for length in range(len(GOOD[name])):
        assert check(driver, GOOD[name][:length]) >= 0x1200
    assert check(driver, GOOD[name]) < 0x1200


@pytest.mark.parametrize("name", sorted(GOOD))
def test_every_field_may_hold_anything(name: str) -> None:
    good = GOOD[name]
    for at in range(24, len(good), 4):
        for value in (0, 1, 2, 15, 16, 17, 64, 65, 0x7FFF_FFFF, 1 << 31, U32 - 15, U32):
            if name == "RESOURCE_CREATE_2D" and at in (32, 36) and value > 65:
                continue  # a long thin image: 64 x 2**31 would be tried for real by no test
            check(furnished(), good[:at] + struct.pack("<I", value) + good[at + 4 :])


any_header = st.builds(
    lambda kind, flags, fence, context, ring: struct.pack(
        "<IIQIB3x", kind, flags, fence, context, ring
    ),
    st.sampled_from([*range(0x100, 0x10E), 0x208, 0x300, 0x301]) | st.integers(0, U32),
    st.sampled_from([0, 1, 2, 3]) | st.integers(0, U32),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, U32),
    st.integers(0, 255),
)
word = st.sampled_from([0, 1, 2, 3, 4, 16, 32, 64, 67, 80, U32]) | st.integers(0, U32)
any_body = st.lists(word, max_size=24).map(lambda words: struct.pack(f"<{len(words)}I", *words))


page = st.sampled_from([(0, PAGE), (8 * PAGE, PAGE), (1 << 40, PAGE), (0, 0)]) | st.tuples(
    st.integers(0, 70 * PAGE), st.integers(0, 3 * PAGE)
)
some_u64 = st.sampled_from([0, 1, PAGE - 1, PAGE, PAGE + 1, 1 << 63, (1 << 64) - 1])
blob_command = st.builds(
    create_blob,
    st.sampled_from([0, 1, 2, 3, 4, 5, 9, U32]),
    some_u64,
    st.lists(page, max_size=4).map(lambda pages: entries(*pages)),
    st.none() | word,
    mem=st.sampled_from([1, 1, 1, 0, 2, 3, U32]),
    blob_flags=word,
    blob=some_u64,
    flags=st.integers(0, 3),
)
coordinate = st.sampled_from([0, 0, 1, 15, 16, 32, 63, 64, 65, 1 << 24, U32])
box_of = st.tuples(coordinate, coordinate, coordinate, coordinate)
show_command = st.builds(
    set_scanout_blob,
    st.sampled_from([0, 1, 15, 16, U32]),
    st.sampled_from([0, 1, 3, 4, 4, 4, 5, U32]),
    st.just((0, 0, 64, 64)) | st.just((5, 7, 32, 48)) | box_of,
    st.just((64, 64)) | st.tuples(coordinate, coordinate),
    st.sampled_from([1, 3, 68, 134, 0, U32]),
    st.sampled_from([256, 256, 255, 257, 1 << 31, U32]),
    st.sampled_from([0, 0, 0, 4, 256, 4 * PAGE, U32]),
    rest=st.binary(min_size=24, max_size=24),
    padding=word,
)
any_request = st.builds(bytes.__add__, any_header, any_body) | st.binary(max_size=128)


@settings(max_examples=100, deadline=None)
@given(request_=any_request | blob_command | show_command)
def test_random_bytes_never_raise_and_errors_change_nothing(request_: bytes) -> None:
    driver = furnished()
    check(driver, request_)
    message = driver.device.execute_cursor(request_)
    assert message is None or isinstance(message, CursorImage | CursorMove)


ids = st.integers(0, 4)
heads = st.integers(0, 3)
edge = st.sampled_from([0, 1, 15, 16, 17, 31, 32, 33, 48, U32])
boxes = st.tuples(edge, edge, edge, edge)
likely = st.tuples(
    st.sampled_from([0, 0, 8, 16]),
    st.sampled_from([0, 0, 8, 16]),
    st.sampled_from([16, 16, 32]),
    st.sampled_from([16, 16, 32]),
)


def picture_of(resource: Image | Blob) -> object:
    return resource.surface if isinstance(resource, Image) else resource.backing


class AnyGuest(RuleBasedStateMachine):
    """A guest that mostly makes sense. After each command the device's books must be right, and
    what it told the display must add up to what it believes is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(max_hostmem=6 * 32 * 32 * 4)
        self.driver.device.set_features(int(FEATURES))
        self.driver.guest.write(0, bytes(range(256)) * 32)
        self.told: dict[int, ShowSurface] = {}

    def send(self, request: bytes) -> int:
        before = snapshot(self.driver.device)
        answer = self.driver.run(request)
        if answer.kind >= 0x1200:
            assert answer.display == ()
            assert snapshot(self.driver.device) == before
        for message in answer.display:
            if isinstance(message, ShowSurface):
                self.told[message.scanout_id] = message
            else:
                assert isinstance(message, Damage)
                shown = self.told[message.scanout_id]
                assert shown.surface is not None, "damage to a head that is off"
                assert len(b"".join(shown.surface.rows(message.rect))) == (
                    4 * message.rect.width * message.rect.height
                )
                rect = message.rect
                assert rect.width > 0
                assert rect.height > 0
                assert rect.x + rect.width <= shown.rect.width
                assert rect.y + rect.height <= shown.rect.height
        return answer.kind

    @rule(number=ids, width=edge, height=edge, pixel_format=st.sampled_from([*FORMATS.values(), 5]))
    def create_any(self, number: int, width: int, height: int, pixel_format: int) -> None:
        self.send(create_2d(number, width, height, pixel_format))

    @rule(number=ids)
    def create(self, number: int) -> None:
        self.send(create_2d(number, 32, 32))

    @rule(
        number=ids,
        size=st.sampled_from([0, 100, PAGE, PAGE, 2 * PAGE, 1 << 63]),
        pages=st.lists(st.integers(0, 65), max_size=3),
        mem=st.sampled_from([1, 1, 1, 1, 1, 2, 3, 0]),
    )
    def create_blob(self, number: int, size: int, pages: list[int], mem: int) -> None:
        pieces = entries(*((page * PAGE, PAGE) for page in pages))
        self.send(create_blob(number, size, pieces, mem=mem))

    @rule(
        head=heads,
        number=ids,
        box=likely | boxes,
        side=st.tuples(edge, edge) | st.just((32, 32)),
        stride=st.sampled_from([128, 128, 0, 64, 127, 4096, 1 << 31]),
        offset=st.sampled_from([0, 0, 4, 128, 3072, U32]),
        pixel_format=st.sampled_from([2, 2, 67, 5]),
    )
    def set_scanout_blob(self, head: int, number: int, box: Box, **layout: Any) -> None:
        side = layout.pop("side")
        self.send(set_scanout_blob(head, number, box, side, **layout))

    @rule(number=ids)
    def unref(self, number: int) -> None:
        self.send(unref(number))

    @rule(number=ids, pages=st.lists(st.integers(0, 65), max_size=3))
    def attach(self, number: int, pages: list[int]) -> None:
        self.send(attach(number, entries(*((page * PAGE, PAGE) for page in pages))))

    @rule(number=ids)
    def detach(self, number: int) -> None:
        self.send(detach(number))

    @rule(number=ids, box=likely | boxes, offset=st.sampled_from([0, 4, 128, U32]))
    def transfer(self, number: int, box: tuple[int, int, int, int], offset: int) -> None:
        self.send(transfer(number, box, offset))

    @rule(head=heads, number=ids, box=likely | boxes)
    def set_scanout(self, head: int, number: int, box: tuple[int, int, int, int]) -> None:
        self.send(set_scanout(head, number, box))

    @rule(number=ids, box=likely | boxes)
    def flush(self, number: int, box: tuple[int, int, int, int]) -> None:
        self.send(flush(number, box))

    @rule(number=ids)
    def assign_uuid(self, number: int) -> None:
        self.send(assign_uuid(number))

    @rule(head=heads, number=ids)
    def pointer(self, head: int, number: int) -> None:
        self.driver.device.execute_cursor(update_cursor(head, number))

    @rule()
    def reset(self) -> None:
        self.driver.device.reset()
        self.driver.device.set_features(int(FEATURES))
        self.told.clear()

    @invariant()
    def the_books_are_right(self) -> None:
        device = self.driver.device
        resources = list(device.resources)
        assert device.resources.budget.used == sum(
            one.surface.width * one.surface.height * 4
            for one in resources
            if isinstance(one, Image)
        )
        assert device.resources.budget.used < device.resources.budget.limit
        assert device.resources.entries == sum(
            len(one.backing.pieces) for one in resources if isinstance(one.backing, FakeBacking)
        )
        for one in resources:
            backed = one.backing is not None
            assert one.entries == (len(self.driver.pieces(one.resource_id)) if backed else 0)
            if isinstance(one, Blob):
                assert one.backing is None or one.backing.size >= one.size
                assert backed or not one.scanouts, "a blob without pages is shown"
        shown = {head: picture_of(one) for one in resources for head in one.scanouts}
        on = {head: m.surface for head, m in self.told.items() if m.surface is not None}
        told = {
            head: one._backing if isinstance(one, FakePicture) else one for head, one in on.items()
        }
        assert shown == told


TestAnyGuest = AnyGuest.TestCase
TestAnyGuest.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)


def test_two_hundred_resources_live_and_die_in_any_order() -> None:
    driver = Driver()
    order = [(n * 77) % 200 + 1 for n in range(200)]
    driver.ok(*(create_2d(n, 16, 16) for n in order))
    driver.ok(*(set_scanout(n % 16, n, (0, 0, 16, 16)) for n in order))
    for n in reversed(order):
        assert driver.run(unref(n)).kind == OK
    assert len(driver.device.resources) == driver.device.resources.budget.used == 0
