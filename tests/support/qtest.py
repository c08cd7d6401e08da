"""QEMU without a guest: the test process pokes the machine's ports and memory itself.

QEMU's qtest protocol (system/qtest.c) is lines of text: one command, one answer. Registers go
that way. Guest RAM does not: it is a memfd of QEMU's that this process maps too, so rings and
pixels are plain memory here. Every wait has a deadline: QEMU has none, and "no answer" is how a
hang of QEMU shows.
"""

import contextlib
import mmap
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

PATIENCE = 5.0
"""Seconds for QEMU to answer: two busy cores are slow, a hang is not."""


class QtestError(Exception):
    """QEMU refused a command, went away, or did not answer in time."""


class Qtest:
    """One qtest connection; takes the socket over."""

    def __init__(self, sock: socket.socket, patience: float = PATIENCE) -> None:
        self._sock = sock
        self._patience = patience
        self._buffer = b""

    def commands(self, lines: Sequence[str]) -> list[str]:
        """Run commands in order, sent in one piece; returns what follows each OK.

        QEMU reads on while it has lines, so forty register writes cost one round trip.
        """
        deadline = time.monotonic() + self._patience
        self.send(lines)
        return [self._answer(line, deadline) for line in lines]

    def send(self, lines: Sequence[str]) -> None:
        """Send commands and wait for nothing. Their answers must never be read: use it last."""
        try:
            self._sock.settimeout(self._patience)
            self._sock.sendall("".join(f"{line}\n" for line in lines).encode())
        except OSError as error:
            raise QtestError(f"{lines[0]}: QEMU takes nothing ({error})") from error

    def command(self, line: str) -> str:
        return self.commands([line])[0]

    def read(self, size: int, address: int) -> int:
        """A little-endian value of 1, 2, 4 or 8 bytes at a guest-physical address."""
        return int(self.command(f"read{WIDTHS[size]} {address:#x}"), 16)

    def write(self, size: int, address: int, value: int) -> None:
        self.command(write(size, address, value))

    def _answer(self, line: str, deadline: float) -> str:
        while True:
            answer = self._line(line, deadline)
            if answer.startswith("IRQ "):  # a line that QEMU sends by itself
                continue
            if answer.split(" ", 1)[0] != "OK":
                raise QtestError(f"{line}: {answer}")
            return answer[3:]

    def _line(self, command: str, deadline: float) -> str:
        while b"\n" not in self._buffer:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                raise QtestError(
                    f"{command}: no answer in {self._patience:.0f} s: QEMU hangs"
                ) from None
            except OSError as error:
                raise QtestError(f"{command}: QEMU is gone ({error})") from error
            if not data:
                raise QtestError(f"{command}: QEMU is gone")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode(errors="replace")


WIDTHS = {1: "b", 2: "w", 4: "l", 8: "q"}


def write(size: int, address: int, value: int) -> str:
    """The command that writes `size` bytes to a guest-physical address."""
    return f"write{WIDTHS[size]} {address:#x} {value:#x}"


VIRTIO_GPU = 0x1050_1AF4
"""Device and vendor id, as one 32-bit read of the configuration space gives them."""
MMIO = 0xE000_0000
"""BARs are assigned from here upwards: in the PCI hole of q35 and pc."""


class PciDevice:
    """A PCI function on bus 0: found, its BARs assigned, memory and bus mastering on."""

    def __init__(self, qtest: Qtest, ids: int = VIRTIO_GPU, base: int = MMIO) -> None:
        """Its BARs are assigned from `base` upwards."""
        self.qtest = qtest
        self._base = base
        self.bars: dict[int, int] = {}
        for slot in range(32):
            self._devfn = slot << 3
            if self.config_read(0) == ids:
                break
        else:
            raise QtestError(f"no PCI device {ids:#010x} on bus 0")
        self._assign_bars()
        self.config_write(4, self.config_read(4) & 0xFFFF | 6)
        self.caps = list(self._capabilities())

    def config_read(self, offset: int) -> int:
        """32 bits of the configuration space; `offset` is a multiple of 4."""
        address, value = f"outl 0xcf8 {self._at(offset):#x}", "inl 0xcfc"
        return int(self.qtest.commands([address, value])[1], 16)

    def config_write(self, offset: int, value: int) -> None:
        self.qtest.commands(
            [f"outl 0xcf8 {self._at(offset):#x}", f"outl 0xcfc {value & 0xFFFF_FFFF:#x}"]
        )

    def _at(self, offset: int) -> int:
        return 0x8000_0000 | self._devfn << 8 | offset

    def _assign_bars(self) -> None:
        """Sizes are read as the specification says: write ones, see which stay."""
        base, number = self._base, 0
        while number < 6:
            offset = 0x10 + 4 * number
            self.config_write(offset, 0xFFFF_FFFF)
            mask = self.config_read(offset)
            wide = mask & 7 == 4  # 64 bits: the next register is its upper half
            if mask and not mask & 1:
                size = (~(mask & ~0xF) + 1) & 0xFFFF_FFFF
                base = (base + size - 1) & ~(size - 1)
                self.config_write(offset, base)
                if wide:
                    self.config_write(offset + 4, 0)
                self.bars[number] = base
                base += size
            number += 2 if wide else 1

    def _capabilities(self) -> Iterator[tuple[int, int]]:
        """(id, offset) of each capability."""
        at = self.config_read(0x34) & 0xFF
        while at:
            head = self.config_read(at)
            yield head & 0xFF, at
            at = head >> 8 & 0xFF


class GuestRam:
    """A memfd of QEMU's, mapped. `base` is the guest-physical address of its first byte."""

    def __init__(
        self, pid: int, name: str = "memory-backend-memfd", base: int = 0, number: int = 0
    ) -> None:
        """Find the memfd among the descriptors of the process; QEMU names it after the type of
        the backend. Several of one type are numbered in the order in which QEMU made them."""
        self.base = base
        found = []
        for fd in sorted(int(entry) for entry in os.listdir(f"/proc/{pid}/fd")):
            path = f"/proc/{pid}/fd/{fd}"
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.readlink(path) == f"/memfd:{name} (deleted)":
                    found.append(path)
        if number >= len(found):
            raise QtestError(f"QEMU (process {pid}) has no memfd {number} called {name}")
        self._open(found[number])

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """Guest memory that lies in a file."""
        ram = cls.__new__(cls)
        ram.base = 0
        ram._open(str(path))
        return ram

    def _open(self, path: str) -> None:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(file, 0)
        finally:
            os.close(file)
        self.bytes = memoryview(self._map)

    @property
    def size(self) -> int:
        return len(self.bytes)

    def read(self, address: int, length: int) -> bytes:
        at = address - self.base
        return bytes(self.bytes[at : at + length])

    def write(self, address: int, data: bytes) -> None:
        at = address - self.base
        self.bytes[at : at + len(data)] = data

    def close(self) -> None:
        self.bytes.release()
        self._map.close()


def wait_until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Poll until the condition holds; QtestError says what did not happen."""
    deadline = time.monotonic() + patience
    pause = 0.00002
    while not condition():
        if time.monotonic() > deadline:
            raise QtestError(f"{what}: not within {patience:.0f} s")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.005)
