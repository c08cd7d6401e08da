"""Prometheus' text: every line as its format wants it."""

from __future__ import annotations

import re

from tests.unit.inspect.test_top import sample
from vgpud.inspect.client import Usage
from vgpud.inspect.metrics import text
from vgpud.inspect.top import Sample

LINE = re.compile(r'vgpud_[a-z0-9_]+\{vm="(?:[^"\\]|\\.)*"(?:,code="0x[0-9a-f]+")?\} -?[0-9.e+-]+')


def test_every_line_is_well_formed_and_named_once() -> None:
    found = text(
        {
            "a": sample(1, Usage(5, 6, 7.5)),
            'b"\n': sample(1),
            "c": Sample(1, {"session": None}, None),
        },
        asked=["dead", "a"],
    )
    names = []
    for line in found.splitlines():
        if line.startswith("# TYPE "):
            names.append(line.split()[2])
        elif not line.startswith("# HELP "):
            assert LINE.fullmatch(line), line
            assert line.startswith(names[-1])
    assert len(names) == len(set(names))
    assert 'vgpud_frames_total{vm="a"} 100' in found
    assert 'vgpud_serving{vm="c"} 0' in found
    assert [line[9:] for line in found.splitlines() if line.startswith("vgpud_up{")] == [
        'vm="a"} 1.0',
        'vm="b\\"\\n"} 1.0',
        'vm="c"} 1.0',
        'vm="dead"} 0.0',
    ]
    assert 'vgpud_guest_errors_total{vm="a",code="0x1203"} 2' in found
    assert 'vgpud_dmabufs_limit{vm="a"} 256' in found
    assert 'vgpud_process_cpu_seconds_total{vm="a"} 7.5' in found


def test_a_counter_is_told_to_its_last_digit() -> None:
    found = text({"a": sample(1, frames=123_456_789)})
    assert 'vgpud_frames_total{vm="a"} 123456789' in found
