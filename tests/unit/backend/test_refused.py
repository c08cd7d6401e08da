"""Replies to what a GPU has no use for: their sizes are those of QEMU's readers."""

from __future__ import annotations

import pytest

from tests.unit.backend.frontend import message
from vgpud.backend import refused
from vgpud.errors import PeerError
from vgpuwire import Request, vhost_user

INFLIGHT = bytes(24)
"""struct VhostUserInflight of QEMU: u64, u64, u16, u16 and the compiler's padding."""


@pytest.mark.parametrize(
    ("request_", "payload", "size"),
    [
        (Request.POSTCOPY_ADVISE, b"", 0),
        (Request.POSTCOPY_END, b"", 8),
        (Request.GET_INFLIGHT_FD, INFLIGHT, 24),
        (Request.GET_INFLIGHT_FD, INFLIGHT[:20], 20),
        (Request.GET_SHARED_OBJECT, bytes(16), 0),
        (Request.GET_SHARED_OBJECT, b"", 0),  # QEMU's own, which forgets the uuid
        (Request.SET_DEVICE_STATE_FD, bytes(8), 8),
        (Request.CHECK_DEVICE_STATE, b"", 8),
        (Request.GET_SHMEM_CONFIG, b"", 2056),
    ],
)
def test_requests_that_always_have_a_reply(request_: Request, payload: bytes, size: int) -> None:
    answer = refused.answer(message(request_, payload))
    assert len(vhost_user.build_reply(request_, answer)) == 12 + size


def test_a_state_transfer_fails_and_has_no_descriptor() -> None:
    assert refused.answer(message(Request.SET_DEVICE_STATE_FD, bytes(8))) == 0x101
    assert refused.answer(message(Request.CHECK_DEVICE_STATE, b"")) != 0


def test_nothing_is_in_flight() -> None:
    assert refused.answer(message(Request.GET_INFLIGHT_FD, b"\xff" * 24)) == INFLIGHT


def test_a_reply_that_cannot_be_known_ends_the_session() -> None:
    with pytest.raises(PeerError, match="vhost-user-gpu device"):
        refused.answer(message(Request.CREATE_CRYPTO_SESSION, bytes(64)))


@pytest.mark.parametrize("number", [Request.SEND_RARP, Request.IOTLB_MSG, 99, 1 << 31])
def test_others_have_none(number: int) -> None:
    assert refused.answer(message(number, b"")) is None
