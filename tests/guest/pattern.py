"""The picture that tests/guest/drmdraw.c draws: its twin, so both sides can be compared exactly."""


def pattern(width: int, height: int, seed: int, top: int = 0) -> bytes:
    """RGB bytes, row by row, of the rows `top` to `height` of a width x height picture."""
    columns = bytes(x & 255 for x in range(width))
    red = bytes((x + 31 * seed) & 255 for x in columns)
    tiles = bytes(((x >> 8) * 16) & 255 for x in range(width))
    # x ^ y for a whole row at once: the row as one long number.
    blue_of_x = int.from_bytes(columns, "big") ^ int.from_bytes(tiles, "big")
    everywhere = int.from_bytes(b"\1" * width, "big")
    pixels = bytearray(3 * width * (height - top))
    pixels[0::3] = red * (height - top)
    for y in range(top, height):
        start, end = 3 * width * (y - top), 3 * width * (y - top + 1)
        blue_of_y = (y ^ (y >> 8) * 32 ^ 7 * seed) & 255
        pixels[start + 1 : end : 3] = bytes([(y + 17 * seed) & 255]) * width
        pixels[start + 2 : end : 3] = (blue_of_x ^ everywhere * blue_of_y).to_bytes(width, "big")
    return bytes(pixels)
