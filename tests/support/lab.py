"""The lab: a virtual machine with the device nodes that a test machine may lack (/dev/udmabuf, and
whatever QEMU arguments and kernel modules add), in which the project's own code runs as root.

    result = lab(["python3", "-m", "pytest", "tests/contract"])
    result.check()

The checkout is seen as it was at the start and at its own path, so file names in tracebacks are
those of this machine; what is written to it is forgotten. Files put in `Lab.job` are seen both here
and inside, as /job. `python3 -m tests.lab` is the same from a command line.
"""

import contextlib
import os
import select
import shlex
import socket
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self, TypedDict, Unpack

from tests.lab.image import CHECKOUT, foreign, lab_image
from tests.qemu.binaries import Qemu, qemu
from tests.qemu.process import Child

# Nothing is secret in there, and the emulated clock need not be checked: a second less each.
KERNEL_ARGS = "console=ttyS0 quiet mitigations=off tsc=reliable no_timer_check panic=-1"
# What systemd says would only be in the way of the kernel's words; the root is what it was made as.
SYSTEMD_ARGS = "systemd.show_status=no systemd.log_target=journal systemd.condition_needs_update=no"
PREAMBLE = """\
export HOME=/root LANG=C.UTF-8 TERM=dumb VGPUD_LAB=1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PYTHONPATH={checkout}:{checkout}/protocol
cd {checkout}
"""


class LabError(Exception):
    """The machine did not do its work; the text ends with its logs."""


class LabOptions(TypedDict, total=False):
    """What `Lab` takes beside the command."""

    mounts: Mapping[Path | str, str]
    modules: Sequence[str]
    qemu_args: Sequence[str]
    kernel_args: str
    timeout: float
    memory: str
    smp: int
    stream: Callable[[bytes], object]
    service: bool


@dataclass(frozen=True)
class LabResult:
    """What a command in the lab did. `output` is its stdout and stderr."""

    command: str
    returncode: int
    output: str
    console: str
    seconds: float

    def check(self) -> Self:
        """Raise LabError unless the command succeeded."""
        if self.returncode != 0:
            end = "\n".join(self.output.splitlines()[-40:])
            raise LabError(f"in the lab: {self.command}: exit code {self.returncode}\n{end}")
        return self


def lab_qemu(found: Qemu) -> list[str]:
    """The start of a QEMU command that sees this machine's files."""
    if found.root is None:
        return list(found.argv)
    (plugins,) = found.root.glob("usr/lib/*-linux-gnu/qemu")
    share = found.root / "usr/share"
    return [
        *("env", f"QEMU_MODULE_DIR={plugins}", *foreign(found.root, found.argv[-1])),
        *("-L", str(share / "qemu"), "-L", str(share / "seabios")),
    ]


def layer_args(number: int, image: Path) -> list[str]:
    """QEMU's arguments that map a layer of the root into the lab's memory: /dev/pmem*."""
    path, size = escaped(image), image.stat().st_size
    memory = f"memory-backend-file,id=layer{number},mem-path={path},size={size}"
    return [
        *("-object", f"{memory},share=on,readonly=on"),
        *("-device", f"virtio-pmem-pci,memdev=layer{number}"),
    ]


def escaped(path: Path) -> str:
    """A path in an option of QEMU's, where a comma would end it."""
    return str(path).replace(",", ",,")


def share_args(tag: str, folder: Path, *, writable: bool = False) -> list[str]:
    """QEMU's arguments that give a folder of this machine to the lab."""
    access = "" if writable else ",readonly=on"
    how = "security_model=none,multidevs=remap"
    return [
        *("-fsdev", f"local,id={tag},path={escaped(folder)},{how}{access}"),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]


