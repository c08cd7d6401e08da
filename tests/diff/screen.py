"""What the model keeps: resources, heads, and what is on a screen."""

from dataclasses import dataclass, field

from tests.qtest.gpu import Rect, rgb


@dataclass(frozen=True)
class Shown:
    """What a head must show: pixels, or where `rgb` is None something without them: "off" (the
    placeholder), "old" (nothing was said about it since the reset), "loose" (of this size, but
    which of two contents is a matter of time)."""

    width: int
    height: int
    rgb: bytes | None
    why: str = ""


@dataclass(eq=False)
class Resource:
    width: int
    height: int
    pixel_format: int
    rows: dict[int, bytearray] = field(default_factory=dict)
    """Rows in the guest's format, made when first written: most of 256 MiB is never looked at."""
    entries: list[tuple[int, int]] | None = None
    bounced: int = 0
    """Bytes of QEMU's bounce buffers behind it."""
    scanouts: set[int] = field(default_factory=set)

    @property
    def size(self) -> int:
        return self.width * self.height * 4

    def row(self, y: int) -> bytearray:
        return self.rows.setdefault(y, bytearray(self.width * 4))

    def rgb(self, rect: Rect) -> bytes:
        x, y, width, height = rect
        blank = bytes(width * 4)
        data = b"".join(
            bytes(self.rows[line][x * 4 : (x + width) * 4]) if line in self.rows else blank
            for line in range(y, y + height)
        )
        return rgb(data, self.pixel_format)


@dataclass(eq=False)
class Head:
    """A scanout, and the picture on its screen (`shown`: as last flushed)."""

    resource: Resource | None = None
    rect: Rect = (0, 0, 0, 0)
    shown: Shown = Shown(0, 0, None, "old")
    damage: list[Rect] = field(default_factory=list)
    loose: bool = False
