"""What is left of the system for a running daemon: its descriptors, and few system calls.

Under QEMU or libvirt there is no unit that would confine it. After the start nothing needs the file
system any more: Landlock takes it away, the filter below all system calls that have no row in it.
"""

from __future__ import annotations

import ctypes.util
import errno
import linecache
import os
import sys
import traceback
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, NamedTuple

from vgpud import _native
from vgpud.errors import HostError
from vgpud.host.fd import Folder, OwnedFd
from vgpuwire import ioctls

PROT_EXEC: Final = 4
CLONE_THREAD: Final = 0x10000
PR_SET_NAME: Final = 15
PR_SET_VMA: Final = 0x53564D41
AF_UNIX: Final = 1
AF_NETLINK: Final = 16
KOBJECT_UEVENT: Final = 15
O_WRITES: Final = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
"""Bits, as the kernel has them (<linux/sched.h>, <linux/prctl.h>)."""

REQUESTS: Final = {
    "SIOCOUTQ": 0x5411,  # whether QEMU has read everything
    "FIONBIO": 0x5421,  # socket.setblocking()
    "FIOCLEX": 0x5451,  # os.set_inheritable()
    "FIONCLEX": 0x5450,
    "TCGETS": 0x5401,  # open() of a descriptor asks whether it is a terminal
    "UDMABUF_CREATE_LIST": ioctls.UDMABUF_CREATE_LIST,
    "VFIO_DEVICE_GET_INFO": ioctls.VFIO_DEVICE_GET_INFO,
    "VFIO_DEVICE_GET_REGION_INFO": ioctls.VFIO_DEVICE_GET_REGION_INFO,
    "VFIO_DEVICE_FEATURE": ioctls.VFIO_DEVICE_FEATURE,
    "DMA_BUF_IOCTL_SYNC": ioctls.DMA_BUF_IOCTL_SYNC,
}
"""The ioctls, by number: <asm-generic/ioctls.h> and vgpuwire.ioctls."""


class Arg(NamedTuple):
    """An argument of a system call, counted from 0: its bits in `mask` must be `value`."""

    number: int
    value: int
    mask: int = 0xFFFFFFFF


class Allow(NamedTuple):
    """System calls that are left, if every argument is as given, and what for."""

    calls: str
    why: str
    arguments: tuple[Arg, ...] = ()


ALWAYS: Final = (
    Allow("recvmsg recvfrom sendmsg sendto shutdown", "sockets: QEMU, its display, vgpuctl"),
    Allow("accept4 accept getsockopt setsockopt getsockname getpeername", "the same"),
    Allow("read readv write writev pread64 lseek", "eventfds, the log, limits of udmabuf"),
    Allow("epoll_wait epoll_pwait epoll_pwait2 epoll_ctl poll ppoll", "waiting"),
    Allow("close dup fcntl fstat newfstatat fstatfs", "descriptors"),
    Allow("readlink readlinkat", "what a descriptor is: /proc/self/fd/N"),
    Allow("memfd_create ftruncate fallocate", "surfaces, screenshots"),
    Allow("pipe2", "vgpuctl trace"),
    Allow(
        "mmap", "guest memory, surfaces, stacks; nothing that could be run", (Arg(2, 0, PROT_EXEC),)
    ),
    Allow("mprotect", "the same", (Arg(2, 0, PROT_EXEC),)),
    Allow("munmap mremap madvise brk mincore", "the same"),
    Allow("futex futex_wait futex_wake sched_yield sched_getaffinity", "threads"),
    Allow("clone", "threads, no process", (Arg(0, CLONE_THREAD, CLONE_THREAD),)),
    Allow("set_robust_list rseq gettid getpid geteuid", "the same"),
    Allow("prctl", "a thread's name", (Arg(0, PR_SET_NAME),)),
    Allow("prctl", "an allocation's name", (Arg(0, PR_SET_VMA),)),
    Allow("rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall", "signals"),
    Allow("clock_gettime clock_getres clock_nanosleep gettimeofday getrandom", "clocks, ids"),
    Allow("getrusage sysinfo", "memory in use"),
    Allow("exit exit_group", "the end"),
    *(Allow("ioctl", name, (Arg(1, number),)) for name, number in REQUESTS.items()),
)
"""What every daemon needs once it has started."""

REMOVE_SOCKETS: Final = Allow("unlink unlinkat", "the sockets that it bound, at the end")
CONNECT: Final = (
    Allow("socket", "QEMU's monitor", (Arg(0, AF_UNIX),)),
    Allow("connect", "the same"),
)
UEVENTS: Final = (
    Allow("socket", "kernel uevents", (Arg(0, AF_NETLINK), Arg(2, KOBJECT_UEVENT))),
    Allow("bind", "the same"),
)
FROM_QEMU: Final = (
    Allow("openat", "QEMU's descriptors in /proc", (Arg(2, os.O_RDONLY, O_WRITES),)),
    Allow("getdents64 getuid getgid", "the same"),
    Allow("pidfd_open pidfd_getfd", "taking one"),
)
"""Needed by some configurations (vgpud/confine.py)."""

