"""The differential oracle: a script on QEMU's own device and on vgpud, judged by the model."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from tests.diff.compare import Verdict, judge
from tests.diff.generate import generate
from tests.diff.memory import Contents
from tests.diff.quirks import quirks_of, survivable
from tests.diff.runner import Device, Result, device
from tests.diff.script import Script, Step
from tests.qemu.binaries import Qemu
from tests.qtest import gpu
from tests.qtest.machine import VmError


@dataclass
class Failure:
    """A script with an unexplained difference: as found, as small as it gets, and why."""

    script: Script
    small: Script
    faults: list[str]

    def __str__(self) -> str:
        lines = "\n".join(self.faults[:6])
        return f"{self.script.name}: {lines}\nsmallest script that differs:\n{self.small}"


@dataclass
class Tally:
    """What a run of many scripts found."""

    scripts: int = 0
    commands: int = 0
    dumps: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)


class Oracle:
    """A pair of machines. Made anew when one of them dies or hangs."""

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        self._quirks = quirks_of(qemu)
        self._memory = Contents()
        self._stack = contextlib.ExitStack()
        self._pair: tuple[Device, Device] | None = None

    def run(self, script: Script) -> tuple[Result, Result]:
        """Run a script on QEMU's own device and on vgpud."""
        theirs, ours = self._devices()
        try:
            return theirs.run(script), ours.run(script)
        except BaseException:
            self.close()
            raise

    def run_theirs(self, script: Script) -> Result:
        """Run a script on QEMU's own device alone."""
        return self._devices()[0].run(script)

    def run_ours(self, script: Script) -> Result:
        """Run a script on vgpud alone."""
        return self._devices()[1].run(script)

    def verdict(self, script: Script) -> Verdict:
        """What differs. A machine that dies or hangs is a difference too."""
        try:
            theirs, ours = self.run(script)
        except VmError as error:
            return Verdict([f"no answer: {error}"])
        return judge(script, theirs, ours, self._memory, self._quirks)

    def close(self) -> None:
        self._pair = None
        self._stack.close()

    def _devices(self) -> tuple[Device, Device]:
        if self._pair is None:
            theirs = self._stack.enter_context(device(self._qemu, None))
            ours = self._stack.enter_context(device(self._qemu))
            self._pair = theirs, ours
        return self._pair

    # -- shrinking

    def shrink(self, script: Script) -> Script:
        """The smallest script found that still differs, by leaving out steps, then oddities."""
        steps = list(script.steps)

        def differs(candidate: list[Step]) -> bool:
            return bool(self.verdict(replace(script, steps=tuple(candidate))).faults)

        size = max(1, len(steps) // 2)
        while size:
            at = 0
            while at < len(steps):
                shorter = steps[:at] + steps[at + size :]
                if differs(shorter):
                    steps = shorter
                else:
                    at += size
            size //= 2
        for at in range(len(steps)):
            for plainer in _PLAINER:
                candidate = [*steps[:at], plainer(steps[at]), *steps[at + 1 :]]
                if candidate != steps and differs(candidate):
                    steps = candidate
        return replace(script, steps=tuple(steps))


_PLAINER: tuple[Callable[[Step], Step], ...] = (
    lambda step: replace(step, fence=None),
    lambda step: replace(step, split=()),
    lambda step: replace(step, indirect=False),
    lambda step: replace(step, extra=0),
    lambda step: replace(step, room=(gpu.ROOM,)),
    lambda step: replace(step, entries=step.entries[:1]),
)
"""What may be unusual about a step without being the cause."""


@contextlib.contextmanager
def oracle(qemu: Qemu) -> Iterator[Oracle]:
    """A pair of machines for scripts."""
    pair = Oracle(qemu)
    try:
        yield pair
    finally:
        pair.close()


def compare_many(
    qemu: Qemu,
    count: int,
    seed: int,
    *,
    progress: Callable[[Tally], None] = lambda _: None,
    stop_after: int = 5,
) -> Tally:
    """Run the scripts of `count` seeds from `seed` on; ends early at `stop_after` failures."""
    tally = Tally()
    with oracle(qemu) as pair:
        for number in range(seed, seed + count):
            script = survivable(generate(number), qemu)
            verdict = pair.verdict(script)
            tally.scripts += 1
            tally.commands += sum(step.is_command for step in script.steps)
            tally.dumps += sum(step.op == "dump" for step in script.steps)
            tally.fired.update(verdict.fired)
            if verdict.faults:
                tally.failures.append(Failure(script, pair.shrink(script), verdict.faults))
                if len(tally.failures) >= stop_after:
                    break
            progress(tally)
    return tally
