"""The lab itself: a command runs in it, its output and exit status come out, it ends in time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.lab.image import CHECKOUT
from tests.support.lab import Lab, LabError, lab

pytestmark = pytest.mark.timeout(600)  # the first run fetches Debian

SCRIPT = f"""\
echo begin
test -c /dev/udmabuf && echo udmabuf
test -d /dev/dri && echo vgem
cat /extra/file
touch {CHECKOUT}/forgotten && echo writable
touch /extra/file 2>/dev/null || echo read-only
echo made inside > /job/answer
python3 -c 'import vgpud._native as native; print(native.__file__)'
exit 7
"""


def test_command(tmp_path: Path) -> None:
    """Everything but a deadline, in one boot."""
    (tmp_path / "file").write_text("from outside\n")
    heard = bytearray()
    with Lab(SCRIPT, mounts={tmp_path: "/extra"}, modules=["vgem"], stream=heard.extend) as machine:
        result = machine.wait()
        assert (machine.job / "answer").read_text() == "made inside\n"
    lines = ["begin", "udmabuf", "vgem", "from outside", "writable", "read-only"]
    assert result.output.splitlines()[:-1] == lines
    assert result.output.splitlines()[-1].startswith(f"{CHECKOUT}/vgpud/_native.cpython-3")
    assert heard.decode().replace("\r\n", "\n") == result.output
    assert not (CHECKOUT / "forgotten").exists()
    assert result.returncode == 7
    with pytest.raises(LabError, match=r"(?s)exit code 7.*read-only"):
        result.check()


def test_deadline() -> None:
    """The machine is ended, and what it last said is shown."""
    begin = time.monotonic()
    with Lab("sleep 1000", timeout=1.5) as machine:
        with pytest.raises(LabError, match=r"(?s)deadline of 1.5 s is over: sleep 1000.*console"):
            machine.wait()
        assert not Path(f"/proc/{machine.pid}").exists()
    assert time.monotonic() - begin < 60


def test_no_machine() -> None:
    """QEMU's own words are shown."""
    with pytest.raises(LabError, match="no-such-device"):
        lab("true", qemu_args=["-device", "no-such-device"])
