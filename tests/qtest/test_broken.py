"""Rings that no driver makes: the ring is dead until the next reset, nobody else (rows E11 to E13).

QEMU's C back-end exits on each of these.
"""

import struct
from collections.abc import Callable

import pytest

from tests.qtest import gpu
from tests.qtest.gpu import REQUESTS, RESPONSES, Driver
from tests.qtest.machine import Served
from tests.support.virtio_pci import INDIRECT, INDIRECT_DESC, NEXT, WRITE, Queue

OUTSIDE = 0x2_0000_0000


def desc(address: int, length: int, flags: int, following: int = 0) -> bytes:
    return struct.pack("<QIHH", address, length, flags, following)


def loop(queue: Queue) -> None:
    here, after = queue.next_desc, (queue.next_desc + 1) % queue.size
    queue.add_raw([desc(REQUESTS, 24, NEXT, after), desc(REQUESTS, 24, NEXT, here)])


def itself(queue: Queue) -> None:
    queue.add_raw([desc(REQUESTS, 24, NEXT, queue.next_desc)])


def outside(queue: Queue) -> None:
    queue.add_raw([desc(OUTSIDE, 24, 0)])


def outside_written(queue: Queue) -> None:
    after = (queue.next_desc + 1) % queue.size
    queue.add_raw([desc(REQUESTS, 24, NEXT, after), desc(OUTSIDE, 24, WRITE)])


def wraps(queue: Queue) -> None:
    queue.add_raw([desc((1 << 64) - 8, 24, 0)])


def too_long(queue: Queue) -> None:
    queue.add_raw([desc(REQUESTS, 0xFFFF_FFFF, 0)])


def order(queue: Queue) -> None:
    after = (queue.next_desc + 1) % queue.size
    queue.add_raw([desc(RESPONSES, 24, WRITE | NEXT, after), desc(REQUESTS, 24, 0)])


def index(queue: Queue) -> None:
    queue.add_raw([desc(REQUESTS, 24, NEXT, queue.size)])


def head(queue: Queue) -> None:
    queue.offer(queue.size)


def jump(queue: Queue) -> None:
    """More chains than the ring has places."""
    queue.ram.write(queue.avail + 2, struct.pack("<H", queue.added + queue.size + 1))


def nested(queue: Queue) -> None:
    queue.ram.write(RESPONSES, desc(REQUESTS, 16, INDIRECT))
    queue.add_raw([desc(RESPONSES, 16, INDIRECT)])


def odd_table(queue: Queue) -> None:
    queue.add_raw([desc(RESPONSES, 17, INDIRECT)])


def empty_table(queue: Queue) -> None:
    queue.add_raw([desc(RESPONSES, 0, INDIRECT)])


def table_outside(queue: Queue) -> None:
    queue.add_raw([desc(OUTSIDE, 32, INDIRECT)])


KINDS = (
    *(loop, itself, outside, outside_written, wraps, too_long, order, index, head, jump),
    *(nested, odd_table, empty_table, table_outside),
)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_E11_E12_E13_broken(pair: Served, kind: Callable[[Queue], None], which: int) -> None:
    vm = pair.vm
    with vm.explained():
        vm.gpu.start(INDIRECT_DESC)
    driver = Driver(vm)
    driver.ok(gpu.create_2d(1, 1, 64, 48))
    vm.ram.write(REQUESTS, gpu.hdr(gpu.GET_DISPLAY_INFO))
    lines = pair.vgpud.log().count("event=ring-broken")
    kind(vm.gpu.queues[which])
    with vm.explained():
        vm.gpu.kick(which)
        pair.vgpud.wait_log("event=ring-broken", count=lines + 1)
        vm.qemu.wait_log(f"vhost vring error in virtqueue {which}")
    other = 1 - which
    request = (
        gpu.hdr(gpu.GET_EDID) + bytes(8) if other == 0 else gpu.cursor(gpu.MOVE_CURSOR, *[0] * 4)
    )
    driver.run(request, queue=other)  # the other ring goes on
    pair.alive()
    with vm.explained():
        vm.gpu.start(INDIRECT_DESC)
    driver.expect(driver.draw(64, 48))
    assert pair.vgpud.log().count("event=ring-broken") == lines + 1, "one line, not one a kick"


@pytest.mark.parametrize("part", ["desc", "avail", "used"])
def test_ring_outside_of_memory(pair: Served, part: str) -> None:
    """A ring whose parts lie nowhere: refused at the start, and the next start is a good one."""
    vm = pair.vm
    with vm.explained():
        vm.gpu.start(sizes=[None, 0])
        vm.gpu.reset()
        vm.gpu.start_with_ring(**{part: OUTSIDE})
        vm.gpu.kick()
    pair.alive()
    with vm.explained():
        vm.gpu.start()
    driver = Driver(vm)
    driver.expect(driver.draw(64, 48))
