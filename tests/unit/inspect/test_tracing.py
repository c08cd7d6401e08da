"""Lines of vgpuctl trace."""

from __future__ import annotations

from vgpud.inspect.tracing import texts


def test_a_line_has_what_a_person_looks_for() -> None:
    line = {
        "at": 5.5,
        "ring": "control",
        "command": "RESOURCE_FLUSH",
        "answer": "OK_NODATA",
        "us": 1234,
        "fence": 9,
        "resource_id": 3,
        "lost": 2,
        "r": {"x": 1, "y": 2, "width": 640, "height": 480},
    }
    later = {"at": 6.0, "ring": "cursor", "command": "0x999", "answer": "", "us": 5}
    assert list(texts([line, later])) == [
        "  0.000000 control RESOURCE_FLUSH resource_id=3 r=640x480+1+2 fence=9 -> OK_NODATA "
        "1.234 ms (2 lost before)",
        "  0.500000 cursor  0x999 0.005 ms",
    ]
