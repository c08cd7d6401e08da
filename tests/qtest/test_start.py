"""How the device comes up: features, configuration, queues, interrupts.

"Trap N" is a number of qemu-frontend.md section 10: what a back-end must do so that QEMU neither
crashes nor hangs.
"""

import struct
import time

import pytest

from tests.qemu.binaries import Qemu
from tests.qtest import gpu
from tests.qtest.gpu import Driver
from tests.qtest.machine import Served, served
from tests.support.qtest import wait_until
from tests.support.virtio_pci import (
    DRIVER_OK,
    EVENT_IDX,
    GPU_EDID,
    GPU_RESOURCE_UUID,
    INDIRECT_DESC,
    VERSION_1,
)

CELLS = (0x50_0000, 0x50_0004, 0x50_0008)
"""Guest-physical words that MSI-X messages are written to."""


def draws(pair: Served, seed: int = 1) -> None:
    """The device that is started draws a picture."""
    driver = Driver(pair.vm)
    driver.expect(driver.draw(64, 48, seed=seed))


def test_features(driver: Driver) -> None:
    """What the guest is offered: the back-end's three bits, QEMU's own for the ring, no more."""
    offered = driver.device.offered()
    wanted = VERSION_1 | INDIRECT_DESC | EVENT_IDX | GPU_EDID | GPU_RESOURCE_UUID
    assert offered & wanted == wanted
    assert offered & 0xFFFF == GPU_EDID | GPU_RESOURCE_UUID, "2D: no virgl, no blobs"


@pytest.mark.parametrize("features", [0, INDIRECT_DESC, EVENT_IDX, INDIRECT_DESC | EVENT_IDX])
def test_trap_14_ring_features(pair: Served, features: int) -> None:
    """Trap 14, rule 7: the guest may accept what QEMU offers, whatever the back-end offered."""
    pair.vm.gpu.start(features)
    driver = Driver(pair.vm)
    driver.indirect = bool(features & INDIRECT_DESC)
    driver.expect(driver.draw(64, 48, seed=features >> 28))


def test_trap_15_config(driver: Driver, the_qemu: Qemu) -> None:
    """Trap 15: 16 bytes of configuration on QEMU 10, 20 on 11. Trap 21: events are QEMU's."""
    size = 16 if the_qemu.version.startswith("10.") else 20
    assert driver.device.read_config(0, size) == struct.pack("<III", 0, 0, 2).ljust(size, b"\0")


def test_trap_27_config_polled(driver: Driver) -> None:
    """Trap 27: each access is a round trip that holds QEMU's big lock."""
    begin = time.monotonic()
    driver.device.read_config(0, 16 * 1)
    for _ in range(100):
        driver.device.read_config(0, 16)
    took = (time.monotonic() - begin) / 404
    assert took < 0.005, f"{took * 1000:.2f} ms an access"


def test_D01_display_info(driver: Driver) -> None:
    """Row D01: as QEMU says, for its default of 1280x800 on head 0."""
    modes = gpu.modes(driver.run(gpu.hdr(gpu.GET_DISPLAY_INFO)))
    assert modes[0] == (0, 0, 1280, 800, 1, 0)
    assert set(modes[1:]) == {(0,) * 6}


def test_D02_modes_of_the_command_line(the_qemu: Qemu) -> None:
    """Rows D01, D02: the modes come from QEMU's command line."""
    with served(the_qemu, options="max_outputs=2,xres=1000,yres=700") as pair:
        pair.vm.gpu.start()
        modes = gpu.modes(Driver(pair.vm).run(gpu.hdr(gpu.GET_DISPLAY_INFO)))
        assert modes[0] == (0, 0, 1000, 700, 1, 0)


@pytest.mark.parametrize("head", [0, 1])
def test_D04_edid(driver: Driver, head: int) -> None:
    """Row D04: QEMU's EDID, every block's sum right."""
    answer = driver.run(gpu.get_edid(head))
    kind, size = struct.unpack_from("<I", answer)[0], struct.unpack_from("<I", answer, 24)[0]
    edid = answer[32:]
    assert (kind, size, len(edid)) == (gpu.OK_EDID, 1024, 1024)
    assert edid.startswith(bytes.fromhex("00ffffffffffff00"))
    assert edid[8:10] == b"\x49\x14", "QEMU's vendor id, RHT"
    assert all(sum(edid[at : at + 128]) % 256 == 0 for at in range(0, 1024, 128))


@pytest.mark.parametrize("head", [2, 16, 0xFFFF_FFFF])
def test_D05_trap_20_edid_of_no_head(driver: Driver, head: int) -> None:
    """Trap 20, row D05: QEMU never answers this one, so it must not be asked."""
    assert gpu.kind_of(driver.run(gpu.get_edid(head))) == gpu.INVALID_PARAMETER


@pytest.mark.parametrize("size", [2, 4, 16, 32, 64])
def test_trap_16_queue_size(pair: Served, size: int) -> None:
    """Trap 16: the driver chooses the size."""
    pair.vm.gpu.start(0, [size, min(size, 16)])
    draws(pair, seed=size)


def test_queue_wraps(pair: Served) -> None:
    """More commands than the ring's indices can count; the last ones still draw."""
    pair.vm.gpu.start(0, [8, None])
    driver, queue = Driver(pair.vm), pair.vm.gpu.queues[0]
    for _ in range(600):
        for slot in range(4):
            driver.send(gpu.unref(9), 24, slot=slot)
        pair.vm.gpu.kick()
        queue.wait()
        assert [length for _, length in queue.take()] == [24] * 4
    draws(pair)


