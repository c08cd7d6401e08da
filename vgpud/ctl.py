"""vgpuctl: asks a running vgpud on its control socket."""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Sequence
from typing import Final

from vgpud import __version__
from vgpud.arguments import Parser, between, descriptor
from vgpud.errors import HostError
from vgpud.host.handover import devices_of, pick, take_device
from vgpud.inspect import doctor, metrics, top, tracing
from vgpud.inspect.client import Daemon, Failed, ask, folders, resolve, running

WHICH: Final = "the virtual machine, or vgpud's --control socket; default: the only one there is"


def _parser() -> argparse.ArgumentParser:
    # Wherever it is, before the command or behind it.
    where = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    where.add_argument("--control", metavar="NAME|PATH", help=WHICH)
    parser = Parser(
        prog="vgpuctl",
        description="Looks into a running vgpud.",
        parents=[where],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vgpuctl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add_command(name: str, about: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, parents=[where], allow_abbrev=False)

    add_command("status", "what it serves, as JSON")
    add_command("list", "who runs")
    top = add_command("top", "all of them, live")
    top.add_argument(
        "--interval", type=between(0.1, 3600, "seconds"), default=1.0, metavar="SECONDS"
    )
    top.add_argument("--once", action="store_true", help="one screen, after one interval")
    add_command("metrics", "all of them, as Prometheus' text")
    trace = add_command("trace", "what the guest asks, live")
    trace.add_argument("commands", nargs="*", metavar="COMMAND", help="e.g. RESOURCE_FLUSH")
    trace.add_argument("--resource", type=int, metavar="ID")
    trace.add_argument("--errors", action="store_true", help="only what was refused")
    trace.add_argument(
        "--slower", type=float, default=0, metavar="MS", help="only what took longer"
    )
    trace.add_argument("--json", action="store_true", help="an object a line")
    doctor = add_command("doctor", "looks at this host, and says what to change")
    doctor.add_argument("--user", metavar="NAME", help="whom vgpud runs as; default: you")
    vfio = add_command("vfio", "the devices that are passed through to the guest")
    actions = vfio.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="QEMU's devices, as JSON")
    add = actions.add_parser("add", help="hand a device's descriptor over")
    add.add_argument("id", metavar="ID", help="the device's id= in QEMU")
    source = add.add_mutually_exclusive_group()
    source.add_argument(
        "--fd", type=descriptor, metavar="N", help="a descriptor that vgpuctl inherited"
    )
    source.add_argument(
        "--pid", type=int, metavar="PID", help="take QEMU's; default: the PID that vgpud knows"
    )
    remove = actions.add_parser("remove", help="let vgpud close it")
    remove.add_argument("id", metavar="ID")
    shot = add_command("screenshot", "what a head shows, dma-bufs included")
    shot.add_argument("--head", type=int, default=0, metavar="N")
    shot.add_argument("--ansi", action="store_true", help="draw it in this terminal")
    shot.add_argument("file", nargs="?", metavar="OUT.png")
    return parser


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG (ISO/IEC 15948) of width * height pixels of B, G, R, x."""
    rgb = bytearray(width * height * 3)
    rgb[0::3], rgb[1::3], rgb[2::3] = pixels[2::4], pixels[1::4], pixels[0::4]
    stride = width * 3
    rows = b"".join(b"\0" + rgb[y * stride : (y + 1) * stride] for y in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 6)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def ansi(width: int, height: int, pixels: bytes, columns: int) -> str:
    """The picture in 24-bit colours, two pixels a character (a half block), `columns` wide."""
    columns = max(1, min(columns, width))
    lines = max(2, height * columns // width) & ~1

    def colour(column: int, line: int) -> str:
        at = (line * height // lines * width + column * width // columns) * 4
        return f"{pixels[at + 2]};{pixels[at + 1]};{pixels[at]}"

    text = []
    for line in range(0, lines, 2):
        cells = (
            f"\x1b[38;2;{colour(c, line)}m\x1b[48;2;{colour(c, line + 1)}m\u2580"
            for c in range(columns)
        )
        text.append("".join(cells) + "\x1b[0m\n")
    return "".join(text)


def screenshot(path: str, head: int) -> tuple[int, int, bytes]:
    """(width, height, pixels of B, G, R, x). Raises Failed."""
    answer, fds = ask(path, {"command": "screenshot", "head": head})
    try:
        width, height = answer["width"], answer["height"]
        with mmap.mmap(fds[0], width * height * 4, prot=mmap.PROT_READ) as view:
            return width, height, view[:]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Failed(f"{path}: that is no picture of vgpud's: {answer}") from error
    finally:
        for fd in fds:
            os.close(fd)


def add_device(path: str, name: str, fd: int | None, pid: int | None) -> None:
    """Hand a device's descriptor to vgpud: `fd`, or what a process, by default QEMU, has open of
    it. Raises Failed, HostError."""
    request = {"command": "vfio-add", "id": name}
    if fd is not None:
        ask(path, request, [fd])
        return
    listed, _ = ask(path, {"command": "vfio-list"})
    hosts = {device["id"]: device["host"] for device in listed["devices"]}
    if name not in hosts:
        known = ", ".join(sorted(hosts)) or "none with an id="
        raise Failed(f"QEMU has no vfio-pci device {name}; it has {known}")
    pid = listed["pid"] if pid is None else pid
    host = hosts[name]
    found = pick(devices_of(pid), host, alone=len(hosts) == 1)
    if found is None:
        raise Failed(f"process {pid} has no descriptor of {host}; --pid names another process")
    with take_device(pid, found.number, host) as taken:
        ask(path, request, [taken.fileno()])


def _vfio(options: argparse.Namespace) -> None:
    if options.action == "add":
        add_device(options.control, options.id, options.fd, options.pid)
    elif options.action == "remove":
        ask(options.control, {"command": "vfio-remove", "id": options.id})
    else:
        listed, _ = ask(options.control, {"command": "vfio-list"})
        del listed["ok"]
        print(json.dumps(listed, indent=2))


def _top(options: argparse.Namespace) -> None:
    for screen in top.watch(lambda: _meant(options), options.interval):
        if options.once:
            print("\n".join(screen))
            return
        sys.stdout.write("\x1b[H\x1b[J" + "\n".join(screen) + "\n")
        sys.stdout.flush()


def _trace(options: argparse.Namespace) -> None:
    wanted = {
        "commands": [name.upper().removeprefix("CMD_") for name in options.commands],
        "resource": options.resource,
        "errors": options.errors,
        "slower": options.slower,
    }
    lines = tracing.opened(resolve(options.control, folders()), wanted)
    for text in map(json.dumps, lines) if options.json else tracing.texts(lines):
        print(text, flush=True)


def _doctor(options: argparse.Namespace) -> None:
    found = doctor.examine(doctor.System(), options.user)
    print("\n".join(doctor.text(found, sys.stdout.isatty())))
    if any(one.state == "bad" for one in found):
        raise Failed("something above needs your hand")


def _meant(options: argparse.Namespace) -> list[Daemon]:
    """For commands about all: one if it was named."""
    if options.control is not None:
        return [resolve(options.control, folders())]
    return running(folders())


def _run_for_all(options: argparse.Namespace) -> bool:
    """Commands that need not be told which daemon; False where it is another one."""
    match options.command:
        case "list":
            print("\n".join(top.listing(_meant(options))))
        case "top":
            _top(options)
        case "metrics":
            meant = _meant(options)
            sys.stdout.write(metrics.text(top.samples(meant), (one.name for one in meant)))
        case "doctor":
            _doctor(options)
        case "trace":
            _trace(options)
        case _:
            return False
    return True


def _run(options: argparse.Namespace) -> None:
    if _run_for_all(options):
        return
    options.control = resolve(options.control, folders()).path
    if options.command == "vfio":
        _vfio(options)
        return
    if options.command == "status":
        answer, _ = ask(options.control, {"command": "status"})
        del answer["ok"]
        print(json.dumps(answer, indent=2))
        return
    width, height, pixels = screenshot(options.control, options.head)
    if options.ansi:
        text = ansi(width, height, pixels, shutil.get_terminal_size().columns)
        sys.stdout.buffer.write(text.encode())  # whatever the locale is
        return
    picture = png(width, height, pixels)
    if options.file == "-":
        sys.stdout.buffer.write(picture)
        return
    with open(options.file, "wb") as out:
        out.write(picture)
    print(f"{options.file}: {width}x{height}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 failure, 2 usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    options.control = getattr(options, "control", None)
    if options.command == "screenshot" and options.ansi == (options.file is not None):
        parser.error("screenshot: one of OUT.png and --ansi")
    try:
        _run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough; nor must the exit try again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Failed, HostError, OSError) as error:
        print(f"vgpuctl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # how top and trace end
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
