"""The folder outside the tree that holds everything downloaded or built: how things get into it.

Rules: a thing is made beside its final place and renamed when it is whole, so a half-made one is
never used; a lock per thing makes two runs wait for each other; every failure shows its log's end.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


class CacheError(Exception):
    """Something could not be made; the text says what to do about it."""


def cache_dir() -> Path:
    """The cache folder: $VGPUD_CACHE, else vgpud in the user's cache folder. Made if missing."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(os.environ.get("VGPUD_CACHE") or f"{home}/vgpud").absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def say(text: str) -> None:
    """One progress line on stderr: stdout is for what a command is asked for (a path)."""
    print(f"==> {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Announce a step, then how long it took (seconds)."""
    say(f"{text} ...")
    begin = time.monotonic()
    yield
    say(f"{text}: done in {time.monotonic() - begin:.1f} s")


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the lock `name` of this cache; waits for another run that has it, and says so."""
    path = cache_dir() / "locks" / name
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another run is making {name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove(folder: Path) -> None:
    """Remove a folder; what a killed mmdebstrap left mounted in it (/proc) is unmounted first.

    Removing across such a mount would reach into the running system.
    """
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    below = [point for line in table if (point := line.split()[4]).startswith(f"{folder}/")]
    for point in sorted(below, reverse=True):
        subprocess.run(["umount", "--lazy", point], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def made(relative: str, make: Callable[[Path], None]) -> Path:
    """The path of `relative` in the cache, made by `make(empty_folder)` if it is not there yet.

    `make` fills the folder it is given; only when it returns does the folder get its final name.
    """
    final = cache_dir() / relative
    if final.exists():
        return final
    with lock(relative.replace("/", "-")):
        if final.exists():
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        # Left by a run that was killed: we hold the lock, so nobody is filling it now.
        for stale in final.parent.glob(f".{final.name}.*"):
            remove(stale)
        work = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        work.chmod(0o755)
        try:
            make(work)
            work.rename(final)
        except BaseException:
            remove(work)
            raise
    return final


def run(
    argv: Sequence[str], *, tries: int = 1, show: str = "", cwd: Path | None = None, hint: str = ""
) -> str:
    """Run a command and return its output (stdout and stderr together).

    Lines that start with `show` (if given) are passed on as progress. A command that fails `tries`
    times raises CacheError with the end of its output and `hint`.
    """
    for left in range(tries, 0, -1):
        lines: list[str] = []
        try:
            child = subprocess.Popen(
                argv,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except FileNotFoundError:
            raise CacheError(f"{argv[0]} is not installed: apt-get install it") from None
        with child:
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    lines.append(line)
                    if show and line.startswith(show):
                        say(f"  {line.removeprefix(show).strip()}")
            except BaseException:
                child.terminate()
                raise
        if child.returncode == 0:
            return "".join(lines)
        if left > 1:
            say(f"{argv[0]} failed (exit {child.returncode}); trying again in 5 s")
            time.sleep(5)
    tail = "".join(lines[-20:]).rstrip()
    raise CacheError(f"{argv[0]} failed (exit {child.returncode}){hint and ': '}{hint}\n{tail}")
