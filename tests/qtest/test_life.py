"""Stops, resets and deaths, in the middle of work.

"Trap N" is a number of qemu-frontend.md section 10, "row N" one of the conformance tables.
"""

import os
import signal
import time

import pytest

from tests.qemu.binaries import Qemu
from tests.qtest import gpu
from tests.qtest.gpu import PIXELS, Driver
from tests.qtest.machine import Served, Vm, served
from tests.support.qmp import QmpError

FULL_HD = (0, 0, 1920, 1080)


def busy(driver: Driver, flushes: int = 20) -> None:
    """Give the device long work, and do not wait for it: frames of 8 MiB, questions, moves."""
    size = 1920 * 1080 * 4
    driver.ok(
        gpu.create_2d(9, 1, 1920, 1080),
        gpu.attach(9, [(PIXELS, size)]),
        gpu.set_scanout(0, 9, FULL_HD),
    )
    requests = (gpu.transfer(9, FULL_HD), gpu.flush(9, FULL_HD), gpu.hdr(gpu.GET_DISPLAY_INFO))
    for slot in range(flushes):
        driver.send(gpu.fenced(requests[slot % 3], slot + 1), slot=slot)
    driver.send(gpu.cursor(gpu.MOVE_CURSOR, 0, 1, 1, 0), 0, queue=1, slot=flushes)
    driver.device.kick(0)
    driver.device.kick(1)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_quiet(vm: Vm) -> None:
    """Trap 10: QEMU does not spin on a socket that somebody closed."""
    before = cpu_seconds(vm.qemu.pid)
    time.sleep(0.3)
    used = cpu_seconds(vm.qemu.pid) - before
    assert used < 0.15, f"QEMU used {used:.2f} s of 0.3 s"


def descriptors(pair: Served) -> int:
    return len(os.listdir(f"/proc/{pair.vgpud.pid}/fd"))


def test_R01_R02_trap_7_reset_in_flight(pair: Served) -> None:
    """Rows R01, R02, traps 7 and 9: a reset while frames, fences and questions are under way. The
    new driver finds an empty device, and no descriptor is left behind."""
    before = 0
    for round_ in range(12):
        pair.vm.gpu.start()
        driver = Driver(pair.vm)
        busy(driver)
        time.sleep(0.001 * round_)  # somewhere else each time
        with pair.vm.explained():
            pair.vm.gpu.start()
        driver = Driver(pair.vm)
        driver.expect(driver.draw(64, 48, seed=round_))
        if round_ == 1:
            before = descriptors(pair)
    assert descriptors(pair) <= before + 1
    is_quiet(pair.vm)


def test_R01_resources_are_gone(driver: Driver) -> None:
    """Row R01: ids of before the reset are free again, the memory too."""
    driver.draw(64, 48)
    driver.ok(gpu.create_2d(2, 1, 8192, 8000))
    driver.device.start()
    driver.ok(gpu.create_2d(1, 1, 64, 48), gpu.create_2d(2, 1, 8192, 8000))
    assert gpu.kind_of(driver.run(gpu.unref(7))) == gpu.INVALID_RESOURCE


def test_R06_trap_22_stop_and_cont(driver: Driver) -> None:
    """Row R06, trap 22: a stop is no reset. The picture stays, resources too, and what the guest
    queued meanwhile is done without another kick."""
    first = driver.draw(64, 48, resource=1, scanout=0, seed=1)
    second = driver.draw(80, 40, resource=2, scanout=1, seed=2, at=PIXELS + 0x10_0000)
    qmp, vm = driver.vm.qmp, driver.vm
    for round_ in range(3):
        with vm.explained():
            qmp.execute("stop")
            qmp.execute("cont")
        driver.ok(gpu.flush(1, (0, 0, 16, 16)))  # the rest must be there on the new socket too
        driver.expect(first, head=0)
        driver.expect(second, head=1)
        with vm.explained():
            qmp.execute("stop")
        pixels = gpu.noise(64 * 48 * 4, 10 + round_)
        vm.ram.write(PIXELS, pixels)
        first, whole = gpu.rgb(pixels), (0, 0, 64, 48)
        driver.send(gpu.transfer(1, whole), slot=0)
        driver.send(gpu.flush(1, whole), slot=1)
        with vm.explained():
            qmp.execute("cont")
            driver.device.queues[0].wait()
        driver.device.queues[0].take()
        driver.expect(first, head=0)
    is_quiet(vm)


