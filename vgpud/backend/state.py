"""The back-end's half of one vhost-user connection: messages in, actions and replies out.

The caller's loop, for each message in turn::

    actions = backend.receive(message)      # PeerError: close the session
    for action in actions:
        result = await perform(action)      # the last one's result counts; 0 without actions
    reply = backend.reply(message, result)  # always called; None: nothing is sent

QEMU waits for each reply without a timeout and with its big lock held, so a request that has a
reply is answered exactly: flags 0x5, the request's number, the size that its reader wants
(hw/virtio/vhost-user.c). There is nothing to close here: a session that ends, wherever it is,
drops this object.

A ring's own states are in `ring`, what a message means for all rings in `rings`, the rules of the
memory table in `memory`, what is offered in `features`, what is of no use to a GPU in `refused`.
"""

from __future__ import annotations

from typing import Any, Final

from vgpud.backend import refused
from vgpud.backend.actions import (
    Action,
    AddRegion,
    CloseFds,
    ConfigWritten,
    Fd,
    RemoveRegion,
    ReplaceMemory,
    SetCall,
    SetErr,
    SetFeatures,
    StartRing,
    StopRing,
    UseDisplay,
    Warn,
)
from vgpud.backend.features import (
    PROTOCOL_FEATURES,
    TRANSPORT_FEATURES,
    check_protocol_features,
    unserved,
)
from vgpud.backend.memory import MAX_SLOTS, MemoryTable, Refusal
from vgpud.backend.ring import RingConfig
from vgpud.backend.rings import NO_MEMORY, Rings
from vgpud.errors import PeerError
from vgpuwire import (
    MAX_SCANOUTS,
    Config,
    ConfigSpace,
    MemRegion,
    MemTable,
    Message,
    ProtocolFeature,
    Request,
    VringAddr,
    VringFd,
    VringState,
)
from vgpuwire.vhost_user import build_reply

_GREETINGS: Final = (
    Request.GET_FEATURES,
    Request.GET_PROTOCOL_FEATURES,
    Request.SET_PROTOCOL_FEATURES,
    Request.SET_OWNER,
)


