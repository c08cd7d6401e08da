"""The allowed differences between QEMU's own device and vgpud, each with its reason.

There are no others: the oracle's model is run once with these and once without, QEMU must behave
as the first run says and vgpud as the second. What neither says is an unexplained difference.
"""

from dataclasses import replace

from tests.diff.script import CONTROL, Script, Step
from tests.qemu.binaries import Qemu

QUIRKS = {
    "S04": "SET_SCANOUT of a 2D resource without backing: QEMU up to 11.1 answers UNSPEC; vgpud "
    "allows it, as QEMU's master does (the host's pixels are there without a backing).",
    "T02": "TRANSFER_TO_HOST_2D without backing: QEMU up to 11.1 answers UNSPEC; vgpud "
    "INVALID_RESOURCE_ID, as QEMU's master.",
    "A19": "DETACH_BACKING without backing: QEMU up to 11.1 answers UNSPEC; vgpud OK, as QEMU's "
    "master.",
    "T13": "A backing that ends within a pixel: QEMU copies the bytes that are there; vgpud copies "
    "whole pixels, since it may have to convert them.",
    "T14": "TRANSFER offset of 2^32 and more: QEMU cuts it to 32 bits and copies from the wrong "
    "place; vgpud counts in 64 bits, so nothing is there to copy.",
    "T15": "TRANSFER offset + row * stride beyond 2^32: the same, row by row.",
    "A09": "Entries outside of RAM, up to 4096 bytes in all: QEMU attaches a bounce buffer (of "
    "zeros, or of what a device's registers read as); vgpud answers UNSPEC. So do ranges that wrap "
    "at 2^64 (A10): QEMU goes on at address 0.",
    "A13": "An entry in ROM or in RAM that a chipset register shadows: QEMU maps it for reading, "
    "but does not share it; vgpud answers UNSPEC.",
    "E01": "A request shorter than its header: QEMU answers with the flags and fence of a header "
    "of which it read only a part (the rest is what its heap held); vgpud echoes no fence.",
    "N01": "RESOURCE_ASSIGN_UUID: QEMU's 2D device does not know it; vgpud has it where the driver "
    "accepted RESOURCE_UUID, which QEMU passes on to the guest, and reads its length before.",
    "R04": "After a device reset QEMU's own device shows its placeholder; over vhost-user QEMU "
    "keeps the last picture until a scanout is set, and the back-end has no socket to say so.",
    "F00": "QEMU's own device shows a resource itself: pixels are seen when transferred; vgpud "
    "shows them when they are flushed (5.7.6.8: that is what RESOURCE_FLUSH is for).",
}

OLD_QUIRKS = {
    "E02.old": "A request shorter than its command: QEMU before 10.0.13 answers OK and does "
    "nothing; vgpud INVALID_PARAMETER, as those after.",
}


def quirks_of(qemu: Qemu) -> frozenset[str]:
    """The names of the differences that this QEMU's own device has."""
    return frozenset(QUIRKS) | (frozenset(OLD_QUIRKS) if is_old(qemu) else frozenset())


def is_old(qemu: Qemu) -> bool:
    """Whether it lacks fixes that the stable releases of 10.0 have: seen missing in 10.0.2, there
    in 10.0.13."""
    return tuple(int(part) for part in qemu.version.split(".")) < (10, 0, 13)


def survivable(script: Script, qemu: Qemu) -> Script:
    """The script without what this QEMU's own device does not survive.

    QEMU before 10.0.13: a request shorter than its header stays at the head of the queue for ever
    (E01), and a width of which the row's bits overflow 32 bits gets a resource of a few bytes (C07,
    CVE-2026-3886), through which later commands reach outside of it.
    """
    if not is_old(qemu):
        return script
    return replace(script, steps=tuple(step for step in script.steps if not _deadly(step)))


def _deadly(step: Step) -> bool:
    if step.op == "create_2d" and step.args[2] * 32 + 31 >= 1 << 32:
        return True
    return step.is_command and step.on == CONTROL and len(step.request()) < 24


def reason(name: str) -> str:
    """Why a difference is allowed."""
    return (QUIRKS | OLD_QUIRKS)[name]
