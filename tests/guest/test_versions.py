"""The other QEMUs that are supported: a newer point release, and the next major version."""

import pytest

from tests.guest.pattern import pattern
from tests.qemu.binaries import qemu
from tests.support.guest_image import GuestImage
from tests.support.qemu import backend, machine


@pytest.mark.parametrize("name", ["trixie", "trixie-backports"])
def test_draw_and_reset(name: str, image: GuestImage) -> None:
    with backend() as (vgpud, gpu):
        with machine(qemu(name), image, gpu, children=[vgpud]) as vm:
            for seed in (1, 2):
                vm.wait_ready()
                vm.draw(f"--seed {seed} --flips 10")
                vm.wait_picture(pattern(1280, 800, seed))
                vm.qmp.execute("system_reset")
            vm.quit()
        assert vgpud.wait() == 0, vgpud.tail()
        assert "Traceback" not in vgpud.log(), vgpud.log()
