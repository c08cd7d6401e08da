"""Packages of other Debian releases, without touching what apt knows about this machine.

Every call uses its own source list and its own lists folder; the machine's are only read, to
learn which mirror it uses. Nothing is installed: packages are unpacked into the cache.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from tests.qemu.cache import CacheError, cache_dir, lock, made, run, step

DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
APT_DIR = Path("/etc/apt")


def entries(apt_dir: Path) -> Iterator[tuple[str, list[str]]]:
    """(URI, suites) of every source of this machine, from both of apt's file formats."""
    lists = [apt_dir / "sources.list", *sorted(apt_dir.glob("sources.list.d/*.list"))]
    for path in lists:
        if path.exists():
            for line in path.read_text(errors="replace").splitlines():
                found = re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", line)
                if found:
                    yield found[1], [found[2]]
    for path in sorted(apt_dir.glob("sources.list.d/*.sources")):
        text = re.sub(r"(?m)^#.*\n?", "", path.read_text(errors="replace"))
        for stanza in re.split(r"\n\s*\n", text):
            fields = {
                key.lower(): value.split()
                for key, value in re.findall(r"(?m)^([\w-]+):[ \t]*(.*)$", stanza)
            }
            if fields.get("enabled") != ["no"]:
                for uri in fields.get("uris", []):
                    yield uri, fields.get("suites", [])


def mirror(apt_dir: Path = APT_DIR) -> str:
    """The Debian mirror: $VGPUD_DEBIAN_MIRROR, else the machine's own, else deb.debian.org."""
    if chosen := os.environ.get("VGPUD_DEBIAN_MIRROR"):
        return chosen.rstrip("/")
    for uri, suites in entries(apt_dir):
        # A plain release (no "bookworm-security"), on a Debian mirror (no vendor's own archive).
        plain = any(re.fullmatch(r"[a-z]+", suite) for suite in suites)
        if plain and re.fullmatch(r"https?://\S+/debian/?", uri):
            return uri.rstrip("/")
    return DEFAULT_MIRROR


def sources(*suites: str) -> str:
    """The lines of a source list for these suites."""
    return "".join(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n" for suite in suites)


class Archive:
    """Some suites of Debian, as apt sees them through lists of its own."""

    def __init__(self, *suites: str) -> None:
        self.name = "+".join(suites)
        self.dir = cache_dir() / "apt" / self.name
        (self.dir / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (self.dir / "status").touch()
        (self.dir / "sources.list").write_text(sources(*suites))
        with lock(f"apt-{self.name}"), step(f"reading Debian's package lists of {self.name}"):
            hint = f"is {mirror()} reachable? VGPUD_DEBIAN_MIRROR=http://HOST/debian names another"
            self._apt("apt-get", "update", hint=hint)

    def _apt(self, program: str, *arguments: str, cwd: Path | None = None, hint: str = "") -> str:
        options = {
            "Dir::Etc::sourcelist": self.dir / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::Lists": self.dir / "lists",
            # An empty status: what this machine has installed must not change any answer.
            "Dir::State::status": self.dir / "status",
            "Dir::Cache": self.dir,
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
            "Acquire::Retries": 5,
        }
        flags = [f"-o{key}={value}" for key, value in options.items()]
        return run([program, "-q", *flags, *arguments], cwd=cwd, tries=3, hint=hint)

    def newest(self, package: str) -> str | None:
        """The newest version of a package, or None where there is none."""
        for line in self._apt("apt-cache", "madison", package).splitlines():
            return line.split("|")[1].strip()
        return None

    def depends(self, package: str, version: str) -> list[str]:
        """The names of the packages that this one depends on, alternatives and versions dropped."""
        text = self._apt("apt-cache", "show", f"{package}={version}")
        line = re.search(r"(?m)^Depends: (.*)$", text)
        return re.findall(r"(?:^|, )([^ ,|]+)", line[1]) if line else []

    def unpack(self, packages: dict[str, str], target: Path) -> None:
        """Download each package (name: version) and unpack it under `target`."""
        for name, version in packages.items():
            with step(f"downloading {name} {version}"):
                self._apt("apt-get", "download", f"{name}={version}", cwd=target)
            (package,) = target.glob("*.deb")
            run(["dpkg-deb", "-x", str(package), str(target)])
            package.unlink()


def unpacked(package: str, *suites: str) -> Path:
    """The folder with one package of these suites unpacked, e.g. for its headers or its program."""

    def make(work: Path) -> None:
        archive = Archive(*suites)
        version = archive.newest(package)
        if version is None:
            raise CacheError(f"{mirror()} has no {package} in {archive.name}")
        archive.unpack({package: version}, work)

    return made(f"packages/{package}-{'+'.join(suites)}", make)
