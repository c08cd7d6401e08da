"""Virtqueue with a driver that breaks every rule (peers.md, E11 to E13 and the attack list).

Each breaks its own ring and nothing else: RingError, with position and value, then for ever.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mock_driver import GPA, INDIRECT, NEXT, WRITE, DriverQueue, GuestRam
from vgpud import _native

PAGE = 4096
OK = GPA + 0x8000
TABLE = GPA + 0x9000
TOP = 1 << 64
RAM = 1 << 20


def assert_broken(made):
    for call in (made.device.pop, made.device.publish, lambda: made.device.rebind(made.memory)):
        with pytest.raises(_native.RingError, match="broken"):
            call()


# Each a list of descriptors from index 0, the first being the head, and what is said of them.
BAD_CHAINS = {
    "empty": ([(OK, 0, 0, 0)], f"descriptor 0 at {OK:#x} is empty"),
    "empty writable": ([(OK, 8, NEXT, 1), (OK, 0, WRITE, 0)], "descriptor 1 .* empty"),
    "below memory": ([(GPA - 1, 2, 0, 0)], f"{GPA - 1:#x} is not all in memory"),
    "nowhere": ([(0, 1, 0, 0)], "0x0 is not all in memory"),
    "over the end": ([(GPA + RAM - 1, 2, 0, 0)], "not all in memory"),
    "over the end, writable": ([(GPA + RAM - 1, 2, WRITE, 0)], "not all in writable memory"),
    "wraps": ([(TOP - 1, 2, 0, 0)], "0xffffffffffffffff is not all in memory"),
    "4 GiB": ([(GPA, 0xFFFFFFFF, WRITE, 0)], "not all in writable memory"),
    "readable after writable": (
        [(OK, 1, WRITE | NEXT, 1), (OK, 1, 0, 0)],
        "descriptor 1 .* readable after a writable one",
    ),
    "next is size": ([(OK, 1, NEXT, 16)], "descriptor 0: next 16 is outside"),
    "next is huge": ([(OK, 1, NEXT, 0xFFFF)], "next 65535 is outside"),
    "itself": ([(OK, 1, NEXT, 0)], "loop, or longer than 16"),
    "loop of two": ([(OK, 1, NEXT, 1), (OK, 1, NEXT, 0)], "loop, or longer than 16"),
    "loop at the end": ([(OK, 1, NEXT, 1), (OK, 1, NEXT, 1)], "loop, or longer than 16"),
    "indirect of 0": ([(TABLE, 0, INDIRECT, 0)], "indirect table of 0 bytes"),
    "indirect of 8": ([(TABLE, 8, INDIRECT, 0)], "indirect table of 8 bytes"),
    "indirect of 17": ([(TABLE, 17, INDIRECT, 0)], "indirect table of 17 bytes"),
    "indirect and next": ([(TABLE, 16, INDIRECT | NEXT, 1), (OK, 1, 0, 0)], "together with next 1"),
    "indirect nowhere": ([(8, 16, INDIRECT, 0)], "at 0x8 is not in memory.*indirect"),
    "indirect wraps": ([(TOP - 16, 32, INDIRECT, 0)], "wraps"),
    "indirect over the end": ([(GPA + RAM - 8, 16, INDIRECT, 0)], "is not in memory"),
}


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_bad_chain(rig, name):
    rows, match = BAD_CHAINS[name]
    made = rig()
    made.driver.add([b"good before"])
    made.pop()
    for i, row in enumerate(rows):
        made.driver.write_descriptor(i, *row)
    made.driver.offer(0)
    with pytest.raises(_native.RingError, match=rf"next avail 1, head 0, size 16: .*{match}"):
        made.device.pop()
    assert (made.device.next_avail, made.device.in_flight) == (1, 1)
    assert_broken(made)


BAD_TABLES = {
    "empty": ([(OK, 0, 0, 0)], "descriptor 0 .* empty"),
    "nested": ([(OK, 1, NEXT, 1), (TABLE, 16, INDIRECT, 0)], "descriptor 1: nested"),
    "next is its length": ([(OK, 1, NEXT, 2), (OK, 1, 0, 0)], "next 2 is outside"),
    "loop": ([(OK, 1, NEXT, 1), (OK, 1, NEXT, 0)], "loop, or longer than 2"),
    "nowhere": ([(OK, 1, NEXT, 1), (5, 1, 0, 0)], "descriptor 1: 0x5 is not all in memory"),
    "order": ([(OK, 1, WRITE | NEXT, 1), (OK, 1, 0, 0)], "descriptor 1 .*readable after"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_indirect_table(rig, name):
    rows, match = BAD_TABLES[name]
    made = rig()
    for i, row in enumerate(rows):
        made.driver.write_descriptor(i, *row, table=TABLE)
    made.offer((TABLE, 16 * len(rows), INDIRECT, 0))
    with pytest.raises(_native.RingError, match=rf"{match}.*\(of the indirect table\)"):
        made.device.pop()
    assert_broken(made)


@pytest.mark.parametrize("direct", [0, 1])
def test_a_chain_of_1025_buffers(rig, direct):
    """An indirect table may be larger than any ring; a chain in it may not."""
    made = rig()
    count = 1024 - direct
    rows = [(OK, 1, NEXT, i + 1) for i in range(count)] + [(OK, 1, 0, 0)]
    table = made.ram.alloc(16 * len(rows))
    for i, row in enumerate(rows):
        made.driver.write_descriptor(i, *row, table=table)
    made.offer(
        *[(OK, 1, NEXT, 1)] * direct,
        (table, 16 * len(rows), INDIRECT, 0),
    )
    with pytest.raises(_native.RingError, match="longer than 1024 in all"):
        made.device.pop()


@pytest.mark.parametrize("ahead", [17, 1000, 32768, 65535])
@pytest.mark.parametrize("base", [0, 65530])
def test_avail_index_jumps(rig, ahead, base):
    made = rig(base=base)
    made.driver.set_avail_idx(base + ahead)
    with pytest.raises(_native.RingError, match=f"idx {(base + ahead) & 65535} is {ahead} ahead"):
        made.device.pop()
    assert_broken(made)


@pytest.mark.parametrize("head", [16, 17, 65535])
def test_head_outside_of_the_ring(rig, head):
    made = rig()
    made.driver.offer(head)
    with pytest.raises(_native.RingError, match=f"head {head} is not below"):
        made.device.pop()
    assert_broken(made)


def test_more_chains_than_descriptors(rig):
    """Offering one head again and again would let a guest park requests without bound."""
    made = rig()
    made.driver.add([b"x"])
    elements = [made.pop()]
    for _ in range(15):
        made.driver.offer(0)
        elements.append(made.pop())
    made.driver.offer(0)
    with pytest.raises(_native.RingError, match="16 chains are in flight"):
        made.device.pop()


def test_a_request_beyond_the_maximum_is_still_checked(rig):
    made = rig()
    rows = [(GPA, RAM, NEXT, 1), (GPA + RAM, 1, 0, 0)]
    made.offer(*rows)
    with pytest.raises(_native.RingError, match="descriptor 1"):
        made.device.pop()


def test_a_huge_request_is_cut(rig):
    made = rig()
    made.offer(*[(GPA, RAM, NEXT, i + 1) for i in range(15)], (GPA, RAM, 0, 0))
    assert made.pop().request == made.ram.read(GPA, RAM)[: _native.MAX_REQUEST]


@pytest.mark.parametrize("area", ["desc_gpa", "avail_gpa", "used_gpa"])
@pytest.mark.parametrize("indirect", [False, True])
def test_buffers_and_tables_on_the_rings_themselves(rig, area, indirect):
    """CVE-2024-3446's idea: the answer lands in the rings. The guest hurts itself only."""
    made = rig()
    gpa = getattr(made.driver, area)
    if indirect:
        made.offer((gpa & ~15, 64, INDIRECT, 0))
    else:
        made.offer((gpa, 64, NEXT, 1), (gpa, 200, WRITE, 0))
    try:
        element = made.device.pop()
        if element is not None:
            made.device.push(element, b"\xff" * 200)
            made.device.publish()
        while made.device.pop() is not None:
            pass
    except _native.RingError:
        assert_broken(made)


