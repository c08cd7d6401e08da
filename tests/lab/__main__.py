"""Run a command in the lab, on the project as it is now; the exit status is the command's.

python3 -m tests.lab -- python3 -m pytest tests/lab/inner -k seal
python3 -m tests.lab --module vgem -- ls -l /dev/dri
python3 -m tests.lab                                a shell (it ends with exit or Ctrl-D)
"""

import argparse
import contextlib
import os
import shlex
import sys
import termios
import tty
from collections.abc import Iterator

from tests.qemu.cache import CacheError
from tests.support.lab import Lab, LabError

# job control and line editing need a controlling terminal
SHELL = "TERM={term} setsid --ctty --wait bash -c 'stty rows {rows} cols {columns}; exec bash -l'"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="FOLDER:/PATH",
        help="a folder of this machine, read-only in the lab",
    )
    parser.add_argument(
        "--module", action="append", default=[], help="a kernel module to load first"
    )
    parser.add_argument("--qemu", default="", metavar="ARGUMENTS", help="more for QEMU")
    parser.add_argument("--kernel", default="", metavar="ARGUMENTS", help="more for the kernel")
    parser.add_argument("--service", action="store_true", help="systemd, libvirt, QEMU")
    parser.add_argument("--memory", default="2G")
    parser.add_argument("--smp", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600, metavar="SECONDS")
    parser.add_argument("command", nargs="*", help="words, or one string for sh; none: a shell")
    return parser.parse_args()


@contextlib.contextmanager
def raw_terminal() -> Iterator[int]:
    """Give the keyboard to the lab; yields the fd to read from."""
    if not sys.stdin.isatty():
        raise LabError("a shell in the lab needs a terminal; else give a command")
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield 0
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def show(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def main() -> int:
    options = parse()
    command: str | list[str] = options.command
    if len(command) == 1:
        command = command[0]
    if not command:
        rows, columns = 24, 80
        if sys.stdout.isatty():
            columns, rows = os.get_terminal_size()
        term = shlex.quote(os.environ.get("TERM", "dumb"))
        command = SHELL.format(term=term, rows=rows, columns=columns)
    try:
        with Lab(
            command,
            mounts=dict(pair.rsplit(":", 1) for pair in options.mount),
            modules=options.module,
            qemu_args=shlex.split(options.qemu),
            kernel_args=options.kernel,
            timeout=options.timeout,
            memory=options.memory,
            smp=options.smp,
            service=options.service,
            stream=show,
        ) as machine:
            if not options.command:
                with raw_terminal() as keyboard:
                    while machine.pump(1, keyboard):
                        pass
            return machine.wait().returncode
    except (CacheError, LabError) as error:
        print(f"tests.lab: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
