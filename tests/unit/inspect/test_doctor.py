"""The doctor on hosts made of files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vgpud.inspect.doctor import BAD, GOOD, LOOK, Finding, System, examine, memory_of, text

PARAMETERS = "/sys/module/udmabuf/parameters"


class Host(System):
    """A root of the test's own, and what programs say on it."""

    def __init__(self, root: Path, programs: dict[tuple[str, ...], str] | None = None) -> None:
        super().__init__(root)
        self.programs = programs or {}
        self.release = (7, 0)

    def put(self, name: str, content: str = "") -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(content)

    def says(self, *command: str) -> str | None:
        return self.programs.get(command)

    def kernel(self) -> tuple[int, int]:
        return self.release


def states(host: System, topic: str) -> list[str]:
    return [one.state for one in examine(host, "root") if one.topic == topic]


def test_an_empty_host(tmp_path: Path) -> None:
    found = examine(Host(tmp_path), "root")
    assert {one.topic for one in found if one.state == BAD} == {"udmabuf", "sandbox"}
    assert all(one.change for one in found if one.state != GOOD)


@pytest.mark.parametrize(("limit", "state"), [("1024", LOOK), ("16384", GOOD)])
def test_udmabuf(tmp_path: Path, limit: str, state: str) -> None:
    host = Host(tmp_path)
    host.put("/dev/udmabuf")
    host.put(f"{PARAMETERS}/list_limit", limit)
    assert states(host, "udmabuf") == [GOOD, state]


def test_a_user_without_the_right(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.put("/dev/udmabuf")
    host.path("/dev/udmabuf").chmod(0o600)
    (found,) = [one for one in examine(host, "nobody") if one.topic == "udmabuf"]
    assert found.state == LOOK
    assert "adduser nobody kvm" in found.change


def test_vfio_needs_a_new_kernel(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.path("/sys/bus/pci/drivers/vfio-pci/0000:01:00.0").mkdir(parents=True)
    assert states(host, "vfio") == [GOOD]
    host.release = (6, 18)
    assert states(host, "vfio") == [GOOD, LOOK]


@pytest.mark.parametrize(
    ("version", "devices", "expected"),
    [
        ("10.0.13", '"vhost-user-gpu-pci"', [GOOD, GOOD, GOOD]),
        ("7.2.22", '"vhost-user-gpu-pci"', [LOOK, GOOD, GOOD]),
        ("10.0.13", "", [GOOD, BAD, GOOD, GOOD]),
    ],
)
def test_qemu(tmp_path: Path, version: str, devices: str, expected: list[str]) -> None:
    program = "qemu-system-x86_64"
    host = Host(
        tmp_path,
        {
            (program, "--version"): f"QEMU emulator version {version} (Debian)",
            (program, "-device", "help"): f"name {devices}, bus PCI",
            (program, "-display", "help"): "Available display backend types:\nnone\ndbus\n\nmore",
        },
    )
    assert states(host, "qemu") == expected
    assert "displays: none, dbus" in "\n".join(text(examine(host, "root")))


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (["-m", "4G"], BAD),
        (["-object", "memory-backend-memfd,id=m,size=4G"], BAD),
        (["-object", "memory-backend-file,id=m,share=on"], LOOK),
        (["-object", "memory-backend-memfd,id=m,share=on"], GOOD),
        (["-object", '{"qom-type":"memory-backend-memfd","share":true}'], GOOD),
    ],
)
def test_memory(words: list[str], state: str) -> None:
    assert memory_of("QEMU 1", words).state == state


def test_who_libvirt_starts(tmp_path: Path) -> None:
    host = Host(tmp_path)
    folder = "/usr/share/qemu/vhost-user"
    theirs = {"type": "gpu", "binary": "/usr/lib/qemu/vhost-user-gpu"}
    host.put(f"{folder}/50-qemu-gpu.json", json.dumps(theirs))
    assert states(host, "libvirt") == [LOOK]
    host.put(f"{folder}/40-vgpud.json", json.dumps({"type": "gpu", "binary": "/usr/bin/vgpud"}))
    assert states(host, "libvirt") == [GOOD]
    host.put("/etc/qemu/vhost-user/40-vgpud.json")  # masked by the operator
    assert states(host, "libvirt") == [LOOK]


def test_a_finding_in_colour() -> None:
    assert text([Finding(BAD, "x", "y", "z")], True) == [
        "\x1b[31mNO\x1b[0m  x        y",
        "             -> z",
    ]
