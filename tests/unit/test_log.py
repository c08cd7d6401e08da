"""Lines that cannot be forged, and not too many of them."""

from __future__ import annotations

import logging

import pytest

from vgpud import log


def test_a_value_cannot_begin_a_line(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("vgpud")
    logger.addHandler(caplog.handler)  # another test may have cut it off from the root's
    log.error("x", reason="a\nlevel=info event=fine", plain="b")
    logger.removeHandler(caplog.handler)
    assert caplog.messages[:1] == ['event=x reason="a\\nlevel=info event=fine" plain=b']


def test_an_event_that_comes_too_often_is_counted() -> None:
    limit = log._Limit()
    admitted = [limit.admit("x", 0.01 * n) for n in range(200)]
    assert admitted == [0] * log.BURST + [None] * (200 - log.BURST)
    assert limit.admit("y", 1.0) == 0, "others are not in its way"
    assert limit.admit("x", log.WINDOW + 1) == 200 - log.BURST
    assert limit.admit("x", log.WINDOW + 2) == 0