def test_a_response_never_reaches_read_only_memory(rig, tmp_path):
    path = tmp_path / "rom"
    path.write_bytes(b"R" * PAGE)
    made = rig()
    with path.open("rb") as file:
        rom = _native.Region(file.fileno(), 0, PAGE, 0x1000, 0)
    made.device.rebind(_native.GuestMemory([*made.memory.regions, rom]))
    made.offer((0, 8, NEXT, 1), (OK, 8, WRITE, 0))
    assert made.pop().request == b"R" * 8
    made.offer((0, 8, NEXT, 1), (0, 8, WRITE, 0))
    with pytest.raises(_native.RingError, match="descriptor 1: 0x0 is not all in writable"):
        made.device.pop()
    assert path.read_bytes() == b"R" * PAGE


@pytest.mark.parametrize("access", ["gone", "ro"])
def test_the_writable_part_left_memory_before_the_push(rig, access, tmp_path):
    made = rig()
    extra = made.ram.regions[0]._replace(guest_phys_addr=0, userspace_addr=0, memory_size=PAGE)
    both = _native.GuestMemory([*made.memory.regions, _native.Region(made.ram.memfd, *extra)])
    made.device.rebind(both)
    made.offer((OK, 8, NEXT, 1), (OK, 8, WRITE | NEXT, 2), (100, 8, WRITE, 0))
    element = made.pop()
    if access == "gone":
        made.device.rebind(made.memory)
    else:
        path = tmp_path / "rom"
        path.write_bytes(b"R" * PAGE)
        with path.open("rb") as file:
            rom = _native.Region(file.fileno(), 0, PAGE, 0x1000, 0)
        assert rom.access == "ro"
        made.device.rebind(_native.GuestMemory([*made.memory.regions, rom]))
    with pytest.raises(_native.RingError, match=r"head 0: 0x64 .* not in writable memory"):
        made.device.push(element, b"a" * 16)
    assert_broken(made)
    with pytest.raises(_native.RingError, match="broken"):
        made.device.push(element, b"")


