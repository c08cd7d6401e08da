"""The port: what every store must offer. Its behaviour is in tests/contract."""

from __future__ import annotations

from tests.support.fake_pixels import CHANNELS, FakeGuest, FakePixelStore, entries
from vgpud.device.pixels import BYTES_PER_PIXEL, FORMATS, Backing, PixelStore, Surface


def test_the_formats_are_the_specification_s_eight() -> None:
    assert FORMATS == {1, 2, 3, 4, 67, 68, 121, 134} == CHANNELS.keys()
    assert {len(order) for order in CHANNELS.values()} == {BYTES_PER_PIXEL}


def test_the_fake_has_the_shape_of_the_port() -> None:
    store: PixelStore = FakePixelStore(FakeGuest((0, 4096)))
    surface: Surface = store.create_surface(2, 3, 1)
    backing: Backing = store.resolve(entries((0, 24)))
    assert (surface.width, surface.height, len(surface.pixels)) == (2, 3, 24)
    assert backing.size == 24
