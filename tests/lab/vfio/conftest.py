from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab.vfio.device import IVSHMEM, NVME, SECOND, Device
from vgpud import _native

Export = tuple[int, bytes]
"""BAR, and the ranges as the kernel was given them."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def device() -> Iterator[Device]:
    with Device(IVSHMEM) as device:
        yield device


@pytest.fixture
def second() -> Iterator[Device]:
    with Device(SECOND) as device:
        yield device


@pytest.fixture
def nvme() -> Iterator[Device]:
    with Device(NVME) as device:
        yield device


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Export]:
    """What the kernel was asked to export since."""
    asked: list[Export] = []
    export = _native.vfio_get_dma_buf

    def noted(device: int, region_index: int, ranges: bytes) -> int:
        asked.append((region_index, ranges))
        return export(device, region_index, ranges)

    monkeypatch.setattr(_native, "vfio_get_dma_buf", noted)
    return asked
