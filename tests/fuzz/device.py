"""Any commands of a guest on a device with the fake pixel store, and what the heads then tell a
QEMU that dies where the real one would (`FakeDisplay`).

Beside any exception it is a finding where an error changes something, where a response has bytes
that nobody set or a length that is not its kind's, where sums of quotas are not those of what there
is, or where a picture is shown from outside of its memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Final

from tests.fuzz.source import Source
from tests.support.fake_display import HEADER, NAMES, FakeDisplay
from tests.support.fake_pixels import PAGE, FakeGuest, FakePixelStore, FakeSurface, entries
from tests.unit.device import driver
from vgpud.device.gpu import GpuDevice
from vgpud.device.outcome import (
    Ask,
    CursorImage,
    Damage,
    DisplayMessage,
    Outcome,
    Question,
    ShowSurface,
    Silence,
)
from vgpud.device.resource import Image
from vgpud.tasks.heads import Head
from vgpud.tasks.outgoing import Outgoing, Terms, Ticket
from vgpud.tasks.stats import Stats
from vgpuwire import Rect

HOSTMEM: Final = 1 << 20
RAM: Final = ((0, 24 * PAGE), (32 * PAGE, 8 * PAGE))
LENGTHS: Final = {0x1100: 24, 0x1101: 408, 0x1104: 1056, 0x1105: 40}
FORMATS: Final = (*driver.FORMATS.values(), 0, 5, 255)
HELD: Final = 8
FURNITURE: Final = (
    driver.create_2d(1),
    driver.attach(1, entries((0, 4 * PAGE))),
    driver.create_2d(2, 32, 16),
    driver.set_scanout(0, 1),
    driver.create_blob(3, 4 * PAGE, entries((32 * PAGE, 2 * PAGE), (4 * PAGE, 2 * PAGE))),
    driver.set_scanout_blob(1, 3),
)
"""A guest in the middle of its life: an input need not find the way there."""


class Guest:
    """One guest, its device, and QEMU's heads."""

    def __init__(self, shape: int) -> None:
        self.store = FakePixelStore(FakeGuest(*RAM), exports=bool(shape & 1))
        self.device = GpuDevice(self.store, HOSTMEM)
        self.device.set_features(0x1F if shape & 2 else 0x06)
        self.display = FakeDisplay(outputs=16)
        make_canvas = self._canvas if shape & 1 else None
        self.heads = [Head(number, make_canvas) for number in range(16)]
        self.modifiers = bool(shape & 4)
        self.asked: list[Ask] = []
        self.answers: list[Outgoing] = []
        self.stats = Stats()

    def _canvas(self, width: int, height: int) -> FakeSurface:
        return FakeSurface(width, height, 2, exports=True)

    # -- the guest

    def execute(self, request: bytes) -> None:
        before = driver.snapshot(self.device)
        due = self.device.execute(request)
        if isinstance(due, Ask):
            if due.done is not None:
                self.post(due.done.display)
            self.asked.append(due)
            if len(self.asked) > HELD:
                self.answer(self.asked.pop(0), Silence.LATE)
            return
        self._check(due)
        kind = int.from_bytes(due.response[:4], "little")
        if kind >= 0x1200:
            assert driver.snapshot(self.device) == before, "an error changed something"
            assert not due.display
        self.post(due.display)

    def answer(self, ask: Ask, reply: bytes | Silence) -> None:
        due = self.device.answer(ask, reply)
        self._check(due)
        self.post(due.display)

    def _check(self, due: Outcome) -> None:
        kind, flags, fence, context, ring = struct.unpack_from("<IIQIB", due.response)
        assert len(due.response) == LENGTHS.get(kind, 24)
        assert kind in LENGTHS or 0x1200 <= kind <= 0x1205, hex(kind)
        assert due.response[21:24] == bytes(3)
        assert flags in (0, 1, 3)
        assert flags or (fence, context, ring) == (0, 0, 0), "an unfenced answer tells something"
        resources = list(self.device.resources)
        size = sum(one.size for one in resources if isinstance(one, Image))
        assert self.device.resources.budget.used == size < HOSTMEM
        assert self.device.resources.entries == sum(one.entries for one in resources)

    # -- the display

    def post(self, messages: tuple[DisplayMessage, ...]) -> None:
        for message in messages:
            head = self.heads[message.scanout_id]
            if isinstance(message, Damage):
                head.damage(message.rect, Ticket(1, self.stats))
            elif isinstance(message, ShowSurface):
                head.show(message)
            elif isinstance(message, CursorImage):
                assert len(message.pixels) == 64 * 64 * 4
                head.pointer.set_image(message)
            else:
                head.pointer.move(message)

    def draw(self) -> None:
        """QEMU takes all that there is to say."""
        for head in self.heads:
            while (out := head.pointer.next()) is not None:
                self._take(out)
            while (out := head.next_picture(Terms(not self.answers, self.modifiers))) is not None:
                self._take(out)
                if out.answered:
                    self.answers.append(out)
                    if len(self.answers) % 2:
                        self.answers.pop().take()

    def _take(self, out: Outgoing) -> None:
        data = b"".join(out.parts)
        fds = [] if out.dmabuf is None else [os.dup(0)]
        while data:
            request, flags, size = HEADER.unpack_from(data)
            assert flags == 0
            payload, data = data[12 : 12 + size], data[12 + size :]
            assert len(payload) == size, "a message is cut off: QEMU waits for ever"
            name = NAMES[request]
            carries = name.startswith("DMABUF_SCANOUT") and not data
            self.display.take(name, payload, fds if carries else [])
        if not out.answered:
            out.take()

    def new_socket(self) -> None:
        for screen in self.display.screens:
            screen.pixels = None
        for head in self.heads:
            head.release()
            head.replay()

    def change_memory(self, change: Callable[[FakeGuest], None]) -> None:
        change(self.store.guest)
        self.store.set_memory(self.store.guest)
        for head in self.heads:
            head.memory_changed()

    def reset(self) -> None:
        self.new_socket()
        self.device.reset()
        for head in self.heads:
            head.reset()
        self.asked.clear()
        assert not len(self.device.resources)
        assert self.device.resources.budget.used == self.device.resources.entries == 0


