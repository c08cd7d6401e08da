"""Dma-bufs: owned, counted, made once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from vgpud.errors import HostError
from vgpud.host.fd import OwnedFd
from vgpud.usage import Usage

MAX_DMABUFS: Final = 256
"""Dma-bufs of one guest: a quarter of the 1,024 descriptors that a process usually has."""

MAX_BYTES: Final = 4 << 30
"""Bytes that one guest's dma-bufs pin: they cannot be swapped, moved or unplugged. A hundred
frame buffers of 3840 x 2160."""

MAX_ITEMS: Final = 1 << 20
"""Runs of one guest's dma-bufs. Each adds at most 1,024 (GUP_PIN_COUNTING_BIAS) to the reference
count of any one page, so that a guest that names one page in all of them stays at half of the 2**31
where the count overflows and the kernel warns (kernel-dmabuf.md 1.4)."""

RETRY: Final = 5.0
"""Seconds before a refused export is tried again: a guest flips its pictures 60 times a second,
and an operator who raises a limit or loads the module need not restart anything."""


class CannotExport(HostError):
    """No dma-buf can be made of these pages, which are shown by copying them instead. `reason` is
    one of few words, so that each is logged once whatever a guest does. `instead` says what
    becomes of the picture."""

    def __init__(self, reason: str, what: str, errno: int = 0, remedy: str = "") -> None:
        super().__init__(what, errno, remedy)
        self.reason = reason
        self.instead = "the pixels are copied"


class Quota:
    """What the dma-bufs of one guest may cost."""

    def __init__(
        self, dmabufs: int = MAX_DMABUFS, size: int = MAX_BYTES, items: int = MAX_ITEMS
    ) -> None:
        self._max = (dmabufs, size, items)
        self._live: dict[object, tuple[int, int]] = {}
        self._refused = [0, 0, 0]
        self._lock = threading.Lock()

    @property
    def dmabufs(self) -> int:
        """Alive, those that are being made included."""
        return len(self._live)

    @property
    def size(self) -> int:
        """Bytes pinned."""
        return sum(size for size, _ in list(self._live.values()))

    def take(self, size: int, items: int) -> object:
        """A token for give(). Raises CannotExport where nothing is left."""
        with self._lock:
            live = list(self._live.values())
            dmabufs, most, runs = self._max
            if len(live) >= dmabufs:
                self._refused[0] += 1
                raise CannotExport("quota-dmabufs", f"the guest has {dmabufs} dma-bufs already")
            if sum(one for one, _ in live) + size > most:
                self._refused[1] += 1
                what = f"the guest's dma-bufs would pin more than {most >> 20} MiB"
                raise CannotExport("quota-bytes", what)
            if sum(one for _, one in live) + items > runs:
                self._refused[2] += 1
                what = f"the guest's dma-bufs would have more than {runs} pieces"
                raise CannotExport("quota-items", what)
            token = object()
            self._live[token] = (size, items)
            return token

    def usage(self) -> dict[str, Usage]:
        """Quotas beyond which pictures are copied instead: dma-bufs, bytes and pieces."""
        live = list(self._live.values())
        used = (len(live), sum(size for size, _ in live), sum(items for _, items in live))
        names = ("dmabufs", "pinned_bytes", "pieces")
        return dict(zip(names, map(Usage, used, self._max, self._refused), strict=True))

    def give(self, token: object) -> None:
        """Once or more. It takes no lock: the garbage collector calls it from anywhere."""
        self._live.pop(token, None)


class Dmabuf:
    """A dma-buf: its descriptor is closed by close() or with the last reference, and its share
    of the quota goes back. `size` is in bytes, whole pages."""

    __slots__ = ("__weakref__", "_fd", "_quota", "_token", "size")

    def __init__(self, fd: OwnedFd, size: int, quota: Quota, token: object) -> None:
        self.size = size
        self._fd = fd
        self._quota, self._token = quota, token

    def fileno(self) -> int:
        """Borrowed; -1 once closed, which happens when the guest's memory changes: whoever is to
        send it looks here last."""
        return self._fd.fileno()

    def close(self) -> None:
        self._fd.close()
        self._quota.give(self._token)

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Dmabuf {self.fileno()} of {self.size} bytes>"


class LazyDmabuf:
    """One dma-buf, made when first asked for and kept until what it is made of changes.

    get() may run in a thread while drop() is called in another. `explain` hears why there is none.
    """

    __slots__ = ("_dmabuf", "_explain", "_lock", "_refused", "_version")

    def __init__(self, explain: Callable[[CannotExport], None]) -> None:
        self._explain = explain
        self._lock = threading.Lock()
        self._dmabuf: Dmabuf | None = None
        self._refused = 0.0
        self._version = 0

    @property
    def settled(self) -> bool:
        """Whether get() answers without asking the kernel."""
        with self._lock:
            return self._dmabuf is not None or self._was_refused()

    def _was_refused(self) -> bool:
        return self._refused > 0 and time.monotonic() < self._refused + RETRY

    def get(self, make: Callable[[], Dmabuf]) -> Dmabuf | None:
        """The dma-buf, or None where none can be made, or where drop() came first."""
        with self._lock:
            if self._dmabuf is not None:
                return self._dmabuf
            if self._was_refused():
                return None
            version = self._version
        try:
            made = make()  # without the lock: drop() must not wait for the kernel
        except CannotExport as error:
            with self._lock:
                if version != self._version:
                    return None  # of what it was made of before
                self._refused = time.monotonic()
            self._explain(error)
            return None
        with self._lock:
            if version == self._version and self._dmabuf is None:
                self._dmabuf = made
                return made
            made.close()
            return self._dmabuf

    def retry(self) -> None:
        """What refused may have changed: it need not be waited for."""
        with self._lock:
            self._refused = 0.0

    def drop(self) -> None:
        """What it was made of has changed: it is closed, also where somebody refers to it."""
        with self._lock:
            dmabuf, self._dmabuf = self._dmabuf, None
            self._version += 1
            self._refused = 0.0
        if dmabuf is not None:
            dmabuf.close()
