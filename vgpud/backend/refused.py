"""Replies to requests that a GPU back-end has no use for.

Most have a reply only where QEMU asks for one (NEED_REPLY); that is a nack, and not made here.
Some always have one, and QEMU waits for it for ever. None of them comes unless a feature was
negotiated that is never offered, so this is for the QEMU that has not been written yet. The
sizes are those that hw/virtio/vhost-user.c compares with.
"""

from __future__ import annotations

from typing import Any, Final

from vgpud.errors import PeerError
from vgpuwire import Message, Request

_FAILED: Final = 1

_SHMEM_CONFIG_SIZE: Final = 4 + 4 + 256 * 8
"""nregions, padding, and the sizes of 256 regions: VhostUserShMemConfig."""

_NO_FD: Final = 1 << 8
"""SET_DEVICE_STATE_FD: the reply comes without a descriptor (vhost-user.rst)."""

_ANSWERS: Final[dict[int, object]] = {
    # No descriptor beside the reply: QEMU says that there is none, and goes on.
    Request.POSTCOPY_ADVISE: b"",
    Request.GET_SHARED_OBJECT: b"",
    Request.POSTCOPY_END: _FAILED,
    Request.SET_DEVICE_STATE_FD: _FAILED | _NO_FD,
    Request.CHECK_DEVICE_STATE: _FAILED,
    # No shared memory regions.
    Request.GET_SHMEM_CONFIG: bytes(_SHMEM_CONFIG_SIZE),
}


def answer(message: Message[Any]) -> object:
    """What build_reply() takes for this request; None for one that has no reply of its own.

    Raises PeerError for a request whose reply cannot be known.
    """
    if message.request == Request.GET_INFLIGHT_FD and isinstance(message.payload, bytes):
        # An mmap_size of 0 means "nothing in flight". The reply is as long as the request, with
        # whatever padding QEMU's compiler gave the structure.
        return bytes(len(message.payload))
    if message.request == Request.CREATE_CRYPTO_SESSION:
        raise PeerError("vgpud is a GPU: give its chardev to a vhost-user-gpu device")
    return _ANSWERS.get(message.request)
