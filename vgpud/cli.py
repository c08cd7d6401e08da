"""The command line: QEMU's conventions for vhost-user programs (docs/interop/vhost-user.rst)."""

from __future__ import annotations

import argparse
import gc
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from vgpud import __version__, log
from vgpud.arguments import Parser, between, descriptor
from vgpud.config import DEFAULT_DEVICE_FPS, DEFAULT_HOSTMEM, DEFAULT_UDMABUF, Config
from vgpud.errors import HostError

DRI: Final = "/dev/dri"


def capabilities(folder: str = DRI) -> dict[str, object]:
    """What QEMU and libvirt may ask for. Their schema knows "virgl", which there is not, and
    "render-node": named only where the host has one, since libvirt then gives one, and does not
    start the machine if it finds none."""
    try:
        nodes = [name for name in os.listdir(folder) if name.startswith("renderD")]
    except OSError:
        nodes = []
    return {"type": "gpu", "features": ["render-node"] if nodes else []}


GARBAGE: Final = 10_000
"""Objects made and not freed between two looks at the youngest: nearly all of ours are freed by
their last reference."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vgpud", description="A vhost-user-gpu back-end for QEMU.", allow_abbrev=False
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket-path", metavar="PATH", help="listen for QEMU on this path")
    where.add_argument(
        "--fd", type=descriptor, metavar="N", help="serve QEMU on this inherited socket"
    )
    parser.add_argument(
        "--print-capabilities", action="store_true", help="print QEMU's JSON and exit"
    )
    parser.add_argument(
        "--scanout",
        choices=("auto", "shm", "dmabuf"),
        default="auto",
        help="how pictures reach QEMU: dmabuf shares memory, shm sends pixels, auto is dmabuf "
        "with --render-node, else shm",
    )
    parser.add_argument("--render-node", metavar="PATH", help="DRM node of QEMU's display")
    parser.add_argument(
        "--udmabuf",
        type=_path,
        default=DEFAULT_UDMABUF,
        metavar="PATH|fd=N",
        help="the udmabuf device, or one that the launcher opened",
    )
    parser.add_argument(
        "--outputs",
        type=_outputs,
        default=(),
        metavar="WxH[,WxH...]",
        help="the heads where QEMU has no display of its own (vhost-user-test-device)",
    )
    parser.add_argument("--control", metavar="PATH", help="a socket for vgpuctl, same user only")
    parser.add_argument(
        "--sandbox",
        choices=("on", "kill", "off"),
        default="on",
        help="after the start: system calls that are not needed fail, or end the program, or work",
    )
    parser.add_argument("--no-sandbox", dest="sandbox", action="store_const", const="off")
    parser.add_argument("--virgl", action="store_true", help="refused: there is no 3D")
    parser.add_argument("--log-level", choices=log.LEVELS, default="info")
    parser.add_argument(
        "--max-hostmem",
        type=_bytes,
        default=DEFAULT_HOSTMEM,
        metavar="SIZE",
        help="memory for a guest's 2D resources, as in QEMU (256M)",
    )
    parser.add_argument(
        "--device-fps",
        type=between(0.1, 1000, "frames a second"),
        default=DEFAULT_DEVICE_FPS,
        metavar="N",
        help="frames a second that the CPU reads from device memory at most (10)",
    )
    parser.add_argument(
        "--qmp",
        type=_path,
        metavar="PATH",
        help="a QEMU monitor of vgpud's own: where the memory of passed-through devices is, if "
        "QEMU does not send it",
    )
    parser.add_argument(
        "--vfio-from-qemu",
        action="store_true",
        help="take the descriptors of those devices from QEMU (pidfd_getfd); else they are handed "
        "over: vgpuctl vfio add",
    )
    parser.add_argument("--version", action="version", version=f"vgpud {__version__}")
    return parser


def _bytes(text: str) -> int:
    """A size: bytes, or with a suffix K, M, G (powers of 1024)."""
    units = {"K": 10, "M": 20, "G": 30}
    digits, shift = (
        (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 0)
    )
    if not digits.isdecimal() or not 0 < int(digits) << shift < 1 << 48:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: use bytes, or K, M, G")
    return int(digits) << shift


def _path(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a path is needed")
    return text


def _outputs(text: str) -> tuple[tuple[int, int], ...]:
    """Sizes of 1 to 16 heads, each side 64 to 16384 pixels."""
    heads = []
    for part in text.split(","):
        sides = part.split("x")
        if len(sides) != 2 or not all(
            s.isascii() and s.isdecimal() and 64 <= int(s) <= 16384 for s in sides
        ):
            raise argparse.ArgumentTypeError(
                f"{part!r} is no size: use e.g. 1920x1080, each side 64 to 16384"
            )
        heads.append((int(sides[0]), int(sides[1])))
    if len(heads) > 16:
        raise argparse.ArgumentTypeError(f"{len(heads)} heads; at most 16")
    return tuple(heads)


def parse(arguments: Sequence[str] | None = None) -> Config:
    """The configuration; exits with status 2 and one line for what cannot be understood."""
    parser = _parser()
    if "--print-capabilities" in (sys.argv[1:] if arguments is None else arguments):
        print(json.dumps(capabilities()))  # whatever else is there (QEMU's convention)
        parser.exit(0)
    options = parser.parse_args(arguments)
    if options.virgl:
        parser.error("--virgl: vgpud has no 3D; start the VM without it (accel3d='no')")
    if options.socket_path is None and options.fd is None and "LISTEN_FDS" not in os.environ:
        parser.error("one of --socket-path=PATH and --fd=N is needed")
    if options.vfio_from_qemu and options.qmp is None:
        parser.error("--vfio-from-qemu: --qmp=PATH is needed to know where the devices' memory is")
    return Config(
        socket_path=options.socket_path,
        fd=options.fd,
        scanout=options.scanout,
        render_node=options.render_node,
        udmabuf=options.udmabuf,
        outputs=options.outputs,
        control=options.control,
        sandbox=options.sandbox,
        log_level=options.log_level,
        max_hostmem=options.max_hostmem,
        device_fps=options.device_fps,
        qmp=options.qmp,
        vfio_from_qemu=options.vfio_from_qemu,
    )


def _check_render_node(path: str) -> None:
    """A launcher must learn early that what it asked for cannot be (exit status 1)."""
    try:
        if not stat.S_ISCHR(os.stat(path).st_mode):
            raise HostError(f"--render-node={path}: no character device")
    except OSError as error:
        raise HostError(f"--render-node={path}: {error.strerror}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 QEMU left or SIGTERM came, 1 failure, 2 usage."""
    config = parse(arguments)
    log.configure(config.log_level)
    # Late, because --print-capabilities and usage errors need none of it (trio: 90 ms). Nothing of
    # it becomes garbage: not to look saves a twentieth of the start.
    gc.disable()
    import trio

    from vgpud.daemon import Daemon

    # What exists now stays: the collector, which a guest's every few hundred commands would start,
    # looks at none of it, also not now for what little of it is garbage (10 ms).
    gc.freeze()
    gc.set_threshold(GARBAGE)
    gc.enable()

    status = 1
    try:
        if config.render_node is not None:
            _check_render_node(config.render_node)
        status = trio.run(Daemon(config).main)
    except* HostError as group:
        for error in _leaves(group):
            log.error("failed", reason=error)
    return status


def _leaves(group: BaseExceptionGroup[HostError]) -> Iterator[HostError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


if __name__ == "__main__":
    sys.exit(main())
