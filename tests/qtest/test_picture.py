"""What the guest draws is what QEMU shows, pixel for pixel."""

import struct

import pytest

from tests.qtest import gpu
from tests.qtest.gpu import PIXELS, Driver


def crop(rgb: bytes, width: int, rect: gpu.Rect) -> bytes:
    """A rectangle of a picture that is `width` pixels wide."""
    x, y, w, h = rect
    return b"".join(
        rgb[(line * width + x) * 3 : (line * width + x + w) * 3] for line in range(y, y + h)
    )


@pytest.mark.parametrize("pixel_format", gpu.CHANNELS)
def test_C05_F14_format(driver: Driver, pixel_format: int) -> None:
    """Rows C05, F14: eight formats, one picture."""
    driver.expect(driver.draw(100, 60, pixel_format=pixel_format, seed=pixel_format))


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (1280, 800), (1920, 1080)])
def test_size(driver: Driver, size: tuple[int, int]) -> None:
    driver.expect(driver.draw(*size))


def test_S08_S09_offset(driver: Driver) -> None:
    """Row S08: a scanout that is a window of a resource, and then another window (S09)."""
    whole = driver.draw(200, 150)
    for rect in ((40, 30, 100, 60), (0, 0, 100, 60), (100, 90, 100, 60)):
        driver.ok(gpu.set_scanout(0, 1, rect), gpu.flush(1, (0, 0, 200, 150)))
        driver.expect(crop(whole, 200, rect))


def test_two_heads(driver: Driver) -> None:
    """Two heads, two resources, two sizes."""
    first = driver.draw(64, 48, resource=1, scanout=0, seed=1)
    second = driver.draw(80, 40, resource=2, scanout=1, seed=2, at=PIXELS + 0x10_0000)
    driver.expect(first, head=0)
    driver.expect(second, head=1)


def test_S10_one_resource_on_two_heads(driver: Driver) -> None:
    """Row S10: one flush, two screens, each with its own window."""
    whole = driver.draw(128, 64)
    left, right = (0, 0, 64, 64), (64, 0, 64, 64)
    driver.ok(gpu.set_scanout(0, 1, left), gpu.set_scanout(1, 1, right))
    pixels = gpu.noise(128 * 64 * 4, 9)
    driver.vm.ram.write(PIXELS, pixels)
    driver.ok(gpu.transfer(1, (0, 0, 128, 64)), gpu.flush(1, (0, 0, 128, 64)))
    whole = gpu.rgb(pixels)
    driver.expect(crop(whole, 128, left), head=0)
    driver.expect(crop(whole, 128, right), head=1)


def test_F04_F05_damage(driver: Driver) -> None:
    """Rows F04, F05: only what is flushed is new, in the scanout's coordinates."""
    old = driver.draw(100, 100)
    rect = (20, 10, 60, 70)
    driver.ok(gpu.set_scanout(0, 1, rect))
    driver.expect(crop(old, 100, rect))
    pixels = gpu.noise(100 * 100 * 4, 8)
    driver.vm.ram.write(PIXELS, pixels)
    driver.ok(gpu.transfer(1, (0, 0, 100, 100)), gpu.flush(1, (0, 0, 50, 40)))
    new, mixed = gpu.rgb(pixels), bytearray(old)
    for line in range(40):
        mixed[line * 300 : line * 300 + 150] = new[line * 300 : line * 300 + 150]
    driver.expect(crop(bytes(mixed), 100, rect))


