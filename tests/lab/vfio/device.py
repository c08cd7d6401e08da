"""Devices of the lab, bound to vfio-pci and opened as a virtual machine monitor does it.

with Device(IVSHMEM) as device:
    device.fd                    the device's descriptor, which QEMU would put into its memory table
    device.bar(2)                its BAR, mapped: what the guest has
"""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from vgpuwire.ioctls import VFIO_DEVICE_RESET

IVSHMEM, SECOND, NVME = (f"0000:00:{slot}.0" for slot in (10, 11, 12))
"""16 MiB and 4 MiB of RAM in BAR 2; a controller memory buffer of 16 MiB in BAR 2, emulated, which
can be reset."""
BAR = 2

VFIO_SET_IOMMU, VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_GET_DEVICE_FD = (
    ord(";") << 8 | 100 + number for number in (2, 4, 6)
)
VFIO_TYPE1V2_IOMMU = 3
SHIFT = 40
CONFIG = 7 << SHIFT
COMMAND, MEMORY_AND_MASTER = CONFIG + 4, 6
DEVICES = Path("/sys/bus/pci/devices")


def bind(address: str) -> None:
    folder = DEVICES / address
    if not (folder / "driver").exists():
        (folder / "driver_override").write_text("vfio-pci")
        Path("/sys/bus/pci/drivers_probe").write_text(address)
    assert (folder / "driver").resolve().name == "vfio-pci"


class Device:
    """One, opened through its group; a `with` block or close() ends it."""

    def __init__(self, address: str) -> None:
        bind(address)
        gc.collect()  # mappings in tracebacks of expected errors: they keep the group busy
        self.syspath = str((DEVICES / address).resolve())
        self._maps: dict[int, mmap.mmap] = {}
        with ExitStack() as stack:
            group = (DEVICES / address / "iommu_group").resolve().name
            container = os.open("/dev/vfio/vfio", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, container)
            opened = os.open(f"/dev/vfio/{group}", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, opened)
            fcntl.ioctl(opened, VFIO_GROUP_SET_CONTAINER, struct.pack("i", container))
            fcntl.ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1V2_IOMMU)
            name = bytearray(address.encode() + b"\0")
            self.fd = fcntl.ioctl(opened, VFIO_GROUP_GET_DEVICE_FD, name)
            stack.callback(os.close, self.fd)
            self._stack = stack.pop_all()
        self.decode(True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for mapped in self._maps.values():
            mapped.close()
        self._maps.clear()
        self._stack.close()

    def size(self, bar: int = BAR) -> int:
        lines = (DEVICES / Path(self.syspath).name / "resource").read_text().splitlines()
        start, end, _ = (int(word, 16) for word in lines[bar].split())
        return end - start + 1 if end else 0

    def bar(self, number: int = BAR) -> mmap.mmap:
        if number not in self._maps:
            offset = number << SHIFT
            self._maps[number] = mmap.mmap(self.fd, self.size(number), offset=offset)
        return self._maps[number]

    def decode(self, on: bool) -> None:
        """What the guest writes to PCI_COMMAND."""
        command = MEMORY_AND_MASTER if on else 0
        os.pwrite(self.fd, command.to_bytes(2, "little"), COMMAND)

    def reset(self) -> None:
        fcntl.ioctl(self.fd, VFIO_DEVICE_RESET)
