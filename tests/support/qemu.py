"""Real QEMU with a vhost-user-gpu back-end, for tests: everything goes by file descriptor.

No path is shared between two machines, so tests run in parallel. Every wait has a deadline, and
what fails shows the logs of QEMU, of the back-end and of the guest.
"""

import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from tests.qemu.binaries import Qemu
from tests.qemu.process import Child
from tests.support.guest_image import GuestImage
from tests.support.guest_shell import GuestShell
from tests.support.png import Picture, parse_ppm
from tests.support.qmp import Qmp, QmpError

# Seconds for any one thing to happen. TCG on a busy machine with two cores is slow, a hang is not.
PATIENCE = 60.0
VGPUD = (sys.executable, "-m", "vgpud", "--sandbox=kill")


class MachineError(Exception):
    """The machine did not do what it should; the text ends with the logs."""


class Machine:
    """A running QEMU. Use `machine()` to make one."""

    def __init__(self, qemu: Child, children: Sequence[Child], console: int) -> None:
        self.qemu = qemu
        self._children = children
        self._console = console
        self._cleanup = contextlib.ExitStack()
        self.qmp: Qmp
        self._shell: GuestShell

    def connect(self, qmp: socket.socket, port: socket.socket) -> None:
        """Take over our ends of QEMU's QMP and second serial sockets; greet QEMU."""
        self._shell = GuestShell(port)
        self.qmp = Qmp(qmp, PATIENCE)
        with self.explained():
            self.qmp.negotiate()

    def console(self) -> str:
        """What the guest wrote to its first serial port: the kernel's log."""
        size = os.fstat(self._console).st_size
        return os.pread(self._console, size, 0).decode(errors="replace").replace("\r", "")

    def logs(self) -> str:
        """The end of every log there is."""
        guest = "\n".join(["--- guest's console, last lines:", *self.console().splitlines()[-15:]])
        return "\n".join([*(child.tail() for child in (self.qemu, *self._children)), guest])

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn a failure of QMP or of a wait into a MachineError that shows the logs."""
        try:
            yield
        except (QmpError, TimeoutError) as error:
            raise MachineError(f"{error}\n{self.logs()}") from error

    def quit(self) -> None:
        """End QEMU by QMP and wait until it has ended."""
        with self.explained():
            self.qmp.execute("quit")
            self.qemu.wait()

    # -- the guest

    def wait_ready(self, patience: float = PATIENCE) -> str:
        """Wait until the guest has booted (after start or reset); returns its kernel's version."""
        with self.explained():
            return self._shell.wait_ready(patience)

    def run(self, command: str, patience: float = PATIENCE) -> str:
        """Run a shell command in the guest; returns its output, raises MachineError if it fails."""
        with self.explained():
            code, text = self._shell.run(command, patience)
        if code:
            raise MachineError(f"guest: {command}: exit code {code}\n{text}\n{self.logs()}")
        return text

    def draw(self, arguments: str = "") -> str:
        """Run drmdraw in the guest and leave its picture on the screen; returns what it says."""
        return self.run(f"killall -q drmdraw; drmdraw --stay {arguments}")

    # -- the display

    def screendump(self, head: int = 0) -> Picture:
        """What QEMU shows on this head of the GPU, exactly."""
        with memory_file("screendump") as file, self.explained():
            writer = os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                fdset = self.qmp.execute("add-fd", fds=[writer])["fdset-id"]
            finally:
                os.close(writer)
            name = f"/dev/fdset/{fdset}"
            self.qmp.execute("screendump", filename=name, device="gpu0", head=head)
            self.qmp.execute("remove-fd", fdset_id=fdset)
            return parse_ppm(os.pread(file, os.fstat(file).st_size, 0))

    def wait_picture(self, rgb: bytes, head: int = 0, top: int = 0) -> Picture:
        """Wait until the rows from `top` on are exactly `rgb`; MachineError says what differs."""
        deadline = time.monotonic() + PATIENCE
        while True:
            picture = self.screendump(head)
            if not (difference := picture.difference(rgb, top)):
                return picture
            if time.monotonic() > deadline:
                raise MachineError(f"head {head}: {difference}\n{self.logs()}")
            time.sleep(0.05)


