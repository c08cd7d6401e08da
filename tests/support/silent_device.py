"""A device that does not answer a load until it is told to: userfaultfd(2) on a mapping.

    with silent(address) as device:      # the page there was never written
        ...                              # a thread loads from it, and waits
        device.wait_for_load()
        device.answer()

Another process watches over it, so that a load under the interpreter's lock fails a test and does
not hang it: `answered` is False then.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PAGE = 4096
USERFAULTFD = {"x86_64": 323, "aarch64": 282}[platform.machine()]
USER_MODE_ONLY = 1
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04
PATIENCE = 10

WATCH = f"""
import fcntl, os, select, struct, sys
uffd, loads, answers, address = map(int, sys.argv[1:])
os.read(uffd, 32)
os.write(loads, b"!")
answered = bool(select.select([answers], [], [], {PATIENCE})[0])
fcntl.ioctl(uffd, {UFFDIO_ZEROPAGE}, bytearray(struct.pack("=QQQq", address, {PAGE}, 0, 0)))
sys.exit(not answered)
"""


class SilentDevice:
    def __init__(self, loads: int, answers: int) -> None:
        self._loads, self._answers = loads, answers
        self.answered = False
        """After the block: whether answer() was called in time."""

    def wait_for_load(self) -> None:
        os.read(self._loads, 1)

    def answer(self) -> None:
        os.write(self._answers, b"!")


@contextmanager
def silent(address: int) -> Iterator[SilentDevice]:
    """The page at `address` is mapped, shared, and not there yet."""
    libc = ctypes.CDLL(None, use_errno=True)
    uffd = libc.syscall(USERFAULTFD, os.O_CLOEXEC | USER_MODE_ONLY)
    if uffd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    fcntl.ioctl(uffd, UFFDIO_API, bytearray(struct.pack("=QQQ", 0xAA, 0, 0)))
    fcntl.ioctl(uffd, UFFDIO_REGISTER, bytearray(struct.pack("=QQQQ", address, PAGE, 1, 0)))
    (loads, told), (answers, answer) = os.pipe(), os.pipe()
    watch = subprocess.Popen(
        [sys.executable, "-c", WATCH, *map(str, (uffd, told, answers, address))],
        pass_fds=(uffd, told, answers),
    )
    device = SilentDevice(loads, answer)
    try:
        yield device
    finally:
        device.answered = watch.wait(2 * PATIENCE) == 0
        for fd in (uffd, loads, told, answers, answer):
            os.close(fd)
