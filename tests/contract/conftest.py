"""What the contract tests share. VGPUD_NATIVE=FILE makes them test that build of the extension
(native/sanitize.sh), whatever is installed."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.mock_driver import DriverQueue, GuestRam, RamRegion


def _load_native(path: str) -> None:
    import vgpud

    spec = importlib.util.spec_from_file_location("vgpud._native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["vgpud._native"] = module
    vgpud._native = module


if "VGPUD_NATIVE" in os.environ:
    assert "vgpud._native" not in sys.modules, "another build is loaded already"
    _load_native(os.environ["VGPUD_NATIVE"])

from vgpud import _native  # noqa: E402

MIB = 1 << 20


class Rig:
    """A driver and a device on the two ends of one virtqueue."""

    def __init__(
        self,
        stack: ExitStack,
        size: int = 16,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        base: int = 0,
        regions: list[RamRegion] | None = None,
        ram_size: int = MIB,
    ) -> None:
        self.ram = stack.enter_context(GuestRam(ram_size, regions=regions))
        self.driver = stack.enter_context(
            DriverQueue(self.ram, size, event_idx=event_idx, indirect=indirect, base=base)
        )
        self.memory = map_all(self.ram)
        self.device = self.queue()

    def queue(self, **changes: object) -> _native.Virtqueue:
        """Another device on the same ring; `changes` are arguments of Virtqueue."""
        arguments: dict[str, object] = {
            "memory": self.memory,
            "size": self.driver.size,
            "desc": self.driver.desc,
            "avail": self.driver.avail,
            "used": self.driver.used_addr,
            "base": self.driver.base,
            "event_idx": self.driver.event_idx,
        }
        return _native.Virtqueue(**{**arguments, **changes})

    def pop(self) -> _native.Element:
        element = self.device.pop()
        assert element is not None
        return element

    def answer(self, element: _native.Element, response: bytes) -> list[tuple[int, int]]:
        """push(), publish(), and what the driver then sees."""
        self.device.push(element, response)
        self.device.publish()
        return self.driver.used()

    def offer(self, *rows: tuple[int, int, int, int]) -> None:
        """Raw descriptors (addr, len, flags, next) from index 0, and head 0."""
        for i, row in enumerate(rows):
            self.driver.write_descriptor(i, *row)
        self.driver.offer(0)


def map_all(ram: GuestRam) -> _native.GuestMemory:
    return _native.GuestMemory([_native.Region(ram.memfd, *region) for region in ram.regions])


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    """Makes Rigs, which are closed after the test."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: Rig(stack, *args, **kwargs)


@pytest.fixture(name="map_all")
def map_all_() -> Callable[[GuestRam], _native.GuestMemory]:
    """A GuestMemory of all regions of a GuestRam."""
    return map_all


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    with GuestRam(MIB) as ram:
        yield ram
