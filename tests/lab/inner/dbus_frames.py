"""What a viewer gets of a guest's frames: the guest's own memory, and never a copy by a socket."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

from tests.lab.inner.dbus import PAGE, Chain, chain, create_blob, rows, set_scanout_blob
from tests.qtest import gpu
from tests.qtest.gpu import PIXELS

SECOND = PIXELS + 0x100_0000
WIDTH, HEIGHT = 640, 480
WHOLE = (0, 0, WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def machine() -> Iterator[Chain]:
    with tempfile.TemporaryDirectory() as folder:
        control = f"{folder}/control"
        with chain(heads=2, backend_options=["--scanout=dmabuf", f"--control={control}"]) as made:
            made.control = control
            yield made


@pytest.fixture
def started(machine: Chain) -> Iterator[Chain]:
    """A started device that shows nothing; afterwards no pixel has gone through a socket."""
    machine.start()
    for listener in machine.listeners:
        listener.clear()
    yield machine
    assert machine.statistics()["pixel_bytes"] == "0"
    machine.pair.alive()


def test_blobs_are_offered(machine: Chain) -> None:
    """Our edit of QEMU: the bits are the back-end's."""
    machine.pair.vm.gpu.reset()
    assert machine.pair.vm.gpu.offered() & 0xF == 0b1110, "EDID, UUID, BLOB"


def test_the_guests_memory_is_shown(started: Chain) -> None:
    """The frame is a udmabuf with the guest's pixels, and what the guest writes later is in it."""
    data = started.blob(WIDTH, HEIGHT)
    started.show(WIDTH, HEIGHT)
    frame = started.shown()
    assert (frame.width, frame.height, frame.stride) == (WIDTH, HEIGHT, 4 * WIDTH)
    assert (frame.fourcc, frame.exp_name, frame.modifier) == ("XR24", "udmabuf", 0)
    assert frame.size == len(data)
    assert frame.pixels() == data
    other = gpu.noise(len(data), 99)
    started.driver.vm.ram.write(PIXELS, other)
    assert frame.pixels() == other
    assert started.display.size(0) == (WIDTH, HEIGHT)


