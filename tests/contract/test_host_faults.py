"""EMFILE, ENOMEM and ENOSPC at every call that vgpud/host makes of the kernel, one after the other:
each ends no more than what needed it, and leaves no descriptor behind."""

from __future__ import annotations

import errno
import gc
import os
import sys
from array import array
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, Final

import pytest
import trio

from tests.support.fake_frontend import FrontendError
from tests.support.fake_udmabuf import ITEM
from tests.support.machine import machine
from vgpud.config import Config
from vgpud.errors import GuestError, PeerError
from vgpud.host.fd import memory_file
from vgpuwire import Rect

CALLS: Final = {
    "os": ("dup", "open", "memfd_create", "ftruncate", "fstat", "readlink", "set_blocking"),
    "fcntl": ("fcntl",),
    "mmap": ("mmap",),
    "_native": ("Region", "file_system"),
}
"""What can fail for want of descriptors, memory or space."""

FALLBACK: Final = {"os.memfd_create", "os.ftruncate", "mmap.mmap", "os.open", "UDMABUF_CREATE_LIST"}
"""Only dma-bufs need these."""

W, H = 256, 128
WHOLE = Rect(0, 0, W, H)
PIXELS = bytes(range(256)) * (W * H // 64)


class Faults:
    """Counts the calls, and makes one of them fail."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.fails_at = -1
        self.error = 0

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.made.append(name)
            if len(self.made) - 1 == self.fails_at:
                raise OSError(self.error, os.strerror(self.error))
            return call(*args, **kwargs)

        return counted

    def begin(self, fails_at: int, error: int) -> None:
        self.made.clear()
        self.fails_at, self.error = fails_at, error


class Proxy(ModuleType):
    """A module of which some functions are counted."""

    def __init__(self, module: ModuleType, faults: Faults) -> None:
        super().__init__(module.__name__)
        self._module = module
        short = module.__name__.rpartition(".")[2]
        for name in CALLS[short]:
            setattr(self, name, faults.wrap(f"{short}.{name}", getattr(module, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    made = Faults()
    for name, module in list(sys.modules.items()):
        if name.startswith("vgpud.host."):
            for called in CALLS:
                if isinstance(getattr(module, called, None), ModuleType):
                    monkeypatch.setattr(module, called, Proxy(getattr(module, called), made))
    return made


def same_memory(device: int, runs: bytes, fds: array[int]) -> int:
    """A "dma-buf" of a surface, which is one run from the start of its memfd: the memfd itself."""
    ((region, _, offset, _),) = ITEM.iter_unpack(runs)
    assert offset == 0
    return os.dup(fds[region])


def open_fds() -> int:
    gc.collect()  # an error that was kept refers to its frames
    return len(os.listdir("/proc/self/fd"))


async def life(faults: Faults) -> bool:
    """A guest boots, shows pictures as dma-bufs, gets other memory, reboots, is looked at. Whether
    the last picture was seen."""
    async with machine(config=Config(scanout="dmabuf"), fails=True) as vm:
        vm.session._udmabuf._device = "/dev/null"
        vm.session._udmabuf._create = faults.wrap("UDMABUF_CREATE_LIST", same_memory)
        seen = False
        # A driver whose device is refused waits; QEMU finds that the back-end hung up.
        with suppress(trio.TooSlowError, FrontendError, AssertionError, OSError):
            await vm.boot()
            await vm.picture(W, H, PIXELS)
            for regions in ([], vm.frontend.regions):  # unplugged, and plugged again
                vm.frontend.regions = regions
                await vm.frontend.share_memory()
            await vm.reboot()
            await vm.picture(W, H, PIXELS)
            seen = True
        with suppress(GuestError, OSError):
            await vm.session.view.screenshot(0)
            memory_file().close()
    assert vm.error is None or isinstance(vm.error, PeerError), vm.error
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENOMEM, errno.ENOSPC])
async def test_every_call_of_the_kernel_may_fail(
    faults: Faults, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How long a guest waits whose device was refused: the thread that makes a dma-buf forbids a
    # clock that jumps.
    monkeypatch.setattr("tests.support.machine.PATIENCE", 1.0)
    faults.begin(-1, 0)
    assert await life(faults)
    calls = list(faults.made)
    assert {"os.memfd_create", "mmap.mmap", "_native.Region", "UDMABUF_CREATE_LIST"} <= set(calls)
    before = open_fds()
    dark = set()
    for number, name in enumerate(calls):
        faults.begin(number, error)
        if not await life(faults):
            dark.add(name)
        assert open_fds() == before, f"{name}, call {number}"
    assert not dark & FALLBACK, "a picture that has no dma-buf is copied"
