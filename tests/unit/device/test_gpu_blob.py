"""Tables L and B, and the rows of A, T, S, F, U, C and R that blobs decide."""

from __future__ import annotations

import gc
import struct
import tracemalloc
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_pixels import CHANNELS, FOURCC, PAGE, FakeGuest, FakePixelStore, entries
from tests.unit.device.driver import (
    BAD_PARAMETER,
    BAD_RESOURCE,
    BAD_SCANOUT,
    FENCE,
    FORMATS,
    NO_MEMORY,
    OK,
    OK_UUID,
    U32,
    UNSPEC,
    Answer,
    Box,
    Driver,
    assign_uuid,
    attach,
    command,
    create_2d,
    create_blob,
    detach,
    flush,
    furnished,
    set_scanout,
    set_scanout_blob,
    snapshot,
    transfer,
    unref,
)
from vgpud.device.outcome import DEVICE_TIMELINE, Ask, Damage, ShowSurface, Silence
from vgpud.device.pixels import Picture
from vgpud.device.scanout import MAX_SIDE, NOTHING
from vgpuwire import Rect

BLOB_FEATURE = 1 << 3
ONE_PAGE = entries((0, PAGE))
BACKED = entries((0, 4 * PAGE))
GUEST = bytes((7 * n + n // 251) & 0xFF for n in range(64 * PAGE))


def with_blob(
    size: int = 4 * PAGE, pieces: bytes = BACKED, exports: bool = False, pages: int = 64
) -> Driver:
    """Blob 1 over GUEST."""
    driver = Driver(FakePixelStore(FakeGuest((0, pages * PAGE)), exports))
    driver.device.set_features(BLOB_FEATURE)
    driver.guest.write(0, GUEST[: pages * PAGE])
    driver.ok(create_blob(1, size, pieces))
    return driver


def shown(answer: Answer) -> Picture:
    (message,) = answer.display
    assert isinstance(message, ShowSurface)
    assert message.surface is not None
    return message.surface


def pixels(picture: Picture, box: Box) -> bytes:
    return b"".join(picture.rows(Rect(*box)))


def expected(box: Box, stride: int, offset: int, order: str, blob: bytes = GUEST) -> bytes:
    """Pixel by pixel, by the names of the format's channels."""
    found = b""
    for y in range(box[1], box[1] + box[3]):
        for x in range(box[0], box[0] + box[2]):
            at = offset + y * stride + x * 4
            guest = dict(zip(order.replace("X", "A"), blob[at : at + 4], strict=True))
            found += bytes(guest[channel] for channel in "BGRA")
    return found


def damage(answer: Answer) -> dict[int, Box]:
    assert all(isinstance(message, Damage) for message in answer.display)
    return {m.scanout_id: tuple(m.rect) for m in answer.display if isinstance(m, Damage)}


# -- table L: RESOURCE_CREATE_BLOB


@pytest.mark.parametrize(
    "request_",
    [
        create_blob(9, PAGE, ONE_PAGE),
        create_blob(0),
        create_blob(1),
        create_blob(9, mem=99),
        create_blob(9, PAGE, ONE_PAGE)[:40],
        command(0x010C),
        create_blob(9, count=U32),
    ],
    ids=["good", "id 0", "taken", "memory 99", "cut", "header", "entries"],
)
@pytest.mark.parametrize("features", [0, 0x1F & ~BLOB_FEATURE])
def test_L01_a_blob_needs_the_feature_whatever_else_is_wrong(
    request_: bytes, features: int
) -> None:
    driver = furnished()
    driver.device.set_features(features)
    driver.refused(request_, BAD_PARAMETER)


# Each is wrong in what its id names and in all that is looked at later.
WRONG = {
    "L02 id 0": (create_blob(0, 1 << 63, b"", 16385, mem=9), BAD_RESOURCE),
    "L04 host memory": (create_blob(4, 1 << 63, b"", 16385, mem=2, blob_flags=2), BAD_PARAMETER),
    "L05 no memory": (create_blob(4, 1 << 63, b"", 16385, mem=0), BAD_PARAMETER),
    "L05 both memories": (create_blob(4, 1 << 63, b"", 16385, mem=3, blob_flags=2), BAD_PARAMETER),
    "L05 memory 99": (create_blob(4, 1 << 63, b"", 16385, mem=99), BAD_PARAMETER),
    "L05 memory 2**32 - 1": (create_blob(9, mem=U32), BAD_PARAMETER),
    "L06 an image's id": (create_blob(1, 1 << 63, b"", 16385), BAD_RESOURCE),
    "L06 a blob's id": (create_blob(4, 1 << 63, b"", 16385), BAD_RESOURCE),
    "L08 16,385 entries": (create_blob(9, 1 << 63, ONE_PAGE * 16385), UNSPEC),
    "L08 2**32 - 1 entries": (create_blob(9, 1 << 63, ONE_PAGE, U32), UNSPEC),
    "L08 an entry short": (create_blob(9, 1 << 63, ONE_PAGE, 2), UNSPEC),
    "L08 a byte short": (create_blob(9, 1 << 63, (ONE_PAGE * 2)[:-1], 2), UNSPEC),
    "L08 an empty entry": (create_blob(9, 1 << 63, ONE_PAGE + entries((0, 0))), UNSPEC),
    "L08 no memory there": (create_blob(9, 1 << 63, entries((1 << 40, PAGE))), UNSPEC),
    "L08 it wraps": (create_blob(9, 1 << 63, entries(((1 << 64) - PAGE, 2 * PAGE))), UNSPEC),
    "L09 a byte short": (create_blob(9, PAGE + 1, ONE_PAGE), BAD_PARAMETER),
    "L09 a page short": (create_blob(9, 3 * PAGE, ONE_PAGE * 2), BAD_PARAMETER),
    "L12 2**63": (create_blob(9, 1 << 63, ONE_PAGE), BAD_PARAMETER),
    "L12 2**64 - 1": (create_blob(9, (1 << 64) - 1, ONE_PAGE), BAD_PARAMETER),
    "L12 cut to 32 bits it fits": (create_blob(9, (1 << 32) + 1, ONE_PAGE), BAD_PARAMETER),
}


@pytest.mark.parametrize("name", WRONG)
def test_L02_L04_L05_L06_L08_L09_L12_a_wrong_blob_is_refused_and_nothing_changes(
    name: str,
) -> None:
    driver = furnished()
    driver.refused(*WRONG[name])
    driver.ok(create_blob(9, PAGE, ONE_PAGE), unref(9))


def test_L08_a_huge_count_is_refused_without_an_allocation() -> None:
    driver = furnished()
    request = create_blob(9, PAGE, ONE_PAGE, U32)
    driver.run(request)
    tracemalloc.start()
    driver.run(request)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 10


TOP = entries((64 * PAGE - 1, 1))
RIGHT = {
    "L03 no flags": create_blob(9, PAGE, ONE_PAGE),
    **{f"L03 flags {n}": create_blob(9, PAGE, ONE_PAGE, blob_flags=n) for n in (1, 2, 7, U32)},
    "L07 without entries": create_blob(9, PAGE),
    "L07 without entries, 2**64 - 1 bytes": create_blob(9, (1 << 64) - 1),
    "L08 16,384 entries": create_blob(9, 16384 * PAGE, ONE_PAGE * 16384),
    "L08 more entries than it says": create_blob(9, PAGE, ONE_PAGE + entries((1 << 40, 0)), 1),
    "L10 a byte more": create_blob(9, PAGE - 1, ONE_PAGE),
    "L10 three pages more": create_blob(9, PAGE, BACKED),
    "L11 no bytes": create_blob(9, 0, ONE_PAGE),
    "L11 nothing at all": create_blob(9, 0),
    "L13 not in pages": create_blob(9, 2 * PAGE - 100, ONE_PAGE * 2),
    "L14 one entry below a page": create_blob(9, 100, entries((0, 100))),
    "L14 one byte": create_blob(9, 1, TOP),
    "L15 not on a page": create_blob(9, PAGE, entries((100, PAGE))),
    "L15 not whole pages": create_blob(9, 300, entries((0, 100), (PAGE, 200))),
    "L17 1,025 pieces": create_blob(9, 1025 * 16, entries(*((n * 32, 16) for n in range(1025)))),
    "L21 a context": create_blob(9, PAGE, ONE_PAGE, context=77),
    "L21 a blob id": create_blob(9, PAGE, ONE_PAGE, blob=(1 << 64) - 1),
}


@pytest.mark.parametrize("name", RIGHT)
def test_L03_L07_L10_L11_L13_L14_L15_L17_L21_a_blob_of_guest_memory_is_made(name: str) -> None:
    driver = furnished()
    used = driver.device.resources.budget.used
    answer = driver.ok(RIGHT[name])
    assert (answer.display, answer.body, answer.timeline) == ((), b"", None)
    size, count = struct.unpack_from("<QI", RIGHT[name][48:56] + RIGHT[name][36:40])
    blob = driver.resource(9)
    assert (blob.size, blob.entries, blob.backing is None) == (size, count, count == 0)
    assert driver.device.resources.budget.used == used, "it is the guest's memory"
    assert driver.device.resources.entries == sum(one.entries for one in driver.device.resources)
    driver.ok(transfer(9), unref(9))


def test_L03_a_fence_comes_back() -> None:
    answer = furnished().run(create_blob(9, PAGE, ONE_PAGE, flags=FENCE, fence=8, context=3))
    assert (answer.kind, answer.flags, answer.fence, answer.context) == (OK, FENCE, 8, 3)
    assert answer.timeline == DEVICE_TIMELINE


def test_L07_a_blob_without_entries_is_backed_later() -> None:
    driver = furnished()
    driver.refused(set_scanout_blob(0, 5), BAD_RESOURCE)
    driver.ok(attach(5, BACKED), set_scanout_blob(0, 5))
    driver.refused(attach(5, BACKED), UNSPEC)


def test_L08_the_entries_of_blobs_count_with_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgpud.device.resource.MAX_ALL_ENTRIES", 10)
    driver = Driver()
    driver.device.set_features(BLOB_FEATURE)
    driver.ok(create_blob(1, PAGE, ONE_PAGE * 6), create_2d(2, 4, 4), attach(2, ONE_PAGE * 3))
    driver.refused(create_blob(3, PAGE, ONE_PAGE * 2), NO_MEMORY)
    driver.ok(create_blob(3, PAGE, ONE_PAGE), detach(1))
    driver.refused(attach(1, ONE_PAGE * 7), NO_MEMORY)
    driver.ok(attach(1, ONE_PAGE * 6), unref(1), create_blob(1, PAGE, ONE_PAGE * 6))


def test_L20_blobs_are_counted_like_any_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgpud.device.resource.MAX_RESOURCES", 3)
    driver = Driver()
    driver.device.set_features(BLOB_FEATURE)
    driver.ok(create_blob(1), create_2d(2), create_blob(3))
    driver.refused(create_blob(4), NO_MEMORY)
    driver.ok(unref(1), create_blob(4))


def test_L11_a_blob_of_no_bytes_is_never_shown() -> None:
    driver = furnished()
    driver.ok(create_blob(9, 0, BACKED))
    driver.refused(set_scanout_blob(0, 9), BAD_PARAMETER)
    driver.refused(set_scanout_blob(0, 9, (0, 0, 16, 16), (16, 16), stride=64), BAD_PARAMETER)


def test_L18_entries_of_several_regions_are_one_blob() -> None:
    guest = FakeGuest((0, PAGE), (1 << 32, 2 * PAGE), (PAGE, PAGE))
    driver = Driver(FakePixelStore(guest, exports=True))
    driver.device.set_features(BLOB_FEATURE)
    for number, address in enumerate((0, PAGE, 1 << 32, (1 << 32) + PAGE)):
        guest.write(address, bytes([number + 1]) * PAGE)
    pieces = entries(((1 << 32), 2 * PAGE), (0, 2 * PAGE))
    driver.ok(create_blob(1, 4 * PAGE, pieces))
    picture = shown(driver.ok(set_scanout_blob(0, 1)))
    found = b"".join(bytes([number]) * PAGE for number in (3, 4, 1, 2))
    assert pixels(picture, (0, 0, 64, 64)) == found
    dmabuf = picture.dmabuf()
    assert dmabuf is not None
    assert dmabuf.size == 4 * PAGE


def test_C02_the_id_of_a_blob_is_taken() -> None:
    furnished().refused(create_2d(4), BAD_RESOURCE)


# -- table B: SET_SCANOUT_BLOB


@pytest.mark.parametrize("size", [0, 24, 72])
def test_B01_a_blob_cannot_be_shown_without_the_feature(size: int) -> None:
    driver = furnished()
    driver.device.set_features(0x1F & ~BLOB_FEATURE)
    driver.refused(command(0x010D, bytes(size)), BAD_PARAMETER)
    for request in (set_scanout_blob(0, 4), set_scanout_blob(0, 0), set_scanout_blob(99, 99)):
        driver.refused(request, BAD_PARAMETER)


@pytest.mark.parametrize("heads", [1, 16])
def test_S01_B16_no_such_head_is_refused_before_all_else(heads: int) -> None:
    driver = furnished()
    driver.device.outputs.known = driver.device.outputs.limit = heads
    for head in (heads, 16, 1 << 31, U32):
        for resource in (0, 1, 4, 77):
            driver.refused(set_scanout_blob(head, resource, (0, 0, 1, 1), (0, 0)), BAD_SCANOUT)


@pytest.mark.parametrize(
    "resource", [pytest.param(3, id="unknown"), pytest.param(U32, id="unknown too")]
)
def test_S03_B16_an_unknown_resource_is_refused_before_what_is_asked_of_it(resource: int) -> None:
    bad = set_scanout_blob(0, resource, (0, 0, 1, 1), (0, 0), 5, 0, U32)
    furnished().refused(bad, BAD_RESOURCE)


def test_B02_an_image_is_no_blob() -> None:
    driver = furnished()
    driver.refused(set_scanout_blob(0, 1), BAD_RESOURCE)
    driver.refused(set_scanout_blob(0, 1, pixel_format=5), BAD_RESOURCE)


def test_S05_a_blob_is_no_image() -> None:
    driver = furnished()
    driver.refused(set_scanout(0, 4), BAD_RESOURCE)
    driver.refused(set_scanout(0, 5), BAD_RESOURCE)


def test_B03_a_blob_without_backing_is_refused() -> None:
    furnished().refused(set_scanout_blob(0, 5), BAD_RESOURCE)


def test_S02_resource_0_switches_the_head_off_once() -> None:
    driver = furnished()
    off = driver.ok(set_scanout_blob(2, 0, (1, 2, 3, 4), (0, 0), 5, 0))
    assert off.display == (ShowSurface(2, None, NOTHING),)
    assert driver.ok(set_scanout_blob(2, 0)).display == ()
    assert driver.resource(4).scanouts == set()


# Of a blob of 64 x 64 pixels, 256 bytes a row: what is refused, and with what.
REFUSED = {
    **{f"B04 format {n}": {"pixel_format": n} for n in (0, 5, 66, 69, 120, 122, 133, 135, U32)},
    "B05 stride 0": {"stride": 0},
    "B05 a byte below the width": {"stride": 255},
    "B05 the width's bytes wrap": {"size": (1 << 30, 64), "stride": 256},
    "B05 the width's bytes wrap to 256": {"size": ((1 << 30) + 64, 64), "stride": 256},
    "B06 stride 2**31": {"size": (16, 16), "box": (0, 0, 16, 16), "stride": 1 << 31},
    "B06 stride 2**32 - 1": {"size": (16, 1), "box": (0, 0, 16, 16), "stride": U32},
    "B07 offset and x": {"offset": U32 - 3, "box": (1, 0, 16, 16)},
    "B07 y": {"offset": 256, "size": (64, U32), "box": (0, (1 << 24) - 1, 16, 16)},
    "B07 it wraps to 0": {"size": (64, U32), "box": (0, 1 << 24, 16, 16)},
    "B07 it wraps twice": {"size": (64, U32), "box": (0, 1 << 25, 16, 16)},
    "B08 offset": {"offset": 4},
    "B08 odd offset": {"offset": 1},
    "B08 offset 2**32 - 1": {"offset": U32},
    "B08 stride": {"stride": 257},
    "B08 a row more": {"size": (64, 65), "box": (0, 1, 64, 64)},
    "B08 a pixel more": {"size": (65, 64), "box": (1, 0, 64, 64)},
    "B08 low rectangle": {"size": (64, 1000), "box": (0, 49, 16, 16)},
    "B10 15 wide": {"box": (0, 0, 15, 16)},
    "B10 15 high": {"box": (0, 0, 16, 15)},
    "B10 nothing": {"box": (0, 0, 0, 0)},
    "B10 no rows, at the end": {"box": (0, 64, 64, 0)},
    "B10 right of the frame buffer": {"size": (48, 64), "box": (40, 0, 16, 16)},
    "B10 below the frame buffer": {"size": (64, 48), "box": (0, 40, 16, 16)},
    "B10 wider than it": {"size": (48, 64), "box": (0, 0, 49, 16)},
    "B10 x wraps": {"size": (64, 64), "box": (U32 - 15, 0, 32, 16)},
    "B12 0 x 0": {"size": (0, 0), "box": (0, 0, 16, 16)},
    "B12 64 x 0": {"size": (64, 0), "box": (0, 0, 16, 16)},
    "B12 0 x 64": {"size": (0, 64), "box": (0, 0, 16, 16)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_B04_B05_B06_B07_B08_B10_B12_a_wrong_frame_buffer_is_refused(name: str) -> None:
    driver = furnished()
    wrong: dict[str, object] = REFUSED[name]
    driver.refused(set_scanout_blob(0, 4, **wrong), BAD_PARAMETER)
    driver.refused(set_scanout_blob(2, 4, **wrong), BAD_PARAMETER)


ACCEPTED = {
    "B08 all of it": {},
    "B08 with slack in the last row": {"size": (60, 64), "box": (0, 0, 60, 64)},
    "B08 an offset": {"size": (64, 63), "box": (0, 0, 64, 63), "offset": 256},
    "B08 an offset to the last pixels": {
        "size": (16, 16),
        "box": (0, 0, 16, 16),
        "offset": 48 * 256 + 48 * 4,
    },
    "B08 an odd offset": {"size": (64, 63), "box": (0, 0, 64, 63), "offset": 3},
    "B09 the right-hand head": {"box": (32, 0, 32, 64)},
    "B09 the last row is short": {"size": (40, 41), "box": (0, 0, 40, 41), "stride": 405},
    "B09 a frame buffer beyond the blob": {"size": (64, U32), "box": (0, 48, 16, 16)},
    "B09 only what is shown counts": {"size": (64, 1 << 20), "box": (48, 48, 16, 16)},
    "B05 a tight stride": {"size": (63, 64), "box": (0, 0, 63, 64), "stride": 252},
    "B05 an odd stride": {"size": (63, 64), "box": (3, 5, 40, 50), "stride": 253},
    "B10 the smallest": {"size": (16, 16), "box": (0, 0, 16, 16), "stride": 64},
    "B11 planes 1 to 3": {"rest": b"\xff" * 24},
    "B11 padding": {"padding": U32},
}


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("pixel_format", FORMATS.values(), ids=FORMATS)
def test_B08_B09_B11_B15_a_frame_buffer_is_shown_pixel_by_pixel(
    name: str, pixel_format: int
) -> None:
    change: dict[str, object] = {"box": (0, 0, 64, 64), **ACCEPTED[name]}
    driver = with_blob()
    answer = driver.ok(set_scanout_blob(3, 1, pixel_format=pixel_format, **change))
    (message,) = answer.display
    assert isinstance(message, ShowSurface)
    picture, box = message.surface, change["box"]
    assert picture is not None
    assert isinstance(box, tuple)
    assert (message.scanout_id, tuple(message.rect)) == (3, box)
    assert (picture.width, picture.height) == change.get("size", (64, 64))
    stride, offset = change.get("stride", 256), change.get("offset", 0)
    assert isinstance(stride, int)
    assert isinstance(offset, int)
    assert picture.stride == stride
    assert pixels(picture, box) == expected(box, stride, offset, CHANNELS[pixel_format])
    assert picture.dmabuf() is None
    assert driver.resource(1).scanouts == {3}


DRM = {  # <drm/drm_fourcc.h>: fourcc_code('X', 'R', '2', '4') and so on, without alpha
    1: 0x34325258,
    2: 0x34325258,
    3: 0x34325842,
    4: 0x34325842,
    67: 0x34324258,
    134: 0x34324258,
    68: 0x34325852,
    121: 0x34325852,
}


@pytest.mark.parametrize("pixel_format", FORMATS.values(), ids=FORMATS)
def test_F14_F15_a_picture_s_drm_format_is_the_true_one_without_alpha(pixel_format: int) -> None:
    assert FOURCC[pixel_format] == DRM[pixel_format]
    driver = with_blob()
    picture = shown(driver.ok(set_scanout_blob(0, 1, pixel_format=pixel_format)))
    assert picture.fourcc == DRM[pixel_format]
    driver.ok(create_2d(2, pixel_format=pixel_format))
    image = shown(driver.ok(set_scanout(0, 2)))
    assert image.fourcc == DRM[1], "an image is converted when it is transferred"


def test_B13_a_blob_that_starts_with_its_first_pixel_has_a_dmabuf() -> None:
    driver = with_blob(exports=True)
    picture = shown(driver.ok(set_scanout_blob(0, 1)))
    assert driver.store.exported == 0, "none is made before it is shown (decision 12)"
    dmabuf = picture.dmabuf()
    assert dmabuf is not None
    assert dmabuf.size == 4 * PAGE
    again = shown(driver.ok(set_scanout_blob(1, 1, (0, 0, 32, 64), (32, 64), 1)))
    assert again.dmabuf() is dmabuf, "kept until its backing changes"
    assert driver.store.exported == 1


def test_B14_where_there_is_no_dmabuf_the_pixels_are_there() -> None:
    driver = with_blob(exports=True)
    picture = shown(driver.ok(set_scanout_blob(0, 1, size=(64, 63), box=(0, 0, 64, 63), offset=4)))
    assert picture.dmabuf() is None, "QEMU ignores an offset"
    assert pixels(picture, (0, 0, 64, 63)) == expected((0, 0, 64, 63), 256, 4, "BGRX")


def test_S09_S11_heads_go_from_blob_to_image_and_back() -> None:
    driver = furnished()
    first = shown(driver.ok(set_scanout_blob(0, 4)))
    assert driver.resource(1).scanouts == {1}
    assert driver.resource(4).scanouts == {0, 2}
    assert damage(driver.ok(flush(4))) == {0: (0, 0, 64, 64), 2: (0, 0, 64, 64)}
    driver.refused(set_scanout_blob(0, 4, stride=255), BAD_PARAMETER)
    driver.ok(set_scanout(0, 1))
    assert driver.resource(4).scanouts == {2}
    assert damage(driver.ok(flush(1))) == {0: (0, 0, 64, 64), 1: (0, 0, 32, 32)}
    assert first.rows(Rect(0, 0, 1, 1)), "what is on its way to the display lives on"


def test_S10_one_blob_on_all_heads_each_with_its_part() -> None:
    driver = with_blob()
    for head in range(16):
        x, y = head % 4 * 16, head // 4 * 16
        picture = shown(driver.ok(set_scanout_blob(head, 1, (x, y, 16, 16))))
        assert pixels(picture, (x, y, 16, 16)) == expected((x, y, 16, 16), 256, 0, "BGRX")
    assert driver.resource(1).scanouts == set(range(16))
    assert damage(driver.ok(flush(1, (17, 33, 1, 1)))) == {9: (1, 1, 1, 1)}


def test_V04_a_blob_too_large_for_qemu_is_blank() -> None:
    side = MAX_SIDE + 1
    driver = with_blob(side * 64, entries((0, 64 * PAGE)) * 5)
    wide = set_scanout_blob(0, 1, (0, 0, side, 16), (side, 16), stride=side * 4)
    assert driver.ok(wide).display == (ShowSurface(0, None, NOTHING),)
    assert driver.ok(flush(1, (0, 0, side, 16))).display == ()


# -- heads that QEMU may not have


def unsure() -> Driver:
    """It is not known whether QEMU has more heads than three."""
    driver = furnished()
    driver.device.outputs.known = 3
    return driver


def test_S01_a_blob_on_a_head_that_may_not_be_there_is_asked_for() -> None:
    driver = unsure()
    ask = driver.ask(set_scanout_blob(7, 4, flags=FENCE, fence=4))
    assert isinstance(ask, Ask)
    assert ask.done is not None
    assert isinstance(ask.done.display[0], ShowSurface)
    assert driver.resource(4).scanouts == {2, 7}
    answer = driver.answer(ask, Silence.ABSENT)
    assert (answer.kind, answer.flags, answer.fence) == (BAD_SCANOUT, FENCE, 4)
    assert answer.display == (ShowSurface(7, None, NOTHING),)
    assert driver.resource(4).scanouts == {2}


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (set_scanout_blob(7, 4, pixel_format=5), BAD_PARAMETER),
        (set_scanout_blob(7, 1), BAD_RESOURCE),
        (set_scanout_blob(7, 5), BAD_RESOURCE),
    ],
)
def test_an_error_survives_the_question_about_a_blob_s_head(request_: bytes, kind: int) -> None:
    driver = unsure()
    before = snapshot(driver.device)
    ask = driver.ask(request_)
    assert snapshot(driver.device) == before
    assert driver.answer(ask, bytes(1056)).kind == kind
    driver.refused(request_, kind)


# -- table F


FLUSHES = {
    # a head shows (20, 10, 32, 32) of the blob
    "F05 partly": ((0, 0, 30, 20), {0: (0, 0, 10, 10)}),
    "F10 inside": ((25, 15, 3, 2), {0: (5, 5, 3, 2)}),
    "F10 more than the head": ((0, 0, 64, 64), {0: (0, 0, 32, 32)}),
    "F06 left edge": ((10, 10, 10, 10), {}),
    "F06 upper edge": ((20, 0, 10, 10), {}),
    "F06 corner": ((0, 0, 20, 10), {}),
    "F12 no columns": ((30, 20, 0, 5), {}),
    "F12 no rows": ((30, 20, 5, 0), {}),
    "F12 nothing at the corner": ((20, 10, 0, 0), {}),
    "beyond the blob": ((30, 20, 1 << 20, 1 << 20), {0: (10, 10, 22, 22)}),
    "beyond 2**32": ((30, 20, U32, U32), {0: (10, 10, 22, 22)}),
    "F07 right edge": ((52, 10, 5, 5), None),
    "F07 lower edge": ((20, 42, 5, 5), None),
    "F07 left": ((9, 10, 10, 10), None),
    "F07 above": ((20, 0, 10, 9), None),
    "F07 far away": ((U32, U32, 1, 1), None),
    "F07 it would wrap into the head": ((U32, 0, 30, 30), None),
    "F07 nothing, elsewhere": ((0, 0, 0, 0), None),
}


@pytest.mark.parametrize("name", FLUSHES)
def test_F05_F06_F07_F10_F12_the_damage_of_a_blob(name: str) -> None:
    box, told = FLUSHES[name]
    driver = with_blob()
    driver.ok(set_scanout_blob(0, 1, (20, 10, 32, 32)))
    if told is None:
        driver.refused(flush(1, box), BAD_PARAMETER)
    else:
        assert damage(driver.ok(flush(1, box))) == told


def test_F06_F11_one_head_beside_the_damage_does_not_refuse_it_for_the_other() -> None:
    driver = with_blob()
    driver.ok(set_scanout_blob(0, 1, (0, 0, 32, 64)), set_scanout_blob(5, 1, (32, 0, 32, 64)))
    assert damage(driver.ok(flush(1, (40, 1, 2, 3)))) == {5: (8, 1, 2, 3)}
    assert damage(driver.ok(flush(1, (31, 1, 2, 3)))) == {0: (31, 1, 1, 3), 5: (0, 1, 1, 3)}


def test_F07_a_blob_that_nobody_shows_is_not_flushed() -> None:
    driver = furnished()
    driver.ok(set_scanout_blob(2, 0))
    driver.refused(flush(4), BAD_PARAMETER)
    driver.refused(flush(4, (0, 0, 0, 0)), BAD_PARAMETER)


@pytest.mark.parametrize("box", [(0, 0, 64, 64), (0, 0, 0, 0), (U32, U32, U32, U32)])
def test_F08_a_blob_without_backing_is_not_flushed(box: Box) -> None:
    driver = furnished()
    driver.refused(flush(5, box), BAD_PARAMETER)
    driver.ok(detach(4))
    driver.refused(flush(4, box), BAD_PARAMETER)


# -- the blob rows of A, T, U, N, R


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        pytest.param(attach(5, entries((0, 4 * PAGE - 1))), BAD_PARAMETER, id="A15 a byte short"),
        pytest.param(attach(5, ONE_PAGE * 3), BAD_PARAMETER, id="A15 a page short"),
        pytest.param(attach(5, ONE_PAGE, 4), UNSPEC, id="A06 cut"),
        pytest.param(attach(5, ONE_PAGE * 16385), UNSPEC, id="A04 too many"),
        pytest.param(attach(5, entries((1 << 40, 4 * PAGE))), UNSPEC, id="A09 no memory"),
        pytest.param(attach(5, BACKED + entries((0, 0))), UNSPEC, id="A08 empty"),
        pytest.param(attach(4, BACKED), UNSPEC, id="A02 backed already"),
        pytest.param(attach(4), UNSPEC, id="A02 backed already, no entries"),
    ],
)
def test_A02_A15_a_wrong_backing_of_a_blob_is_refused(request_: bytes, kind: int) -> None:
    driver = furnished()
    driver.refused(request_, kind)
    driver.ok(attach(5, BACKED))


