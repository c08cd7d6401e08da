"""What a trace tells of a command, to whom, and when it stops."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.support.machine import hdr
from vgpud.tasks.trace import Filter, Trace, described
from vgpuwire import Ctrl, CtrlHdr, Rect, ResourceFlush

FLUSH = ResourceFlush(hdr(Ctrl.CMD_RESOURCE_FLUSH, 7), Rect(1, 2, 3, 4), 9).encode()
OK = CtrlHdr(Ctrl.RESP_OK_NODATA, 0, 0, 0, 0).encode()
ERROR = CtrlHdr(Ctrl.RESP_ERR_INVALID_RESOURCE_ID, 0, 0, 0, 0).encode()


@pytest.mark.parametrize(
    ("request_", "response", "line"),
    [
        (
            *(FLUSH, OK),
            {
                "command": "RESOURCE_FLUSH",
                "answer": "OK_NODATA",
                "fence": 7,
                "resource_id": 9,
                "r": {"x": 1, "y": 2, "width": 3, "height": 4},
                "padding": 0,
            },
        ),
        (b"", b"", {"command": "0 bytes", "answer": ""}),
        (
            FLUSH[:24],
            ERROR,
            {"command": "RESOURCE_FLUSH", "answer": "ERR_INVALID_RESOURCE_ID", "fence": 7},
        ),
        (b"\xff" * 24, b"", {"command": "0xffffffff", "answer": "", "fence": (1 << 64) - 1}),
    ],
)
def test_a_command_in_words(request_: bytes, response: bytes, line: dict[str, Any]) -> None:
    found = described(request_, response)
    found.setdefault("padding", 0)
    assert found == {"padding": 0, **line}


def told(wanted: Filter, *lines: dict[str, Any]) -> list[dict[str, Any]]:
    trace = Trace(wanted)
    for line in lines:
        trace.tell(line)
    trace.close()
    with trace.reader as reader:
        data = os.read(reader.fileno(), 1 << 20)
    return [json.loads(one) for one in data.splitlines()]


GOOD = {"command": "RESOURCE_FLUSH", "answer": "OK_NODATA", "us": 500, "resource_id": 9}
BAD = {"command": "SET_SCANOUT", "answer": "ERR_UNSPEC", "us": 5000, "resource_id": 0}


@pytest.mark.parametrize(
    ("request_", "lines"),
    [
        ({}, [GOOD, BAD]),
        ({"commands": ["SET_SCANOUT"]}, [BAD]),
        ({"resource": 9}, [GOOD]),
        ({"errors": True}, [BAD]),
        ({"slower": 1.5}, [BAD]),
        ({"commands": ["SET_SCANOUT"], "resource": 9}, []),
    ],
)
def test_filters(request_: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    assert told(Filter.of(request_), dict(GOOD), dict(BAD)) == lines


@pytest.mark.parametrize(
    "request_",
    [{"resource": "x"}, {"slower": []}, {"commands": 5}, {"commands": ["RESOURCE_FLSH"]}],
)
def test_a_filter_that_means_nothing(request_: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Filter.of(request_)


def test_a_slow_reader_loses_lines_and_is_told() -> None:
    trace = Trace(Filter())
    count = 40_000  # more than a pipe holds
    for _ in range(count):
        trace.tell(dict(GOOD))
    data = os.read(trace.reader.fileno(), 1 << 21)
    trace.tell(dict(GOOD))
    (last,) = os.read(trace.reader.fileno(), 1 << 21).splitlines()
    assert json.loads(last)["lost"] == count - len(data.splitlines())
    trace.close()


def test_it_is_over_when_nobody_reads() -> None:
    trace = Trace(Filter())
    trace.reader.close()
    trace.tell(dict(GOOD))
    assert trace.over


def test_it_is_over_also_where_its_filter_never_matches() -> None:
    trace = Trace(Filter(errors=True))
    trace.tell(dict(GOOD))
    assert not trace.over
    trace.reader.close()
    assert trace.over
