"""/dev/udmabuf in Python: `Udmabuf(create=FakeUdmabuf())` needs no kernel with the device.

Its "dma-bufs" are memfds with a copy of the pages: right in order, size and number, but they do
not share memory with the guest. The real device is in the lab (tests/lab).
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable

PAGE = 4096
ITEM = struct.Struct("=IIQQ")
"""struct udmabuf_create_item with a region's number for its memfd."""


class FakeUdmabuf:
    """Takes the place of `_native.udmabuf_create`. `errno` makes it refuse, `during` is called
    while the "kernel" works."""

    def __init__(self) -> None:
        self.errno = 0
        self.during: Callable[[], None] = lambda: None
        self.calls: list[list[tuple[int, int, int]]] = []
        """The items of each call: memfd, offset, length."""

    def __call__(self, device: int, runs: bytes, fds: array[int]) -> int:
        os.fstat(device)
        items = [(fds[region], at, size) for region, _, at, size in ITEM.iter_unpack(runs)]
        self.calls.append(items)
        self.during()
        if self.errno:
            raise OSError(self.errno, os.strerror(self.errno))
        made = os.memfd_create("fake-dmabuf", os.MFD_CLOEXEC)
        for fd, offset, size in items:
            assert offset % PAGE == size % PAGE == 0, "the kernel would say EINVAL"
            assert os.pread(fd, 1, offset + size - 1), "the kernel would say EINVAL"
            while size:  # page by page: the copy of a sparse file stays small
                step = min(size, 1 << 20)
                os.write(made, os.pread(fd, step, offset))
                offset, size = offset + step, size - step
        return made