def test_A07_a_blob_takes_no_entries_as_often_as_it_likes() -> None:
    driver = furnished()
    driver.ok(attach(5), attach(5))
    assert driver.resource(5).backing is None
    driver.ok(attach(5, BACKED))


def test_A15_what_a_blob_is_backed_with_may_be_more_and_in_pieces() -> None:
    driver = furnished()
    driver.ok(attach(5, ONE_PAGE * 5))
    assert driver.pieces(5) == [(0, PAGE)] * 5


@pytest.mark.parametrize("exports", [False, True])
def test_A16_whatever_has_no_dmabuf_is_attached_and_shown(exports: bool) -> None:
    driver = with_blob(PAGE, entries((100, 30), (7, PAGE - 30)), exports)
    picture = shown(driver.ok(set_scanout_blob(0, 1, (0, 0, 16, 16), (16, 16), stride=64)))
    content = GUEST[100:130] + GUEST[7 : 7 + PAGE - 30]
    assert pixels(picture, (0, 0, 16, 16)) == content[:1024]


def test_A19_detaching_a_blob_that_has_no_backing_is_fine() -> None:
    driver = furnished()
    assert driver.ok(detach(5), detach(5)).display == ()


def test_A21_detaching_a_blob_blanks_its_heads_and_no_other() -> None:
    driver = furnished()
    driver.ok(set_scanout_blob(0, 4))
    answer = driver.ok(detach(4))
    assert answer.display == (ShowSurface(0, None, NOTHING), ShowSurface(2, None, NOTHING))
    assert driver.resource(4).scanouts == set()
    assert driver.ok(detach(4)).display == ()
    driver.refused(set_scanout_blob(0, 4), BAD_RESOURCE)
    assert len(driver.ok(flush(1)).display) == 1
    driver.ok(attach(4, BACKED), set_scanout_blob(0, 4))
    assert driver.device.resources.entries == sum(one.entries for one in driver.device.resources)


