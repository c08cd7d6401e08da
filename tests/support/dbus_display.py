"""A listener on QEMU's D-Bus display: -display dbus,p2p=yes,gl=on,rendernode=...

    display = Display(qmp)
    listener = display.listen(0)
    listener.wait("UpdateDMABUF")
    listener.frame.pixels()

QEMU calls us (ui/dbus-display1.xml, interface org.qemu.Display1.Listener); a thread answers, since
QEMU waits for the answer to UpdateDMABUF before it tells the back-end that the frame was shown.
jeepney packs and parses the messages; its own connections speak to a bus, and here is none.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageFlag,
    MessageType,
    Parser,
    Properties,
    new_method_call,
    new_method_return,
)
from jeepney.auth import BEGIN, AuthenticationError, Authenticator
from jeepney.fds import FileDescriptor, fds_buf_size

from tests.support.qmp import Qmp

PATIENCE = 60.0  # seconds for QEMU to call or to answer
CONSOLE = "org.qemu.Display1.Console"
DMA_BUF_IOCTL_SYNC = 0x40086200
READ, END = 1, 4


class DisplayError(Exception):
    """QEMU refused, went away, or did not do in time what was waited for."""


class Wire:
    """One D-Bus connection to QEMU, authenticated; fds may be sent and received."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._parser = Parser()
        self._serial = 0
        sock.settimeout(PATIENCE)
        sasl = Authenticator(enable_fds=True)
        try:
            for line in sasl:
                sock.sendall(line)
                sasl.feed(self._some(sock.recv(8192)))
            sock.sendall(BEGIN)
        except (AuthenticationError, OSError) as error:
            raise DisplayError(f"D-Bus: {error}") from error

    @staticmethod
    def _some(data: bytes) -> bytes:
        if not data:
            raise DisplayError("D-Bus: QEMU closed the connection")
        return data

    def send(self, message: Message) -> int:
        """Returns the message's serial number."""
        self._serial += 1
        fds = array.array("i")
        data = message.serialise(serial=self._serial, fds=fds)
        sent = socket.send_fds(self._sock, [data], list(fds)) if fds else 0
        self._sock.sendall(data[sent:])
        return self._serial

    def receive(self, patience: float | None) -> Message:
        """The next message; DisplayError if there is none in time or QEMU is gone."""
        self._sock.settimeout(patience)
        while (message := self._parser.get_next_message()) is None:
            wanted = self._parser.bytes_desired()
            try:
                data, ancillary, *_ = self._sock.recvmsg(wanted, fds_buf_size())
            except OSError as error:
                raise DisplayError(f"D-Bus: {error}") from error
            self._parser.add_data(self._some(data), FileDescriptor.from_ancdata(ancillary))
        return message

    def call(self, message: Message) -> tuple[Any, ...]:
        """Call a method of QEMU's; returns what it returns."""
        serial = self.send(message)
        while True:
            answer = self.receive(PATIENCE)
            if answer.header.fields.get(HeaderFields.reply_serial) == serial:
                break
        if answer.header.message_type is not MessageType.method_return:
            raise DisplayError(f"D-Bus: {answer.header.fields}: {answer.body}")
        return tuple(answer.body)

    def close(self) -> None:
        """A thread that waits in receive() sees the end of the connection."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class Frame:
    """A dma-buf that QEMU shows, mapped here where it can be: VFIO's cannot."""

    def __init__(self, body: tuple[Any, ...]) -> None:
        descriptor, self.width, self.height, self.stride, fourcc, self.modifier, self.y0_top = body
        self.fourcc = struct.pack("<I", fourcc).decode()
        self.fd: int = descriptor.to_raw_fd()
        info = Path(f"/proc/self/fdinfo/{self.fd}").read_text().splitlines()
        self.exp_name = dict(line.split(":\t", 1) for line in info).get("exp_name", "")
        """Who made the buffer, as the kernel says: udmabuf."""
        self.size = os.lseek(self.fd, 0, os.SEEK_END)
        self._map: mmap.mmap | None = None
        if self.exp_name != "vfio_pci_core":
            self._map = mmap.mmap(self.fd, self.size, mmap.MAP_SHARED, mmap.PROT_READ)

    def __repr__(self) -> str:
        shape = f"{self.width}x{self.height} stride {self.stride} of {self.size} bytes"
        return f"<{self.fourcc} {shape}, modifier {self.modifier:#x}, {self.exp_name}>"

    def pixels(self) -> bytes:
        """The bytes of the rows as they are now, without what lies between rows."""
        assert self._map is not None, "a dma-buf that nobody can map"
        fcntl.ioctl(self.fd, DMA_BUF_IOCTL_SYNC, struct.pack("<Q", READ))
        try:
            row = 4 * self.width
            starts = range(0, self.stride * self.height, self.stride)
            return b"".join(self._map[start : start + row] for start in starts)
        finally:
            fcntl.ioctl(self.fd, DMA_BUF_IOCTL_SYNC, struct.pack("<Q", READ | END))

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
        os.close(self.fd)


