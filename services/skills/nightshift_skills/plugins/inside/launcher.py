"""Builds the sandbox of one plug-in and guards it: `launcher.py run|probe BUNDLE STATUS [SOCKET]`.

Trusted code of skills in a fresh interpreter (-I -S). Namespaces, an own file system, another user, limits,
no new privileges; then the sandbox's first process, in which child.py goes on with seccomp and Landlock
before it imports the plug-in. This process waits for that one; when skills dies or kills it, the whole
process namespace dies with it.
The descriptors are numbers of inherited files: the bundle (see `load`) and a pipe that takes lines of JSON.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
from typing import Any, NoReturn

_libc = ctypes.CDLL(None, use_errno=True)

NEW = {
    "mount": 0x00020000,
    "cgroup_namespace": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
SYS_MOUNT_SETATTR, SYS_CLOSE_RANGE, SYS_LANDLOCK_CREATE = 442, 436, 444
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 1, 4, 38, 39
SECCOMP_GET_ACTION_AVAIL, SECCOMP_RET_USER_NOTIF = 2, 0x7FC00000
INNER_UID = 1000


class LayerFailed(Exception):
    """A layer could not be put up."""

    def __init__(self, layer: str, error: OSError) -> None:
        super().__init__(f"{layer}: {error.strerror or error}")
        self.layer = layer


def checked(answer: int) -> int:
    """Answer of a libc call. Raises OSError."""
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return answer


def prctl(option: int, value: int) -> int:
    """Sets what is the process's own, with one argument."""
    return checked(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def unshare(flags: int) -> None:
    """Leaves namespaces for new ones."""
    checked(_libc.unshare(flags))


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Puts a file system or a folder somewhere."""
    checked(
        _libc.mount(
            source.encode(),
            target.encode(),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            data.encode() or None,
        )
    )


def restrict(target: str, *, recursive: bool) -> None:
    """Read-only, no set-user-id, no devices; only ever adds to what a mount has (mount_setattr(2))."""
    attributes = struct.pack("=QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    checked(
        _libc.syscall(
            SYS_MOUNT_SETATTR,
            AT_FDCWD,
            target.encode(),
            AT_RECURSIVE if recursive else 0,
            attributes,
            ctypes.c_size_t(len(attributes)),
        )
    )


def load(descriptor: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The bundle: 8 bytes of length, JSON with "files" (path and size each), then the files' bytes."""
    with os.fdopen(descriptor, "rb") as file:
        (length,) = struct.unpack(">Q", file.read(8))
        config = json.loads(file.read(length))
        return config, {path: file.read(size) for path, size in config["files"]}


def build_root(config: dict[str, Any], files: dict[str, bytes]) -> None:
    """A root of its own: interpreter, libraries and the bundle to read, a scratch folder to write."""
    base = config["base"]
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,mode=755")
    for link, target in config["links"]:
        os.makedirs(os.path.dirname(base + link), exist_ok=True)
        if not os.path.lexists(base + link):
            os.symlink(target, base + link)
    for source in config["binds"]:
        target = base + source
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(source, target, None, MS_BIND | MS_REC)
        restrict(target, recursive=True)
    for path in config["hidden"]:
        mount("tmpfs", base + path, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=4k,mode=755")
    for path, content in files.items():
        if not path.startswith("/") or ".." in path.split("/"):
            raise OSError(errno.EINVAL, f"{path} leads out of the sandbox")
        os.makedirs(os.path.dirname(base + path), exist_ok=True)
        with open(base + path, "wb") as file:
            file.write(content)
    os.mkdir(base + "/scratch")
    scratch = f"size={config['scratch_bytes']},nr_inodes=1000,mode=1777"
    mount("tmpfs", base + "/scratch", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, scratch)
    restrict(base, recursive=False)
    os.chdir(base)
    checked(_libc.pivot_root(b".", b"."))
    checked(_libc.umount2(b".", MNT_DETACH))
    os.chdir("/")


def map_user(process: int, outer_uid: int, outer_gid: int) -> None:
    """One user in the new namespace, who is nobody else outside."""
    prctl(PR_SET_DUMPABLE, 1)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{INNER_UID} {outer_uid} 1"),
        ("gid_map", f"{INNER_UID} {outer_gid} 1"),
    ):
        descriptor = os.open(name, os.O_WRONLY, dir_fd=process)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def become(uid: int) -> None:
    """Another user for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # The change of user dropped both.
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_DUMPABLE, 1)


def enclose(config: dict[str, Any], files: dict[str, bytes]) -> None:
    """Namespaces, root and user; raises LayerFailed."""
    process = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    wanted = [layer for layer in config["layers"] if layer in NEW]
    layer = "user"
    try:
        if os.getuid() == 0:
            # The file system is built while we may still read the interpreter, wherever it lies.
            layer = "mount"
            unshare(NEW["mount"])
            build_root(config, files)
            layer = "uid"
            become(config["uid"])
            layer = "user"
            rest = [name for name in wanted if name != "mount"]
            unshare(sum(NEW[name] for name in rest))
            map_user(process, config["uid"], config["uid"])
        else:
            uid, gid = os.getuid(), os.getgid()
            unshare(sum(NEW[name] for name in wanted))
            map_user(process, uid, gid)
            layer = "mount"
            build_root(config, files)
    except OSError as error:
        raise LayerFailed(layer, error) from error
    os.close(process)


def confine(config: dict[str, Any], socket: int) -> NoReturn:
    """In the first process of the sandbox: limits, no privileges, one descriptor, a fresh interpreter."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    for name, value in config["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    # capset(2), version 3: none effective, permitted, inheritable.
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    checked(_libc.capset(header, none))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    os.dup2(socket, 3)
    checked(_libc.syscall(SYS_CLOSE_RANGE, 4, 0xFFFFFFFF, 0))
    os.execve(  # noqa: S606 - the interpreter, without a shell
        config["python"],
        [config["python"], "-I", "-S", "-B", "/sandbox/child.py"],
        {"TMPDIR": "/scratch", "LC_ALL": "C.UTF-8"},
    )


def tell(descriptor: int, **fields: object) -> None:
    """One line to skills."""
    os.write(descriptor, json.dumps(fields).encode() + b"\n")


def run(bundle: int, status: int, socket: int) -> int:
    """Builds, starts, waits."""
    config, files = load(bundle)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Whatever it computes, everything else of this machine comes first.
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    if os.getppid() != config["parent"]:
        return 1
    try:
        if config["cgroup"]:
            try:
                with open(config["cgroup"] + "/cgroup.procs", "w", encoding="ascii") as file:
                    file.write("0")
            except OSError as error:
                raise LayerFailed("cgroup", error) from error
        enclose(config, files)
    except LayerFailed as error:
        tell(status, failed=error.layer, detail=str(error))
        return 1
    pid = os.fork()
    if pid == 0:
        try:
            confine(config, socket)
        except OSError as error:
            tell(status, failed="exec", detail=str(error))
        finally:
            os._exit(1)
    os.close(socket)
    tell(status, started=pid)
    _, code = os.waitpid(pid, 0)
    tell(status, ended=os.waitstatus_to_exitcode(code))
    return 0


def probe(bundle: int, status: int) -> int:
    """Tries each layer in a process of its own; tells which the kernel gives, and why not."""
    config, _ = load(bundle)

    def user() -> None:
        if os.getuid() == 0:
            become(config["uid"])
        unshare(NEW["user"])

    def namespace(name: str) -> None:
        if os.getuid() == 0:
            become(config["uid"])
        unshare(NEW["user"] | NEW[name])

    def mounts() -> None:
        unshare(NEW["mount"] if os.getuid() == 0 else NEW["mount"] | NEW["user"])
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        mount("tmpfs", config["base"], "tmpfs", MS_NOSUID | MS_NODEV, "size=64k")
        restrict(config["base"], recursive=False)

    def privileges() -> None:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        checked(_libc.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0))

    def seccomp() -> None:
        action = ctypes.c_uint32(SECCOMP_RET_USER_NOTIF)
        number = config["seccomp_number"]
        if number < 0:
            raise OSError(38, "the filter does not know this architecture")
        checked(_libc.syscall(number, SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action)))

    def landlock() -> None:
        checked(_libc.syscall(SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))

    tries = {
        "user": user,
        "mount": mounts,
        "pid": lambda: namespace("pid"),
        "net": lambda: namespace("net"),
        "ipc": lambda: namespace("ipc"),
        "no_new_privs": privileges,
        "seccomp": seccomp,
        "landlock": landlock,
    }
    for layer, attempt in tries.items():
        tell(status, layer=layer, error=_tried(attempt))
    return 0


def _tried(attempt: Any) -> str:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
        except OSError as error:
            os.write(writer, (error.strerror or str(error)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read()
    _, code = os.waitpid(pid, 0)
    return said.decode() or ("" if code == 0 else f"ended with {code}")


if __name__ == "__main__":
    descriptors = [int(text) for text in sys.argv[2:]]
    raise SystemExit(run(*descriptors) if sys.argv[1] == "run" else probe(*descriptors))