class Lab:
    """A running lab. Leaving its `with` block ends it, as the death of this process does."""

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        mounts: Mapping[Path | str, str] = MappingProxyType({}),
        modules: Sequence[str] = (),
        qemu_args: Sequence[str] = (),
        kernel_args: str = "",
        timeout: float = 300,
        memory: str = "2G",
        smp: int = 2,
        stream: Callable[[bytes], object] = lambda data: None,
        service: bool = False,
    ) -> None:
        """Start it. `command` is for sh, or a list of words. `mounts` maps folders of this machine
        to read-only paths inside; `modules` are loaded before the command. After `timeout` seconds
        the machine is ended. `stream` is given the command's output as it comes. With `service`
        the first program is systemd, on a root with libvirt and QEMU (tests/lab/image.py).
        """
        self.command = command if isinstance(command, str) else shlex.join(command)
        self._title = textwrap.shorten(self.command, 300)
        self._stream = stream
        self._timeout = timeout
        self._output = bytearray()
        self._open = True
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lab.")))
            image = lab_image(folder / "checkout.img", modules, service=service)
            self._console = folder / "console"
            self.job = folder / "job"
            shares = self._prepare_job(mounts)
            if service:
                kernel_args = f"lab.systemd {SYSTEMD_ARGS} {kernel_args}"
            layers = [arg for pair in enumerate(image.layers) for arg in layer_args(*pair)]
            self._socket, theirs = (stack.enter_context(end) for end in socket.socketpair())
            argv = [
                *lab_qemu(qemu()),
                *("-nodefaults", "-display", "none", "-no-reboot"),
                *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
                # maxmem: the layers are memory that is plugged in.
                *("-m", f"{memory},slots=16,maxmem=256G", "-smp", str(smp)),
                *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
                *("-append", f"{KERNEL_ARGS} lab.layers={len(image.layers)} {kernel_args}"),
                *("-serial", f"file:{escaped(self._console)}"),
                *("-chardev", f"socket,id=output,fd={theirs.fileno()}"),
                *("-device", "virtio-serial-pci", "-device", "virtconsole,chardev=output"),
                *layers,
                *shares,
                *qemu_args,
            ]
            self._begin = time.monotonic()
            self._qemu = stack.enter_context(Child("the lab's QEMU", argv, [theirs.fileno()]))
            theirs.close()
            self._cleanup = stack.pop_all()

    def _prepare_job(self, mounts: Mapping[Path | str, str]) -> list[str]:
        """Write what the init script reads; returns QEMU's arguments for the shares."""
        self.job.mkdir()
        shares = share_args("job", self.job, writable=True)
        table = []
        for number, (outside, inside) in enumerate(mounts.items()):
            table.append(f"mount{number} {inside}\n")
            shares += share_args(f"mount{number}", Path(outside).absolute())
        (self.job / "mounts").write_text("".join(table))
        preamble = PREAMBLE.format(checkout=shlex.quote(str(CHECKOUT)))
        (self.job / "run").write_text(f"{preamble}{self.command}\n")
        return shares

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._qemu.pid

    @property
    def output(self) -> str:
        """What the command wrote so far."""
        return self._output.decode(errors="replace").replace("\r\n", "\n")

    def console(self) -> str:
        """What the kernel and the init script said."""
        with contextlib.suppress(FileNotFoundError):
            return self._console.read_text(errors="replace").replace("\r", "")
        return ""

    def logs(self) -> str:
        """The end of every log there is."""
        parts = [self._qemu.tail(), "--- the lab's console, last lines:"]
        parts += self.console().splitlines()[-60:]
        parts += ["--- the command's output, last lines:", *self.output.splitlines()[-20:]]
        return "\n".join(parts)

    def pump(self, patience: float, keyboard: int | None = None) -> bool:
        """Take output for at most `patience` seconds; pass on what is typed at `keyboard` (an fd).

        False when the machine has ended. Raises LabError, the machine dead, at the deadline.
        """
        if not self._open:
            return False
        left = self._begin + self._timeout - time.monotonic()
        if left <= 0:
            text = f"the lab's deadline of {self._timeout:g} s is over: {self._title}"
            logs = self.logs()
            self.close()
            raise LabError(f"{text}\n{logs}")
        wanted = [self._socket.fileno(), *([] if keyboard is None else [keyboard])]
        ready, _, _ = select.select(wanted, [], [], min(patience, left))
        if keyboard in ready:
            assert keyboard is not None
            self._socket.sendall(os.read(keyboard, 4096))
        if self._socket.fileno() in ready:
            data = b""
            with contextlib.suppress(ConnectionResetError):
                data = self._socket.recv(65536)
            self._output += data
            self._stream(data)
            self._open = bool(data)
        return self._open

    def wait(self) -> LabResult:
        """Wait until the command has ended; LabError if the machine ended without its status."""
        while self.pump(1):
            pass
        self._qemu.wait()
        try:
            status = int((self.job / "status").read_text())
        except (OSError, ValueError):
            raise LabError(f"the lab ended too early: {self._title}\n{self.logs()}") from None
        seconds = time.monotonic() - self._begin
        return LabResult(self.command, status, self.output, self.console(), seconds)

    def close(self) -> None:
        """End it now, whatever it does."""
        self._open = False
        self._cleanup.close()


def lab(command: str | Sequence[str], **options: Unpack[LabOptions]) -> LabResult:
    """Run a command in a lab of its own and wait for it; the options are those of `Lab`."""
    with Lab(command, **options) as machine:
        return machine.wait()