def test_trap_17_only_control_queue(pair: Served) -> None:
    """Trap 17: OVMF sets up queue 0 alone; the other still gets CALL and ENABLE."""
    pair.vm.gpu.start(0, [None, 0])
    draws(pair)


def test_trap_17_no_queue(pair: Served) -> None:
    """Trap 17: DRIVER_OK without any queue, then a real start."""
    pair.vm.gpu.start(0, [0, 0])
    assert pair.vm.gpu.status & DRIVER_OK
    pair.vm.gpu.start()
    draws(pair)


def test_trap_18_intx(driver: Driver) -> None:
    """Trap 18: without MSI-X the call descriptors come before SET_FEATURES."""
    vm = driver.vm
    vm.qtest.read(1, driver.device.isr)  # reading clears it
    driver.ok(gpu.create_2d(1, 1, 64, 48))
    wait_until(lambda: vm.qtest.read(1, driver.device.isr) == 1, "an interrupt by INTx")


def test_msix(pair: Served) -> None:
    """A vector for each queue; each is the one that is written."""
    vm = pair.vm
    for cell in CELLS:
        vm.ram.write(cell, bytes(4))
    vm.gpu.enable_msix(CELLS)
    try:
        vm.gpu.start(vectors=(1, 2))
        driver = Driver(vm)
        driver.ok(gpu.create_2d(1, 1, 64, 48))
        wait_until(lambda: vm.ram.read(CELLS[1], 4) == b"\2\0\0\0", "the control queue's vector")
        assert vm.ram.read(CELLS[2], 4) == bytes(4)
        driver.run(gpu.cursor(gpu.MOVE_CURSOR, 0, 1, 1, 0), queue=1)
        wait_until(lambda: vm.ram.read(CELLS[2], 4) == b"\3\0\0\0", "the cursor queue's vector")
    finally:
        vm.gpu.disable_msix()


def test_msix_masked(pair: Served) -> None:
    """A masked vector is not lost: it comes when it is unmasked. Row 1.5: CALL may change at any
    time."""
    vm = pair.vm
    vm.gpu.enable_msix(CELLS)
    try:
        vm.gpu.start(vectors=(1, 2))
        driver = Driver(vm)
        vm.gpu.mask_msix(1, True)
        vm.ram.write(CELLS[1], bytes(4))
        driver.ok(gpu.create_2d(1, 1, 64, 48))
        assert vm.ram.read(CELLS[1], 4) == bytes(4)
        vm.gpu.mask_msix(1, False)
        wait_until(lambda: vm.ram.read(CELLS[1], 4) == b"\2\0\0\0", "the vector after unmasking")
    finally:
        vm.gpu.disable_msix()


def test_no_vector(pair: Served) -> None:
    """MSI-X without vectors: CALL with NOFD, the driver polls."""
    pair.vm.gpu.enable_msix(CELLS)
    try:
        pair.vm.gpu.start()
        draws(pair)
    finally:
        pair.vm.gpu.disable_msix()


def test_event_idx(pair: Served) -> None:
    """EVENT_IDX: an interrupt when the driver's index is reached, none before."""
    vm = pair.vm
    vm.gpu.enable_msix(CELLS)
    try:
        vm.gpu.start(EVENT_IDX, vectors=(1, 2))
        driver, queue = Driver(vm), vm.gpu.queues[0]
        driver.ok(gpu.create_2d(2, 1, 64, 48))
        wait_until(lambda: vm.ram.read(CELLS[1], 4) == b"\2\0\0\0", "the first interrupt")
        while any(vm.ram.read(CELLS[1], 4)):  # the start may have caused one of its own
            vm.ram.write(CELLS[1], bytes(4))
            time.sleep(0.05)
        queue.set_used_event(3)  # the fourth answer
        driver.ok(gpu.create_2d(1, 1, 64, 48), gpu.unref(1))
        assert vm.ram.read(CELLS[1], 4) == bytes(4), "an interrupt nobody asked for"
        driver.run(gpu.unref(1))
        wait_until(lambda: vm.ram.read(CELLS[1], 4) == b"\2\0\0\0", "the interrupt asked for")
    finally:
        vm.gpu.disable_msix()


def test_no_interrupt(pair: Served) -> None:
    """NO_INTERRUPT in the available ring, without EVENT_IDX."""
    vm = pair.vm
    vm.gpu.start()
    vm.gpu.queues[0].suppress(True)
    vm.qtest.read(1, vm.gpu.isr)
    Driver(vm).ok(gpu.create_2d(1, 1, 64, 48))
    assert vm.qtest.read(1, vm.gpu.isr) == 0


def test_trap_23_reset_before_start(pair: Served) -> None:
    """Trap 23: RESET_DEVICE comes many times, also before any start, and has no reply."""
    for _ in range(20):
        pair.vm.gpu.reset()
    pair.vm.gpu.start()
    draws(pair)


def test_trap_14_packed_ring(the_qemu: Qemu) -> None:
    """Trap 14: the user may switch on what the back-end has not. The ring is dead, nobody else."""
    with served(the_qemu, options="packed=on") as pair:
        pair.vm.gpu.start(1 << 34)
        pair.vgpud.wait_log("level=warning")
        pair.vm.gpu.start()
        draws(pair)