def test_R08_trap_9_stop_in_flight(driver: Driver) -> None:
    """Trap 9: at GET_VRING_BASE there are unanswered commands; each comes back exactly once."""
    for round_ in range(6):
        driver.device.start()
        busy(driver)
        time.sleep(0.001 * round_)
        with driver.vm.explained():
            driver.vm.qmp.execute("stop")
            driver.vm.qmp.execute("cont")
            driver.device.queues[0].wait()
        heads = [head for head, _ in driver.device.queues[0].take()]
        assert len(heads) == len(set(heads)) == 20
    driver.ok(gpu.unref(9))
    driver.expect(driver.draw(64, 48))


def test_stop_before_start(pair: Served) -> None:
    pair.vm.gpu.reset()
    pair.vm.qmp.execute("stop")
    pair.vm.qmp.execute("cont")
    pair.vm.gpu.start()
    driver = Driver(pair.vm)
    driver.expect(driver.draw(64, 48))


def test_start_while_stopped(pair: Served) -> None:
    """DRIVER_OK is written while the machine is stopped: the start comes with cont."""
    pair.vm.gpu.reset()
    pair.vm.qmp.execute("stop")
    pair.vm.gpu.start()
    pair.vm.qmp.execute("cont")
    driver = Driver(pair.vm)
    driver.expect(driver.draw(64, 48))


def test_R05_system_reset(pair: Served) -> None:
    """A reboot, drawn before and after; the machine forgets where the device's registers were."""
    for seed in range(3):
        pair.vm.gpu.start()
        driver = Driver(pair.vm)
        driver.expect(driver.draw(64, 48, seed=seed))
        busy(driver)
        with pair.vm.explained():
            pair.vm.qmp.execute("system_reset")
            pair.vm.qmp.wait_event("RESET")
            pair.vm.attach(pair.vm.ram)
    pair.vm.gpu.start()
    driver = Driver(pair.vm)
    driver.expect(driver.draw(64, 48))


def test_trap_6_second_socket(pair: Served) -> None:
    """Trap 6: the guest writes its status again with DRIVER_OK in it. QEMU sends a second display
    socket and nothing else; the first must neither be used nor closed."""
    pair.vm.gpu.start()
    driver = Driver(pair.vm)
    picture = driver.draw(64, 48)
    for number in range(5):
        with pair.vm.explained():
            pair.vm.gpu.status = 0x8F
        driver.expect(picture)
        size = 32 + 8 * number
        picture = driver.draw(size, 40, resource=10 + number, seed=number)
        driver.expect(picture)
    is_quiet(pair.vm)
    with pair.vm.explained():
        pair.vm.gpu.start()
    driver.expect(driver.draw(64, 48, seed=9))
    pair.alive()


def test_trap_6_sockets_without_end(the_qemu: Qemu) -> None:
    """Trap 6 again and again: QEMU closes none of the sockets, and vgpud may not close one first.
    So it gives the guest's GPU up, which QEMU lives through."""
    with served(the_qemu, ends_well=False) as pair:
        pair.vm.gpu.start()
        Driver(pair.vm).expect(Driver(pair.vm).draw(64, 48))
        for _ in range(100):
            with pair.vm.explained():
                pair.vm.gpu.status = 0x8F
        with pair.vm.explained():
            assert pair.vgpud.wait() == 1
            assert "64 display sockets without a reset" in pair.vgpud.log()
            assert pair.vm.qmp.execute("query-status")["running"]
            pair.vm.qmp.execute("quit")
            assert pair.vm.qemu.wait() == 0


