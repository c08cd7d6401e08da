"""Guest memory that vanishes, memory that runs out, and nothing left behind by either."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress

import pytest

from tests.support.mock_driver import GPA, WRITE, GuestRam, mem_entries
from vgpud import _native

PAGE = 4096
ROUNDS = 10_000
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")


@pytest.fixture
def hollow(rig):
    """A rig whose upper half is cut off by cut(): rings and requests stay."""
    made = rig()
    made.upper = GPA + made.ram.size // 2
    made.cut = lambda: os.ftruncate(made.ram.memfd, made.ram.size // 2)
    made.mend = lambda: os.ftruncate(made.ram.memfd, made.ram.size)
    return made


def test_the_rings_vanish(rig):
    for size in (0, PAGE):
        made = rig(128)
        made.driver.add([b"x"], [4])
        element = made.pop()
        os.ftruncate(made.ram.memfd, 0)
        with pytest.raises(_native.GuestFault, match="0x4000"):
            made.queue()
        if size:
            with pytest.raises(_native.GuestFault):
                made.device.pop()
        else:
            with pytest.raises(_native.GuestFault):
                made.device.push(element, b"")
        for call in (made.device.pop, made.device.publish):
            with pytest.raises(_native.RingError, match="has gone away"):
                call()
        with pytest.raises(_native.RingError, match="has gone away"):
            made.device.push(element, b"")


def test_publish_into_a_vanished_ring(rig):
    made = rig()
    made.driver.add([b"x"])
    made.device.push(made.pop(), b"")
    os.ftruncate(made.ram.memfd, 0)
    with pytest.raises(_native.GuestFault):
        made.device.publish()


@pytest.mark.parametrize("length", [16, 100_000])
def test_a_request_vanishes_again_and_again(hollow, length):
    """Repeatedly: SIGBUS must not stay blocked. Long ones are copied without the GIL. Where the
    fault is to the last byte depends on memcpy(), which may do the first 64 last."""
    for _ in range(50):
        hollow.driver.write_descriptor(0, hollow.upper - 8, length, 0, 0)
        hollow.driver.offer(0)
        hollow.cut()
        with pytest.raises(_native.GuestFault, match=f"{hollow.upper >> 8:#x}"):
            hollow.device.pop()
        hollow.mend()
        hollow.device = hollow.queue(base=hollow.driver.avail_idx)


@pytest.mark.parametrize("length", [16, 100_000])
def test_the_place_of_the_response_vanishes(hollow, length):
    for _ in range(50):
        hollow.driver.write_descriptor(0, hollow.upper - 8, length, WRITE, 0)
        hollow.driver.offer(0)
        element = hollow.pop()
        hollow.cut()
        with pytest.raises(_native.GuestFault, match=f"{hollow.upper >> 8:#x}"):
            hollow.device.push(element, bytes(length))
        hollow.mend()
        hollow.device = hollow.queue(base=hollow.driver.avail_idx)


def test_an_indirect_table_vanishes(hollow):
    hollow.driver.write_descriptor(0, hollow.upper, 64, 4, 0)
    hollow.driver.offer(0)
    hollow.cut()
    with pytest.raises(_native.GuestFault):
        hollow.device.pop()


@pytest.mark.parametrize("swizzle", [0, 1])
@pytest.mark.parametrize("width", [64, 1000])
def test_pixels_vanish(hollow, width, swizzle):
    length = 4 * width * 100
    ranges = [(hollow.upper - length // 2, length)]
    backing = _native.Backing(hollow.memory, mem_entries(ranges))
    surface = bytearray(length)
    for _ in range(50):
        hollow.cut()
        with pytest.raises(_native.GuestFault):
            _native.transfer(surface, 4 * width, 0, 0, width, 100, swizzle, backing, 0, 4 * width)
        with pytest.raises(_native.GuestFault):
            backing.read(length // 2, 1)
        assert len(backing.read(0, length // 2)) == length // 2
        hollow.mend()
        assert _native.transfer(
            surface, 4 * width, 0, 0, width, 100, swizzle, backing, 0, 4 * width
        )


def test_memory_vanishes_under_read(hollow):
    hollow.cut()
    with pytest.raises(_native.GuestFault):
        hollow.memory.read(hollow.upper, 1)
    assert hollow.memory.read(hollow.upper - 1, 1) == b"\0"


def test_faults_in_two_threads_at_once(hollow):
    """Each thread has its own way out."""
    backing = _native.Backing(hollow.memory, mem_entries([(hollow.upper - 80_000, 160_000)]))
    hollow.cut()
    faults = []

    def work():
        surface = bytearray(160_000)
        for _ in range(200):
            try:
                _native.transfer(surface, 1600, 0, 0, 400, 100, 1, backing, 0, 1600)
            except _native.GuestFault:
                faults.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(faults) == 600


SCRIPT = """
import faulthandler, mmap, os, signal, sys
from importlib import util
spec = util.spec_from_file_location("vgpud._native", sys.argv[1])
order = sys.argv[2]
if order == "before":
    faulthandler.enable()
