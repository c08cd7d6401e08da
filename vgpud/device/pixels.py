"""The port through which the device reaches pixels and guest pages.

The device decides, the port does. `vgpud.host.surfaces` is the real one, `tests/support` has
one made of bytes; `tests/contract` holds both to the same cases.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from vgpuwire import Format, Rect

BYTES_PER_PIXEL: Final = 4
"""All eight 2D formats (virtio 1.3, 5.7.6.8) have 32 bits a pixel."""

FORMATS: Final = frozenset(int(f) for f in Format)


class Layout(NamedTuple):
    """Where the pixels of a frame buffer are in its memory: width x height pixels of a virtio-gpu
    format, rows `stride` bytes apart, the first pixel at byte `offset`."""

    width: int
    height: int
    stride: int
    offset: int
    format: int


class Dmabuf(Protocol):
    """A dma-buf and its descriptor, closed with the last reference."""

    @property
    def size(self) -> int:
        """Bytes."""

    def fileno(self) -> int: ...


class Picture(Protocol):
    """What a head can show: a frame buffer, wherever its pixels are. It lives as long as
    somebody refers to it."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def stride(self) -> int:
        """Bytes from a row to the next, in its dma-buf."""

    @property
    def fourcc(self) -> int:
        """The DRM format of the dma-buf, without alpha (row F15)."""

    @property
    def lost(self) -> bool:
        """Whether the guest's memory behind it has left the memory table."""

    def rows(self, rect: Rect) -> list[memoryview]:
        """The pixels of `rect`, which is inside, as B8G8R8X8 bytes in pieces from top to bottom.
        Memory that cannot fault: the resource's own, or a copy.

        Raises GuestError(ERR_UNSPEC) where the guest's memory is no longer there, and where it is
        slow.
        """

    @property
    def slow(self) -> bool:
        """Whether its pixels are in device memory, which is read in a thread, by fetch() only."""

    def fetch(self, rect: Rect, stop: bytearray) -> list[memoryview] | None:
        """What rows() returns for others, read in a thread: it may take long. None where
        another thread has set the first byte of `stop`. Raises GuestError(ERR_UNSPEC)."""

    @property
    def memory(self) -> int:
        """Bytes of what dmabuf() exports: all of the buffer, however little of it is shown."""

    @property
    def settled(self) -> bool:
        """Whether dmabuf() answers at once: it was made, or it is known that it cannot be."""

    def dmabuf(self) -> Dmabuf | None:
        """All of its memory as a dma-buf whose first byte is the first pixel, made when first
        asked for and kept; None where that cannot be (the reason is logged once). Any thread."""


class Backing(Protocol):
    """Guest pages behind a resource, in the order of the guest's entries."""

    @property
    def size(self) -> int:
        """Bytes: the sum of the entries' lengths."""

    @property
    def segments(self) -> int:
        """Pieces that it takes in the host: an entry may reach over many regions."""

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes; fewer at the end. Raises GuestError as `rows` does."""

    def picture(self, layout: Layout, size: int) -> Picture:
        """Its first `size` bytes seen as a frame buffer. The layout was checked against them."""


class Surface(Picture, Protocol):
    """The host's copy of a 2D resource: B8G8R8A8 whatever the guest's format, row-major,
    zero when new."""

    @property
    def pixels(self) -> memoryview:
        """height * stride bytes."""

    def fill(self, backing: Backing, rect: Rect, offset: int) -> None:
        """Copy `rect`, which is inside the surface, from the backing, whose byte `offset` is the
        rectangle's first pixel and whose rows are width * 4 bytes; what lies beyond the backing's
        end is left as it was.

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
