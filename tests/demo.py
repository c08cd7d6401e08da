"""The demo: a Linux guest on real QEMU draws its screen through vgpud. Run by `make demo`."""

import argparse
import contextlib
import re
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from tests.guest.pattern import pattern
from tests.qemu.binaries import Qemu, qemu
from tests.qemu.cache import CacheError, say, step
from tests.qemu.process import Child
from tests.support.guest_image import guest_image
from tests.support.qemu import VGPUD, Machine, MachineError, backend, machine, statistics

PICTURE = Path("build/demo.png")
# The rows of the guest's console that stay visible above the pattern: 34 lines of text.
CONSOLE_ROWS = 544
FLIPS = 120
SEED = 7
# Without a terminal nobody can press Ctrl-C: how long the guest stays up then, in seconds.
LINGER = 2.0


def show(vm: Machine, child: Child, is_vgpud: bool) -> None:
    """Draw, compare, write the picture, tell the numbers."""
    said = vm.draw(f"--console {CONSOLE_ROWS} --flips {FLIPS} --seed {SEED}")
    found = re.search(r"mode=(\d+)x(\d+)", said)
    flips = re.search(r"total_ms=([\d.]+)", said)
    assert found, said
    assert flips, said
    width, height = int(found[1]), int(found[2])
    rate = FLIPS * 1000 / float(flips[1])
    say(f"the guest drew {width}x{height} and flipped pages {FLIPS} times, {rate:.0f} a second")
    picture = vm.wait_picture(pattern(width, height, SEED, CONSOLE_ROWS), top=CONSOLE_ROWS)
    pixels = width * (height - CONSOLE_ROWS)
    say(f"QEMU shows the pattern exactly as the guest drew it: all its {pixels} pixels are equal")
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(picture.png())
    say(f"the guest's screen: {PICTURE.absolute()}")
    if is_vgpud:
        with vm.explained():
            stats = statistics(child)
        say(
            f"vgpud served {stats['frames']} frames; latency of a flush: "
            f"half within {stats['flush_p50_ms']} ms, 99 % within {stats['flush_p99_ms']} ms"
        )


def stay(vm: Machine, child: Child) -> None:
    """Leave the guest running until Ctrl-C, or for LINGER seconds without a terminal."""
    forever = sys.stdout.isatty()
    if forever:
        say("the guest stays up; Ctrl-C ends it")
    end = time.monotonic() + LINGER
    while forever or time.monotonic() < end:
        time.sleep(0.1)
        for process in (vm.qemu, child):
            if process.process.poll() is not None:
                raise MachineError(f"{process.name} ended by itself\n{vm.logs()}")


def demo(wanted: Qemu, command: tuple[str, ...], is_vgpud: bool) -> None:
    """The whole run; raises MachineError where something is not as it should be."""
    image = guest_image()
    begin = time.monotonic()
    with backend(command) as (child, gpu):
        with machine(wanted, image, gpu, children=[child]) as vm:
            name = "vgpud" if is_vgpud else "QEMU's own back-end"
            say(f"QEMU {wanted.version} ({wanted.name}) and {name} are running")
            with step("booting Linux"):
                version = vm.wait_ready()
            say(f"Linux {version} is up, {time.monotonic() - begin:.1f} s after the start")
            show(vm, child, is_vgpud)
            with contextlib.suppress(KeyboardInterrupt):
                stay(vm, child)
            say("ending")
            vm.quit()
            code = child.wait()
            if code != 0:
                raise MachineError(f"the back-end's exit code is {code}\n{vm.logs()}")


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM ends the demo the way Ctrl-C does."""
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--qemu", default="", help="a root's name, or own (default: the best)")
    parser.add_argument("--backend", choices=("vgpud", "c"), default="vgpud", help="c: QEMU's own")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        wanted = qemu(options.qemu)
        is_vgpud = options.backend == "vgpud"
        demo(wanted, VGPUD if is_vgpud else wanted.c_backend, is_vgpud)
    except KeyboardInterrupt:
        say("stopped before the end")
        return 130
    except (CacheError, MachineError, TimeoutError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
