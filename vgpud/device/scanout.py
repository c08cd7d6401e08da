"""What is shown where: scanouts and pointers, and the display messages that follow."""

from __future__ import annotations

from typing import Final

from vgpud.device.geometry import fits, intersection
from vgpud.device.outcome import CursorImage, CursorMove, Damage, DisplayMessage, ShowSurface
from vgpud.device.pixels import Picture
from vgpud.device.resource import Blob, Image, Resource, ResourceTable
from vgpud.errors import GuestError
from vgpuwire import Ctrl, Rect, UpdateCursor

MIN_SIDE: Final = 16
"""Pixels: QEMU refuses a scanout that is narrower or lower (row S06)."""

MAX_SIDE: Final = 16384
"""Pixels: beyond it QEMU's surface allocation may abort (qemu-frontend trap: SCANOUT has no
cap on its side). Such a scanout is accepted and stays blank."""

CURSOR_SIDE: Final = 64
CURSOR_BYTES: Final = CURSOR_SIDE * CURSOR_SIDE * 4

NOTHING: Final = Rect(0, 0, 0, 0)


class Scanouts:
    """The heads: which resource each shows, and through which rectangle of it."""

    def __init__(self) -> None:
        self._shown: dict[int, tuple[Resource, Rect]] = {}

    def show(
        self, scanout_id: int, resource: Resource, picture: Picture, rect: Rect
    ) -> tuple[DisplayMessage, ...]:
        """Show `rect` of a picture of the resource (SET_SCANOUT, virtio 1.3, 5.7.6.8).

        Raises GuestError(ERR_INVALID_PARAMETER) for a rectangle below 16 x 16 or not inside.
        """
        check_rect(rect, picture.width, picture.height)
        self._forget(scanout_id)
        self._shown[scanout_id] = (resource, rect)
        resource.scanouts.add(scanout_id)
        if rect.width > MAX_SIDE or rect.height > MAX_SIDE:
            return (ShowSurface(scanout_id, None, NOTHING),)
        return (ShowSurface(scanout_id, picture, rect),)

    def disable(self, scanout_id: int) -> tuple[DisplayMessage, ...]:
        """Disable a head; nothing is said to the display where it was not active (S02)."""
        if not self._forget(scanout_id):
            return ()
        return (ShowSurface(scanout_id, None, NOTHING),)

    def drop(self, resource: Resource) -> tuple[DisplayMessage, ...]:
        """Disable every head that shows the resource, which is about to go (U03, U04, A21)."""
        return tuple(
            message for head in sorted(resource.scanouts) for message in self.disable(head)
        )

    def touches(self, resource: Resource, rect: Rect) -> bool:
        """Whether a head shows the rectangle, or borders on it (as QEMU has it: row F06)."""
        for head in resource.scanouts:
            shown = self._shown[head][1]
            if (
                rect.x < shown.x + shown.width
                and rect.x + rect.width >= shown.x
                and rect.y < shown.y + shown.height
                and rect.y + rect.height >= shown.y
            ):
                return True
        return False

    def damage(self, resource: Resource, rect: Rect) -> tuple[DisplayMessage, ...]:
        """The part of `rect` that each head shows, in that head's coordinates (F04, F05)."""
        if not resource.scanouts:
            return ()
        messages = []
        for head in sorted(resource.scanouts):
            shown = self._shown[head][1]
            part = intersection(rect, shown)
            if part is not None and shown.width <= MAX_SIDE and shown.height <= MAX_SIDE:
                if shown.x or shown.y:
                    part = Rect(part.x - shown.x, part.y - shown.y, part.width, part.height)
                messages.append(Damage(head, part))
        return tuple(messages)

    def clear(self) -> None:
        self._shown.clear()

    def _forget(self, scanout_id: int) -> bool:
        shown = self._shown.pop(scanout_id, None)
        if shown is None:
            return False
        shown[0].scanouts.discard(scanout_id)
        return True


class Cursors:
    """The pointers, one a head. No command of the cursor queue has an answer, and a wrong one
    is ignored (rows K01 to K16)."""

    def __init__(self) -> None:
        self._images: dict[int, bytes] = {}
        self.wrong_size = 0

    def update(self, command: UpdateCursor, resources: ResourceTable) -> DisplayMessage:
        """UPDATE_CURSOR: a new image where the resource is 64 x 64, else the old one stays and
        only hot spot and position change; resource 0 hides the pointer."""
        pos = command.pos
        if command.resource_id == 0:
            return CursorMove(pos.scanout_id, pos.x, pos.y, False)
        resource = resources.get(command.resource_id)
        if resource is not None:
            pixels = _cursor_pixels(resource)
            if pixels is not None:
                self._images[pos.scanout_id] = pixels
            else:
                self.wrong_size += 1
        image = self._images.get(pos.scanout_id) or bytes(CURSOR_BYTES)
        return CursorImage(pos.scanout_id, pos.x, pos.y, command.hot_x, command.hot_y, image)

    def move(self, command: UpdateCursor) -> DisplayMessage:
        """MOVE_CURSOR: visible where its resource id is not 0 (K10)."""
        pos = command.pos
        return CursorMove(pos.scanout_id, pos.x, pos.y, command.resource_id != 0)

    def clear(self) -> None:
        self._images.clear()


def check_rect(rect: Rect, width: int, height: int) -> None:
    """Raises GuestError(ERR_INVALID_PARAMETER) for a scanout below 16 x 16 or not inside."""
    if rect.width < MIN_SIDE or rect.height < MIN_SIDE:
        raise GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, f"{rect} is below 16x16")
    if not fits(rect, width, height):
        raise GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, f"{rect} is not inside {width}x{height}")


def _cursor_pixels(resource: Image | Blob) -> bytes | None:
    """A pointer's image: an image of 64 x 64, or a blob's first 16 KiB, if it has them (K04 to
    K09); None where there is no such image."""
    if isinstance(resource, Image):
        surface = resource.surface
        if surface.width == CURSOR_SIDE and surface.height == CURSOR_SIDE:
            return b"".join(surface.rows(Rect(0, 0, CURSOR_SIDE, CURSOR_SIDE)))
        return None
    if resource.backing is None or resource.size < CURSOR_BYTES:
        return None
    try:
        pixels = resource.backing.read(0, CURSOR_BYTES)
    except GuestError:  # its memory was unplugged: no answer could say so
        return None
    return pixels if len(pixels) == CURSOR_BYTES else None
