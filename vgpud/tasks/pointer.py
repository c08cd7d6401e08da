"""The pointer of one head: its image and place, and what of it QEMU has not been told yet."""

from __future__ import annotations

from vgpud.device.outcome import CursorImage, CursorMove
from vgpud.tasks.outgoing import Outgoing, small
from vgpuwire import GpuRequest, vhost_user_gpu


class Pointer:
    """Only the last image and the last of several moves are sent (row K16)."""

    def __init__(self) -> None:
        self._image: CursorImage | None = None
        self._move: CursorMove | None = None
        self._image_told = self._move_told = True

    def set_image(self, message: CursorImage) -> None:
        self._image, self._move = message, None
        self._image_told, self._move_told = False, True

    def move(self, message: CursorMove) -> None:
        self._move, self._move_told = message, False

    def replay(self) -> None:
        """A new socket: say it again."""
        self._image_told = self._image is None
        self._move_told = self._move is None

    def next(self) -> Outgoing | None:
        """An image before the move that came after it."""
        if not self._image_told and self._image is not None:
            self._image_told = True
            image = self._image
            head = vhost_user_gpu.cursor_update(
                image.scanout_id, image.x, image.y, image.hot_x, image.hot_y
            )
            return small(head + image.pixels)
        if not self._move_told and self._move is not None:
            self._move_told = True
            move = self._move
            request = GpuRequest.CURSOR_POS if move.visible else GpuRequest.CURSOR_POS_HIDE
            return small(vhost_user_gpu.cursor_pos(request, move.scanout_id, move.x, move.y))
        return None
