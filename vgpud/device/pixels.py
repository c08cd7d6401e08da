"""The port through which the device reaches pixels and guest pages.

The device decides, the port does. `vgpud.host.surfaces` is the real one, `tests/support` has
one made of bytes; `tests/contract` holds both to the same cases.
"""

from __future__ import annotations

from typing import Final, Protocol

from vgpuwire import Format, Rect

BYTES_PER_PIXEL: Final = 4
"""All eight 2D formats (virtio 1.3, 5.7.6.8) have 32 bits a pixel."""

FORMATS: Final = frozenset(int(f) for f in Format)


class Backing(Protocol):
    """Guest pages behind a resource, in the order of the guest's entries."""

    @property
    def size(self) -> int:
        """Bytes: the sum of the entries' lengths."""


class Surface(Protocol):
    """The host's copy of a 2D resource: B8G8R8A8 whatever the guest's format, row-major,
    zero when new. It lives as long as somebody refers to it."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def pixels(self) -> memoryview:
        """height * width * 4 bytes."""

    def fill(self, backing: Backing, rect: Rect, offset: int) -> None:
        """Copy `rect`, which is inside the surface, from the backing, whose byte `offset` is the
        rectangle's first pixel; what lies beyond the backing's end is left as it was.

        Raises GuestError(ERR_UNSPEC) where the guest's memory is no longer there.
        """


class PixelStore(Protocol):
    """Makes surfaces and backings."""

    def create_surface(self, width: int, height: int, pixel_format: int) -> Surface:
        """Raises GuestError(ERR_OUT_OF_MEMORY) where the host has no memory or fd left."""

    def resolve(self, entries: bytes) -> Backing:
        """Resolve an array of virtio_gpu_mem_entry (16 bytes each) against guest memory.

        Raises GuestError(ERR_UNSPEC) for an entry that is empty or not all in guest RAM.
        """
