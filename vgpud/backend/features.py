"""What is offered to QEMU and why, and what to tell the operator about what is not.

QEMU does not mask the guest's features by what we offered: indirect_desc, event_idx, packed and
so on are properties of its device (include/hw/virtio/virtio.h, DEFINE_VIRTIO_COMMON_FEATURES).
So bits come back that were never offered, and the rings must know INDIRECT_DESC and EVENT_IDX
in any case.
"""

from __future__ import annotations

from typing import Final

from vgpud.errors import PeerError
from vgpuwire import VHOST_USER_F_PROTOCOL_FEATURES, Feature, ProtocolFeature, RingFeature

# Plain ints: the complement of an IntFlag knows only the bits that have a name.
TRANSPORT_FEATURES: Final = int(
    RingFeature.VERSION_1  # the device has no legacy form (virtio 1.3, 5.7)
    | VHOST_USER_F_PROTOCOL_FEATURES  # QEMU does not start without protocol features
    | RingFeature.INDIRECT_DESC  # QEMU gives it to the guest whether offered or not
    | RingFeature.EVENT_IDX  # likewise; fewer kicks and interrupts
)
"""Offered together with the device's own bits (EDID and so on), which the device states."""

PROTOCOL_FEATURES: Final = int(
    ProtocolFeature.MQ  # the specification wants it of every back-end; the answer is 2
    | ProtocolFeature.REPLY_ACK  # without it a memory table cannot be refused
    | ProtocolFeature.CONFIG  # QEMU's vhost-user-gpu does not realize without
    | ProtocolFeature.RESET_DEVICE  # tells a reset from a stop; QEMU 7.2 ignores it
    | ProtocolFeature.CONFIGURE_MEM_SLOTS  # 509 regions instead of 8: memory hotplug
)
"""Nothing that is not implemented: QEMU takes every bit it knows of, even those that it does not
implement itself (INBAND_NOTIFICATIONS, XEN_MMAP). LOG_SHMFD would let `migrate` start although
no device state is transferred."""

_TOLERATED: Final = int(
    TRANSPORT_FEATURES
    | RingFeature.RING_RESET  # QEMU handles it alone (queue_reset=on is its default)
    | 1 << 24  # NOTIFY_ON_EMPTY and ANY_LAYOUT: legacy bits that mean nothing beside VERSION_1,
    | 1 << 27  # but a guest's driver can take them because QEMU's defaults have them on
)

_LOG_ALL: Final = 1 << 26

_REMEDIES: Final = {
    int(RingFeature.RING_PACKED): ("VIRTIO_F_RING_PACKED", "packed=off"),
    int(RingFeature.IN_ORDER): ("VIRTIO_F_IN_ORDER", "in_order=off"),
    int(RingFeature.ACCESS_PLATFORM): ("VIRTIO_F_ACCESS_PLATFORM", "iommu_platform=off"),
}
"""Bits that an option of QEMU's device turns on: their names, and how to turn them off."""


def unserved(features: int, offered: int) -> str | None:
    """Why the features of a SET_FEATURES cannot be served, and what to change; None if they can.

    The guest chose them, so they break its rings and not the session: another driver, after a
    reset, may choose better.
    """
    unknown = features & ~(offered | _TOLERATED)
    for bit, (name, remedy) in _REMEDIES.items():
        if unknown & bit:
            return (
                f"the guest uses {name} (bit {bit.bit_length() - 1}), which vgpud"
                f" does not implement; set {remedy} on QEMU's GPU device"
            )
    if unknown & _LOG_ALL:
        return "QEMU wants dirty pages logged; vgpud cannot be migrated"
    if unknown & Feature.VIRGL:
        return (
            "the guest uses VIRTIO_GPU_F_VIRGL (bit 0), which vgpud does not"
            " implement; use vhost-user-gpu-pci or vhost-user-vga without virgl=on"
        )
    if unknown:
        return f"{bits(unknown)} never offered and not implemented"
    if not features & RingFeature.VERSION_1:
        return (
            "the guest's driver does not use VIRTIO_F_VERSION_1 (bit 32); legacy"
            " drivers are not supported (disable-legacy=on on QEMU's GPU device)"
        )
    return None


def check_protocol_features(features: int, offered: int) -> None:
    """Whether the features of a SET_PROTOCOL_FEATURES can be served. Raises PeerError."""
    if unknown := features & ~offered:
        raise PeerError(f"{bits(unknown)} never offered")


def bits(mask: int) -> str:
    """Bit numbers for the operator: "bits 3, 7"."""
    numbers = [str(n) for n in range(mask.bit_length()) if mask >> n & 1]
    return f"bit{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
