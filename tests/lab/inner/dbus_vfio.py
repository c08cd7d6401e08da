"""Our QEMU sends vgpud the BARs of passed-through devices: a picture in one is a dma-buf of VFIO's
at the viewer, wherever the guest puts the BAR."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.inner.dbus import PAGE, Chain, chain, create_blob, set_scanout_blob
from tests.qtest import gpu
from tests.support.bar import GuestBar, bind, opaque, screenshot
from tests.support.qtest import wait_until

ADDRESS = "0000:00:10.0"
CONTROL = "/tmp/vfio-chain.control"
WIDTH, HEIGHT = 320, 200
WHOLE = (0, 0, WIDTH, HEIGHT)
SIZE = -(-WIDTH * HEIGHT * 4 // PAGE) * PAGE
PAGES = SIZE // PAGE
OTHER = 0xF000_0000
UNSPEC = 0x1200

Entries = list[tuple[int, int]]


@pytest.fixture(scope="module")
def machine() -> Iterator[Chain]:
    bind(ADDRESS)
    options = ["--scanout=dmabuf", f"--control={CONTROL}"]
    arguments = ["-device", f"vfio-pci,host={ADDRESS},id=hostdev0"]
    with chain(backend_options=options, arguments=arguments) as made:
        yield made


@pytest.fixture
def bar(machine: Chain) -> GuestBar:
    """The BAR is there; the device is started and shows nothing."""
    bar = GuestBar(machine.pair.vm.qtest)
    machine.start()
    machine.listener.clear()
    return bar


def draw(chain: Chain, bar: GuestBar, entries: Entries, seed: int = 1) -> bytes:
    """Noise through the BAR, and a blob of it that is shown; offsets are the BAR's."""
    data = gpu.noise(SIZE, seed)
    at = 0
    for offset, length in entries:
        bar.write(offset, data[at : at + length])
        at += length
    absolute = [(bar.address + offset, length) for offset, length in entries]
    chain.driver.ok(create_blob(seed, absolute, SIZE))
    chain.show(WIDTH, HEIGHT, resource=seed)
    return data


def check(chain: Chain, data: bytes) -> None:
    """The viewer has VFIO's dma-buf, the CPU sees what went through the BAR, no pixel a socket."""
    frame = chain.shown()
    assert (frame.exp_name, frame.size, frame.fourcc) == ("vfio_pci_core", SIZE, "XR24")
    assert (frame.width, frame.height, frame.stride) == (WIDTH, HEIGHT, 4 * WIDTH)
    assert screenshot(CONTROL) == opaque(data[: WIDTH * HEIGHT * 4])
    assert chain.statistics()["pixel_bytes"] == "0"


def pages(numbers: list[int]) -> Entries:
    return [(PAGE * number, PAGE) for number in numbers]


def test_a_bar_in_one_piece(machine: Chain, bar: GuestBar) -> None:
    check(machine, draw(machine, bar, [(3 * PAGE, SIZE)]))


def test_a_bar_reversed(machine: Chain, bar: GuestBar) -> None:
    check(machine, draw(machine, bar, pages(list(reversed(range(PAGES))))))


def test_a_bar_scattered(machine: Chain, bar: GuestBar) -> None:
    check(machine, draw(machine, bar, pages(random.Random(6).sample(range(4096), PAGES))))


def test_a_bar_that_moves(machine: Chain, bar: GuestBar) -> None:
    """Old addresses are nobody's, new ones are the device's."""
    old = bar.address
    bar.move(OTHER)
    check(machine, draw(machine, bar, [(0, SIZE)], 1))
    answer = machine.driver.run(create_blob(2, [(old, SIZE)], SIZE))
    assert gpu.kind_of(answer) == UNSPEC
    bar.move(old)
    machine.listener.clear()
    check(machine, draw(machine, bar, [(PAGE, SIZE)], 3))


def test_a_bar_that_is_switched_off(machine: Chain, bar: GuestBar) -> None:
    """The region leaves the table; nobody is lost, and the picture comes back with it."""
    data = draw(machine, bar, [(0, SIZE)])
    check(machine, data)
    for _ in range(5):
        bar.decode(False)
        answer = machine.driver.run(create_blob(2, [(bar.address, SIZE)], SIZE))
        assert gpu.kind_of(answer) == UNSPEC
        bar.decode(True)
        machine.driver.ok(gpu.flush(1, WHOLE))
        check(machine, data)


def test_a_bar_of_less_than_a_page(machine: Chain, bar: GuestBar) -> None:
    """QEMU makes a page of BAR 0's 256 bytes. Nothing of it can be exported: said once."""
    machine.driver.ok(create_blob(1, [(bar.small, PAGE)], PAGE))
    machine.driver.run(set_scanout_blob(0, 1, (0, 0, 32, 32), (32, 32), 128))
    machine.driver.run(gpu.flush(1, (0, 0, 32, 32)))
    machine.pair.vgpud.wait_log("BAR 0 ends at 0x100")
    machine.pair.alive()


def test_a_bar_and_its_descriptors(machine: Chain, bar: GuestBar) -> None:
    """vgpud's descriptors of the device go with its last region."""
    folder = Path(f"/proc/{machine.pair.vgpud.pid}/fd")

    def held() -> int:
        """Of the device, and dma-bufs of its memory; those of RAM are none."""
        count = 0
        for one in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                count += str(one.readlink()) == "anon_inode:[vfio-device]"
                count += "vfio_pci_core" in (folder.parent / "fdinfo" / one.name).read_text()
        return count

    check(machine, draw(machine, bar, [(0, SIZE)]))
    assert held() > 0
    bar.decode(False)
    wait_until(lambda: held() == 0, "no descriptor of the device")
    bar.decode(True)