def test_rebind_without_the_ring_lets_the_memory_go_until_it_is_back(rig):
    """QEMU takes a region that changes its shape out of the table before it puts it back."""
    made = rig()
    made.driver.add([b"x"], [4])
    element = made.device.pop()
    with pytest.raises(ValueError, match="desc"):
        made.device.rebind(_native.GuestMemory([]))
    for use in (made.device.pop, made.device.publish, lambda: made.device.push(element, b"")):
        with pytest.raises(_native.RingError, match="not in the memory table"):
            use()
    with pytest.raises(ValueError, match="desc"):
        made.device.rebind(_native.GuestMemory([]))
    made.device.rebind(made.memory)
    made.device.push(element, b"abcd")
    made.device.publish()
    assert [length for _, length in made.driver.used()] == [4]
    with pytest.raises(ValueError, match="desc"):
        made.device.rebind(_native.GuestMemory([]))
    before = mappings()
    del made.memory
    assert mappings() < before


def test_a_broken_ring_holds_no_memory(rig):
    made = rig()
    made.driver.offer(99)
    with pytest.raises(_native.RingError):
        made.device.pop()
    before = mappings()
    del made.memory
    assert mappings() < before


def mappings():
    with open("/proc/self/maps") as maps:
        return sum("memfd:mock-guest" in line for line in maps)


@settings(deadline=None, max_examples=80)
@given(
    ring=st.binary(min_size=16 * 4, max_size=16 * 4),
    heads=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    indirect=st.lists(
        st.tuples(
            st.sampled_from([OK, TABLE, GPA, GPA + RAM - 1, 0, TOP - 1]),
            st.sampled_from([0, 1, 16, 48, 4096, 0xFFFFFFFF]),
            st.integers(0, 7),
            st.integers(0, 5),
        ),
        max_size=12,
    ),
)
def test_any_ring(ring, heads, indirect):
    """Whatever lies there: elements, None or RingError."""
    with GuestRam(RAM) as ram, DriverQueue(ram, 4) as driver:
        memory = _native.GuestMemory([_native.Region(ram.memfd, *ram.regions[0])])
        ram.write(driver.desc_gpa, ring)
        for i, row in enumerate(indirect):
            driver.write_descriptor(i % 4, *row, table=None if i < 4 else TABLE)
        device = _native.Virtqueue(memory, 4, driver.desc, driver.avail, driver.used_addr, 0, False)
        for head in heads:
            driver.offer(head)
        try:
            while (element := device.pop()) is not None:
                assert len(element.request) <= _native.MAX_REQUEST
                wanted = min(element.writable, 100)
                assert device.push(element, b"x" * 100) == wanted
            device.publish()
        except _native.RingError:
            with pytest.raises(_native.RingError, match="broken"):
                device.pop()


# Runs beside us on the other core: rewrites the one chain between good and every bad form.
REWRITER = """
import mmap, struct, sys
ram = mmap.mmap(int(sys.argv[1]), 0)
desc, rows = int(sys.argv[2]), [bytes.fromhex(row) for row in sys.argv[3:]]
print("go", flush=True)
while True:
    for row in rows:
        ram[desc : desc + len(row)] = row
"""


def test_a_driver_that_rewrites_descriptors_while_we_pop(rig):
    """T16: each descriptor is fetched once, so what was checked is what is used."""
    made = rig()
    descriptor = struct.Struct("<QIHH")

    def chain(*rows):
        return b"".join(descriptor.pack(*row) for row in rows).hex()

    good = chain((OK, 8, NEXT, 1), (OK + 64, 8, WRITE, 0))
    rows = [
        good,
        good,
        chain((OK, 8, NEXT, 1), (TOP - 1, 0xFFFFFFFF, WRITE, 0)),
        good,
        chain((OK, 200000, NEXT, 1), (OK, 100, WRITE | NEXT, 0xFFFF)),
        chain((TABLE, 48, INDIRECT, 0)),
    ]
    offset = made.ram.offset(made.driver.desc_gpa)
    command = [sys.executable, "-c", REWRITER, str(made.ram.memfd), str(offset), *rows]
    outcomes = {"element": 0, "broken": 0}
    with subprocess.Popen(command, pass_fds=[made.ram.memfd], stdout=subprocess.PIPE) as rewriter:
        try:
            assert rewriter.stdout is not None
            rewriter.stdout.readline()
            end = time.monotonic() + 0.4
            while time.monotonic() < end or not all(outcomes.values()):
                made.driver.offer(0)
                try:
                    element = made.pop()
                    assert len(element.request) in {8, 200000}
                    assert made.device.push(element, b"y" * 4096) == element.writable
                    made.device.publish()
                    outcomes["element"] += 1
                except _native.RingError:
                    outcomes["broken"] += 1
                    made.device = made.queue(base=made.driver.avail_idx)
        finally:
            rewriter.kill()
    assert min(outcomes.values()) > 0
