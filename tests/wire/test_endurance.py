"""Nothing grows: descriptors and memory over many lives of a device and of its resources."""

from __future__ import annotations

import gc
import os

import pytest
import trio.testing

from tests.support.machine import Machine, hdr, machine
from tests.support.mock_driver import mem_entries
from vgpuwire import (
    Ctrl,
    Format,
    Rect,
    ResourceAttachBacking,
    ResourceCreate2D,
    ResourceDetachBacking,
    ResourceUnref,
)

pytestmark = pytest.mark.slow

RESETS = 1000
CYCLES = 10_000
SLACK = 2 << 20
"""Bytes that the heap may move without anything leaking: far below one object a cycle."""


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Bytes of this process's own memory (anonymous pages only: guest RAM is a memfd)."""
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["RssAnon"].split()[0]) << 10


async def settle() -> tuple[int, int]:
    await trio.testing.wait_all_tasks_blocked()
    gc.collect()
    return open_fds(), resident()


async def flushes_in_flight(vm: Machine, size: int) -> None:
    """A shown resource, and flushes whose answers nobody waits for."""
    whole = Rect(0, 0, size, size)
    await vm.resource(1, size, size)
    await vm.scanout(1, whole)
    for fence in range(1, 5):
        vm.submit(vm.flush_command(1, whole, fence))


async def test_a_thousand_resets_in_mid_flight() -> None:
    async with machine(ram_size=1 << 30) as vm:
        await vm.boot()
        for cycle in range(RESETS):
            await flushes_in_flight(vm, 64)
            await vm.reboot()
            if cycle == RESETS // 4:
                fds, memory = await settle()
        now_fds, now_memory = await settle()
        assert now_fds == fds
        assert now_memory < memory + SLACK


async def test_ten_thousand_resource_cycles() -> None:
    async with machine(ram_size=8 << 20) as vm:
        await vm.boot()
        entries = mem_entries([(vm.ram.alloc(4096, 4096), 4096) for _ in range(16)])
        commands = [
            (
                ResourceCreate2D(
                    hdr(Ctrl.CMD_RESOURCE_CREATE_2D), 9, Format.B8G8R8X8_UNORM, 128, 128
                ),
                b"",
            ),
            (ResourceAttachBacking(hdr(Ctrl.CMD_RESOURCE_ATTACH_BACKING), 9, 16), entries),
            (ResourceDetachBacking(hdr(Ctrl.CMD_RESOURCE_DETACH_BACKING), 9), b""),
            (ResourceUnref(hdr(Ctrl.CMD_RESOURCE_UNREF), 9), b""),
        ]
        for cycle in range(CYCLES):
            for command, tail in commands:
                vm.submit(command, tail)
            await vm.reap(len(commands))
            if cycle == CYCLES // 4:
                fds, memory = await settle()
        now_fds, now_memory = await settle()
        assert now_fds == fds
        assert now_memory < memory + SLACK
