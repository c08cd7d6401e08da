"""Guest memory of every kind QEMU has, and memory that comes and goes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.binaries import Qemu
from tests.qtest import gpu
from tests.qtest.gpu import PIXELS, Driver
from tests.qtest.machine import MEMORY, SHARED, Served, served
from tests.support.qtest import GuestRam, PciDevice
from tests.support.virtio_pci import VirtioPci

SLOTS = f"{MEMORY},slots=4,maxmem=1G"
DIMM, DIMM_SIZE = 0x1_0000_0000, 4 << 20
WHOLE = (0, 0, 64, 48)
SIZE = 64 * 48 * 4


class Paper(GuestRam):
    """Memory that nobody else sees: for machines that share none."""

    def __init__(self) -> None:
        self.base = 0
        self.bytes = memoryview(bytearray(4 << 20))


@contextlib.contextmanager
def backing_file(qemu: Qemu, size: int) -> Iterator[tuple[str, Path]]:
    """A file for guest memory: (its path as QEMU sees it, as we see it)."""
    folder = (qemu.root or Path("/dev/shm")) / "vgpud"
    folder.mkdir(exist_ok=True)
    path = folder / f"memory-{os.getpid()}"
    try:
        with path.open("wb") as file:
            file.truncate(size)
        yield str(path if qemu.root is None else f"/{path.relative_to(qemu.root)}"), path
    finally:
        path.unlink(missing_ok=True)


def plug(pair: Served, name: str, address: int, size: int = DIMM_SIZE) -> None:
    """Plug a memory module."""
    qmp = pair.vm.qmp
    with pair.vm.explained():
        qmp.execute("object-add", qom_type="memory-backend-memfd", id=name, size=size, share=True)
        qmp.execute("device_add", driver="pc-dimm", id=f"dimm-{name}", memdev=name, addr=address)


def unplug(pair: Served, name: str, slot: int) -> None:
    """Unplug it, as a guest's ACPI would: select the slot, eject (hw/acpi/memory_hotplug.c)."""
    with pair.vm.explained():
        pair.vm.qmp.execute("device_del", id=f"dimm-{name}")
        pair.vm.qtest.commands([f"outl 0xa00 {slot:#x}", "outb 0xa14 0x8"])
        pair.vm.qmp.wait_event("DEVICE_DELETED")
        pair.vm.qmp.execute("object-del", id=name)


def show(driver: Driver, resource: int, seed: int, ram: GuestRam, at: int) -> bytes:
    """Change the guest's pixels, transfer and flush; returns what must be seen."""
    pixels = gpu.noise(SIZE, seed)
    ram.write(at, pixels)
    driver.ok(gpu.transfer(resource, WHOLE), gpu.flush(resource, WHOLE))
    return gpu.rgb(pixels)


def test_trap_19_hotplug(the_qemu: Qemu) -> None:
    """Decision 11: memory comes while the device works. Backings and rings of before go on, and
    the new memory can be drawn from; traps 19 and 23 on the way (a reset drops no region)."""
    with served(the_qemu, size=SLOTS) as pair:
        pair.vm.gpu.start()
        driver = Driver(pair.vm)
        driver.draw(64, 48)
        plug(pair, "one", DIMM)
        driver.expect(show(driver, 1, 5, pair.vm.ram, PIXELS))
        dimm = GuestRam(pair.vm.qemu.pid, base=DIMM, number=1)
        for round_ in range(2):
            driver.ok(gpu.create_2d(2, 1, 64, 48), gpu.attach(2, [(DIMM + 4096, SIZE)]))
            driver.ok(gpu.set_scanout(0, 2, WHOLE))
            driver.expect(show(driver, 2, 6 + round_, dimm, DIMM + 4096))
            pair.vm.gpu.start()
        dimm.close()
        assert not pair.warnings(), pair.vm.logs()


def test_A11_seam(the_qemu: Qemu) -> None:
    """Row A11: one entry over two modules."""
    with served(the_qemu, size=SLOTS) as pair:
        pair.vm.gpu.start()
        driver = Driver(pair.vm)
        plug(pair, "one", DIMM)
        plug(pair, "two", DIMM + DIMM_SIZE)
        pixels = gpu.noise(SIZE, 4)
        for number, (base, part) in enumerate(
            ((DIMM + DIMM_SIZE - 5001, pixels[:5001]), (DIMM + DIMM_SIZE, pixels[5001:]))
        ):
            dimm = GuestRam(pair.vm.qemu.pid, base=DIMM + number * DIMM_SIZE, number=1 + number)
            dimm.write(base, part)
            dimm.close()
        driver.ok(
            gpu.create_2d(2, 1, 64, 48),
            gpu.attach(2, [(DIMM + DIMM_SIZE - 5001, SIZE)]),
            gpu.set_scanout(0, 2, WHOLE),
            gpu.transfer(2, WHOLE),
            gpu.flush(2, WHOLE),
        )
        driver.expect(gpu.rgb(pixels))