def command(source: Source) -> bytes:
    """One that has its parts in their places."""
    number = source.number
    header = {"flags": source.choose((0, 1, 3, 0)), "fence": number(64)}
    header |= {"context": source.integer(1) & 3, "ring": source.integer(1) & 3}
    resource, head = source.choose((1, 2, 3, 4, 1, 2, 0, 77)), source.choose((0, 1, 2, 0, 15, 16))
    box = (number(32), number(32), number(32), number(32))
    kind = source.integer(1) % 13
    if kind in (6, 10):
        pieces = [
            (source.choose((0, PAGE, 23 * PAGE, 32 * PAGE, 1 << 40, (1 << 64) - PAGE)) + number(16),
             source.choose((PAGE, 4 * PAGE, 8 * PAGE, 1, 0, 100, (1 << 32) - 1)))
            for _ in range(source.integer(1) % 6)
        ]  # fmt: skip
        pieces = [(address % (1 << 64), length) for address, length in pieces]
        count = source.choose((None, None, None, 0, 7, 16385, (1 << 32) - 1))
    match kind:
        case 0:
            return driver.get_display_info(**header)
        case 1:
            return driver.create_2d(
                resource, number(32), number(32), source.choose(FORMATS), **header
            )
        case 2:
            return driver.unref(resource, **header)
        case 3:
            return driver.set_scanout(head, resource, box, **header)
        case 4:
            return driver.flush(resource, box, **header)
        case 5:
            return driver.transfer(resource, box, number(64), **header)
        case 6:
            return driver.attach(resource, entries(*pieces), count, **header)
        case 7:
            return driver.detach(resource, **header)
        case 8:
            return driver.get_edid(head, **header)
        case 9:
            return driver.assign_uuid(resource, **header)
        case 10:
            blob = {"mem": source.choose((1, 1, 1, 2, 3)), "blob": number(64)}
            return driver.create_blob(
                resource, number(64), entries(*pieces), count, **blob, **header
            )
        case 11:
            size, stride, offset = (number(32), number(32)), number(32), number(32)
            return driver.set_scanout_blob(
                head, resource, box, size, source.choose(FORMATS), stride, offset, **header
            )
        case _:
            return driver.command(number(32), source.bytes(source.integer(1)), **header)


def unplug(memory: FakeGuest) -> None:
    if memory.covers(32 * PAGE, 1):
        memory.unplug(32 * PAGE)


def step(guest: Guest, source: Source) -> None:
    how = source.integer(1)
    if how < 160:
        guest.execute(command(source))
    elif how < 176:
        guest.execute(source.bytes(source.integer(1)))
    elif how < 200:
        message = guest.device.execute_cursor(
            source.choose((driver.update_cursor, driver.move_cursor))(
                source.number(32), source.choose((1, 2, 3, 0)), (source.number(32), 9)
            )
        )
        if message is not None:
            guest.post((message,))
    elif how < 224:
        guest.draw()
    elif how < 236 and guest.asked:
        ask = guest.asked.pop(source.integer(1) % len(guest.asked))
        name = "GET_EDID" if ask.question is Question.EDID else "GET_DISPLAY_INFO"
        real = guest.display.take(name, struct.pack("<I", ask.scanout_id), []) or Silence.ABSENT
        guest.answer(ask, source.choose((real, real, *Silence)))
    elif how < 240:
        guest.change_memory(lambda memory: memory.vanish(32 * PAGE))
    elif how < 244:
        guest.change_memory(lambda memory: memory.plug(32 * PAGE, 8 * PAGE))
    elif how < 248:
        guest.change_memory(unplug)
    elif how < 252:
        guest.new_socket()
    else:
        guest.reset()


def one(data: bytes) -> None:
    """One guest's life."""
    source = Source(data)
    shape = source.integer(1)
    guest = Guest(shape)
    try:
        for request in FURNITURE if shape & 8 else ():
            guest.execute(request)
        while source.left:
            step(guest, source)
        guest.draw()
        for head in guest.heads:
            shown = head.shown
            if shown is not None:
                picture, rect = shown
                assert rect.x + rect.width <= picture.width
                assert rect.y + rect.height <= picture.height
                assert rect != Rect(0, 0, 0, 0)
    finally:
        guest.display.forget()