def test_trap_6_second_socket_in_flight(the_qemu: Qemu) -> None:
    """Trap 6 while frames are on their way through the first socket."""
    with served(the_qemu, ends_well=False) as pair:
        pair.vm.gpu.start()
        busy(Driver(pair.vm))
        os.kill(pair.vm.qemu.pid, signal.SIGSTOP)
        time.sleep(0.1)  # the socket fills
        pair.vm.gpu.send_status(0x8F)
        os.kill(pair.vm.qemu.pid, signal.SIGCONT)
        pair.vm.qmp._patience = 1.0
        try:
            with pair.vm.explained():
                for _ in range(3):
                    pair.vm.qmp.execute("query-status")
                    time.sleep(0.1)
        finally:
            pair.vm.qemu.process.kill()  # a hung QEMU does not hear SIGTERM


@pytest.mark.parametrize("started", [False, True])
def test_trap_5_vgpud_killed(the_qemu: Qemu, started: bool) -> None:
    """QEMU lives on without its back-end: the guest's resets come through, the monitor answers."""
    with served(the_qemu, ends_well=False) as pair:
        pair.vm.gpu.start()
        driver = Driver(pair.vm)
        driver.expect(driver.draw(64, 48))
        if started:
            busy(driver)  # in the middle of a message of 8 MiB (trap 5)
        else:
            pair.vm.gpu.reset()
        os.kill(pair.vgpud.pid, signal.SIGKILL)
        pair.vgpud.wait()
        with pair.vm.explained():
            assert pair.vm.qmp.execute("query-status")["running"]
            pair.vm.gpu.reset()
            pair.vm.gpu.start()
            pair.vm.qmp.execute("stop")
            pair.vm.qmp.execute("quit")
            assert pair.vm.qemu.wait() == 0


def test_sigterm(the_qemu: Qemu) -> None:
    """SIGTERM ends vgpud at once and well, in the middle of work."""
    with served(the_qemu, ends_well=False) as pair:
        pair.vm.gpu.start()
        busy(Driver(pair.vm))
        pair.vgpud.process.terminate()
        assert pair.vgpud.wait(5) == 0, pair.vm.logs()
        assert "Traceback" not in pair.vgpud.log()
        with pair.vm.explained():
            assert pair.vm.qmp.execute("query-status")["running"]


@pytest.mark.parametrize("work", [False, True])
def test_qemu_killed(the_qemu: Qemu, work: bool) -> None:
    """vgpud ends with QEMU: code 0, one line that says so, at most one warning."""
    with served(the_qemu, ends_well=False) as pair:
        pair.vm.gpu.start()
        if work:
            busy(Driver(pair.vm))
        os.kill(pair.vm.qemu.pid, signal.SIGKILL)
        assert pair.vgpud.wait() == 0, pair.vm.logs()
        log = pair.vgpud.log()
        assert log.count("event=session-end") == 1, log
        assert "Traceback" not in log
        assert len(pair.warnings()) <= 1, log


def test_quit_in_flight(the_qemu: Qemu) -> None:
    """An orderly end while the guest draws."""
    with served(the_qemu) as pair:
        pair.vm.gpu.start()
        busy(Driver(pair.vm))


def test_trap_5_qemu_answers_while_it_is_drawn_on(driver: Driver) -> None:
    """Rule 4, traps 5 and 7: with frames under way each access of the guest's and each command of
    the monitor is answered promptly."""
    worst = 0.0
    for _ in range(5):
        driver.device.start()
        busy(driver)
        begin = time.monotonic()
        driver.device.read_config(0, 16)
        with driver.vm.explained():
            driver.vm.qmp.execute("query-status")
        worst = max(worst, time.monotonic() - begin)
        driver.device.queues[0].wait()
        driver.device.queues[0].take()
    assert worst < 2.0, f"{worst:.1f} s"


def test_qmp_deadline(the_qemu: Qemu) -> None:
    """The tests' own safety: a QEMU that does not answer is a failure that shows both logs."""
    with served(the_qemu, ends_well=False) as pair:
        os.kill(pair.vm.qemu.pid, signal.SIGSTOP)
        pair.vm.qmp._patience = 0.2
        try:
            with pytest.raises(Exception, match="did not answer") as caught:
                with pair.vm.explained():
                    pair.vm.qmp.execute("query-status")
        finally:
            os.kill(pair.vm.qemu.pid, signal.SIGCONT)
        assert isinstance(caught.value.__cause__, QmpError)
        assert "--- QEMU" in str(caught.value)
        assert "--- back-end" in str(caught.value)
