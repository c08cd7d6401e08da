"""Attacks by commands: on the device with the real pixel store, so that what leaks is counted."""

from __future__ import annotations

import gc
import os
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.support.mock_driver import GPA, GuestRam, mem_entries
from tests.unit.device import driver as guest
from tests.unit.device.driver import (
    BAD_PARAMETER,
    BAD_RESOURCE,
    GOOD,
    NO_MEMORY,
    OK,
    UNSPEC,
    answer_of,
    furnished,
)
from vgpud.config import DEFAULT_HOSTMEM
from vgpud.device.gpu import FEATURES, GpuDevice
from vgpud.device.outcome import Ask, Outcome
from vgpud.host.fd import OwnedFd
from vgpud.host.guest_memory import GuestMemory
from vgpud.host.surfaces import HostPixelStore
from vgpuwire import MemRegion

PAGE = 4096
SLACK = 1 << 20
"""Bytes that the heap may move without anything leaking."""
ROUNDS = 3000


class RealGuest:
    """A device on the host's own pixel store and 16 MiB of guest RAM."""

    def __init__(self, ram: GuestRam) -> None:
        self.memory = GuestMemory()
        row = ram.regions[0]
        fd = OwnedFd(os.dup(ram.memfd))
        self.memory.add(MemRegion(*row), fd)
        fd.close()
        self.device = GpuDevice(HostPixelStore(self.memory.snapshot), DEFAULT_HOSTMEM)
        self.device.set_features(0x1F)

    def run(self, request: bytes) -> int:
        due = self.device.execute(request)
        assert isinstance(due, Outcome)
        return answer_of(due).kind


@pytest.fixture
def real() -> Iterator[RealGuest]:
    with GuestRam(16 << 20) as ram:
        yield RealGuest(ram)


