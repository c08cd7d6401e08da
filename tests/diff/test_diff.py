"""vgpud against QEMU's own device, on the oldest and the newest QEMU supported."""

import dataclasses
import struct
from collections.abc import Iterator

import pytest

from tests.diff.compare import judge
from tests.diff.generate import generate
from tests.diff.live import live_rows
from tests.diff.memory import Contents
from tests.diff.oracle import Oracle, compare_many, oracle
from tests.diff.quirks import quirks_of
from tests.diff.rows import ROWS
from tests.diff.runner import Answer, Result, device
from tests.diff.script import Script, parse
from tests.qemu.binaries import Qemu, qemu
from tests.qtest import gpu
from tests.support.qtest import QtestError

ROOTS = ("bookworm-backports", "trixie-backports")
COUNT = 200
"""Scripts for each QEMU; `make diff N=10000` runs more."""


@pytest.fixture(scope="module", params=ROOTS)
def the_qemu(request: pytest.FixtureRequest) -> Qemu:
    return qemu(request.param)


@pytest.fixture(scope="module")
def pair(the_qemu: Qemu) -> Iterator[Oracle]:
    with oracle(the_qemu) as found:
        yield found


def test_generated_scripts(the_qemu: Qemu) -> None:
    tally = compare_many(the_qemu, COUNT, seed=1)
    assert not tally.failures, "\n\n".join(str(failure) for failure in tally.failures)
    assert tally.scripts == COUNT


def test_rows(the_qemu: Qemu) -> None:
    """Each row: QEMU's device as the table's column says it is, vgpud as it has to be."""
    rows = live_rows(the_qemu)
    assert len(rows) == len(ROWS), "two rows have one id"
    for live in rows.values():
        assert not live.faults, f"{live.row.id}: {live.faults}"
        assert live.same or live.because, f"{live.row.id}: {live.qemu} / {live.vgpud}"


# -- the oracle itself: it must be able to fail


DRAW = """
create_2d 1 1 64 48
attach 1 0x400000:12288
transfer 1 0 0 64 48 0 fence=1,5,2,0
set_scanout 0 1 0 0 64 48
flush 1 0 0 64 48 fence=1,6,2,0
display_info
dump
"""


def _change(result: Result, step: int, data: bytes | None = None, used: int | None = None) -> None:
    old = result.answers[step]
    result.answers[step] = Answer(old.used if used is None else used, data or old.data)


@pytest.mark.parametrize(
    ("what", "found"),
    [
        ("nothing", ""),
        ("type", "answer 0x1200"),
        ("fence", "0x63"),
        ("used", "used length 23"),
        ("behind", "behind the used length"),
        ("body", "bodies differ"),
        ("order", "out of order"),
        ("pixel", "1 of 3072 pixels differ"),
        ("missing", "no answer"),
    ],
)
def test_sees(pair: Oracle, the_qemu: Qemu, what: str, found: str) -> None:
    """A wrong answer of vgpud's is found, whatever is wrong with it."""
    script = parse(DRAW)
    theirs, ours = pair.run(script)
    good = ours.answers[2].data
    match what:
        case "type":
            _change(ours, 0, struct.pack("<I", gpu.UNSPEC) + ours.answers[0].data[4:])
        case "fence":
            _change(ours, 2, good[:8] + struct.pack("<Q", 99) + good[16:])
        case "used":
            _change(ours, 0, used=23)
        case "behind":
            _change(ours, 2, good[:40] + b"\0" + good[41:])
        case "body":
            modes = ours.answers[5].data
            _change(ours, 5, modes[:32] + b"\1" + modes[33:])
        case "order":
            ours.order.reverse()
        case "pixel":
            ppm = bytearray(ours.dumps[6][0])
            ppm[-1] ^= 1
            ours.dumps[6][0] = bytes(ppm)
        case "missing":
            del ours.answers[3]
    verdict = judge(script, theirs, ours, Contents(), quirks_of(the_qemu))
    assert "\n".join(verdict.faults).count("vgpud") == (1 if found and what != "body" else 0)
    assert found in "\n".join(verdict.faults)


def test_shrink(pair: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing script is cut down to the steps that fail; here, two of twelve."""

    class Wrong:
        def __init__(self, script: Script) -> None:
            ops = [step.op for step in script.steps]
            self.faults = ["wrong"] if "detach" in ops and "get_edid" in ops else []

    steps = parse(f"get_edid 0 fence=1,2,3,0;{DRAW};detach 1 split=3,9;{DRAW}")
    monkeypatch.setattr(pair, "verdict", Wrong)
    assert [str(step) for step in pair.shrink(steps).steps] == ["get_edid 0", "detach 1"]


def test_c_backend_differs(the_qemu: Qemu) -> None:
    """QEMU's own C back-end keeps resources over a device reset: the oracle must see it."""
    script = parse(DRAW)
    with device(the_qemu, the_qemu.c_backend) as c:
        c.run(Script(script.steps[:1]))
        try:
            again = c.run(Script(script.steps[:1])).answers[0].data
        except QtestError:
            return
    assert struct.unpack_from("<I", again)[0] == gpu.INVALID_RESOURCE


@pytest.mark.parametrize("seed", range(50))
def test_text(seed: int) -> None:
    """A script's text is the script: what is printed for a failure can be run again."""
    script = generate(seed)
    assert dataclasses.replace(parse(str(script)), name=script.name) == script
