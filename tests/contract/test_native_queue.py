"""Virtqueue with a driver that keeps the rules."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.mock_driver import GPA, INDIRECT, NEXT, UVA, WRITE, RamRegion
from vgpud import _native

PAGE = 4096
REQUEST = bytes(range(24))
BOTH = pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
EVENTS = pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])


@BOTH
@EVENTS
@pytest.mark.parametrize("base", [0, 5, 65530])
def test_chains_come_and_go(rig, indirect, event_idx, base):
    made = rig(8, indirect=indirect, event_idx=event_idx, base=base)
    assert made.device.pop() is None
    for i in range(30):
        head = made.driver.add([b"head", b"body" * i + b"."], [3, 9])
        assert made.driver.needs_kick()
        element = made.pop()
        assert made.device.pop() is None
        assert (element.head, element.writable) == (head, 12)
        assert element.request == b"head" + b"body" * i + b"."
        assert made.device.in_flight == 1
        assert made.answer(element, b"%08d" % i) == [(head, 8)]
        assert made.driver.response(head) == b"%08d" % i
        assert made.device.in_flight == 0
        assert made.device.next_avail == (base + i + 1) & 0xFFFF


@BOTH
@pytest.mark.parametrize("split", range(1, len(REQUEST)))
def test_a_request_may_be_split_at_every_byte(rig, indirect, split):
    made = rig(indirect=indirect)
    made.driver.add([REQUEST[:split], REQUEST[split:]], [split, 24 - split])
    element = made.pop()
    assert element.request == REQUEST
    made.answer(element, REQUEST[::-1])
    assert made.driver.response(element.head) == REQUEST[::-1]


@BOTH
def test_a_request_of_single_bytes(rig, indirect):
    made = rig(64, indirect=indirect)
    made.driver.add([bytes([byte]) for byte in REQUEST], [1] * 24)
    element = made.pop()
    assert element.request == REQUEST
    made.answer(element, REQUEST)
    assert made.driver.response(element.head) == REQUEST


@pytest.mark.parametrize(("readable", "writable"), [([], [24]), ([b"only"], [])])
@BOTH
def test_one_part_only(rig, indirect, readable, writable):
    made = rig(indirect=indirect)
    head = made.driver.add(readable, writable)
    element = made.pop()
    assert (element.request, element.writable) == (b"".join(readable), sum(writable))
    assert made.answer(element, b"answer") == [(head, 6 if writable else 0)]


def test_answers_may_overtake_each_other(rig):
    made = rig()
    heads = [made.driver.add([bytes([i])], [4]) for i in range(5)]
    elements = [made.pop() for _ in heads]
    assert made.device.in_flight == 5
    for i in (3, 0, 4, 2, 1):
        assert made.device.push(elements[i], bytes([i]) * 4) == 4
    assert made.driver.used() == [], "not before publish()"
    assert made.device.publish()
    assert made.driver.used() == [(heads[i], 4) for i in (3, 0, 4, 2, 1)]
    assert [made.driver.response(head) for head in heads] == [bytes([i]) * 4 for i in range(5)]


@pytest.mark.parametrize(("response", "length"), [(b"", 0), (b"x" * 7, 7), (b"x" * 8, 7)])
def test_a_response_is_cut_at_the_writable_part(rig, response, length):
    made = rig()
    made.driver.add([b"q"], [3, 4])
    element = made.pop()
    assert made.device.push(element, memoryview(response)) == length
    made.device.publish()
    assert made.driver.used() == [(element.head, length)]
    assert made.driver.response(element.head) == response[:length]


def test_a_request_is_cut_at_its_maximum(rig):
    made = rig(ram_size=1 << 21)
    part = bytes(range(256)) * 512
    made.driver.add([part, part, part], [24])
    element = made.pop()
    assert element.request == (part * 3)[: _native.MAX_REQUEST]
    assert made.answer(element, b"ok") == [(element.head, 2)]


def test_buffers_and_tables_across_regions(rig):
    """The file has the second half of guest memory first."""
    half = 1 << 19
    regions = [RamRegion(GPA, half, UVA, half), RamRegion(GPA + half, half, UVA + half, 0)]
    made = rig(regions=regions)
    border = GPA + half
    made.ram.write(border - 12, REQUEST)
    for table in (border - 8, border - 16, border - 24, border - 33):
        made.driver.write_descriptor(0, border - 12, 24, NEXT, 1, table)
        made.driver.write_descriptor(1, border - 700, 1400, WRITE, 0, table)
        # The table itself was overwritten by neither: both are far enough away.
        made.driver.write_descriptor(0, table, 32, INDIRECT, 0)
        made.driver.offer(0)
        element = made.pop()
        assert element.writable == 1400
        assert len(element.request) == 24
        assert made.device.push(element, b"a" * 1400) == 1400
        assert made.ram.read(border - 700, 1400) == b"a" * 1400
        made.ram.write(border - 12, REQUEST)


def test_direct_descriptors_may_come_before_the_indirect_one(rig):
    made = rig()
    first, second = made.ram.store(b"first "), made.ram.store(b"second")
    table, answer = made.ram.alloc(32), made.ram.alloc(16)
    made.driver.write_descriptor(0, second, 6, NEXT, 1, table)
    made.driver.write_descriptor(1, answer, 16, WRITE, 0, table)
    # The write flag of an indirect descriptor means nothing (virtio 1.3, 2.7.5.3.2).
    made.offer((first, 6, NEXT, 1), (table, 32, INDIRECT | WRITE, 0))
    element = made.pop()
    assert (element.request, element.writable) == (b"first second", 16)


def test_an_indirect_table_may_be_longer_than_the_ring(rig):
    """65 pages of entries are one descriptor each in Linux, whatever the ring's size."""
    made = rig(4, indirect=True)
    parts = [struct.pack("<I", i) for i in range(1023)]
    made.driver.add(parts, [24])
    assert made.pop().request == b"".join(parts)


