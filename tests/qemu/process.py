"""A child process of a test: its log in a nameless file, its end certain."""

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Self


class Child:
    """A running program. Leaving its `with` block ends it; so does the death of this process."""

    def __init__(self, name: str, argv: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        """Start `argv`, with these fds open in it under the same numbers."""
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._last_words = ""
        # Its own session: Ctrl-C on a terminal reaches only us, and we end the others in order.
        # setpriv: the kernel kills it if we are killed, so that no test run leaves a QEMU behind.
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *argv],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=pass_fds,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id: setpriv and chroot both become the program they start."""
        return self.process.pid

    def log(self) -> str:
        """All that it wrote to stdout and stderr so far, or until it was stopped."""
        if self._log.closed:
            return self._last_words
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def tail(self, lines: int = 15) -> str:
        """The log's end under a heading, for an error message."""
        end = self.log().splitlines()[-lines:]
        code = self.process.poll()
        state = "running" if code is None else f"exit code {code}"
        return "\n".join([f"--- {self.name} ({state}), last lines of its log:", *end])

    def wait_log(self, text: str, patience: float = 20.0, count: int = 1) -> str:
        """Wait until the log contains `text` (`count` times); returns the log."""
        deadline = time.monotonic() + patience
        while True:
            ended = self.process.poll() is not None  # asked first: its last words come before
            log = self.log()
            if log.count(text) >= count:
                return log
            if ended or time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} did not log {text!r}\n{self.tail()}")
            time.sleep(0.02)

    def wait(self, patience: float = 20.0) -> int:
        """Wait for it to end by itself; returns its exit code (negative: a signal)."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"{self.name} did not end within {patience} s\n{self.tail()}"
            ) from None

    def stop(self, patience: float = 5.0) -> int:
        """SIGTERM, and SIGKILL after `patience` seconds. Returns its exit code; may be repeated."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
        code = self.process.wait()
        if not self._log.closed:
            self._last_words = self.log()
            self._log.close()
        return code
