"""Runs scripts on one machine: many scripts a QEMU, a device reset before each."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.diff.memory import DIMM_SIZE, DIMMS, FILLED, RAM_SIZE, Contents
from tests.diff.script import BROKEN, CONTROL, CURSOR, HEADS, Script, Step
from tests.qemu.binaries import Qemu
from tests.qtest import gpu
from tests.qtest.machine import Vm, vm
from tests.support.qemu import VGPUD, backend
from tests.support.qtest import GuestRam, QtestError
from tests.support.virtio_pci import NEXT, WRITE, Buffer, Queue

ARENA, ARENA_SIZE = 0x100_0000, 0x100_0000
"""Where requests and responses lie, guest-physical: 16 MiB that no script takes pixels from."""
RINGS = 0x10_0000
UNTOUCHED = 0xEE
HANG = 0.05
"""Seconds without an answer after which a broken ring is taken for broken."""


@dataclass(frozen=True)
class Answer:
    """What came back for a command: the used length and all of the writable bytes (UNTOUCHED
    where the device did not write). None as length: it never came back."""

    used: int | None
    data: bytes


@dataclass
class Result:
    """What a script did on one device."""

    answers: dict[int, Answer] = field(default_factory=dict)
    """By the step's number."""
    dumps: dict[int, dict[int, bytes]] = field(default_factory=dict)
    """By the number of a dump step: the PPM of each head."""
    order: list[int] = field(default_factory=list)
    """The steps of the control queue in the order of their answers."""
    status: int = 0
    """The device status at the end."""


