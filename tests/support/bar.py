"""A passed-through ivshmem in a QEMU without a guest: its BAR, programmed and written by qtest."""

from __future__ import annotations

from pathlib import Path

from tests.support.qtest import PciDevice, Qtest
from vgpud import ctl

IVSHMEM_ID = 0x1110_1AF4
BASE = 0xE800_0000
"""Where its BARs are put: behind those of the GPU."""
BAR = 2
PIECE = 64 << 10
COMMAND, MEMORY = 4, 2


class GuestBar:
    """BAR 2, which is RAM, as the guest has it."""

    def __init__(self, qtest: Qtest) -> None:
        self._qtest = qtest
        self._pci = PciDevice(qtest, IVSHMEM_ID, BASE)
        self.address = self._pci.bars[BAR]
        self.small = self._pci.bars[0]

    def write(self, offset: int, data: bytes) -> None:
        lines = [
            f"write {self.address + offset + at:#x} {len(piece)} 0x{piece.hex()}"
            for at in range(0, len(data), PIECE)
            if (piece := data[at : at + PIECE])
        ]
        self._qtest.commands(lines)

    def move(self, address: int) -> None:
        """As a guest moves it: decoding off, another address, decoding on."""
        self.decode(False)
        self._pci.config_write(0x10 + 4 * BAR, address)
        self._pci.config_write(0x14 + 4 * BAR, address >> 32)
        self.decode(True)
        self.address = address

    def decode(self, on: bool) -> None:
        command = self._pci.config_read(COMMAND) & 0xFFFF & ~MEMORY
        self._pci.config_write(COMMAND, command | (MEMORY if on else 0))


def bind(address: str) -> None:
    """To vfio-pci, in the lab."""
    folder = Path("/sys/bus/pci/devices") / address
    (folder / "driver_override").write_text("vfio-pci")
    if not (folder / "driver").exists():
        Path("/sys/bus/pci/drivers_probe").write_text(address)
    assert (folder / "driver").resolve().name == "vfio-pci"


def screenshot(control: str) -> bytes:
    """B, G, R, 0 of head 0."""
    return opaque(ctl.screenshot(control, 0)[2])


def opaque(pixels: bytes) -> bytes:
    """Without what x is in B, G, R, x."""
    out = bytearray(pixels)
    out[3::4] = bytes(len(pixels) // 4)
    return bytes(out)