class Listener:
    """What QEMU tells about one head. `calls` are its calls in order; of a ScanoutDMABUF the
    argument is a Frame."""

    def __init__(self, wire: Wire, head: int) -> None:
        self.head = head
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.frame: Frame | None = None
        """The dma-buf shown now; None while QEMU shows none."""
        self.updated = False
        """Whether it had an UpdateDMABUF."""
        self._wire = wire
        self._frames: list[Frame] = []
        self._changed = threading.Condition()
        self._held = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"listener {head}", daemon=True)
        self._thread.start()

    def count(self, *names: str) -> int:
        """How many calls with one of these names have come."""
        with self._changed:
            return sum(name in names for name, _ in self.calls)

    def clear(self) -> None:
        """Forget the calls so far; the frame stays."""
        with self._changed:
            self.calls.clear()

    def wait(self, name: str, count: int = 1, patience: float = PATIENCE) -> tuple[Any, ...]:
        """Wait until `name` has been called so often; returns the arguments of that call."""

        def arguments() -> list[tuple[Any, ...]]:
            return [found for called, found in self.calls if called == name]

        with self._changed:
            self._changed.wait_for(lambda: self._error or len(arguments()) >= count, patience)
            if len(arguments()) < count:
                why = self._error or f"not within {patience:g} s"
                text = f"head {self.head}: {name} {len(arguments())} of {count} times; {why}"
                raise DisplayError(f"{text}\n{self.history()}")
            return arguments()[count - 1]

    def expect(self, name: str, *arguments: object) -> None:
        """Wait until `name` has been called with exactly these arguments."""
        with self._changed:
            wanted = (name, arguments)
            if not self._changed.wait_for(lambda: wanted in self.calls or self._error, PATIENCE):
                raise DisplayError(f"head {self.head}: no {name}{arguments}\n{self.history()}")

    def history(self) -> str:
        """The last calls, a line each."""
        return "\n".join(f"  {name}{arguments}" for name, arguments in self.calls[-12:])

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, UpdateDMABUF is not answered: a viewer that is busy. Then all are at once."""
        with self._changed:
            self._held = True
        try:
            yield
        finally:
            with self._changed:
                self._held = False
                self._changed.notify_all()

    def close(self) -> None:
        self._wire.close()
        self._thread.join(PATIENCE)
        while self._frames:
            self._frames.pop().close()

    def _run(self) -> None:
        try:
            while True:
                self._serve(self._wire.receive(None))
        except Exception as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _serve(self, message: Message) -> None:
        if message.header.message_type is not MessageType.method_call:
            return
        name = message.header.fields[HeaderFields.member]
        if name == "GetAll":  # of org.freedesktop.DBus.Properties
            self._wire.send(new_method_return(message, "a{sv}", ({"Interfaces": ("as", [])},)))
            return
        self._note(name, tuple(message.body))
        if not message.header.flags & MessageFlag.no_reply_expected:
            self._wire.send(new_method_return(message))

    def _note(self, name: str, body: tuple[Any, ...]) -> None:
        with self._changed:
            if name == "ScanoutDMABUF":
                self.frame = Frame(body)
                self._frames.append(self.frame)
                self.updated = False
                body = (self.frame,)
            elif name in ("Disable", "Scanout"):
                self.frame = None
            self.calls.append((name, body))
            self._changed.notify_all()
            if name == "UpdateDMABUF":
                self.updated = True
                self._changed.wait_for(lambda: not self._held)


class Display:
    """Our connection to QEMU's display, and the listeners made through it."""

    def __init__(self, qmp: Qmp) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            qmp.execute("getfd", fds=[theirs.fileno()], fdname="dbus-display")
            qmp.execute("add_client", protocol="@dbus-display", fdname="dbus-display")
        self._wire = Wire(ours)
        self._listeners: list[Listener] = []

    def listen(self, head: int = 0) -> Listener:
        """Register a listener on a head of the first GPU."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._call(head, "RegisterListener", "h", theirs.fileno())
        listener = Listener(Wire(ours), head)
        self._listeners.append(listener)
        return listener

    def resize(self, head: int, width: int, height: int) -> None:
        """Tell QEMU that the window of a head is so large now, in pixels."""
        self._call(head, "SetUIInfo", "qqiiuu", 300, 200, 0, 0, width, height)

    def size(self, head: int) -> tuple[int, int]:
        """Width and height of a head as QEMU's console has them."""
        properties = Properties(self._console(head))
        (width,) = self._wire.call(properties.get("Width"))
        (height,) = self._wire.call(properties.get("Height"))
        return width[1], height[1]

    @staticmethod
    def _console(head: int) -> DBusAddress:
        # Nobody looks at the bus name, but jeepney wants one.
        return DBusAddress(f"/org/qemu/Display1/Console_{head}", "org.qemu", CONSOLE)

    def _call(self, head: int, method: str, signature: str, *arguments: object) -> None:
        self._wire.call(new_method_call(self._console(head), method, signature, arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._listeners:
            listener.close()
        self._wire.close()
