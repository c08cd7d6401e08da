"""A virtio 1.x PCI driver in the test process: registers and split queues.

After the specification (virtio 1.3: 4.1 PCI, 2.7 split virtqueues); registers go by qtest, rings
lie in the guest's RAM, which is mapped here.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.qtest import PATIENCE, GuestRam, PciDevice, QtestError, wait_until, write

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 0x40, 0x80
VERSION_1, INDIRECT_DESC, EVENT_IDX = 1 << 32, 1 << 28, 1 << 29
GPU_EDID, GPU_RESOURCE_UUID, GPU_RESOURCE_BLOB = 1 << 1, 1 << 2, 1 << 3
NEXT, WRITE, INDIRECT = 1, 2, 4
NO_VECTOR = 0xFFFF
CAP_MSIX, CAP_VENDOR = 0x11, 0x09
CAP_COMMON, CAP_NOTIFY, CAP_ISR, CAP_DEVICE = 1, 2, 3, 4


@dataclass(frozen=True)
class Buffer:
    """One descriptor: guest-physical address, bytes, and whether the device may write."""

    address: int
    length: int
    writable: bool = False


class Queue:
    """A split virtqueue. Descriptors are handed out in turn; the caller does not make more
    available than fit (`free`)."""

    def __init__(self, ram: GuestRam, index: int, size: int, address: int, notify: int) -> None:
        """`address`: where its three parts lie, one after another, 4 KiB for each 128 entries."""
        self.ram, self.index, self.size, self.notify = ram, index, size, notify
        self.desc = address
        self.avail = self.desc + 16 * size
        self.used = (self.avail + 6 + 2 * size + 3) & ~3
        self.end = self.used + 6 + 8 * size
        self.ram.write(address, bytes(self.end - address))
        self.next_desc = 0
        self.added = 0
        self.seen = 0
        self.free = size
        self._lengths: dict[int, int] = {}

    def add(self, buffers: Sequence[Buffer], indirect: int | None = None) -> int:
        """Make a chain available; returns its head. `indirect`: put the descriptors into a table
        of their own at this address."""
        if indirect is not None:
            table = b"".join(self._encode(buffers, range(1, len(buffers) + 1)))
            self.ram.write(indirect, table)
            return self.add_raw([struct.pack("<QIHH", indirect, len(table), INDIRECT, 0)])
        numbers = [(self.next_desc + 1 + n) % self.size for n in range(len(buffers))]
        return self.add_raw(self._encode(buffers, numbers))

    def add_raw(self, descriptors: Sequence[bytes]) -> int:
        """Make encoded descriptors available as they are, in the next slots of the table."""
        if len(descriptors) > self.free:
            raise QtestError(f"queue {self.index} has no {len(descriptors)} descriptors left")
        head = self.next_desc
        for descriptor in descriptors:
            self.ram.write(self.desc + 16 * self.next_desc, descriptor)
            self.next_desc = (self.next_desc + 1) % self.size
        self.free -= len(descriptors)
        self._lengths[head] = len(descriptors)
        self.offer(head)
        return head

    def offer(self, head: int) -> None:
        """Write a head into the available ring and move its index."""
        self.ram.write(self.avail + 4 + 2 * (self.added % self.size), struct.pack("<H", head))
        self.added = (self.added + 1) & 0xFFFF
        self.ram.write(self.avail + 2, struct.pack("<H", self.added))

    @staticmethod
    def _encode(buffers: Sequence[Buffer], numbers: Sequence[int]) -> list[bytes]:
        """Descriptors chained in order; `numbers` are the places of their successors."""
        last = len(buffers) - 1
        return [
            struct.pack(
                "<QIHH",
                buffer.address,
                buffer.length,
                (WRITE if buffer.writable else 0) | (NEXT if place != last else 0),
                number if place != last else 0,
            )
            for place, (buffer, number) in enumerate(zip(buffers, numbers, strict=True))
        ]

    @property
    def used_index(self) -> int:
        index: int = struct.unpack("<H", self.ram.read(self.used + 2, 2))[0]
        return index

    @property
    def outstanding(self) -> int:
        """Chains that the device has not given back."""
        return (self.added - self.used_index) & 0xFFFF

    def wait(self, patience: float = PATIENCE) -> None:
        """Wait until the device has given everything back."""
        wait_until(lambda: self.outstanding == 0, f"queue {self.index}: an answer", patience)

    def take(self) -> list[tuple[int, int]]:
        """(head, bytes written) of each chain given back since the last call, in that order."""
        taken = []
        while self.seen != self.used_index:
            at = self.used + 4 + 8 * (self.seen % self.size)
            head, length = struct.unpack("<II", self.ram.read(at, 8))
            taken.append((head, length))
            self.free += self._lengths.pop(head, 0)
            self.seen = (self.seen + 1) & 0xFFFF
        return taken

    def set_used_event(self, index: int) -> None:
        """EVENT_IDX: notify when this many chains have been given back."""
        self.ram.write(self.avail + 4 + 2 * self.size, struct.pack("<H", index & 0xFFFF))

    def suppress(self, on: bool) -> None:
        """NO_INTERRUPT in the available ring's flags."""
        self.ram.write(self.avail, struct.pack("<H", int(on)))