def test_scattered_backing(driver: Driver) -> None:
    """A frame buffer of single pages in reverse order, as a guest's memory is after a while."""
    width, height = 256, 64
    pages = [PIXELS + 4096 * n for n in reversed(range(width * height * 4 // 4096))]
    pixels = gpu.noise(width * height * 4, 3)
    for number, page in enumerate(pages):
        driver.vm.ram.write(page, pixels[4096 * number : 4096 * (number + 1)])
    whole = (0, 0, width, height)
    driver.ok(
        gpu.create_2d(1, 2, width, height),
        gpu.attach(1, [(page, 4096) for page in pages]),
        gpu.transfer(1, whole),
        gpu.set_scanout(0, 1, whole),
        gpu.flush(1, whole),
    )
    driver.expect(gpu.rgb(pixels))


def test_K01_K02_K05_K06_K14_K15_cursor_disturbs_nothing(driver: Driver) -> None:
    """Rows K01 to K15 on a real QEMU: the pointer's commands, right and wrong, in the middle of a
    frame. Trap 20: a head that is not there."""
    pixels = gpu.noise(64 * 64 * 4, 4)
    driver.vm.ram.write(PIXELS + 0x10_0000, pixels)
    whole = (0, 0, 64, 64)
    driver.ok(
        gpu.create_2d(7, 1, 64, 64),
        gpu.attach(7, [(PIXELS + 0x10_0000, len(pixels))]),
        gpu.transfer(7, whole),
        gpu.create_2d(8, 1, 32, 32),
    )
    wrong = [
        gpu.cursor(gpu.UPDATE_CURSOR, 0, 0xFFFF_FFFF, 5, 7, 70, 70),
        gpu.cursor(gpu.UPDATE_CURSOR, 5, 0, 0, 7),
        gpu.cursor(gpu.UPDATE_CURSOR, 0, 0, 0, 8),
        gpu.cursor(gpu.UPDATE_CURSOR, 0, 0, 0, 99),
        gpu.cursor(gpu.UPDATE_CURSOR, 0, 0, 0, 7)[:55],
        gpu.hdr(gpu.GET_DISPLAY_INFO) + bytes(32),
        gpu.cursor(gpu.MOVE_CURSOR, 0, 3, 4, 7),
        gpu.cursor(gpu.MOVE_CURSOR, 0, 3, 4, 0),
        gpu.fenced(gpu.cursor(gpu.UPDATE_CURSOR, 0, 3, 4, 0), 5),
    ]
    for request in (gpu.cursor(gpu.UPDATE_CURSOR, 0, 5, 5, 7, 1, 2), *wrong):
        assert driver.run(request, queue=1) == b"", "no cursor command is answered (K14)"
        assert driver.response(length=8) == b"\xee" * 8, "the buffer stays untouched (K15)"
    driver.expect(driver.draw(64, 48, seed=5))


def test_K16_many_moves(driver: Driver) -> None:
    """Row K16: a batch of moves is given back whole."""
    queue = driver.device.queues[1]
    for slot in range(16):
        driver.send(gpu.cursor(gpu.MOVE_CURSOR, 0, slot, slot, 0), 0, queue=1, slot=slot)
    driver.device.kick(1)
    with driver.vm.explained():
        queue.wait()
    assert len(queue.take()) == 16


@pytest.mark.parametrize("flags", [gpu.FENCE, gpu.FENCE | gpu.RING_IDX, gpu.FENCE | 1 << 31])
def test_E15_E16_E17_E18_fence(driver: Driver, flags: int) -> None:
    """Rows E15 to E18: the fence comes back, on errors and on answers of QEMU's too."""
    requests = (
        gpu.create_2d(1, 1, 64, 48),
        gpu.unref(99),
        gpu.hdr(gpu.GET_DISPLAY_INFO),
        gpu.get_edid(0),
        gpu.hdr(0x999),
    )
    for number, request in enumerate(requests):
        fence = 0xFFFF_FFFF_0000_0000 + number
        answer = driver.run(gpu.fenced(request, fence, 7, 3, flags))
        assert struct.unpack_from("<IQIB", answer, 4) == (gpu.FENCE, fence, 7, 0)


def test_E22_fences_in_order(driver: Driver) -> None:
    """Decision 8: a fenced answer never overtakes an earlier one, whatever QEMU was asked."""
    driver.draw(640, 480)
    queue = driver.device.queues[0]
    slots = {}
    requests = [gpu.hdr(gpu.GET_DISPLAY_INFO), gpu.flush(1, (0, 0, 640, 480)), gpu.unref(9)]
    for slot in range(24):
        head = driver.send(gpu.fenced(requests[slot % 3], slot + 1), slot=slot)
        slots[head] = slot
    driver.device.kick()
    with driver.vm.explained():
        queue.wait()
    assert [slots[head] for head, _ in queue.take()] == list(range(24))


def test_trap_1_off_and_on(driver: Driver) -> None:
    """Trap 1: after SCANOUT(0) an UPDATE crashes QEMU; every way to switch a head off and draw."""
    whole = (0, 0, 64, 48)
    for seed in range(3):
        driver.draw(64, 48, seed=seed)
        driver.ok(gpu.set_scanout(0, 0, (0, 0, 0, 0)), gpu.flush(1, whole))
        driver.ok(gpu.set_scanout(0, 1, whole), gpu.unref(1))
        assert gpu.kind_of(driver.run(gpu.flush(1, whole))) == gpu.INVALID_RESOURCE
        driver.ok(gpu.set_scanout(0, 0, (0, 0, 0, 0)))
        driver.settled()
    driver.expect(driver.draw(80, 48, seed=7))


def test_trap_1_off_and_on_in_one_kick(driver: Driver) -> None:
    """Trap 1: the same without time for QEMU to read between."""
    picture = driver.draw(64, 48)
    whole = (0, 0, 64, 48)
    off, on = gpu.set_scanout(0, 0, (0, 0, 0, 0)), gpu.set_scanout(0, 1, whole)
    requests = [off, gpu.flush(1, whole), on, off, on, gpu.flush(1, whole)] * 4
    for slot, request in enumerate(requests):
        driver.send(request, 24, slot=slot)
    driver.device.kick()
    with driver.vm.explained():
        driver.device.queues[0].wait()
    assert {length for _, length in driver.device.queues[0].take()} == {24}
    driver.expect(picture)


def test_trap_3_huge_scanout(driver: Driver) -> None:
    """Trap 3: QEMU allocates whatever SCANOUT says and aborts where it cannot."""
    whole = (0, 0, 16, 4_000_000)
    driver.ok(
        gpu.create_2d(5, 1, 16, 4_000_000),
        gpu.set_scanout(0, 5, whole),
        gpu.flush(5, whole),
        gpu.unref(5),
    )
    driver.expect(driver.draw(64, 48))
