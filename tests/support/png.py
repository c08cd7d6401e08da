"""Pictures as QEMU dumps them (PPM), compared with what they should be, and written as PNG."""

import re
import struct
import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """`rgb` holds 3 bytes a pixel, row by row from the top left."""

    width: int
    height: int
    rgb: bytes

    def rows(self, top: int, bottom: int) -> bytes:
        """The RGB bytes of the rows from `top` up to, not including, `bottom`."""
        return self.rgb[top * self.width * 3 : bottom * self.width * 3]

    def difference(self, rgb: bytes, top: int = 0) -> str:
        """ "" if the rows from `top` on are exactly `rgb`, else where and how they differ first."""
        mine = self.rows(top, self.height)
        if mine == rgb:
            return ""
        if len(mine) != len(rgb):
            return f"{len(mine)} bytes of {self.width}x{self.height}, expected {len(rgb)}"
        wrong = [i for i in range(0, len(rgb), 3) if mine[i : i + 3] != rgb[i : i + 3]]
        y, x = divmod(wrong[0] // 3, self.width)
        got, expected = mine[wrong[0] :][:3].hex(), rgb[wrong[0] :][:3].hex()
        where = f"the first at ({x}, {y + top}): {got}, expected {expected}"
        return f"{len(wrong)} of {len(rgb) // 3} pixels differ, {where}"

    def png(self) -> bytes:
        """The picture as a PNG file."""
        lines = b"".join(b"\0" + self.rows(y, y + 1) for y in range(self.height))
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 6)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )


def parse_ppm(data: bytes) -> Picture:
    """A binary PPM (P6, 8 bits a channel), which is what QEMU's screendump writes."""
    header = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
    if header is None:
        raise ValueError(f"not a PPM of QEMU's: {data[:32]!r}")
    width, height = int(header[1]), int(header[2])
    rgb = data[header.end() :]
    # QEMU pads each row to 4 bytes, which a PPM has no word for (ui/ui-qmp-cmds.c, ppm_save).
    padded = (width * 3 + 3) & ~3
    if len(rgb) == padded * height:
        rgb = b"".join(rgb[y * padded : y * padded + width * 3] for y in range(height))
    if len(rgb) != width * 3 * height:
        raise ValueError(f"a PPM of {len(rgb)} bytes for {width}x{height}")
    return Picture(width, height, rgb)


def parse_png(data: bytes) -> Picture:
    """A PNG (ISO/IEC 15948) of 8-bit RGB without interlacing or filters, which vgpuctl writes.
    Raises ValueError for any other, and for a wrong checksum."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"not a PNG: {data[:16]!r}")
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if zlib.crc32(kind + body) != struct.unpack_from(">I", data, at + 8 + length)[0]:
            raise ValueError(f"{kind!r}: wrong checksum")
        chunks[kind] = chunks.get(kind, b"") + body
        at += 12 + length
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    lines, step = zlib.decompress(chunks[b"IDAT"]), 1 + width * 3
    if form != [8, 2, 0, 0, 0] or len(lines) != step * height or any(lines[::step]):
        raise ValueError(f"a PNG of another form: {form}")
    rgb = b"".join(lines[y * step + 1 : (y + 1) * step] for y in range(height))
    return Picture(width, height, rgb)
