# SPDX-License-Identifier: Apache-2.0
"""Run a program under the restrictions of a systemd unit, without systemd.

Usage: sandbox.py UNIT FOLDER UID COMMAND...   (as root)

It makes namespaces, mounts, limits and seccomp filters of its own as systemd 252 would, gives
up root and becomes the command, in the same process. FOLDER is the one place that can be
written, as RuntimeDirectory= is. A setting of the unit that is in no list below is an error,
so that none is left out unseen.
"""
import contextlib
import ctypes
import errno
import os
import pathlib
import resource
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18
MOUNT_ATTR_RDONLY, AT_RECURSIVE, AT_FDCWD, SYS_MOUNT_SETATTR = 1, 0x8000, -100, 442
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWUTS = 1 << 17, 1 << 27, 1 << 30, 1 << 26
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 24, 47, 4
ALLOW, NE, MASKED_EQ = 0x7FFF0000, 1, 7
PROT_WRITE, PROT_EXEC, SHM_EXEC, SET_ID_BITS = 2, 4, 0o100000, 0o6000
NAMESPACES = 0x7E020080

# Carried out by enter() whatever they say; the test compares that they say the strict thing.
DONE = {
    "NoNewPrivileges": "yes", "CapabilityBoundingSet": "", "AmbientCapabilities": "",
    "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "PrivateDevices": "yes",
    "PrivateNetwork": "yes", "PrivateMounts": "yes", "ProtectHostname": "yes",
    "ProtectControlGroups": "yes", "ProtectKernelTunables": "yes", "LockPersonality": "yes",
    "RestrictAddressFamilies": "AF_UNIX", "MemoryDenyWriteExecute": "yes",
    "RestrictNamespaces": "yes", "RestrictSUIDSGID": "yes", "SystemCallErrorNumber": "EPERM",
    "UMask": "0077", "LimitCORE": "0", "LimitMEMLOCK": "infinity", "LimitNOFILE": "65536",
    "OOMScoreAdjust": "500", "SystemCallArchitectures": "native",
}
# Follow from the lack of capabilities and from the filter of system calls.
IMPLIED = {"ProtectClock", "ProtectKernelLogs", "ProtectKernelModules", "RestrictRealtime"}
# Need systemd's cgroup, or say nothing that the daemon could notice.
NOT_SHOWN = {"IPAddressDeny", "DevicePolicy", "RemoveIPC", "KeyringMode", "OOMPolicy"}
# Read by the tests themselves, or about how it is started.
ELSEWHERE = {"Type", "NotifyAccess", "ExecStart", "ExecReload", "User", "Group", "Restart",
             "RestartSec", "RestartPreventExitStatus", "TimeoutStartSec", "TimeoutStopSec",
             "WatchdogSec", "FileDescriptorStoreMax", "Environment", "RuntimeDirectory",
             "RuntimeDirectoryMode", "RuntimeDirectoryPreserve", "StateDirectory",
             "StateDirectoryMode", "SystemCallFilter"}


def read_unit(path):
    """[(section, key, value)] of a unit file, in order."""
    found, section = [], ""
    for line in pathlib.Path(path).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith(("#", ";")):
            key, value = line.split("=", 1)
            found.append((section, key, value))
    return found


def must(result, what):
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


# ---- what it sees ----

def mount(source, target, kind=None, flags=0, data=None):
    def text(value):
        return value if value is None else os.fsencode(value)
    must(LIBC.mount(text(source), text(target), text(kind), ctypes.c_ulong(flags), text(data)),
         f"mount {target}")


def set_read_only(path, is_read_only, recursive=True):
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY if is_read_only else 0,
                                       0 if is_read_only else MOUNT_ATTR_RDONLY, 0, 0)
    must(LIBC.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(path),
                      AT_RECURSIVE if recursive else 0, attributes, ctypes.sizeof(attributes)),
         f"make {path} read-only")


def cover(path, mode):
    if os.path.isdir(path):
        mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode}")


def private_devices():
    cover("/mnt", "0755")
    for name in ("null", "zero", "full", "random", "urandom"):
        pathlib.Path("/mnt", name).touch()
        mount(f"/dev/{name}", f"/mnt/{name}", flags=MS_BIND)
    mount("/mnt", "/dev", flags=MS_BIND | MS_REC)