def test_scattered_pages(started: Chain) -> None:
    """Every other page, from the end: the buffer has them in the blob's order."""
    size = WIDTH * HEIGHT * 4
    data = gpu.noise(size, 5)
    places = [PIXELS + 2 * PAGE * number for number in reversed(range(size // PAGE))]
    for number, place in enumerate(places):
        page = data[number * PAGE : (number + 1) * PAGE]
        started.driver.vm.ram.write(place, page)
    started.driver.ok(create_blob(1, [(place, PAGE) for place in places], size))
    started.show(WIDTH, HEIGHT)
    frame = started.shown()
    assert (frame.exp_name, frame.pixels()) == ("udmabuf", data)


def test_an_update_for_each_flush(started: Chain) -> None:
    """The damaged rectangle arrives, and the buffer is not sent again."""
    started.blob(WIDTH, HEIGHT)
    started.show(WIDTH, HEIGHT)
    listener = started.listener
    listener.wait("UpdateDMABUF")
    for number in range(20):
        rect = (7 * number, 5 * number, 30 + number, 20)
        started.driver.ok(gpu.flush(1, rect))
        listener.expect("UpdateDMABUF", *rect)
    assert listener.count("ScanoutDMABUF") == 1
    # The first flush may find that its damage, the new picture's, is already on its way.
    assert listener.count("UpdateDMABUF") in (21, 22), listener.history()


def test_padded_rows(started: Chain) -> None:
    """A stride larger than a row is QEMU's to know: still the guest's own memory."""
    stride = 4 * WIDTH + 256
    data = started.blob(WIDTH, HEIGHT, stride=stride)
    started.show(WIDTH, HEIGHT, stride=stride)
    frame = started.shown()
    assert (frame.stride, frame.size) == (stride, len(data))
    assert frame.pixels() == rows(data, WIDTH, HEIGHT, stride)


def copied(chain: Chain, rect: gpu.Rect, offset: int, stride: int) -> None:
    """What QEMU could not be told of is shown by a copy of the damage."""
    x, y, width, height = rect
    data = chain.blob(WIDTH, HEIGHT + 20, stride=stride)
    chain.show(WIDTH, HEIGHT, rect=rect, offset=offset, stride=stride)
    frame = chain.shown()
    start = offset + y * stride + 4 * x
    assert (frame.width, frame.height, frame.exp_name) == (width, height, "udmabuf")
    assert frame.stride % 256 == 0
    assert frame.pixels() == rows(data, width, height, stride, start)
    other = gpu.noise(len(data), 77)
    chain.driver.vm.ram.write(PIXELS, other)
    part = (x + 8, y + 4, width // 2, height // 3)
    chain.driver.ok(gpu.flush(1, part))
    chain.driver.settled()
    wanted = bytearray(rows(data, width, height, stride, start))
    for row in range(4, 4 + part[3]):
        at = 4 * (row * width + 8)
        source = start + row * stride + 32
        wanted[at : at + 4 * part[2]] = other[source : source + 4 * part[2]]
    assert frame.pixels() == bytes(wanted)
    chain.listener.expect("UpdateDMABUF", 8, 4, *part[2:])
    # vgpuctl reads the guest's memory itself, which QEMU's screendump cannot: all of it is new.
    assert chain.screenshot(0) == rows(other, width, height, stride, start)


def test_crop(started: Chain) -> None:
    copied(started, (33, 17, 333, 211), 0, 4 * WIDTH)


def test_offset(started: Chain) -> None:
    copied(started, WHOLE, 4 * WIDTH + 12, 4 * WIDTH)


def test_offset_in_padded_rows(started: Chain) -> None:
    copied(started, (1, 2, 100, 100), 2 * PAGE + 4, 4 * WIDTH + 64)


def test_two_heads(started: Chain) -> None:
    """Two buffers, then two halves of one: every head has its own picture and its own updates."""
    left = started.blob(WIDTH, HEIGHT, resource=1, seed=1)
    right = started.blob(800, 600, resource=2, seed=2, at=SECOND)
    started.show(WIDTH, HEIGHT, resource=1, scanout=0)
    started.show(800, 600, resource=2, scanout=1)
    frames = [started.shown(head) for head in (0, 1)]
    # The last page of the right one is not full.
    assert [frame.pixels() for frame in frames] == [left, right[: 800 * 600 * 4]]
    for listener in started.listeners:
        listener.clear()
    wide = started.blob(WIDTH, HEIGHT, resource=3, seed=3)
    half = WIDTH // 2
    for head in (0, 1):
        rect = (half * head, 0, half, HEIGHT)
        size = (WIDTH, HEIGHT)
        started.driver.ok(set_scanout_blob(head, 3, rect, size, 4 * WIDTH))
    started.driver.ok(gpu.flush(3, WHOLE))
    for head in (0, 1):
        pixels = rows(wide, half, HEIGHT, 4 * WIDTH, 4 * half * head)
        assert started.shown(head).pixels() == pixels
        assert started.screenshot(head) == pixels


def test_page_flips(started: Chain) -> None:
    """Each flip is one new buffer of the viewer's and an update; all pixels are right."""
    places = (PIXELS, SECOND)
    for resource, place in enumerate(places, 1):
        started.blob(WIDTH, HEIGHT, resource=resource, at=place)
    for flip in range(40):
        resource = 1 + flip % 2
        data = gpu.noise(WIDTH * HEIGHT * 4, flip)
        started.driver.vm.ram.write(places[resource - 1], data)
        started.show(WIDTH, HEIGHT, resource=resource)
        frame, *_ = started.listener.wait("ScanoutDMABUF", flip + 1)
        assert frame.pixels() == data, f"flip {flip}: {frame}"
    started.driver.settled()
    assert started.listener.count("ScanoutDMABUF") == 40
    # Two where the display was told of the new picture before its flush had come.
    assert 40 <= started.listener.count("UpdateDMABUF") <= 80


def test_2d(started: Chain) -> None:
    """A 2D resource is a buffer too: what the guest transfers is in it, no sooner."""
    picture = started.driver.draw(WIDTH, HEIGHT, seed=4)
    frame = started.shown()
    assert (frame.exp_name, frame.fourcc) == ("udmabuf", "XR24")
    assert gpu.rgb(frame.pixels()) == picture
    other = gpu.noise(WIDTH * HEIGHT * 4, 5)
    started.driver.vm.ram.write(PIXELS, other)
    assert gpu.rgb(frame.pixels()) == picture
    started.driver.ok(gpu.transfer(1, WHOLE), gpu.flush(1, WHOLE))
    started.driver.settled()
    assert gpu.rgb(frame.pixels()) == gpu.rgb(other)
    assert gpu.rgb(started.screenshot(0)) == gpu.rgb(other)
    assert started.listener.count("ScanoutDMABUF") == 1


def test_other_sizes(started: Chain) -> None:
    """Larger, smaller, odd and 2D between blobs: the viewer and QEMU's console know each size."""
    sizes = [(320, 200), (1920, 1080), (64, 64), (801, 601), (1280, 800)]
    for number, (width, height) in enumerate(sizes, 1):
        size = -(-4 * width * height // PAGE) * PAGE
        if number % 2:
            data = started.blob(width, height, resource=number, seed=number)
            started.show(width, height, resource=number)
            wanted = gpu.rgb(data[: 4 * width * height])
        else:
            wanted = started.driver.draw(width, height, resource=number, seed=number)
        frame = started.shown()
        started.listener.wait("UpdateDMABUF", number)
        assert (frame.width, frame.height) == (width, height), started.listener.history()
        assert gpu.rgb(frame.pixels()) == wanted, f"{frame}, backing of {size}"
        assert started.display.size(0) == (width, height)


def test_4k(started: Chain) -> None:
    """33 MB a frame, none of it copied."""
    data = started.blob(3840, 2160)
    started.show(3840, 2160)
    assert started.shown().pixels() == data


def test_pointer(started: Chain) -> None:
    """The pointer's picture is the one thing that is sent as pixels (16 KiB)."""
    started.blob(WIDTH, HEIGHT)
    started.show(WIDTH, HEIGHT)
    arrow = gpu.noise(64 * 64 * 4, 8)
    started.driver.vm.ram.write(SECOND, arrow)
    started.driver.ok(
        gpu.create_2d(2, 1, 64, 64),
        gpu.attach(2, [(SECOND, len(arrow))]),
        gpu.transfer(2, (0, 0, 64, 64)),
    )
    started.driver.run(gpu.cursor(gpu.UPDATE_CURSOR, 0, 30, 40, 2, 3, 4), room=0, queue=1)
    width, height, hot_x, hot_y, pixels = started.listener.wait("CursorDefine")
    assert (width, height, hot_x, hot_y, bytes(pixels)) == (64, 64, 3, 4, arrow)
    started.driver.run(gpu.cursor(gpu.MOVE_CURSOR, 0, 50, 60, 0), room=0, queue=1)
    started.driver.settled()
    assert (50, 60) in [call[1][:2] for call in started.listener.calls if call[0] == "MouseSet"]
