"""Resets, stops and viewers that come, go and do not answer, while frames are under way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.inner.dbus import (
    BLOB,
    NODE,
    PAGE,
    Chain,
    be_patient,
    chain,
    create_blob,
    lab_qemu,
    set_scanout_blob,
)
from tests.qtest import gpu
from tests.qtest.gpu import PIXELS, Driver
from tests.qtest.machine import served
from tests.support.qemu import statistics
from tests.support.qtest import wait_until

SECOND = PIXELS + 0x100_0000
WIDTH, HEIGHT = 640, 480
WHOLE = (0, 0, WIDTH, HEIGHT)


@pytest.fixture
def started() -> Iterator[Chain]:
    with chain() as made:
        made.start()
        yield made
        assert made.statistics()["pixel_bytes"] == "0"


def flips(chain: Chain, count: int) -> None:
    """Queue page flips between two blobs and wait for none of them."""
    for number in range(count):
        resource = 1 + number % 2
        shown = set_scanout_blob(0, resource, WHOLE, (WIDTH, HEIGHT), 4 * WIDTH)
        chain.driver.send(shown, slot=2 * number)
        fenced = gpu.fenced(gpu.flush(resource, WHOLE), number + 1)
        chain.driver.send(fenced, slot=2 * number + 1)
    chain.driver.device.kick()


def test_reset_in_mid_flip(started: Chain) -> None:
    """While QEMU waits for the viewer, and at some other moments."""
    for round_ in range(8):
        for resource, place in ((1, PIXELS), (2, SECOND)):
            started.blob(WIDTH, HEIGHT, resource=resource, at=place, seed=round_)
        started.listener.clear()
        if round_ % 2:
            with started.listener.held():
                flips(started, 10)
                started.listener.wait("UpdateDMABUF")
                started.start()
        else:
            flips(started, 10)
            time.sleep(0.002 * round_)
            started.start()
        data = started.blob(WIDTH, HEIGHT, seed=50 + round_)
        started.listener.clear()
        started.show(WIDTH, HEIGHT)
        assert started.shown().pixels() == data, f"round {round_}"
        started.start()


def test_stop_and_cont(started: Chain) -> None:
    """The picture is there again, from the same memory; what was queued meanwhile is done."""
    data = started.blob(WIDTH, HEIGHT)
    started.show(WIDTH, HEIGHT)
    assert started.shown().pixels() == data
    qmp = started.pair.vm.qmp
    for round_ in range(3):
        qmp.execute("stop")
        started.listener.clear()
        qmp.execute("cont")
        started.listener.wait("UpdateDMABUF")
        frame = started.listener.frame
        assert frame is not None
        assert frame.pixels() == data
        qmp.execute("stop")
        data = gpu.noise(len(data), 10 + round_)
        started.driver.vm.ram.write(PIXELS, data)
        started.driver.send(gpu.flush(1, WHOLE))
        qmp.execute("cont")
        started.driver.device.queues[0].wait()
        started.driver.device.queues[0].take()
        assert started.shown().pixels() == data


def test_stop_while_the_viewer_is_busy(started: Chain) -> None:
    """QMP answers, and every command comes back once."""
    for resource, place in ((1, PIXELS), (2, SECOND)):
        started.blob(WIDTH, HEIGHT, resource=resource, at=place)
    with started.listener.held():
        flips(started, 10)
        started.listener.wait("UpdateDMABUF")
        begin = time.monotonic()
        started.pair.vm.qmp.execute("stop")
        started.pair.vm.qmp.execute("cont")
        assert time.monotonic() - begin < 2
        started.driver.device.queues[0].wait()
    heads = [head for head, _ in started.driver.device.queues[0].take()]
    assert len(heads) == len(set(heads)) == 20
    data = started.blob(WIDTH, HEIGHT, resource=3, seed=9)
    started.show(WIDTH, HEIGHT, resource=3)
    assert started.shown().pixels() == data


def test_system_reset(started: Chain) -> None:
    vm = started.pair.vm
    for round_ in range(3):
        data = started.blob(WIDTH, HEIGHT, seed=round_)
        started.listener.clear()
        started.show(WIDTH, HEIGHT)
        assert started.shown().pixels() == data
        with vm.explained():
            vm.qmp.execute("system_reset")
            vm.qmp.wait_event("RESET")
            vm.attach(vm.ram)
        started.start()


def test_a_head_is_turned_off(started: Chain) -> None:
    data = started.blob(WIDTH, HEIGHT)
    started.show(WIDTH, HEIGHT)
    started.shown()
    disabled = started.listener.count("Disable")
    started.driver.ok(set_scanout_blob(0, 0, (0, 0, 0, 0), (0, 0), 0))
    started.listener.wait("Disable", disabled + 1)
    started.listener.clear()
    started.show(WIDTH, HEIGHT)
    assert started.shown().pixels() == data


def test_slow_viewer(started: Chain) -> None:
    """The guest waits for a viewer 40 ms at most; what it drew meanwhile is one update."""
    data = started.blob(WIDTH, HEIGHT)
    started.show(WIDTH, HEIGHT)
    started.shown()
    started.listener.clear()
    with started.listener.held():
        for _ in range(3):
            begin = time.monotonic()
            started.driver.ok(gpu.flush(1, WHOLE))
            # 40 ms, and a busy machine that emulates all this
            assert time.monotonic() - begin < 1
    started.listener.wait("UpdateDMABUF", 2)
    assert int(started.statistics()["late_flushes"]) >= 3
    started.driver.ok(gpu.flush(1, WHOLE))
    assert started.shown().pixels() == data


def test_viewers_come_and_go(started: Chain) -> None:
    """A second viewer sees what is shown; the first one's end is no matter."""
    data = started.blob(WIDTH, HEIGHT)
    started.show(WIDTH, HEIGHT)
    for _ in range(3):
        second = started.display.listen(0)
        wait_until(lambda second=second: second.frame and second.frame.pixels() == data, "a frame")
        started.driver.ok(gpu.flush(1, WHOLE))
        second.wait("UpdateDMABUF")
        second.close()
        started.driver.ok(gpu.flush(1, WHOLE))
    started.driver.ok(gpu.flush(1, WHOLE))
    assert started.shown().pixels() == data