def test_A21_the_pages_of_a_blob_go_when_nobody_shows_them() -> None:
    driver = furnished()
    picture = shown(driver.ok(set_scanout_blob(3, 4)))
    backing = driver.resource(4).backing
    assert backing is not None
    left = weakref.ref(backing)
    del backing
    driver.ok(detach(4))
    gc.collect()
    assert left() is not None, "a picture on its way to the display keeps them"
    del picture
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("resource", [pytest.param(4, id="T03"), pytest.param(5, id="T04")])
@pytest.mark.parametrize("box", [(0, 0, 64, 64), (0, 0, 0, 0), (U32, 1, U32, U32)])
def test_T03_T04_a_transfer_of_a_blob_is_nothing_to_do(resource: int, box: Box) -> None:
    driver = furnished()
    before = snapshot(driver.device)
    answer = driver.ok(transfer(resource, box, U32, flags=FENCE, fence=3))
    assert (answer.display, answer.fence) == ((), 3)
    assert snapshot(driver.device) == before


def test_U03_U04_a_blob_s_heads_go_with_it() -> None:
    driver = furnished()
    driver.ok(set_scanout_blob(9, 4))
    assert driver.ok(unref(5)).display == ()
    off = driver.ok(unref(4)).display
    assert off == (ShowSurface(2, None, NOTHING), ShowSurface(9, None, NOTHING))
    driver.refused(set_scanout_blob(0, 4), BAD_RESOURCE)
    assert len(driver.ok(flush(1)).display) == 2