def test_A22_R09_unplug(the_qemu: Qemu) -> None:
    """Rows A22, R09: memory goes under a live backing. The picture stays, the resource answers
    errors, everything else goes on; plugged again it is another memory."""
    with served(the_qemu, size=SLOTS) as pair:
        pair.vm.gpu.start()
        driver = Driver(pair.vm)
        other = driver.draw(64, 48, scanout=0)
        plug(pair, "one", DIMM)
        dimm = GuestRam(pair.vm.qemu.pid, base=DIMM, number=1)
        driver.ok(gpu.create_2d(2, 1, 64, 48), gpu.attach(2, [(DIMM, SIZE)]))
        driver.ok(gpu.set_scanout(0, 2, WHOLE))
        picture = show(driver, 2, 7, dimm, DIMM)
        dimm.close()
        unplug(pair, "one", 0)
        driver.expect(picture)
        assert gpu.kind_of(driver.run(gpu.transfer(2, WHOLE))) == gpu.UNSPEC
        driver.ok(gpu.flush(2, WHOLE))
        driver.expect(picture)
        driver.ok(gpu.set_scanout(0, 1, WHOLE))
        driver.expect(other)
        driver.ok(gpu.detach(2), gpu.unref(2))
        assert gpu.kind_of(driver.run(gpu.attach(1, [(DIMM, SIZE)]))) == gpu.UNSPEC
        driver.expect(show(driver, 1, 8, pair.vm.ram, PIXELS))


def test_rings_unplugged(the_qemu: Qemu) -> None:
    """A perverse guest: its rings lie in the module that goes. Rings break, nobody dies."""
    with served(the_qemu, size=SLOTS) as pair:
        plug(pair, "one", DIMM)
        dimm = GuestRam(pair.vm.qemu.pid, base=DIMM, number=1)
        gpu_device = VirtioPci(pair.vm.gpu.pci, dimm)
        gpu_device.start(rings=DIMM)
        unplug(pair, "one", 0)
        gpu_device.kick()
        pair.alive()
        pair.vm.gpu.start()
        driver = Driver(pair.vm)
        driver.expect(driver.draw(64, 48))
        dimm.close()


def test_file(the_qemu: Qemu) -> None:
    """Guest RAM in a file: no memfd, not sealed."""
    with backing_file(the_qemu, 64 << 20) as (inside, path):
        memory = f"memory-backend-file,id=ram,size={MEMORY},mem-path={inside},share=on"
        with served(the_qemu, memory=memory, map_ram=None) as pair:
            ram = GuestRam.of_file(path)
            pair.vm.attach(ram)
            pair.vm.gpu.start()
            driver = Driver(pair.vm)
            driver.expect(driver.draw(64, 48))
            ram.close()


def test_read_only(the_qemu: Qemu) -> None:
    """A module in a file that nobody may write: its descriptor is read-only, mapping it for writing
    fails. QEMU 10 shares it, and pixels are read from it; QEMU 11 does not, so it is no memory."""
    with backing_file(the_qemu, DIMM_SIZE) as (inside, path):
        pixels = gpu.noise(SIZE, 3)
        with path.open("r+b") as file:
            file.write(pixels)
        memory = f"memory-backend-file,id=ro,size={DIMM_SIZE},mem-path={inside},share=off"
        arguments = [
            *("-object", f"{memory},readonly=on,rom=off"),
            *("-device", f"pc-dimm,memdev=ro,addr={DIMM:#x}"),
        ]
        with served(the_qemu, size=SLOTS, arguments=arguments) as pair:
            pair.vm.gpu.start()
            driver = Driver(pair.vm)
            driver.draw(64, 48, resource=2)
            driver.ok(gpu.create_2d(1, 1, 64, 48))
            if the_qemu.version.startswith("10."):
                driver.ok(
                    gpu.attach(1, [(DIMM, SIZE)]),
                    gpu.set_scanout(0, 1, WHOLE),
                    gpu.transfer(1, WHOLE),
                    gpu.flush(1, WHOLE),
                )
                driver.expect(gpu.rgb(pixels))
            else:
                assert gpu.kind_of(driver.run(gpu.attach(1, [(DIMM, SIZE)]))) == gpu.UNSPEC


@pytest.mark.parametrize("memory", ["", SHARED.replace("share=on", "share=off")])
def test_not_shared(the_qemu: Qemu, memory: str) -> None:
    """Section 5: QEMU starts the rings without a single region. vgpud says what to change, once,
    and both go on. (With share=off QEMU 10 sends its private memory: nothing is to be seen.)"""
    with served(the_qemu, memory=memory, map_ram=None) as pair:
        device = VirtioPci(PciDevice(pair.vm.qtest), Paper())
        with pair.vm.explained():
            device.start()
            if not memory or not the_qemu.version.startswith("10."):
                pair.vgpud.wait_log("share=on")
            device.kick()
            device.reset()


def test_many_regions(the_qemu: Qemu) -> None:
    """More regions than the 8 of SET_MEM_TABLE: CONFIGURE_MEM_SLOTS, decision 1.2."""
    with served(the_qemu, size=f"{MEMORY},slots=16,maxmem=1G") as pair:
        pair.vm.gpu.start()
        driver = Driver(pair.vm)
        driver.draw(64, 48)
        for number in range(12):
            plug(pair, f"m{number}", DIMM + number * DIMM_SIZE)
        driver.expect(show(driver, 1, 2, pair.vm.ram, PIXELS))
        driver.ok(gpu.create_2d(2, 1, 64, 48))
        driver.ok(gpu.attach(2, [(DIMM + 11 * DIMM_SIZE, SIZE)]))
        driver.ok(gpu.transfer(2, WHOLE))
