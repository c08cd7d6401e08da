"""Other machines and devices: vhost-user-vga, the older chipset, more heads."""

import pytest

from tests.qemu.binaries import Qemu, qemu
from tests.qtest import gpu
from tests.qtest.gpu import PIXELS, Driver
from tests.qtest.machine import served


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_vga(the_qemu: Qemu, machine: str) -> None:
    """vhost-user-vga: VGA text until the first SCANOUT, ours from then on, also after a reset."""
    with served(the_qemu, device="vhost-user-vga", machine=machine) as pair:
        for seed in range(2):
            pair.vm.gpu.start()
            driver = Driver(pair.vm)
            driver.expect(driver.draw(200, 100, seed=seed))
            assert not pair.warnings(), pair.vm.logs()


def test_pc(the_qemu: Qemu) -> None:
    with served(the_qemu, machine="pc") as pair:
        pair.vm.gpu.start()
        driver = Driver(pair.vm)
        driver.expect(driver.draw(200, 100))


def test_sixteen_heads(the_qemu: Qemu) -> None:
    """As many heads as the device can have, each with its own picture."""
    with served(the_qemu, options="max_outputs=16") as pair:
        pair.vm.gpu.start()
        driver = Driver(pair.vm)
        pictures = [
            driver.draw(
                32 + head, 16, resource=1 + head, scanout=head, seed=head, at=PIXELS + head * 65536
            )
            for head in range(16)
        ]
        for head, picture in enumerate(pictures):
            driver.expect(picture, head=head)
        wrong = gpu.set_scanout(16, 1, (0, 0, 32, 16))
        assert gpu.kind_of(driver.run(wrong)) == gpu.INVALID_SCANOUT


def test_shm_mode(the_qemu: Qemu) -> None:
    """--scanout=shm said aloud, and another limit of memory."""
    with served(the_qemu, backend_options=["--scanout=shm", "--max-hostmem=1M"]) as pair:
        pair.vm.gpu.start()
        driver = Driver(pair.vm)
        assert gpu.kind_of(driver.run(gpu.create_2d(1, 1, 512, 512))) == gpu.OUT_OF_MEMORY
        driver.expect(driver.draw(512, 511))


def test_trap_16_queues_of_1024() -> None:
    """The stable releases of QEMU 10.0 give both queues 1024 entries: all in one kick."""
    with served(qemu("trixie")) as pair:
        device = pair.vm.gpu
        device.start()
        assert [queue.size for queue in device.queues] == [1024, 1024]
        driver = Driver(pair.vm)
        queue = device.queues[0]
        for slot in range(512):
            driver.send(gpu.unref(9), 24, slot=slot % 128)
        device.kick()
        with pair.vm.explained():
            queue.wait()
        assert [length for _, length in queue.take()] == [24] * 512
        driver.expect(driver.draw(200, 100))
