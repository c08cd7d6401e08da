"""As much D-Bus as tells QEMU's display that its window has another size.

-display dbus,p2p=yes; without a listener, because registering one that cannot take dma-bufs ends
QEMU (qemu-frontend, section 7). D-Bus specification: message format, SASL EXTERNAL.
"""

import os
import socket
import struct

from tests.qtest.machine import Vm
from tests.support.qtest import PATIENCE, QtestError


def _align(data: bytes, to: int) -> bytes:
    return data + b"\0" * (-len(data) % to)


def _string(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode() + b"\0"


def _call(path: str, interface: str, member: str, signature: str, body: bytes) -> bytes:
    fields = b""
    values = (
        (1, "o", _string(path)),
        (2, "s", _string(interface)),
        (3, "s", _string(member)),
        (8, "g", bytes([len(signature)]) + signature.encode() + b"\0"),
    )
    for code, kind, value in values:
        fields = _align(fields, 8) + bytes([code, 1]) + kind.encode() + b"\0"
        fields = (_align(fields, 4) if kind != "g" else fields) + value
    head = b"l\1\0\1" + struct.pack("<III", len(body), 1, len(fields)) + fields
    return _align(head, 8) + body


def set_ui_info(vm: Vm, head: int, width: int, height: int) -> None:
    """Tell QEMU that the window of a head is so large now, in pixels."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        vm.qmp.execute("getfd", fds=[theirs.fileno()], fdname="dbus")
        vm.qmp.execute("add_client", protocol="@dbus-display", fdname="dbus")
        theirs.close()
        ours.settimeout(PATIENCE)
        uid = str(os.getuid()).encode().hex().encode()
        for line in (b"\0AUTH EXTERNAL " + uid, b"NEGOTIATE_UNIX_FD"):
            ours.sendall(line + b"\r\n")
            answer = ours.recv(200)
            if not answer.startswith((b"OK", b"AGREE")):
                raise QtestError(f"D-Bus: {line!r}: {answer!r}")
        ours.sendall(b"BEGIN\r\n")
        body = struct.pack("<HHiiII", 300, 200, 0, 0, width, height)  # mm, mm, x, y, pixels
        path = f"/org/qemu/Display1/Console_{head}"
        ours.sendall(_call(path, "org.qemu.Display1.Console", "SetUIInfo", "qqiiuu", body))
        while True:  # its own messages first
            kind = _message(ours)
            if kind == 3:
                raise QtestError("D-Bus: SetUIInfo was refused")
            if kind == 2:
                return


def _message(sock: socket.socket) -> int:
    """Read one message; returns its type: 1 call, 2 return, 3 error, 4 signal."""
    head = _exactly(sock, 16)
    body, _, fields = struct.unpack_from("<III", head, 4)
    _exactly(sock, (fields + 7 & ~7) + body)
    return head[1]


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise QtestError("D-Bus: QEMU closed the connection")
        data += part
    return data
