"""The differential oracle for blobs: QEMU's own device, which needs /dev/udmabuf for them, and
vgpud behind our QEMU, which passes them on. Both are in the lab."""

from __future__ import annotations

import os

import pytest

from tests.diff.blobs import faults, generate
from tests.diff.runner import device
from tests.lab.inner.dbus import be_patient, lab_qemu

COUNT = int(os.environ.get("VGPUD_BLOB_SCRIPTS", "200"))


@pytest.mark.timeout(1200)
def test_generated_blob_scripts() -> None:
    be_patient()
    qemu = lab_qemu()
    wrong: list[str] = []
    commands = dumps = 0
    with device(qemu, None, ",blob=on") as theirs, device(qemu) as ours:
        for seed in range(1, COUNT + 1):
            case = generate(seed)
            for name, machine in (("qemu", theirs), ("vgpud", ours)):
                found = list(faults(case, name, machine.run(case.script)))
                wrong += [f"seed {seed}: {fault}" for fault in found]
            commands += len(case.codes)
            dumps += sum(map(len, case.shown.values()))
            assert len(wrong) < 10, "\n".join(wrong)
    assert not wrong, "\n".join(wrong)
    print(f"{COUNT} scripts, {commands} commands, {dumps} screendumps on each device")
