"""Guest memory as both machines have it: which addresses are RAM, and what lies there."""

from tests.qtest.gpu import noise

MIB = 1 << 20
RAM_SIZE = 64 * MIB
DIMM_SIZE = 2 * MIB
DIMMS = (0x1_0000_0000, 0x1_0000_0000 + DIMM_SIZE)
"""Two modules, one behind the other: an entry over their seam lies in two memory regions (A11)."""

LOW, PIXELS, SEAM = 0x1_0000, 0x40_0000, DIMMS[0]
LOW_SIZE, PIXELS_SIZE = 0x8_0000, 4 * MIB

FILLED = (
    (LOW, LOW_SIZE, 3),
    (PIXELS, PIXELS_SIZE, 5),
    (DIMMS[0], DIMM_SIZE, 7),
    (DIMMS[1], DIMM_SIZE, 11),
)
"""(address, bytes, seed) of what is filled with noise; scripts take their pixels from there."""

RAM = (
    (0, 0xC_0000),
    (0xE_0000, 0x1_0000),
    (0x10_0000, RAM_SIZE - 0x10_0000),
    (DIMMS[0], 2 * DIMM_SIZE),
)
"""(address, bytes) of what QEMU shares with a back-end on q35: without the ROMs' shadows at
0xc0000 and 0xf0000."""

READABLE = ((0, RAM_SIZE), (0xFFFF_0000, 0x1_0000), (DIMMS[0], 2 * DIMM_SIZE))
"""What QEMU's own device maps directly: the ROMs and their shadows too."""
BOUNCE = 4096
"""Bytes outside of that for which QEMU makes bounce buffers, in all of a device's mappings."""

HOLE = 0x2_0000_0000
"""No memory and no device anywhere near."""
SHADOW = 0xC_8000
"""RAM behind PAM registers: zeros, which QEMU reads but does not share."""


def is_ram(address: int, length: int) -> bool:
    """Whether all of a range is RAM that QEMU shares."""
    if length <= 0 or address + length > 1 << 64:
        return False
    end = address + length
    for start, size in RAM:  # in order of their addresses
        if start <= address < start + size:
            address = min(end, start + size)
            if address == end:
                return True
    return False


def bounced(address: int, length: int) -> int:
    """The bytes of a range that QEMU cannot map directly; a range goes on at 0 behind 2^64."""
    direct = 0
    for low, size in ((address, length), (address - (1 << 64), length)):
        for start, room in READABLE:
            direct += max(0, min(low + size, start + room) - max(low, start))
    return length - direct


class Contents:
    """What lies where: the noise that every script starts with, and what it poked since."""

    def __init__(self) -> None:
        self.clean = {start: noise(size, seed) for start, size, seed in FILLED}
        self._now = {start: bytearray(data) for start, data in self.clean.items()}
        self._poked: list[tuple[int, int]] = []

    def read(self, address: int, length: int) -> bytes:
        """Bytes of filled memory; zeros elsewhere (scripts take no pixels from there)."""
        out = bytearray(length)
        for start, data in self._now.items():
            low, high = max(address, start), min(address + length, start + len(data))
            if low < high:
                out[low - address : high - address] = data[low - start : high - start]
        return bytes(out)

    def poke(self, address: int, data: bytes) -> None:
        """Change filled memory."""
        start, now = self._part(address, len(data))
        now[address - start : address - start + len(data)] = data
        self._poked.append((address, len(data)))

    def restore(self) -> None:
        """Undo all pokes."""
        for address, length in self._poked:
            start, now = self._part(address, length)
            at = slice(address - start, address - start + length)
            now[at] = self.clean[start][at]
        self._poked.clear()

    def _part(self, address: int, length: int) -> tuple[int, bytearray]:
        for start, now in self._now.items():
            if start <= address and address + length <= start + len(now):
                return start, now
        raise ValueError(f"nothing is filled at {address:#x}")
