"""vgpuwire.vhost_user_numbers: every value, pinned."""

from __future__ import annotations

from vgpuwire import vhost_user_numbers as numbers

REQUESTS = """
    1 GET_FEATURES              2 SET_FEATURES           3 SET_OWNER
    4 RESET_OWNER               5 SET_MEM_TABLE          6 SET_LOG_BASE
    7 SET_LOG_FD                8 SET_VRING_NUM          9 SET_VRING_ADDR
    10 SET_VRING_BASE           11 GET_VRING_BASE        12 SET_VRING_KICK
    13 SET_VRING_CALL           14 SET_VRING_ERR         15 GET_PROTOCOL_FEATURES
    16 SET_PROTOCOL_FEATURES    17 GET_QUEUE_NUM         18 SET_VRING_ENABLE
    19 SEND_RARP                20 NET_SET_MTU           21 SET_BACKEND_REQ_FD
    22 IOTLB_MSG                23 SET_VRING_ENDIAN      24 GET_CONFIG
    25 SET_CONFIG               26 CREATE_CRYPTO_SESSION 27 CLOSE_CRYPTO_SESSION
    28 POSTCOPY_ADVISE          29 POSTCOPY_LISTEN       30 POSTCOPY_END
    31 GET_INFLIGHT_FD          32 SET_INFLIGHT_FD       33 GPU_SET_SOCKET
    34 RESET_DEVICE             35 VRING_KICK            36 GET_MAX_MEM_SLOTS
    37 ADD_MEM_REG              38 REM_MEM_REG           39 SET_STATUS
    40 GET_STATUS               41 GET_SHARED_OBJECT     42 SET_DEVICE_STATE_FD
    43 CHECK_DEVICE_STATE       44 GET_SHMEM_CONFIG
"""

FEATURES = """
    MQ LOG_SHMFD RARP REPLY_ACK MTU BACKEND_REQ CROSS_ENDIAN CRYPTO_SESSION PAGEFAULT CONFIG
    BACKEND_SEND_FD HOST_NOTIFIER INFLIGHT_SHMFD RESET_DEVICE INBAND_NOTIFICATIONS
    CONFIGURE_MEM_SLOTS STATUS XEN_MMAP SHARED_OBJECT DEVICE_STATE GET_VRING_BASE_INFLIGHT
    GPA_ADDRESSES SHMEM
"""


def test_requests() -> None:
    words = REQUESTS.split()
    pairs = zip(words[::2], words[1::2], strict=True)
    table = {name: int(value) for value, name in pairs}
    assert {one.name: one.value for one in numbers.Request} == table


def test_protocol_features_are_masks() -> None:
    table = {name: 1 << bit for bit, name in enumerate(FEATURES.split())}
    assert {one.name: one.value for one in numbers.ProtocolFeature} == table


def test_the_bit_among_virtio_features() -> None:
    assert numbers.VHOST_USER_F_PROTOCOL_FEATURES == 0x4000_0000