def statistics(vgpud: Child) -> dict[str, str]:
    """What a running vgpud has counted so far: the fields of the line it logs on SIGUSR1."""
    seen = vgpud.log().count("event=stats")
    os.kill(vgpud.pid, signal.SIGUSR1)
    log = vgpud.wait_log("event=stats", count=seen + 1)
    line = [line for line in log.splitlines() if "event=stats" in line][-1]
    return dict(re.findall(r"(\w+)=(\S+)", line))


@contextlib.contextmanager
def memory_file(name: str) -> Iterator[int]:
    """A file without a path, closed at the end."""
    file = os.memfd_create(name)
    try:
        yield file
    finally:
        os.close(file)


@contextlib.contextmanager
def backend(argv: Sequence[str] = VGPUD) -> Iterator[tuple[Child, socket.socket]]:
    """A back-end started with --fd, and the socket to give to QEMU."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with Child("back-end", [*argv, f"--fd={theirs.fileno()}"], [theirs.fileno()]) as child:
            theirs.close()
            yield child, ours


@contextlib.contextmanager
def machine(
    qemu: Qemu,
    image: GuestImage,
    gpu: socket.socket | None,
    *,
    model: str = "vhost-user-gpu-pci",
    device: str = "",
    arguments: Sequence[str] = (),
    children: Sequence[Child] = (),
    memory: str = "256M",
) -> Iterator[Machine]:
    """A QEMU that boots `image`, its GPU served on the socket `gpu` (closed here once passed on);
    None: it has none but what `arguments` add.

    `model` is the GPU and `device` is appended to its options ("max_outputs=2"), `arguments` to
    QEMU's. The logs of `children` (the back-end) are shown where something fails.
    """
    with contextlib.ExitStack() as stack:
        qmp, qmp_end = (stack.enter_context(end) for end in socket.socketpair())
        port, port_end = (stack.enter_context(end) for end in socket.socketpair())
        console = stack.enter_context(tempfile.TemporaryFile())
        writer = os.open(f"/proc/self/fd/{console.fileno()}", os.O_WRONLY | os.O_APPEND)
        stack.callback(os.close, writer)
        argv = [
            *qemu.argv,
            *("-nodefaults", "-display", "none", "-accel", "tcg,thread=multi", "-cpu", "max"),
            *("-machine", "q35,memory-backend=memory", "-m", memory, "-smp", "2"),
            *("-object", f"memory-backend-memfd,id=memory,size={memory},share=on"),
            *("-kernel", qemu.place(image.kernel), "-initrd", qemu.place(image.initrd)),
            *("-append", image.append),
            *(
                "-chardev",
                f"socket,id=qmp,fd={qmp_end.fileno()}",
                "-mon",
                "chardev=qmp,mode=control",
            ),
            *("-add-fd", f"fd={writer},set=0"),
            *(
                "-chardev",
                "file,id=console,path=/dev/fdset/0,append=on",
                "-serial",
                "chardev:console",
            ),
            *("-chardev", f"socket,id=port,fd={port_end.fileno()}", "-serial", "chardev:port"),
            *arguments,
        ]
        ends = [qmp_end, port_end]
        if gpu is not None:
            ends.append(gpu)
            argv += ["-chardev", f"socket,id=gpu,fd={gpu.fileno()}"]
            argv += ["-device", f"{model},id=gpu0,chardev=gpu{device and ','}{device}"]
        fds = [end.fileno() for end in ends]
        child = stack.enter_context(Child("QEMU", argv, [*fds, writer]))
        for end in ends:
            end.close()
        vm = Machine(child, children, console.fileno())
        vm.connect(qmp, port)
        yield vm
