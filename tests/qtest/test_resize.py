"""The window changes its size: the guest is told by QEMU, and vgpud answers the new mode."""

import struct

from tests.qemu.binaries import Qemu
from tests.qtest import gpu
from tests.qtest.dbus import set_ui_info
from tests.qtest.gpu import Driver
from tests.qtest.machine import served
from tests.support.qtest import wait_until


def test_D03_V15_resize(the_qemu: Qemu) -> None:
    """Row D03: events_read says DISPLAY, the next GET_DISPLAY_INFO has the new size (it is asked of
    QEMU each time), and the guest's events_clear is taken (row V15)."""
    with served(the_qemu, options="max_outputs=2", display="dbus,p2p=yes") as pair:
        vm = pair.vm
        vm.gpu.start()
        driver = Driver(vm)
        picture = driver.draw(64, 48)
        for head, width, height in ((0, 1600, 1000), (0, 800, 600), (1, 1024, 768)):
            with vm.explained():
                set_ui_info(vm, head, width, height)
                wait_until(lambda: events(vm.gpu.read_config(0, 4)) == 1, "events_read")
            modes = gpu.modes(driver.run(gpu.hdr(gpu.GET_DISPLAY_INFO)))
            assert modes[head] == (0, 0, width, height, 1, 0)
            with vm.explained():
                vm.qtest.write(4, vm.gpu.config + 4, 1)
                assert events(vm.gpu.read_config(0, 4)) == 0
        edid = driver.run(gpu.get_edid(0))[32:]
        timing = edid[54:72]
        assert timing[2] | (timing[4] & 0xF0) << 4 == 800, "the preferred mode's width"
        driver.expect(picture)


def events(config: bytes) -> int:
    word: int = struct.unpack("<I", config)[0]
    return word
