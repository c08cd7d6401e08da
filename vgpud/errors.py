"""What can go wrong, typed by how much of the world it takes down (the blast radius).

::

    Exception
    └── VgpudError               never raised itself; `except VgpudError` means "one of ours"
        ├── GuestError(code)     kills one command: the guest gets `code` as its response
        ├── RingBroken           kills one ring until it is reset: QEMU's err eventfd, one log line
        ├── PeerError            kills one session: socket closed, the daemon keeps listening
        └── HostError(errno)     an OSError with its context and the remedy: kills the command
                                 where a resource was concerned, else the session

Anything else that is raised is a bug of ours and kills the process, with a traceback.
`vgpuwire.WireError` (a message that cannot be parsed) is turned into a PeerError by whoever reads
the socket.

This module is a leaf: it imports only the standard library, so that every layer can import it.
"""

from __future__ import annotations

import os

__all__ = ["GuestError", "HostError", "PeerError", "RingBroken", "VgpudError"]


class VgpudError(Exception):
    """The root of the tree. Catch it only to say "an error that vgpud knows about"."""


class GuestError(VgpudError):
    """The guest asked for something it may not have; it is told so and nothing else happens.

    `code` is a virtio-gpu response code (`VIRTIO_GPU_RESP_ERR_*`, virtio 1.3 section 5.7.6.7).
    `reason` is for the debug log and the tests only: a guest must not fill the operator's log.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = int(code)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"response {self.code:#06x}: {self.reason}"
            if self.reason
            else f"response {self.code:#06x}"
        )


class RingBroken(VgpudError):
    """A virtqueue cannot be read any further: a loop, an index out of range, memory not there.

    Only that ring stops; its message says what was wrong with it. QEMU resets it with the device.
    """


class PeerError(VgpudError):
    """QEMU said something that leaves no common ground for this session; its sockets are closed.

    The message names the request, and the device property or option of QEMU to change where one
    would help.
    """


class HostError(VgpudError):
    """The kernel refused something: what was tried, on what, and what the operator can do about it.

    Inside `except OSError as error`: `raise HostError.of(error, "opening /dev/udmabuf", remedy)
    from error`. `errno` is 0 where no system call was involved; `remedy` may be empty.
    """

    def __init__(self, what: str, errno: int = 0, remedy: str = "") -> None:
        super().__init__(what, errno, remedy)
        self.what = what
        self.errno = errno
        self.remedy = remedy

    @classmethod
    def of(cls, error: OSError, what: str, remedy: str = "") -> HostError:
        """Build one from the OSError that is being handled."""
        return cls(what, error.errno or 0, remedy)

    def __str__(self) -> str:
        text = (
            f"{self.what}: {os.strerror(self.errno)} (errno {self.errno})"
            if self.errno
            else self.what
        )
        return f"{text}; {self.remedy}" if self.remedy else text