def fds() -> int:
    gc.collect()  # what an earlier test left is not this one's
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Bytes of anonymous memory."""
    gc.collect()
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["RssAnon"].split()[0]) << 10


def flat(one_round: Callable[[int], None], rounds: int = ROUNDS) -> None:
    """Run it often: after a warm-up neither descriptors nor memory grow."""
    for number in range(rounds // 3):
        one_round(number)
    gc.collect()  # what an earlier test left behind is not this one's
    before = (fds(), resident())
    for number in range(rounds):
        one_round(number)
    assert fds() == before[0]
    assert resident() - before[1] < SLACK


def test_attack_01_11_a_hundred_thousand_bad_images_keep_nothing(real: RealGuest) -> None:
    bad = [
        (guest.create_2d(7, 64, 64, 99), BAD_PARAMETER),
        (guest.create_2d(7, 1 << 16, 1 << 16), NO_MEMORY),
        (guest.create_2d(7, 0, 64), NO_MEMORY),
        (guest.create_2d(0, 64, 64), BAD_RESOURCE),
    ]

    def one_round(_: int) -> None:
        for request, kind in bad:
            assert real.run(request) == kind

    flat(one_round, 19_000)
    assert len(real.device.resources) == 0


def test_attack_03_pointer_images_replace_each_other(real: RealGuest) -> None:
    real.run(guest.create_2d(1, 64, 64))
    request = guest.update_cursor(0, 1)

    def one_round(_: int) -> None:
        assert real.device.execute_cursor(request) is not None

    flat(one_round, 20_000)


@pytest.mark.parametrize("kind", ["image", "blob"])
def test_attack_05_10_11_pages_go_with_their_resource(real: RealGuest, kind: str) -> None:
    pieces = mem_entries([(GPA + 2 * n * PAGE, PAGE) for n in range(64)])

    def one_round(number: int) -> None:
        if kind == "image":
            assert real.run(guest.create_2d(1)) == OK
            assert real.run(guest.attach(1, pieces)) == OK
        else:
            assert real.run(guest.create_blob(1, 64 * PAGE, pieces)) == OK
        if number % 2:
            assert real.run(guest.detach(1)) == OK
        assert real.run(guest.unref(1)) == OK
        assert real.device.resources.entries == 0

    flat(one_round)


def test_attack_08_09_11_a_second_backing_is_refused_and_keeps_nothing(real: RealGuest) -> None:
    pieces = mem_entries([(GPA + 2 * n * PAGE, PAGE) for n in range(256)])
    bad = pieces[:-16] + mem_entries([(1 << 40, PAGE)])
    assert real.run(guest.create_2d(1)) == OK
    assert real.run(guest.create_2d(2)) == OK
    assert real.run(guest.attach(1, pieces)) == OK

    def one_round(_: int) -> None:
        assert real.run(guest.attach(1, pieces)) == UNSPEC
        assert real.run(guest.attach(2, bad)) == UNSPEC

    flat(one_round)
    assert real.device.resources.entries == 256


def test_attack_14_the_last_of_16384_entries_is_bad(real: RealGuest) -> None:
    pieces = mem_entries([(GPA + (n % 1024) * PAGE, 64) for n in range(16383)])
    assert real.run(guest.create_2d(1)) == OK
    flat(lambda _: _refused(real, guest.attach(1, pieces + mem_entries([(GPA - 1, 1)]))), 100)
    assert real.run(guest.attach(1, pieces + mem_entries([(GPA, 1)]))) == OK


def _refused(real: RealGuest, request: bytes) -> None:
    assert real.run(request) == UNSPEC
    assert real.device.resources.entries == 0


@pytest.mark.parametrize(
    "sides",
    [(0x40000001, 1), (0x10000, 0x10001), (1, 0x40000001), (0xFFFFFFFF, 0xFFFFFFFF), (1 << 30, 4)],
)
def test_attack_17_sides_whose_product_wraps_make_no_image(sides: tuple[int, int]) -> None:
    driver = furnished()
    driver.refused(guest.create_2d(9, *sides), NO_MEMORY)
    driver.refused(guest.attach(9, guest.entries((0, PAGE))), BAD_RESOURCE)
    driver.refused(guest.transfer(9, (0, 0, *sides)), BAD_RESOURCE)


BAD_BLOBS = {
    "of the host": guest.create_blob(9, PAGE, guest.entries((0, PAGE)), mem=2),
    "of both": guest.create_blob(9, PAGE, guest.entries((0, PAGE)), mem=3),
    "too many entries": guest.create_blob(9, PAGE, b"", 16385),
    "fewer than claimed": guest.create_blob(9, PAGE, guest.entries((0, PAGE)), 2),
    "an empty entry": guest.create_blob(9, PAGE, guest.entries((0, PAGE), (0, 0))),
    "no memory there": guest.create_blob(9, PAGE, guest.entries((0, PAGE), (1 << 40, PAGE))),
    "fewer pages than bytes": guest.create_blob(9, 2 * PAGE, guest.entries((0, PAGE))),
    "cut": guest.create_blob(9, PAGE)[:-1],
}
ON_9 = (
    guest.unref(9),
    guest.attach(9, guest.entries((0, PAGE))),
    guest.detach(9),
    guest.transfer(9),
    guest.flush(9),
    guest.assign_uuid(9),
    guest.set_scanout(0, 9),
    guest.set_scanout_blob(0, 9),
)


@pytest.mark.parametrize("name", BAD_BLOBS)
def test_attack_19_a_blob_that_failed_is_not_there(name: str) -> None:
    driver = furnished()
    before = guest.snapshot(driver.device)
    assert driver.run(BAD_BLOBS[name]).kind >= UNSPEC
    assert guest.snapshot(driver.device) == before
    for request in ON_9:
        driver.refused(request, BAD_RESOURCE)
    driver.ok(guest.create_blob(9, PAGE, guest.entries((0, PAGE))))


@pytest.mark.parametrize("size", [0, 4, 0x7FFFFFFF, 0xFFFFFFFF])
def test_attack_22_68_a_3d_command_of_any_size_allocates_nothing(
    real: RealGuest, size: int
) -> None:
    """SUBMIT_3D says its size and how many fences come with it; none of it is read."""
    request = guest.command(0x0207, struct.pack("<II", size, 0xFFFFFFFF))
    before = resident()
    for _ in range(100):
        assert real.run(request) == UNSPEC
    assert resident() - before < SLACK


EXPECTED = {
    # command: with an image, a blob, a blob without pages, no such resource
    "unref": (OK, OK, OK, BAD_RESOURCE),
    "attach": (UNSPEC, UNSPEC, BAD_PARAMETER, BAD_RESOURCE),
    "detach": (OK, OK, OK, BAD_RESOURCE),
    "transfer": (OK, OK, OK, BAD_RESOURCE),
    "flush": (OK, OK, BAD_PARAMETER, BAD_RESOURCE),
    "uuid": (OK + 5, OK + 5, OK + 5, BAD_RESOURCE),
    "scanout": (OK, BAD_RESOURCE, BAD_RESOURCE, BAD_RESOURCE),
    "scanout blob": (BAD_RESOURCE, OK, BAD_RESOURCE, BAD_RESOURCE),
}
COMMANDS: dict[str, Callable[[int], bytes]] = {
    "unref": guest.unref,
    "attach": lambda number: guest.attach(number, guest.entries((0, PAGE))),
    "detach": guest.detach,
    "transfer": guest.transfer,
    "flush": guest.flush,
    "uuid": guest.assign_uuid,
    "scanout": lambda number: guest.set_scanout(3, number),
    "scanout blob": lambda number: guest.set_scanout_blob(3, number),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_attack_26_43_80_each_command_on_each_kind_of_resource(name: str) -> None:
    for number, kind in zip((1, 4, 5, 77), EXPECTED[name], strict=True):
        assert hex(furnished().run(COMMANDS[name](number)).kind) == hex(kind), number
    for pointer in (1, 2, 4, 5, 77, 0):
        furnished().device.execute_cursor(guest.update_cursor(0, pointer))


def test_attack_02_04_06_12_13_80_commands_that_there_are_not_are_errors_of_24_bytes() -> None:
    """Capsets, contexts, 3D, cursors on the control queue, host-visible memory."""
    known = {int.from_bytes(request[:4], "little") for request in GOOD.values()}
    numbers = {*range(0x100, 0x120), *range(0x200, 0x220), *range(0x300, 0x310), 0, 0xFFFFFFFF}
    for number in sorted(numbers - known):
        driver = furnished()
        driver.refused(guest.command(number, b"\xff" * 512), UNSPEC)


def test_attack_33_no_ring_format_is_offered_that_we_do_not_have() -> None:
    from vgpud.backend.state import VhostUserBackend

    offered = VhostUserBackend(int(FEATURES)).offered
    packed, in_order, notification_data, ring_reset = (1 << bit for bit in (34, 35, 38, 40))
    assert not offered & (packed | in_order | notification_data | ring_reset)


def test_attack_54_a_question_leaves_nothing_once_it_is_answered(real: RealGuest) -> None:
    def one_round(_: int) -> None:
        due = real.device.execute(guest.get_display_info())
        assert isinstance(due, Ask)
        display = real.device.execute(guest.get_edid(0))
        assert isinstance(display, Ask)

    flat(one_round, 20_000)


def test_attack_58_an_image_is_zeros_before_the_first_transfer(real: RealGuest) -> None:
    """Also where the heap gives back what another image had."""
    pieces = mem_entries([(GPA, 64 * PAGE)])
    for side in (16, 64, 256):
        for _ in range(20):
            assert real.run(guest.create_2d(1, side, side)) == OK
            image = real.device.resources.require_image(1)
            assert bytes(image.surface.pixels) == bytes(side * side * 4)
            assert real.run(guest.attach(1, pieces)) == OK
            image.surface.pixels[:] = b"\xa5" * len(image.surface.pixels)
            del image
            assert real.run(guest.unref(1)) == OK


def test_attack_77_a_response_is_as_long_as_its_kind_says() -> None:
    driver = furnished()
    assert len(driver.run(guest.assign_uuid(1)).body) == 16
    for request in (guest.get_display_info(), guest.get_edid(0)):
        body = driver.answer(driver.ask(request)).body
        assert len(body) == (384 if request[:2] == b"\x00\x01" else 1032)
