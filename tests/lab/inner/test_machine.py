"""The whole daemon in the lab, with a guest and a QEMU of ours: it works at all."""

from __future__ import annotations

from tests.support.machine import machine


async def test_a_picture() -> None:
    width, height = 64, 48
    pixels = bytes(range(256)) * (width * height * 4 // 256)
    async with machine() as vm:
        await vm.boot()
        await vm.picture(width, height, pixels)