class VhostUserBackend:
    """What QEMU has said on one connection, and what may come next.

    `features` are the device's own bits (`Feature`); the transport's are added. They,
    `num_capsets` and `num_scanouts` are constant: QEMU asks for them repeatedly. QEMU's
    vhost-user-gpu overrides `num_scanouts`, its generic device shows it to the guest.
    """

    def __init__(
        self,
        features: int,
        protocol_features: int = PROTOCOL_FEATURES,
        *,
        queues: int = 2,
        num_capsets: int = 0,
        num_scanouts: int = 1,
    ) -> None:
        if int(protocol_features) & ~PROTOCOL_FEATURES:
            raise ValueError(f"protocol features {protocol_features:#x}: not all are implemented")
        self.offered: Final = int(features) | TRANSPORT_FEATURES
        self.offered_protocol: Final = int(protocol_features)
        self.features: int | None = None
        """As set by SET_FEATURES; None before it."""
        self._unserved: str | None = None
        self.protocol_features = self.offered_protocol
        """As set by SET_PROTOCOL_FEATURES. Of a front-end that does not greet it is what was
        offered: a QEMU that lost an earlier vgpud goes on with what it negotiated with that one,
        and freezes where its NEED_REPLY is not answered."""
        self.memory = MemoryTable()
        self.rings: Final = Rings(queues)
        self._config: Final = Config(0, 0, num_scanouts, num_capsets, 0).encode()
        self._status = 0
        self._greeted: bool | None = None  # None: no message came yet
        # Of the message being served: its own reply, what reply() completes, whether it is a nack.
        self._answer: object = None
        self._next_memory: MemoryTable | None = None
        self._starting: RingConfig | None = None
        self._stopping: RingConfig | None = None
        self._nack = False

    def receive(self, message: Message[Fd]) -> list[Action[Fd]]:
        """Take one message; its actions come next, then reply().

        Raises PeerError where the session must end; the caller then still owns the message's
        fds. Anything else that is raised is a bug.
        """
        self._answer = self._next_memory = self._starting = self._stopping = None
        self._nack = False
        if self._greeted is None:
            self._greeted = message.request in _GREETINGS
            if self._greeted:
                self.protocol_features = 0
        try:
            return self._dispatch(message)
        except PeerError as error:
            raise PeerError(f"{_name(message)}: {error}") from None

    def reply(self, message: Message[Any], result: int = 0) -> bytes | None:
        """What to send for the message that receive() took, once its actions were carried out.

        `result` is that of the last action: 0 or a refusal; the base for StopRing. None: QEMU
        expects nothing.
        """
        if self._stopping is not None:
            self._answer = self._base(self._stopping, result)
        elif self._starting is not None and result:
            # Acknowledged all the same: a nack (QEMU 11.1) would undo the start of the other
            # ring too, and leave the GPU socket open. The err eventfd tells what happened.
            self._starting.refuse()
            result = 0
        elif self._next_memory is not None and not result:
            self.memory = self._next_memory
        if self._answer is not None:
            return build_reply(message.request, self._answer)
        if not self._acknowledges(message):
            return None
        return build_reply(message.request, int(self._nack or result != 0))

    def _dispatch(self, message: Message[Fd]) -> list[Action[Fd]]:
        fds = message.fds
        match message.request, message.payload:
            case ((Request.SET_OWNER | Request.RESET_OWNER), _):
                return []  # RESET_OWNER: deprecated, "back-ends should ignore it"
            case Request.GET_FEATURES, _:
                return self._answers(self.offered)
            case Request.SET_FEATURES, int(features):
                self.features, self._unserved = features, unserved(features, self.offered)
                return [SetFeatures(features)]
            case Request.GET_PROTOCOL_FEATURES, _:
                return self._answers(self.offered_protocol)
            case Request.SET_PROTOCOL_FEATURES, int(features):
                check_protocol_features(features, self.offered_protocol)
                self.protocol_features = features
                return []
            case Request.GET_QUEUE_NUM, _:
                return self._answers(len(self.rings))
            case Request.GET_MAX_MEM_SLOTS, _:
                return self._answers(MAX_SLOTS)
            case Request.GET_STATUS, _:
                return self._answers(self._status)
            case Request.SET_STATUS, int(status):
                self._status = status
                return []
            case Request.GET_CONFIG, ConfigSpace() as asked:
                return self._get_config(asked)
            case Request.SET_CONFIG, ConfigSpace() as written:
                return self._set_config(written)
            case (
                (Request.SET_MEM_TABLE | Request.ADD_MEM_REG | Request.REM_MEM_REG),
                (MemTable() | MemRegion()),
            ):
                return self._change_memory(message)
            case Request.GPU_SET_SOCKET, _:
                return [UseDisplay(fds[0], live=self.rings[0].started)]
            case Request.RESET_DEVICE, _:
                self._status = 0
                return self.rings.reset_device()
        return self._dispatch_ring(message)

    def _dispatch_ring(self, message: Message[Fd]) -> list[Action[Fd]]:
        fds = message.fds
        match message.request, message.payload:
            case Request.SET_VRING_NUM, VringState(index, num):
                self.rings[index].set_size(num)
                return []
            case Request.SET_VRING_ADDR, VringAddr() as addr:
                self.rings[addr.index].set_addr(addr)
                return []
            case Request.SET_VRING_BASE, VringState(index, num):
                return self.rings.set_base(index, num)
            case Request.GET_VRING_BASE, VringState(index, _):
                self._stopping = self.rings[index]
                return [StopRing(index)] if self._stopping.started else []
            case Request.SET_VRING_ENABLE, VringState(index, num):
                return [self.rings.enable(index, bool(num))]
            case Request.SET_VRING_KICK, VringFd(index, _):
                obstacle = self._unserved or (None if self.memory.regions else NO_MEMORY)
                actions = self.rings.kick(index, fds, self.features, obstacle)
                if isinstance(actions[-1], StartRing):
                    self._starting = self.rings[index]
                return actions
            case Request.SET_VRING_CALL, VringFd(index, _):
                return [SetCall(self.rings[index].index, fds[0] if fds else None)]
            case Request.SET_VRING_ERR, VringFd(index, _):
                return [SetErr(self.rings[index].index, fds[0] if fds else None)]
        self._answer = refused.answer(message)
        return self._refuse(message, "not implemented, and was not offered")

    def _get_config(self, asked: ConfigSpace) -> list[Action[Fd]]:
        # Of the size asked for: 16 bytes up to QEMU 10.0, 20 in 11.1. With another size QEMU
        # shows the guest a device without scanouts.
        data = self._config[asked.offset : asked.offset + asked.size].ljust(asked.size, b"\0")
        return self._answers(ConfigSpace(asked.offset, asked.size, asked.flags, data))

    def _set_config(self, written: ConfigSpace) -> list[Action[Fd]]:
        # QEMU sends its whole image with the guest's bytes patched in. It has handled the only
        # writable field, events_clear, itself.
        if written.offset or written.size < Config.SIZE - 4:  # 10.0 has no blob_alignment
            return []
        image = Config.decode(written.payload.ljust(Config.SIZE, b"\0")[: Config.SIZE])
        if not 0 < image.num_scanouts <= MAX_SCANOUTS:
            return []  # patched by the guest, or by a QEMU whose GET_CONFIG failed
        return [ConfigWritten(image.num_scanouts)]

    def _change_memory(self, message: Message[Fd]) -> list[Action[Fd]]:
        fds = message.fds
        slots = self.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS
        try:
            match message.request, message.payload:
                case Request.SET_MEM_TABLE, MemTable(regions):
                    self._next_memory = MemoryTable.replaced(regions)
                    return [ReplaceMemory(tuple(zip(regions, fds, strict=True)))]
                case Request.ADD_MEM_REG, MemRegion() as region if slots:
                    self._next_memory = self.memory.added(region)
                    return [AddRegion(region, fds[0])]
                case Request.REM_MEM_REG, MemRegion() as region if slots:
                    self._next_memory, known = self.memory.removed(region)
                    return [*_close(fds), RemoveRegion(known)]
        except Refusal as refusal:
            if message.request != Request.REM_MEM_REG and not self._acknowledges(message):
                # QEMU would take silence for consent: the guest would use what is not there.
                raise PeerError(str(refusal)) from refusal
            return self._refuse(message, str(refusal))
        return self._refuse(message, "needs VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS")

    def _base(self, ring: RingConfig, result: int) -> object:
        """The reply to GET_VRING_BASE: of a live ring what StopRing gave, else what it has."""
        if not self._greeted and not ring.described:
            # An earlier vgpud served it. QEMU takes a reply of the wrong size for "unknown" and
            # goes by the used ring's index; 0 would make the guest's old commands run again.
            return b""
        ring.stop(result if ring.started else ring.base)
        return VringState(ring.index, ring.base)

    def _answers(self, value: object) -> list[Action[Fd]]:
        self._answer = value
        return []

    def _refuse(self, message: Message[Fd], reason: str) -> list[Action[Fd]]:
        self._nack = True
        return [*_close(message.fds), Warn(f"{_name(message)}: {reason}")]

    def _acknowledges(self, message: Message[Any]) -> bool:
        return message.need_reply and bool(self.protocol_features & ProtocolFeature.REPLY_ACK)


def _name(message: Message[Any]) -> str:
    request = message.request
    return request.name if isinstance(request, Request) else f"request {request}"


def _close(fds: tuple[Fd, ...]) -> list[Action[Fd]]:
    return [CloseFds(fds)] if fds else []