def test_U06_a_blob_that_goes_while_it_is_shown_keeps_its_pages_for_the_display() -> None:
    driver = with_blob(exports=True)
    picture = shown(driver.ok(set_scanout_blob(0, 1)))
    driver.ok(unref(1))
    gc.collect()
    assert pixels(picture, (0, 0, 64, 64)) == expected((0, 0, 64, 64), 256, 0, "BGRX")


def test_U07_a_thousand_blobs_leave_nothing() -> None:
    driver = furnished()
    before = snapshot(driver.device)
    for n in range(10, 1010):
        driver.ok(create_blob(n, 4 * PAGE, BACKED), set_scanout_blob(7, n), flush(n), unref(n))
    assert snapshot(driver.device) == before


def test_N03_a_blob_has_a_uuid_of_its_own() -> None:
    driver = furnished()
    one, two, again = (driver.run(assign_uuid(number)) for number in (4, 5, 4))
    assert {one.kind, two.kind} == {OK_UUID}
    assert one.body == again.body != two.body


def test_R01_blobs_go_with_a_reset() -> None:
    driver = furnished()
    backing = driver.resource(4).backing
    assert backing is not None
    left = weakref.ref(backing)
    del backing
    driver.device.reset()
    gc.collect()
    assert left() is None
    fresh = Driver()
    fresh.device.set_features(0x1F)
    assert snapshot(driver.device) == snapshot(fresh.device)
    for request in (unref(4), flush(4), attach(4), set_scanout_blob(0, 4)):
        driver.refused(request, BAD_RESOURCE)
    driver.ok(create_blob(4, 4 * PAGE, BACKED), set_scanout_blob(0, 4))