class Device:
    """One machine and its GPU. `run` is the whole interface."""

    def __init__(self, machine: Vm) -> None:
        self.vm = machine
        self._dimms = [
            GuestRam(machine.qemu.pid, base=base, number=number + 1)
            for number, base in enumerate(DIMMS)
        ]
        self._clean = Contents()
        for start, _, _ in FILLED:
            self.write(start, self._clean.read(start, len(self._clean.clean[start])))
        self._at = ARENA
        self._offered = machine.gpu.offered()

    def write(self, address: int, data: bytes) -> None:
        """Write into guest memory, which here is RAM below 4 GiB and the modules above."""
        rams = [self.vm.ram, *self._dimms]
        ram = next(r for r in rams if r.base <= address < r.base + r.size)
        ram.write(address, data)

    def run(self, script: Script) -> Result:
        """Reset the device and run a script; VmError with the logs if QEMU does not answer."""
        result = Result()
        with self.vm.explained():
            sizes = [min(script.queue_size, self.vm.gpu.max_size(CONTROL)), None]
            self.vm.gpu.start(script.features & self._offered, sizes, RINGS)
            pending: list[tuple[int, Step]] = []
            for number, step in enumerate(script.steps):
                if step.is_command:
                    pending.append((number, step))
                    continue
                self._commands(pending, result)
                pending = []
                if step.op == "poke":
                    address, length, seed = step.args
                    self.write(address, gpu.noise(length, seed))
                elif step.op == "dump":
                    self._barrier()
                    result.dumps[number] = {
                        head: self.vm.screendump_bytes(head) for head in script.heads
                    }
                else:
                    self._broken(number, BROKEN[step.args[0]], result)
            self._commands(pending, result)
            result.status = self.vm.gpu.status
        for step in script.steps:
            if step.op == "poke":
                address, length, _ = step.args
                self.write(address, self._clean.read(address, length))
        return result

    def close(self) -> None:
        for ram in self._dimms:
            ram.close()

    # -- commands

    def _commands(self, steps: Sequence[tuple[int, Step]], result: Result) -> None:
        """Make the commands available in as few kicks as the queue allows; collect the answers."""
        waiting: dict[tuple[int, int], tuple[int, list[Buffer]]] = {}
        self._at = ARENA
        for number, step in steps:
            queue = self.vm.gpu.queues[step.on]
            if not step.can_be_sent(queue.size):
                continue
            needed = 1 if step.indirect else step.descriptors
            if needed > queue.free or self._at > ARENA + ARENA_SIZE // 2:
                self._collect(waiting, result)
            buffers = self._buffers(step)
            table = self._take(16 * len(buffers), 16) if step.indirect else None
            waiting[step.on, queue.add(buffers, table)] = number, buffers
        self._collect(waiting, result)

    def _buffers(self, step: Step) -> list[Buffer]:
        """Write the request, in pieces that do not touch, and mark the writable ones."""
        buffers = []
        for piece in step.pieces():
            at = self._take(len(piece), 1)
            self.vm.ram.write(at, piece)
            buffers.append(Buffer(at, len(piece)))
        for size in step.room:
            at = self._take(size, 1)
            self.vm.ram.write(at, bytes([UNTOUCHED]) * size)
            buffers.append(Buffer(at, size, True))
        return buffers

    def _take(self, size: int, align: int) -> int:
        """Room in the arena, some bytes behind what was taken last."""
        at = (self._at + 5 + align - 1) // align * align
        self._at = at + size
        if self._at > ARENA + ARENA_SIZE:
            raise QtestError("a script's commands do not fit into the arena")
        return at

    def _collect(
        self, waiting: dict[tuple[int, int], tuple[int, list[Buffer]]], result: Result
    ) -> None:
        if not waiting:
            return
        for index in (CONTROL, CURSOR):
            if any(key[0] == index for key in waiting):
                self.vm.gpu.kick(index)
        for index in (CONTROL, CURSOR):
            queue = self.vm.gpu.queues[index]
            queue.wait()
            self._taken(queue, waiting, result)
        waiting.clear()
        self._at = ARENA

    def _taken(
        self,
        queue: Queue,
        waiting: dict[tuple[int, int], tuple[int, list[Buffer]]],
        result: Result,
    ) -> None:
        for head, used in queue.take():
            number, buffers = waiting[queue.index, head]
            data = b"".join(self.vm.ram.read(b.address, b.length) for b in buffers if b.writable)
            result.answers[number] = Answer(used, data)
            if queue.index == CONTROL:
                result.order.append(number)

    def _barrier(self) -> None:
        """QEMU has read all that was sent to its display: it answers questions in order."""
        queue = self.vm.gpu.queues[CONTROL]
        request = Step("display_info")
        queue.add(self._buffers(request))
        self.vm.gpu.kick(CONTROL)
        queue.wait()
        queue.take()

    # -- chains that no driver makes

    def _broken(self, number: int, kind: str, result: Result) -> None:
        """Offer a broken chain; the ring is dead afterwards, until the next reset."""
        queue = self.vm.gpu.queues[CONTROL]
        request = gpu.hdr(gpu.GET_DISPLAY_INFO)
        at, back, table = (self._take(4096, 16) for _ in range(3))
        self.vm.ram.write(at, request)
        here, after = queue.next_desc, (queue.next_desc + 1) % queue.size
        match kind:
            case "loop":
                chain = [_desc(at, 24, NEXT, after), _desc(at, 24, NEXT, here)]
            case "far":
                chain = [_desc(0x2_0000_0000, 24, NEXT, after), _desc(back, 24, WRITE, 0)]
            case "order":
                chain = [_desc(back, 24, WRITE | NEXT, after), _desc(at, 24, 0, 0)]
            case "index":
                chain = [_desc(at, 24, NEXT, queue.size)]
            case "nested":
                self.vm.ram.write(table, _desc(at, 16, 4, 0))
                chain = [_desc(table, 16, 4, 0)]
            case _:
                chain = [_desc(table, 17, 4, 0)]
        queue.add_raw(chain)
        self.vm.gpu.kick(CONTROL)
        with contextlib.suppress(QtestError):
            queue.wait(HANG)
        used = [length for _, length in queue.take()]
        data = self.vm.ram.read(back, used[0]) if used else b""
        result.answers[number] = Answer(used[0] if used else None, data)


def _desc(address: int, length: int, flags: int, following: int) -> bytes:
    return address.to_bytes(8, "little") + b"".join(
        n.to_bytes(size, "little") for n, size in ((length, 4), (flags, 2), (following, 2))
    )


@contextlib.contextmanager
def _machine(qemu: Qemu, serve: Sequence[str] | None, own: str) -> Iterator[Vm]:
    arguments: list[str] = []
    for number, base in enumerate(DIMMS):
        memory = f"memory-backend-memfd,id=dimm{number},size={DIMM_SIZE},share=on"
        arguments += ["-object", memory]
        arguments += ["-device", f"pc-dimm,memdev=dimm{number},addr={base:#x}"]
    size = f"{RAM_SIZE >> 20}M,slots=2,maxmem=1G"
    options = f"max_outputs={HEADS}"
    if serve is None:
        with vm(qemu, options=options + own, arguments=arguments, size=size) as machine:
            yield machine
    else:
        with backend(serve) as (child, socket):
            with vm(
                qemu, socket, options=options, arguments=arguments, size=size, children=[child]
            ) as machine:
                yield machine


@contextlib.contextmanager
def device(qemu: Qemu, serve: Sequence[str] | None = VGPUD, own: str = "") -> Iterator[Device]:
    """A machine to run scripts on: its GPU is QEMU's own (`serve` is None) with the options `own`,
    or the back-end that this command starts."""
    with _machine(qemu, serve, own) as machine:
        running = Device(machine)
        try:
            yield running
        finally:
            running.close()