class VirtioPci:
    """A virtio device behind a PCI function."""

    def __init__(self, pci: PciDevice, ram: GuestRam) -> None:
        self.pci, self.qtest, self.ram = pci, pci.qtest, ram
        self.queues: list[Queue] = []
        self.features = 0
        found: dict[int, int] = {}
        for kind, at in pci.caps:
            if kind == CAP_MSIX:
                self._msix = at
            if kind != CAP_VENDOR:
                continue
            head, bar, offset = (pci.config_read(at + n) for n in (0, 4, 8))
            if head >> 24 == CAP_NOTIFY:
                self._multiplier = pci.config_read(at + 16)
            if bar & 0xFF in pci.bars:
                found.setdefault(head >> 24, pci.bars[bar & 0xFF] + offset)
        self._common, self._notify = found[CAP_COMMON], found[CAP_NOTIFY]
        self.isr, self.config = found[CAP_ISR], found[CAP_DEVICE]
        self._max_sizes: dict[int, int] = {}
        self._notify_offsets: dict[int, int] = {}

    # -- registers

    @property
    def status(self) -> int:
        return self.qtest.read(1, self._common + 0x14)

    @status.setter
    def status(self, value: int) -> None:
        self.qtest.write(1, self._common + 0x14, value)

    def send_status(self, value: int) -> None:
        """Write the status and do not wait; the last that is done to the device (Qtest.send)."""
        self.qtest.send([write(1, self._common + 0x14, value)])

    def reset(self) -> None:
        self.status = 0
        wait_until(lambda: self.status == 0, "the device's reset")

    def offered(self) -> int:
        """The features that the device offers."""
        return sum(
            int(
                self.qtest.commands(
                    [
                        write(4, self._common, half),
                        f"readl {self._common + 4:#x}",
                    ]
                )[1],
                16,
            )
            << 32 * half
            for half in (0, 1)
        )

    def max_size(self, queue: int) -> int:
        """The largest size that the device takes for this queue. Asked once, after a reset: later
        the register says what the driver chose."""
        self._ask(queue)
        return self._max_sizes[queue]

    def read_config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the device's configuration, in reads of 4 bytes."""
        lines = [f"readl {self.config + at:#x}" for at in range(offset, offset + size, 4)]
        return b"".join(struct.pack("<I", int(v, 16)) for v in self.qtest.commands(lines))

    # -- life

    def start(
        self,
        features: int = 0,
        sizes: Sequence[int | None] = (None, None),
        rings: int = 0x10_0000,
        vectors: Sequence[int] = (),
    ) -> None:
        """Reset and start: VERSION_1 and `features`, one queue for each of `sizes` (None: the
        largest; 0: left alone), rings from guest-physical `rings` on, 64 KiB apart. `vectors`:
        the MSI-X vector of each queue, after enable_msix()."""
        self.reset()
        for index, _ in enumerate(sizes):
            self._ask(index)
        common, features = self._common, features | VERSION_1
        lines = [write(1, common + 0x14, ACKNOWLEDGE), write(1, common + 0x14, 3)]
        for half in (0, 1):
            lines.append(write(4, common + 8, half))
            lines.append(write(4, common + 12, features >> 32 * half & 0xFFFF_FFFF))
        lines += [write(1, common + 0x14, 0xB), f"readb {common + 0x14:#x}"]
        if not int(self.qtest.commands(lines)[-1], 16) & FEATURES_OK:
            raise QtestError(f"the device refuses the features {features:#x}")
        self.features = features
        self.queues, lines = [], []
        for index, wanted in enumerate(sizes):
            if wanted == 0:
                continue
            queue = Queue(
                self.ram,
                index,
                wanted or self._max_sizes[index],
                rings + index * 0x1_0000,
                self._queue_notify(index),
            )
            self.queues.append(queue)
            vector = vectors[index] if index < len(vectors) else NO_VECTOR
            lines += self._queue_lines(queue, vector)
        self.qtest.commands([*lines, write(1, common + 0x14, 0xF)])

    def start_with_ring(self, **parts: int) -> None:
        """Start queue 0 alone with parts ("desc", "avail", "used") at these addresses."""
        self.start(sizes=[0])
        queue = Queue(self.ram, 0, self._max_sizes[0], 0x10_0000, self._queue_notify(0))
        for part, address in parts.items():
            setattr(queue, part, address)
        self.queues = [queue]
        lines = self._queue_lines(queue, NO_VECTOR)
        common = self._common
        self.qtest.commands([write(1, common + 0x14, 0xB), *lines, write(1, common + 0x14, 0xF)])

    def kick(self, queue: int = 0) -> None:
        """Notify the device of what was made available."""
        self.qtest.write(2, self.queues[queue].notify, queue)

    def _queue_lines(self, queue: Queue, vector: int) -> list[str]:
        common = self._common
        lines = [write(2, common + 0x16, queue.index), write(2, common + 0x18, queue.size)]
        if vector != NO_VECTOR:
            lines.append(write(2, common + 0x1A, vector))
        for offset, address in ((0x20, queue.desc), (0x28, queue.avail), (0x30, queue.used)):
            lines.append(write(4, common + offset, address & 0xFFFF_FFFF))
            lines.append(write(4, common + offset + 4, address >> 32))
        return [*lines, write(2, common + 0x1C, 1)]

    def _queue_notify(self, index: int) -> int:
        return self._notify + self._notify_offsets[index] * self._multiplier

    def _ask(self, queue: int) -> None:
        if queue in self._max_sizes:
            return
        common = self._common
        _, size, notify = self.qtest.commands(
            [
                write(2, common + 0x16, queue),
                f"readw {common + 0x18:#x}",
                f"readw {common + 0x1E:#x}",
            ]
        )
        self._max_sizes[queue] = int(size, 16)
        self._notify_offsets[queue] = int(notify, 16)

    # -- interrupts

    def enable_msix(self, cells: Sequence[int]) -> None:
        """MSI-X on. Vector n writes n + 1 into the guest-physical address cells[n]: a message is
        a write to memory, so the test sees an interrupt as a changed word."""
        table = self.pci.config_read(self._msix + 4)
        base = self.pci.bars[table & 7] + (table & ~7)
        for number, cell in enumerate(cells):
            entry = base + 16 * number
            for offset, value in ((0, cell), (4, 0), (8, number + 1), (12, 0)):
                self.qtest.write(4, entry + offset, value)
        head = self.pci.config_read(self._msix)
        self.pci.config_write(self._msix, head | 1 << 31)

    def mask_msix(self, vector: int, masked: bool) -> None:
        table = self.pci.config_read(self._msix + 4)
        base = self.pci.bars[table & 7] + (table & ~7)
        self.qtest.write(4, base + 16 * vector + 12, int(masked))

    def disable_msix(self) -> None:
        head = self.pci.config_read(self._msix)
        self.pci.config_write(self._msix, head & ~(1 << 31))