def enter_namespaces(folder):
    must(LIBC.unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWUTS), "unshare")
    mount(None, "/", flags=MS_REC | MS_PRIVATE)
    keep = os.open(folder, os.O_PATH)
    private_devices()
    for path in ("/tmp", "/var/tmp"):
        cover(path, "1777")
    for path in ("/root", "/home", "/run/user"):
        cover(path, "0000")
    os.makedirs(folder, exist_ok=True)
    set_read_only("/", True)
    for path in ("/tmp", "/var/tmp"):
        set_read_only(path, False)
    mount(f"/proc/self/fd/{keep}", folder, flags=MS_BIND)
    set_read_only(folder, False)
    set_read_only("/proc", False, recursive=False)
    for path in ("/proc/sys", "/proc/irq", "/proc/bus"):
        mount(path, path, flags=MS_BIND | MS_REC)
        set_read_only(path, True)
    os.close(keep)


# ---- what it may call ----

class Compare(ctypes.Structure):
    _fields_ = [("argument", ctypes.c_uint), ("how", ctypes.c_int), ("a", ctypes.c_uint64),
                ("b", ctypes.c_uint64)]


class Filter:
    """One seccomp filter, by libseccomp."""

    def __init__(self, otherwise):
        self.lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self.lib.seccomp_init.restype = ctypes.c_void_p
        self.context = ctypes.c_void_p(self.lib.seccomp_init(ctypes.c_uint32(otherwise)))

    def rule(self, action, name, *compares):
        number = self.lib.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # of another architecture, or younger than the library
        array = (Compare * max(len(compares), 1))(*compares)
        must(self.lib.seccomp_rule_add_array(self.context, ctypes.c_uint32(action), number,
                                             len(compares), array), name)

    def load(self):
        must(self.lib.seccomp_load(self.context), "seccomp")


def refuse(number):
    return 0x00050000 | number


def expand(group):
    """The system calls of '@group', groups in it included."""
    if not group.startswith("@"):
        return {group}
    text = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True,
                          text=True, check=True).stdout
    names = [line.strip() for line in text.splitlines()[1:]]
    names = [name for name in names if name and not name.startswith("#")]
    return set().union(*(expand(name) for name in names))


def allowed_calls(values):
    """What the lines of SystemCallFilter= leave: the first says that it is a list of allowed."""
    allowed = set()
    for value in values:
        for name in value.lstrip("~").split():
            allowed = allowed - expand(name) if value.startswith("~") else allowed | expand(name)
    return allowed | expand("@default")


def refuse_details():
    """What several settings of a unit refuse by the arguments of a call."""
    no, again = refuse(errno.EPERM), Filter(ALLOW)
    again.rule(refuse(errno.EAFNOSUPPORT), "socket", Compare(0, NE, 1, 0))
    both = PROT_WRITE | PROT_EXEC
    again.rule(no, "mmap", Compare(2, MASKED_EQ, both, both))
    for name in ("mprotect", "pkey_mprotect"):
        again.rule(no, name, Compare(2, MASKED_EQ, PROT_EXEC, PROT_EXEC))
    again.rule(no, "shmat", Compare(2, MASKED_EQ, SHM_EXEC, SHM_EXEC))
    again.rule(no, "personality")
    for name in ("unshare", "setns"):
        again.rule(no, name)
    again.rule(refuse(errno.ENOSYS), "clone3")
    for bit in range(32):
        if NAMESPACES >> bit & 1:
            again.rule(no, "clone", Compare(0, MASKED_EQ, 1 << bit, 1 << bit))
    for bit in (0o4000, 0o2000):
        for argument, name in ((1, "chmod"), (1, "fchmod"), (2, "fchmodat"), (2, "open"),
                               (3, "openat"), (1, "mkdir"), (2, "mkdirat")):
            again.rule(no, name, Compare(argument, MASKED_EQ, bit, bit))
    again.load()


def enter(unit, folder, uid, extra_refused=()):
    settings = [(key, value) for section, key, value in read_unit(unit) if section == "Service"]
    known = {*DONE, *IMPLIED, *NOT_SHOWN, *ELSEWHERE}
    unknown = {key for key, _value in settings} - known
    assert not unknown, f"the sandbox knows nothing of {unknown}"
    calls = allowed_calls([value for key, value in settings if key == "SystemCallFilter"])
    pathlib.Path("/proc/self/oom_score_adj").write_text("500")
    enter_namespaces(folder)
    os.umask(0o077)
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 65536),
                         (resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY)):
        with contextlib.suppress(ValueError):  # this machine's own limit is lower
            resource.setrlimit(limit, (value, value))
    for capability in range(int(pathlib.Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        must(LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl")
    must(LIBC.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    must(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    allow = Filter(refuse(errno.EPERM))
    for name in sorted(calls - set(extra_refused)):
        allow.rule(ALLOW, name)
    refuse_details()
    allow.load()


if __name__ == "__main__":
    refused = os.environ.pop("SANDBOX_REFUSES", "").split()
    enter(sys.argv[1], sys.argv[2], int(sys.argv[3]), refused)
    os.execv(sys.argv[4], sys.argv[4:])
