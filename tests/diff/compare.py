"""What two devices and the model say about a script, and whether it is the same."""

import struct
from collections.abc import Collection
from dataclasses import dataclass, field

from tests.diff.memory import Contents
from tests.diff.model import Expected, Model
from tests.diff.runner import UNTOUCHED, Answer, Result
from tests.diff.screen import Shown
from tests.diff.script import CONTROL, CURSOR, Script
from tests.qtest import gpu
from tests.support.png import parse_ppm


@dataclass
class Verdict:
    """`faults`: differences that no quirk explains, one line each. `fired`: quirks that made a
    difference."""

    faults: list[str] = field(default_factory=list)
    fired: set[str] = field(default_factory=set)


@dataclass
class Prediction:
    """What the model expects of one device."""

    answers: dict[int, Expected] = field(default_factory=dict)
    shown: dict[int, dict[int, Shown]] = field(default_factory=dict)
    fired: set[str] = field(default_factory=set)


def predict(script: Script, memory: Contents, quirks: Collection[str]) -> Prediction:
    """Run the model; the memory must be restored afterwards."""
    model, found = Model(memory, script.features, quirks), Prediction()
    for number, step in enumerate(script.steps):
        if step.is_command:
            found.answers[number] = model.run(step)
        elif step.op == "poke":
            address, length, seed = step.args
            memory.poke(address, gpu.noise(length, seed))
        elif step.op == "dump":
            model.settle()
            found.shown[number] = {head: model.heads[head].shown for head in script.heads}
            if any(shown.why == "old" for shown in found.shown[number].values()):
                model.fired.add("R04")
    found.fired = set(model.fired)
    return found


def judge(
    script: Script, theirs: Result, ours: Result, memory: Contents, quirks: frozenset[str]
) -> Verdict:
    """Compare QEMU's device, which has these quirks, and vgpud with the model, and with each
    other."""
    verdict = Verdict()
    for name, result, has in (("qemu", theirs, quirks), ("vgpud", ours, frozenset[str]())):
        found = predict(script, memory, has)
        memory.restore()
        verdict.fired |= found.fired
        for number, expected in found.answers.items():
            answer = result.answers.get(number)
            if fault := _answer_fault(script, number, expected, answer):
                verdict.faults.append(f"{name}: step {number} ({script.steps[number]}): {fault}")
        for number, heads in found.shown.items():
            for head, shown in heads.items():
                if fault := _picture_fault(shown, result.dumps[number][head]):
                    verdict.faults.append(f"{name}: dump {number}, head {head}: {fault}")
        if fault := _order_fault(script, result.order):
            verdict.faults.append(f"{name}: {fault}")
    verdict.fired &= quirks
    verdict.faults += _bodies(script, theirs, ours)
    return verdict


def _answer_fault(script: Script, number: int, expected: Expected, answer: Answer | None) -> str:
    if answer is None:
        step = script.steps[number]
        size = 16 if step.on == CURSOR else script.queue_size
        return "no answer" if step.can_be_sent(size) else ""
    room = sum(script.steps[number].room)
    header, length = expected.header or b"", min(room, expected.length)
    if expected.loose:
        header = header[:4]
    if answer.used != length:
        return f"used length {answer.used}, expected {length}"
    wanted = header[:length]
    if answer.data[: len(wanted)] != wanted:
        return f"answer {_words(answer.data[:length])}, expected {_words(header)}"
    if answer.data[length:].strip(bytes([UNTOUCHED])):
        return f"bytes were written behind the used length of {length}"
    return ""


def _words(header: bytes) -> str:
    """A response's header in words, as far as it is there."""
    if len(header) < 24:
        return header.hex() or "nothing"
    kind, flags, fence, ctx, ring = struct.unpack_from("<IIQIB", header)
    return f"{kind:#x}" + (f" (flags {flags:#x}, fence {fence:#x}, {ctx}, {ring})" if flags else "")


def _picture_fault(shown: Shown, ppm: bytes) -> str:
    if shown.why == "old":
        return ""
    picture = parse_ppm(ppm)
    if shown.why == "off":
        # The placeholder is one line of text in a grey: two values of a byte, no more.
        text = picture.rgb.translate(None, picture.rgb[:1])
        return "not QEMU's placeholder" if text.translate(None, text[:1]) else ""
    if (picture.width, picture.height) != (shown.width, shown.height):
        got = f"{picture.width}x{picture.height}"
        return f"{got}, expected {shown.width}x{shown.height}"
    return picture.difference(shown.rgb) if shown.rgb is not None else ""


def _order_fault(script: Script, order: list[int]) -> str:
    """A fenced answer must not overtake an earlier fenced one: Linux then signals both."""
    fenced = []
    for number in order:
        step = script.steps[number]
        has_fence = step.fence is not None and step.fence[0] & gpu.FENCE
        if step.on == CONTROL and has_fence and len(step.request()) >= 24:
            fenced.append(number)
    return "" if fenced == sorted(fenced) else f"fences out of order: {fenced}"


def _bodies(script: Script, theirs: Result, ours: Result) -> list[str]:
    """Modes and EDIDs, which the model does not know: the same bytes from both."""
    faults = []
    for number, answer in theirs.answers.items():
        other = ours.answers.get(number)
        long = script.steps[number].op in ("display_info", "get_edid")
        if other is not None and long and answer.data[24:] != other.data[24:]:
            faults.append(f"step {number} ({script.steps[number]}): bodies differ")
    return faults
