"""A QEMU without a guest OS: parked processor, qtest, QMP, guest RAM mapped here."""

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.qemu.binaries import Qemu
from tests.qemu.cache import cache_dir, made
from tests.qemu.process import Child
from tests.support.png import Picture, parse_ppm
from tests.support.qemu import VGPUD, backend
from tests.support.qmp import Qmp, QmpError
from tests.support.qtest import PATIENCE, GuestRam, PciDevice, Qtest, QtestError
from tests.support.virtio_pci import VirtioPci

MEMORY = "64M"
SHARED = f"memory-backend-memfd,id=ram,size={MEMORY},share=on"


class VmError(Exception):
    """QEMU did not do what it should; the text ends with the logs."""


class Vm:
    """A running QEMU whose processor does nothing. Use `vm()` to make one."""

    def __init__(
        self, qemu: Child, qtest: Qtest, qmp: Qmp, others: Sequence[Child], dump: int
    ) -> None:
        self.qemu, self.qtest, self.qmp = qemu, qtest, qmp
        self._others = others
        self._dump = dump
        self._writer = os.open(f"/proc/self/fd/{dump}", os.O_WRONLY | os.O_CLOEXEC)
        self._fdset: int | None = None
        self.ram: GuestRam
        self.gpu: VirtioPci

    def attach(self, ram: GuestRam) -> None:
        """Map guest memory and find the GPU."""
        self.ram = ram
        self.gpu = VirtioPci(PciDevice(self.qtest), self.ram)

    def logs(self) -> str:
        return "\n".join(child.tail(30) for child in (self.qemu, *self._others))

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn a failure of QMP, qtest or a wait into a VmError that shows both logs."""
        try:
            yield
        except (QmpError, QtestError, TimeoutError) as error:
            raise VmError(f"{error}\n{self.logs()}") from error

    def screendump(self, head: int = 0) -> Picture:
        """What QEMU shows on this head, exactly."""
        return parse_ppm(self.screendump_bytes(head))

    def screendump_bytes(self, head: int = 0) -> bytes:
        """The same as the bytes of a PPM. QEMU writes through our own file description, passed
        once: its position is ours, so one QMP command a picture is enough."""
        if self._fdset is None:
            self._fdset = self.qmp.execute("add-fd", fds=[self._writer])["fdset-id"]
        os.ftruncate(self._dump, 0)
        os.lseek(self._writer, 0, os.SEEK_SET)
        name = f"/dev/fdset/{self._fdset}"
        self.qmp.execute("screendump", filename=name, device="gpu0", head=head)
        return os.pread(self._dump, os.fstat(self._dump).st_size, 0)

    def close(self) -> None:
        os.close(self._writer)


def _firmware() -> Path:
    """64 KiB whose reset vector is HLT: the processor parks, the machine counts as running (with
    -S the device would never start)."""

    def make(folder: Path) -> None:
        image = bytearray(65536)
        image[0xFFF0:0xFFF3] = b"\xf4\xeb\xfd"  # hlt; jmp back
        (folder / "halt.bin").write_bytes(image)

    path = made("halt-1", make) / "halt.bin"
    assert path.is_relative_to(cache_dir())
    return path


@contextlib.contextmanager
def vm(
    qemu: Qemu,
    gpu: socket.socket | None = None,
    *,
    device: str = "",
    options: str = "",
    arguments: Sequence[str] = (),
    children: Sequence[Child] = (),
    memory: str = SHARED,
    size: str = MEMORY,
    display: str = "none",
    machine: str = "q35",
    map_ram: str | None = "memory-backend-memfd",
) -> Iterator[Vm]:
    """QEMU with a GPU as gpu0: served on the socket `gpu` (closed here once passed on), or without
    one by QEMU's own in-process device.

    `device` is the GPU's type, `options` is appended to it, `memory` the backend of guest RAM
    ("" for none), `map_ram` its memfd's name (None: the test maps it).
    """
    device = device or ("vhost-user-gpu-pci" if gpu is not None else "virtio-gpu-pci")
    with contextlib.ExitStack() as stack:
        qtest, qtest_end = (stack.enter_context(end) for end in socket.socketpair())
        qmp, qmp_end = (stack.enter_context(end) for end in socket.socketpair())
        ends = [qtest_end, qmp_end]
        argv = [
            *qemu.argv,
            *("-nodefaults", "-accel", "tcg", "-bios", qemu.place(_firmware())),
            *("-m", size, "-display", display),
            *("-machine", machine + (",memory-backend=ram" if memory else "")),
            *(("-object", memory) if memory else ()),
            *("-chardev", f"socket,id=qtest,fd={qtest_end.fileno()}"),
            *("-object", "qtest,id=qtest0,chardev=qtest,log=/dev/null"),
            *("-chardev", f"socket,id=qmp,fd={qmp_end.fileno()}"),
            *("-mon", "chardev=qmp,mode=control"),
        ]
        if gpu is not None:
            ends.append(gpu)
            argv += ["-chardev", f"socket,id=gpu,fd={gpu.fileno()}"]
            options = f"chardev=gpu{options and ','}{options}"
        argv += ["-device", f"{device},id=gpu0{options and ','}{options}", *arguments]
        child = stack.enter_context(Child("QEMU", argv, [end.fileno() for end in ends]))
        for end in ends:
            end.close()
        dump = os.memfd_create("screendump")
        stack.callback(os.close, dump)
        running = Vm(child, Qtest(qtest), Qmp(qmp, PATIENCE), children, dump)
        stack.callback(running.close)
        with running.explained():
            running.qmp.negotiate()
            if map_ram is not None:
                ram = GuestRam(child.pid, map_ram)
                stack.callback(ram.close)
                running.attach(ram)
            yield running


@dataclass(frozen=True)
class Served:
    """A machine whose GPU vgpud serves."""

    vm: Vm
    vgpud: Child

    def alive(self) -> None:
        """Both live, QEMU answers, and vgpud has had no bug."""
        with self.vm.explained():
            self.vm.qmp.execute("query-status")
        assert self.vgpud.process.poll() is None, self.vm.logs()
        assert "Traceback" not in self.vgpud.log(), self.vgpud.log()

    def warnings(self) -> list[str]:
        """The lines of vgpud's log that tell of something bad."""
        lines = self.vgpud.log().splitlines()
        return [line for line in lines if line.startswith(("level=warning", "level=error"))]


@contextlib.contextmanager
def served(
    qemu: Qemu, *, backend_options: Sequence[str] = (), ends_well: bool = True, **options: Any
) -> Iterator[Served]:
    """A machine and the vgpud that serves it (`options` as for vm()). At the end QEMU quits, and
    vgpud must then end by itself with code 0, unless the test ended one of them (`ends_well`)."""
    with backend([*VGPUD, *backend_options]) as (child, gpu):
        with vm(qemu, gpu, children=[child], **options) as running:
            pair = Served(running, child)
            yield pair
            if ends_well:
                pair.alive()
                with running.explained():
                    running.qmp.execute("quit")
                    assert running.qemu.wait() == 0, running.logs()
                    assert child.wait() == 0, running.logs()
                assert "Traceback" not in child.log(), child.log()
