"""Where packages come from is read correctly from both of apt's file formats."""

from pathlib import Path

import pytest

from tests.qemu.debian import DEFAULT_MIRROR, mirror

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://vendor.example/apt/debian vendor-stable main
deb http://security.example/debian-security bookworm-security main
deb http://one.example/debian/ bookworm main contrib
"""
STANZAS = """\
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Enabled: no

Types: deb
# a comment between the fields
URIs: http://two.example/debian
Suites: bookworm bookworm-updates
Components: main
"""


@pytest.fixture(autouse=True)
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VGPUD_DEBIAN_MIRROR", raising=False)


def test_one_line_format(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(ONE_LINE)
    assert mirror(tmp_path) == "http://one.example/debian"


def test_stanza_format(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.sources").write_text(STANZAS)
    assert mirror(tmp_path) == "http://two.example/debian"


def test_nothing_known(tmp_path: Path) -> None:
    assert mirror(tmp_path) == DEFAULT_MIRROR


def test_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGPUD_DEBIAN_MIRROR", "http://mine.example/debian/")
    assert mirror(tmp_path) == "http://mine.example/debian"