native = util.module_from_spec(spec)
spec.loader.exec_module(native)
def guest():
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4096)
    memory = native.GuestMemory([native.Region(fd, 0, 4096, 0, 0)])
    os.ftruncate(fd, 0)
    return memory
old = guest()
if order in ("after", "handler"):
    faulthandler.enable()
if order == "handler":
    signal.signal(signal.SIGBUS, lambda *_: None)
    guest()
for memory in [guest()] * 3 if order == "between" else [old, guest(), old]:
    try:
        memory.read(0, 1)
    except native.GuestFault:
        print("fault", flush=True)
if len(sys.argv) > 3:
    fd = os.memfd_create("ours")
    os.ftruncate(fd, 4096)
    ours = mmap.mmap(fd, 4096)
    os.ftruncate(fd, 0)
    print("dying", flush=True)
    eval(sys.argv[3])
    print("survived", flush=True)
"""


def run(order, *end):
    # Without the sanitizer's handlers in between: this is about who gets the signal.
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, _native.__file__, order, *end],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("order", ["never", "before", "after", "between", "handler"])
def test_faulthandler_may_be_enabled_before_or_after(order):
    done = run(order)
    assert (done.returncode, done.stdout) == (0, "fault\n" * 3), done.stderr
    if order != "after":
        assert done.stderr == ""


@pytest.mark.parametrize("end", ["ours[0]", "os.kill(os.getpid(), signal.SIGBUS)"])
@pytest.mark.parametrize("order", ["never", "before", "after"])
def test_any_other_sigbus_still_kills(order, end):
    done = run(order, end)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "fault\n" * 3 + "dying\n")
    if order != "never":
        assert "Bus error" in done.stderr


def fds():
    return len(os.listdir("/proc/self/fd"))


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * PAGE


def one_round(ram, driver, base):
    """Every constructor and every way to fail, once."""
    region = _native.Region(ram.memfd, *ram.regions[0])
    memory = _native.GuestMemory([region])
    for bad in ([region, region], [region, None]):
        with pytest.raises((ValueError, TypeError)):
            _native.GuestMemory(bad)
    entries = mem_entries([(GPA, 10), (GPA + 100, 10)] * 20)
    backing = _native.Backing(memory, entries)
    backing.rebind(memory).read(0, 400)
    with pytest.raises(ValueError, match="no descriptor"):
        _native.udmabuf_create(0, backing.runs(400), b"")
    with pytest.raises(ValueError, match="not inside"):
        _native.copy_out(backing, 400, 4, 0, 0, 1, 1, 0, bytearray(4))
    with pytest.raises(ValueError, match="entry 40"):
        _native.Backing(memory, entries + bytes(16))
    with pytest.raises(ValueError, match="not inside"):
        _native.transfer(bytearray(4), 4, 1, 0, 1, 1, 0, backing, 0, 4)
    areas = (driver.desc, driver.avail, driver.used_addr, base)
    with pytest.raises(ValueError, match="power of two"):
        _native.Virtqueue(memory, 3, *areas, False)
    queue = _native.Virtqueue(memory, driver.size, *areas, False)
    driver.add([b"request", b"split"], [10])
    element = queue.pop()
    queue.push(element, b"answer")
    queue.publish()
    driver.used()
    queue.rebind(memory)
    with pytest.raises(ValueError, match="desc"):
        queue.rebind(_native.GuestMemory([]))
    with pytest.raises(_native.RingError):
        queue.pop()


def test_nothing_is_left_behind(rig):
    made = rig()
    base = 0
    before = (0, 0)
    for i in range(ROUNDS // 10 + ROUNDS):
        if i == ROUNDS // 10:
            before = (fds(), resident())
        one_round(made.ram, made.driver, base)
        base = (base + 1) & 0xFFFF
    assert fds() == before[0]
    # AddressSanitizer keeps freed memory on purpose.
    assert SANITIZED or resident() - before[1] < 1 << 19


def test_constructors_survive_failed_allocations(rig):
    """The n-th allocation fails, for every n: MemoryError and nothing half made."""
    _testcapi = pytest.importorskip("_testcapi")
    made = rig()
    made.driver.add([b"request" * 10], [10])
    entries = mem_entries([(GPA, 10), (GPA + 100, 10)] * 40)
    region = made.memory.regions[0]
    backing = _native.Backing(made.memory, entries)
    driver = made.driver

    def export():
        with suppress(OSError):
            _native.udmabuf_create(made.ram.memfd, bytes(240), bytes(4))

    def refused(call, *arguments):
        with suppress(OSError):
            call(made.ram.memfd, *arguments)

    def answer():
        queue = made.queue()
        queue.push(queue.pop(), b"answer")
        queue.publish()

    calls = [
        lambda: _native.Region(made.ram.memfd, *made.ram.regions[0]),
        lambda: _native.GuestMemory([region]),
        lambda: _native.Backing(made.memory, entries).read(800, 1),
        lambda: backing.rebind(made.memory).read(800, 1),
        lambda: backing.read(0, 400),
        lambda: made.memory.read(GPA, 5000),
        lambda: _native.Virtqueue(
            made.memory, 16, driver.desc, driver.avail, driver.used_addr, 0, False
        ),
        lambda: made.queue().pop(),
        lambda: backing.runs(800),
        export,
        answer,
        lambda: _native.gather(bytes(4096), 256, 0, 0, 16, 16),
        lambda: _native.copy_out(backing, 0, 40, 0, 0, 10, 10, 0, bytearray(400)),
        lambda: _native.transfer(bytearray(400), 40, 0, 0, 10, 10, 0, backing, 0, 40),
        lambda: _native.file_system(made.ram.memfd),
        lambda: refused(_native.vfio_device_info),
        lambda: refused(_native.vfio_region_info, 0),
        lambda: refused(_native.vfio_get_dma_buf, 2, bytes(16)),
    ]
    for call in calls:
        for n in range(100):
            failed = False
            _testcapi.set_nomemory(n, n + 1)
            try:
                call()
            except MemoryError:
                failed = True
            finally:
                _testcapi.remove_mem_hooks()
            if not failed:
                break
        else:
            pytest.fail("never stopped failing")
        assert n > 0
    made.device = made.queue()
    assert made.pop().request == b"request" * 10


def test_a_descriptor_is_closed_where_there_is_no_memory_for_its_number():
    """Numbers up to 256 are there already; a guest with many buffers has larger ones."""
    _testcapi = pytest.importorskip("_testcapi")
    with ExitStack() as stack:
        low = [stack.enter_context(open("/dev/null")) for _ in range(300)]
        pidfd = os.pidfd_open(os.getpid())
        stack.callback(os.close, pidfd)
        before = fds()
        failed = 0
        for n in range(20):
            _testcapi.set_nomemory(n, n + 1)
            try:
                os.close(_native.pidfd_getfd(pidfd, low[0].fileno()))
            except MemoryError:
                failed += 1
            finally:
                _testcapi.remove_mem_hooks()
        assert failed
        assert fds() == before


def test_a_queue_in_use_by_another_thread(rig):
    """A bug of ours, refused while a copy runs without the GIL: no crash, no broken ring."""
    made = rig(ram_size=1 << 22)
    stop = time.monotonic() + 0.3
    seen = set()

    def churn():
        while time.monotonic() < stop:
            try:
                element = made.device.pop()
                if element is not None:
                    made.device.push(element, bytes(100_000))
            except (RuntimeError, ValueError, _native.RingError) as error:
                seen.add(type(error))

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    while time.monotonic() < stop:
        try:
            if made.driver.in_flight < 5:
                made.driver.add([bytes(200_000)], [100_000])
            made.device.publish()
        except RuntimeError as error:
            seen.add(type(error))
        made.driver.used()
    for thread in threads:
        thread.join()
    assert seen <= {RuntimeError}


def test_core_dumps_are_without_guest_memory(ram):
    region = _native.Region(ram.memfd, *ram.regions[0])
    with open("/proc/self/smaps") as smaps:
        areas = smaps.read().split("memfd:mock-guest")[1:]
    assert any(" dd" in area.split("VmFlags:")[1].split("\n")[0] for area in areas)
    assert region.access == "rw"


def test_a_guest_file_that_shrank_before_it_was_mapped():
    with GuestRam(2 * PAGE) as small:
        os.ftruncate(small.memfd, PAGE)
        memory = _native.GuestMemory([_native.Region(small.memfd, *small.regions[0])])
        assert memory.read(GPA, PAGE) == bytes(PAGE)
        with pytest.raises(_native.GuestFault, match=f"{GPA + PAGE:#x}"):
            memory.read(GPA, 2 * PAGE)
