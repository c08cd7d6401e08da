"""Which sandbox a configuration gets (host/sandbox.py has the rows), once everything is open."""

from __future__ import annotations

import os
from importlib import import_module

from vgpud import log
from vgpud.config import Config
from vgpud.errors import HostError
from vgpud.host import sandbox
from vgpud.host.fd import FDINFO
from vgpud.host.udmabuf import PARAMETERS


def rules(config: Config) -> list[sandbox.Allow]:
    """What it needs beside sandbox.ALWAYS."""
    found: list[sandbox.Allow] = []
    if _paths(config):
        found.append(sandbox.REMOVE_SOCKETS)
    if config.watches:
        found += sandbox.UEVENTS
    if config.qmp is not None:
        found += sandbox.CONNECT
    if config.vfio_from_qemu:
        found += sandbox.FROM_QEMU
    return found


def confine(config: Config) -> None:
    """Give up the rest. Raises HostError with --sandbox=kill where that cannot be had."""
    if config.sandbox == "off":
        log.warning("no-sandbox", hint="a guest that takes this process over has all its rights")
        return
    if config.watches:
        import_module("pyroute2.netlink.uevent")  # later there is no file to import from
    readable = [FDINFO, PARAMETERS]
    folders = {os.path.dirname(path) for path in _paths(config)}
    try:
        in_force = sandbox.enter(
            config.sandbox, rules(config), readable, folders, traces=config.vfio_from_qemu
        )
    except HostError as error:
        if config.sandbox == "kill":
            raise
        log.warning("sandbox-weak", reason=error)
    else:
        log.debug("sandbox", **in_force)


def _paths(config: Config) -> list[str]:
    """Of the sockets that are ours to remove at the end."""
    return [path for path in (config.socket_path, config.control) if path is not None]