NOT_THERE: Final = "clone3"
"""Its flags are in memory, where no filter sees them: the C library then takes clone."""

HOSTILE: Final = (
    *("execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "bpf", "mount"),
    *("open_by_handle_at", "init_module", "finit_module", "kexec_load", "unshare", "setns"),
)
"""What nothing but an attacker asks for: it ends the daemon in any mode."""


def enter(
    mode: str,
    rules: Iterable[Allow] = (),
    readable: Iterable[Folder] = (),
    removable: Iterable[str] = (),
    *,
    traces: bool = False,
) -> dict[str, object]:
    """Give up what is in neither ALWAYS nor `rules`: with mode "on" it fails with EPERM, with
    "kill" it ends the process by SIGSYS. Through `readable` files may still be opened to be read,
    in `removable` they may be removed. All threads of now and later are confined. Returns what is
    in force, for the log. With `traces` there is no Landlock: it forbids pidfd_getfd() and all else
    that is like ptrace() of a process outside.

    Raises HostError where there is no filter; a kernel without Landlock is only told.
    """
    try:
        seccomp = _library()
        _quiet_tracebacks()
        folders = array("i", _open(readable))
        landlock = "off" if traces else _landlock(folders, removable)
        _filter(seccomp, mode, (*ALWAYS, *rules, *map(_opening, folders)))
    except (OSError, RuntimeError, ImportError) as error:
        remedy = "install libseccomp2 (and python3-seccomp, or pyseccomp from PyPI)"
        raise HostError(f"no system call filter: {error}", remedy=remedy) from error
    return {"mode": mode, "landlock": landlock}


def _open(folders: Iterable[Folder]) -> Iterator[int]:
    for folder in folders:
        with suppress(OSError):  # there is no such module
            yield folder.fileno()


def _opening(folder: int) -> Allow:
    """An absolute path would ignore the folder: Landlock then stops it."""
    return Allow("openat", "reading in a folder", (Arg(0, folder), Arg(2, os.O_RDONLY, O_WRITES)))


def _landlock(readable: array[int], removable: Iterable[str]) -> str:
    with ExitStack() as stack:
        folders = array("i")
        for path in removable:
            fd = OwnedFd(os.open(path or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            folders.append(stack.enter_context(fd).fileno())
        try:
            return f"abi-{_native.landlock_restrict(readable, folders)}"
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))


def _filter(seccomp: Any, mode: str, rules: Iterable[Allow]) -> None:
    refuse = seccomp.KILL_PROCESS if mode == "kill" else seccomp.ERRNO(errno.EPERM)
    made = seccomp.SyscallFilter(defaction=refuse)
    made.set_attr(seccomp.Attr.CTL_TSYNC, 1)
    for name, arguments in _calls(rules):
        if _known(seccomp, name):
            found = [seccomp.Arg(n, seccomp.MASKED_EQ, mask, value) for n, value, mask in arguments]
            made.add_rule(seccomp.ALLOW, name, *found)
    made.add_rule(seccomp.ERRNO(errno.ENOSYS), NOT_THERE)
    # tgkill only to ourselves: abort() and faulthandler.
    made.add_rule(seccomp.ALLOW, "tgkill", seccomp.Arg(0, seccomp.EQ, os.getpid()))
    if mode != "kill":
        for name in HOSTILE:
            if _known(seccomp, name):
                made.add_rule(seccomp.KILL_PROCESS, name)
    made.load()


def _calls(rules: Iterable[Allow]) -> Iterator[tuple[str, tuple[Arg, ...]]]:
    for rule in rules:
        for name in rule.calls.split():
            yield name, rule.arguments


def _known(seccomp: Any, name: str) -> bool:
    """Whether this library knows it, and this architecture has it (arm64 has no readlink)."""
    return bool(seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) >= 0)


def _library() -> Any:
    try:
        import seccomp
    except ImportError:
        with _known_libraries():
            import pyseccomp as seccomp
    return seccomp


@contextmanager
def _known_libraries() -> Iterator[None]:
    """pyseccomp looks for the libraries by running ldconfig: 15 ms of each start."""
    find = ctypes.util.find_library
    names = {"c": "libc.so.6", "seccomp": "libseccomp.so.2"}
    ctypes.util.find_library = lambda name: names[name]
    try:
        yield
    finally:
        ctypes.util.find_library = find


def _quiet_tracebacks() -> None:
    """A traceback reads the source of its lines, which would be the end in mode "kill"."""
    linecache.updatecache = lambda *_: []
    sys.excepthook = lambda kind, error, trace: traceback.print_exception(kind, error, trace)
