"""Runs the rows' scripts on both devices and says what each answered: the tables' "Q" column as it
is with this QEMU, not as it was read in its source.
"""

import struct
import zlib
from dataclasses import dataclass

from tests.diff.compare import judge
from tests.diff.memory import Contents
from tests.diff.oracle import Oracle, oracle
from tests.diff.quirks import is_old, quirks_of, reason
from tests.diff.rows import ROWS, Row
from tests.diff.runner import Result
from tests.diff.script import Script
from tests.qemu.binaries import Qemu
from tests.qtest import gpu
from tests.qtest.machine import VmError
from tests.support.png import parse_ppm
from tests.support.virtio_pci import NEEDS_RESET


@dataclass(frozen=True)
class Live:
    """What a row's script got. `same`: both answered alike; if not, `because` says why that is
    allowed. `faults`: unexplained differences."""

    row: Row
    qemu: str
    vgpud: str
    same: bool
    because: str
    faults: tuple[str, ...]


NAMES = {
    gpu.OK: "OK",
    gpu.OK_DISPLAY_INFO: "DISPLAY_INFO",
    gpu.OK_EDID: "EDID",
    gpu.OK_UUID: "UUID",
    gpu.UNSPEC: "UNSPEC",
    gpu.OUT_OF_MEMORY: "OUT_OF_MEMORY",
    gpu.INVALID_SCANOUT: "INVALID_SCANOUT_ID",
    gpu.INVALID_RESOURCE: "INVALID_RESOURCE_ID",
    gpu.INVALID_PARAMETER: "INVALID_PARAMETER",
}


def describe(row: Row, script: Script, result: Result) -> str:
    """The probe's answers in words; pictures by size and checksum."""
    words: list[str] = []
    for number in range(row.first, len(script.steps)):
        step = script.steps[number]
        if step.op == "dump":
            for head, ppm in result.dumps[number].items():
                picture = parse_ppm(ppm)
                sum_of = f"{zlib.crc32(picture.rgb):08x}"
                words.append(f"head {head}: {picture.width}x{picture.height} {sum_of}")
            continue
        answer = result.answers[number]
        if answer.used is None:
            words.append("no answer" + (", NEEDS_RESET" if result.status & NEEDS_RESET else ""))
        elif answer.used < 24:
            words.append(f"{answer.used} bytes")
        else:
            kind, flags, fence = struct.unpack_from("<IIQ", answer.data)
            text = NAMES.get(kind, hex(kind)) + (f" +fence {fence:#x}" if flags else "")
            if answer.used not in (24, 408, 1056, 40):
                text += f" ({answer.used} bytes)"
            words.append(text)
    short: list[str] = []
    for word in words:
        if short and short[-1].split(" x")[0] == word:
            count = int(short[-1].partition(" x")[2] or 1) + 1
            short[-1] = f"{word} x{count}"
        else:
            short.append(word)
    return ", ".join(short)


def _lone(pair: Oracle, row: Row) -> Live:
    """A row that an old QEMU's own device does not survive: run, but not judged, and it has the
    device to itself."""
    script = row.script()
    v = describe(row, script, pair.run_ours(script))
    try:
        q = describe(row, script, pair.run_theirs(script))
    except VmError:
        q = "no answer, to this and all that follow"
    pair.close()
    return Live(row, q, v, q == v, "an error of this QEMU's (tests/diff/quirks.py, survivable)", ())


def _live(pair: Oracle, qemu: Qemu, row: Row, memory: Contents) -> Live:
    script = row.script()
    if row.not_old and is_old(qemu):
        return _lone(pair, row)
    try:
        theirs, ours = pair.run(script)
    except VmError as error:
        return Live(row, "?", "?", False, "", (str(error),))
    q, v = describe(row, script, theirs), describe(row, script, ours)
    verdict = judge(script, theirs, ours, memory, quirks_of(qemu))
    because = "; ".join(f"{name}: {reason(name)}" for name in sorted(verdict.fired))
    faults = verdict.faults
    if script.steps[-1].op == "broken" and ours.answers[len(script.steps) - 1].used is not None:
        faults.append("vgpud: a broken chain was given back")
    return Live(row, q, v, q == v, "" if q == v else row.allowed or because, tuple(faults))


def seen(qemu: Qemu) -> dict[str, str]:
    """The same in a line a row, for tests/conformance."""
    return {
        key: live.qemu if live.same else f"{live.qemu} / vgpud {live.vgpud}"
        for key, live in live_rows(qemu).items()
    }


def live_rows(qemu: Qemu) -> dict[str, Live]:
    """What QEMU's own device and vgpud answer to each row's script now, by row id."""
    memory = Contents()
    with oracle(qemu) as pair:
        return {row.id: _live(pair, qemu, row, memory) for row in ROWS}
