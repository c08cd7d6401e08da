"""Nothing that vgpud.host opens outlives its test; huge pages for those that ask."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.host.memory import open_fds
from vgpud.host.fd import FDINFO

NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    FDINFO.fileno()  # the process's own, opened once
    before = open_fds()
    yield
    if open_fds() > before:
        gc.collect()  # tracebacks of expected errors are cycles; collecting always takes 80 ms
    assert open_fds() <= before


@pytest.fixture
def huge_page() -> Iterator[None]:
    """One huge page of 2 MiB, taken from the machine for the test."""
    if os.access(NR_HUGEPAGES, os.W_OK):
        before = NR_HUGEPAGES.read_text()
        NR_HUGEPAGES.write_text(str(int(before) + 1))
        try:
            if int(NR_HUGEPAGES.read_text()) > int(before):
                yield
                return
        finally:
            NR_HUGEPAGES.write_text(before)
    pytest.skip("no huge page can be had here; the lab has some")