def test_the_largest_ring(rig):
    made = rig(1024)
    parts = [struct.pack("<H", i) for i in range(1023)]
    made.driver.add(parts, [24])
    element = made.pop()
    assert element.request == b"".join(parts)
    assert made.answer(element, b"done") == [(0, 4)]


def test_the_ring_of_one(rig):
    made = rig(1)
    for i in range(5):
        made.driver.add([bytes([i])])
        assert made.answer(made.pop(), b"") == [(0, 0)]


@EVENTS
def test_no_kick_is_lost_between_the_last_look_and_arming(rig, event_idx):
    """None means armed: whatever is added afterwards wants a kick."""
    made = rig(event_idx=event_idx)
    for _ in range(40):
        assert made.device.pop() is None
        made.driver.add([b"x"])
        assert made.driver.needs_kick()
        made.driver.add([b"y"])
        assert made.driver.needs_kick() is not event_idx
        for _ in range(2):
            made.answer(made.pop(), b"")


def test_used_flags_of_a_predecessor_are_cleared(rig):
    made = rig()
    made.ram.write(made.driver.used_gpa, b"\x01\x00")
    assert made.device.pop() is None
    made.driver.add([b"x"])
    assert made.driver.needs_kick()


def test_the_driver_asks_for_no_interrupt_by_flag(rig):
    made = rig()
    for flags, wanted in [(0, True), (1, False), (0, True), (0xFFFE, True)]:
        made.driver.set_avail_flags(flags)
        made.driver.add([b"x"])
        made.device.push(made.pop(), b"")
        assert made.device.publish() is wanted
        made.driver.used()
    assert made.device.publish() is False, "nothing new"


@pytest.mark.parametrize("base", [0, 65534, 65535])
def test_the_driver_asks_for_interrupts_by_event(rig, base):
    """used_event = n wants to hear of the entry with index n, modulo 2**16."""
    made = rig(event_idx=True, base=base)

    def publish(count, event):
        made.driver.set_used_event(base + event)
        for _ in range(count):
            made.driver.add([b"x"])
            made.device.push(made.pop(), b"")
        wanted = made.device.publish()
        made.driver.used()
        return wanted

    assert publish(1, 100), "the first one is always told: a predecessor may have died"
    assert publish(1, 1)
    assert not publish(1, 3)
    assert publish(3, 5)
    assert not publish(1, 5)
    assert not publish(1, 8), "8 is the next one"
    assert publish(1, 8)
    assert not publish(4, 20)
    assert not publish(4, -5)


def test_the_flags_mean_nothing_with_event_idx(rig):
    made = rig(event_idx=True)
    made.driver.set_avail_flags(1)
    for _ in range(3):
        made.driver.add([b"x"])
        made.device.push(made.pop(), b"")
        assert made.device.publish()
        made.driver.used()


def test_a_ring_is_taken_over_where_it_was_left(rig):
    """GET_VRING_BASE, then SET_VRING_BASE: the used index comes from the ring."""
    made = rig(base=65533)
    for i in range(10):
        made.driver.add([bytes([i])], [1])
        made.driver.add([bytes([i + 100])], [1])
        assert len(made.answer(made.pop(), b"x")) == 1
        made.device = made.queue(base=made.device.next_avail)
        element = made.pop()
        assert element.request == bytes([i + 100])
        assert len(made.answer(element, b"y")) == 1


def test_elements_stay_with_their_ring(rig):
    made = rig()
    made.driver.add([b"x"], [4])
    element = made.pop()
    successor = made.queue(base=1)
    with pytest.raises(ValueError, match="another virtqueue"):
        successor.push(element, b"late")
    made.device.push(element, b"once")
    with pytest.raises(ValueError, match="pushed before"):
        made.device.push(element, b"twice")
    made.device.publish()
    assert made.driver.used() == [(0, 4)]
    assert made.driver.response(0) == b"once"


def test_an_element_survives_its_ring_and_memory(rig):
    made = rig()
    made.driver.add([b"survivor"], [4])
    element = made.pop()
    del made.device, made.memory
    assert (element.head, element.request, element.writable) == (0, b"survivor", 4)