def test_A22_R09_a_blob_whose_memory_has_gone_can_be_taken_down_or_wait() -> None:
    driver = with_blob(exports=True)
    picture = shown(driver.ok(set_scanout_blob(0, 1)))
    first = picture.dmabuf()
    here, elsewhere = driver.guest, FakeGuest((1 << 30, 4 * PAGE))
    driver.store.set_memory(elsewhere)
    assert picture.lost
    assert picture.dmabuf() is None
    driver.ok(transfer(1), flush(1))
    assert driver.ok(detach(1)).display == (ShowSurface(0, None, NOTHING),)
    driver.ok(attach(1, entries((1 << 30, 4 * PAGE))))
    assert shown(driver.ok(set_scanout_blob(0, 1))).dmabuf() is not None
    driver.store.set_memory(here)
    assert not picture.lost
    assert picture.dmabuf() is not first is not None
    driver.ok(unref(1))


# -- any frame buffer

step = st.sampled_from([0, 1, 3, 4, 64, 255, 256, 257, 1024]) | st.integers(0, 2000)


@settings(max_examples=200, deadline=None)
@given(
    width=st.integers(0, 40),
    height=st.integers(0, 40),
    stride=step,
    offset=step,
    corner=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    sides=st.tuples(st.integers(14, 40), st.integers(14, 40)),
    size=st.integers(0, PAGE),
)
def test_a_frame_buffer_is_shown_where_all_its_pixels_are_in_the_blob(
    width: int,
    height: int,
    stride: int,
    offset: int,
    corner: tuple[int, int],
    sides: tuple[int, int],
    size: int,
) -> None:
    """And its memory is read nowhere else: the fake refuses that."""
    driver = with_blob(size, ONE_PAGE, pages=1)
    box = (*corner, *sides)
    cells = [
        offset + y * stride + x * 4
        for y in range(corner[1], corner[1] + sides[1])
        for x in range(corner[0], corner[0] + sides[0])
    ]
    legal = (
        max(cells) + 4 <= size
        and stride >= width * 4
        and min(sides) >= 16
        and corner[0] + sides[0] <= width
        and corner[1] + sides[1] <= height
    )
    request = set_scanout_blob(0, 1, box, (width, height), 4, stride, offset)
    if not legal:
        driver.refused(request, BAD_PARAMETER)
        return
    picture = shown(driver.ok(request))
    assert pixels(picture, box) == expected(box, stride, offset, "XRGB")