def test_window_of_another_size(started: Chain) -> None:
    """The viewer's window is the guest's mode: QEMU asks the guest, the guest asks vgpud."""
    started.display.resize(0, 1024, 600)
    deadline = time.monotonic() + 20
    while gpu.modes(started.driver.run(gpu.hdr(gpu.GET_DISPLAY_INFO)))[0][2:4] != (1024, 600):
        assert time.monotonic() < deadline, "the guest does not learn of the window's size"
        time.sleep(0.05)


def test_memory_is_given_back(started: Chain) -> None:
    """Many buffers, created, shown and destroyed: QEMU and vgpud keep none of them."""

    def buffers(pid: int) -> int:
        """Descriptors of udmabufs; QEMU's renderer has some of its own."""
        count = 0
        for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += "exp_name:\tudmabuf" in entry.read_text()
        return count

    pids = (started.pair.vgpud.pid, started.pair.vm.qemu.pid)
    for number in range(1, 30):
        started.blob(WIDTH, HEIGHT, resource=number, seed=number)
        started.show(WIDTH, HEIGHT, resource=number)
        started.driver.ok(set_scanout_blob(0, 0, (0, 0, 0, 0), (0, 0), 0), gpu.unref(number))
    started.driver.settled()
    vgpud, qemu = (buffers(pid) for pid in pids)
    assert vgpud == 0  # the task that makes large ones holds the last
    assert qemu <= 4


def test_egl_headless() -> None:
    """A display that imports every buffer with EGL, of any size after any other."""
    be_patient()
    display = f"egl-headless,rendernode={NODE}"
    options = ("--scanout=dmabuf",)
    with served(lab_qemu(), backend_options=options, display=display) as pair:
        pair.vm.gpu.start(BLOB)
        driver = Driver(pair.vm)
        sizes = [(320, 200), (1920, 1080), (64, 64), (801, 601), (1280, 800)]
        for number, (width, height) in enumerate(sizes, 1):
            size = -(-4 * width * height // PAGE) * PAGE
            whole = (0, 0, width, height)
            driver.ok(
                create_blob(number, [(PIXELS, size)], size),
                set_scanout_blob(0, number, whole, (width, height), 4 * width),
                *[gpu.flush(number, whole)] * 3,
            )
            driver.settled()
        counted = statistics(pair.vgpud)
        assert counted["pixel_bytes"] == "0"
        assert int(counted["dmabuf_updates"]) >= 15
        complaints = [line for line in pair.vm.qemu.log().splitlines() if "MESA" not in line]
        assert not complaints