def test_elements_are_made_by_pop_only():
    with pytest.raises(TypeError):
        _native.Element()


def test_rebind_moves_the_ring_and_its_elements(rig):
    """Decision 11: an element popped before a hotplug is answered in the new table."""
    made = rig()
    made.driver.add([b"old"], [4])
    element = made.pop()
    made.device.rebind(_native.GuestMemory([_native.Region(made.ram.memfd, *made.ram.regions[0])]))
    made.driver.add([b"new"], [4])
    assert made.pop().request == b"new"
    assert made.answer(element, b"done") == [(element.head, 4)]
    assert made.driver.response(element.head) == b"done"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"size": 0}, "power of two"),
        ({"size": 3}, "power of two"),
        ({"size": 2048}, "power of two"),
        ({"size": 1 << 31}, "power of two"),
        ({"size": 1 << 32}, "is not 0 to"),
        ({"base": 65536}, "is not 0 to"),
        ({"base": -1}, "is not 0 to"),
        ({"desc": UVA + 8}, "desc.*misaligned"),
        ({"avail": UVA + 1}, "avail.*misaligned"),
        ({"used": UVA + 2}, "used.*misaligned"),
        ({"desc": 0}, "desc.*not inside"),
        ({"avail": UVA - 2}, "avail.*not inside"),
        ({"used": UVA + (1 << 20) - 4}, "used.*not inside"),
        ({"used": (1 << 64) - 4}, "used.*not inside"),
        ({"desc": GPA}, "desc.*not inside"),
        ({"desc": UVA + (1 << 20) - 16 * 15}, "desc.*not inside"),
        ({"memory": _native.GuestMemory([])}, "desc.*not inside"),
    ],
)
def test_bad_arguments(rig, changes, match):
    made = rig()
    with pytest.raises(ValueError, match=match):
        made.queue(**changes)


def test_areas_may_end_with_their_region(rig):
    end = UVA + (1 << 20)
    made = rig()
    for event in (False, True):
        extra = 2 * event
        made.queue(desc=end - 256, event_idx=event)
        made.queue(avail=end - 36 - extra, event_idx=event)
        with pytest.raises(ValueError, match="avail"):
            made.queue(avail=end - 34 - extra, event_idx=event)
        with pytest.raises(ValueError, match="used"):
            made.queue(used=end - 128, event_idx=event)
    made.queue(used=end - 132)


@pytest.mark.parametrize("area", ["desc", "avail", "used"])
def test_an_area_lies_in_one_writable_region(rig, area, tmp_path):
    regions = [
        RamRegion(GPA, 1 << 19, UVA, 0),
        RamRegion(GPA + (1 << 19), 1 << 19, UVA + (1 << 19), 1 << 19),
    ]
    made = rig(regions=regions)
    with pytest.raises(ValueError, match=f"{area}.*not inside one"):
        made.queue(**{area: UVA + (1 << 19) - 16})
    path = tmp_path / "rom"
    path.write_bytes(bytes(PAGE))
    with path.open("rb") as file:
        rom = _native.Region(file.fileno(), 0, PAGE, 0x1000, 0)
    memory = _native.GuestMemory([*made.memory.regions, rom])
    with pytest.raises(ValueError, match=f"{area}.*not inside one writable"):
        made.queue(memory=memory, **{area: 0x1000})


@pytest.mark.parametrize("name", ["memory", "size", "desc", "base"])
def test_bad_types(rig, name):
    with pytest.raises(TypeError):
        rig().queue(**{name: "x"})
    with pytest.raises(TypeError):
        rig().device.push(None, b"")
    with pytest.raises(TypeError):
        rig().device.rebind(None)


def test_a_look_that_does_not_arm_wants_no_kick(rig):
    """A busy device is not kicked: the driver sees that nobody waits."""
    made = rig(8, event_idx=True)
    assert made.device.pop() is None
    made.driver.add([b"x"], [4])
    assert made.driver.needs_kick()
    made.answer(made.device.pop(False), b"")
    for _ in range(12):
        assert made.device.pop(False) is None
        made.driver.add([b"x"], [4])
        assert not made.driver.needs_kick()
        made.answer(made.device.pop(False), b"")
    assert made.device.pop() is None
    made.driver.add([b"x"], [4])
    assert made.driver.needs_kick()


def test_spin_sees_what_is_there_and_takes_nothing(rig):
    made = rig(8)
    assert made.device.spin(0) is False
    made.driver.add([b"x"], [4])
    assert made.device.spin(10**12) is True
    assert made.device.next_avail == 0
    assert made.device.pop(False).request == b"x"
    assert made.device.spin(1000) is False
    with pytest.raises(ValueError, match="is not 0 to"):
        made.device.spin(-1)


def test_spin_sees_what_comes_meanwhile(rig):
    """It holds no lock: the driver here is another thread of this process."""
    made = rig(8)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(made.device.spin, 60 * 10**9)
        made.driver.add([b"x"], [4])
        assert found.result()
