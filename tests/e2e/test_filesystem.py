# SPDX-License-Identifier: Apache-2.0
"""Where models lie and where the daemon writes: filesystems of all kinds, full, read-only; times
that tell little; files that are gone (X, T04)."""
import contextlib
import errno
import os
import resource
import signal
import socket
import stat
import subprocess
import time

import filesystem
import pytest
from conftest import (BUILD, Daemon, HeldDaemon, RawClient, RawError, close_all,
                      make_safetensors, make_sparse_model, need_hooks, opened, slowness, wait_until)
from filesystem import mounts  # noqa: F401: a fixture
from store import StoredDaemon
from test_restart import READER, show

MIB = 1 << 20
TO_2200_S = 7258118400


def write_model(path, seed, size=MIB):
    make_safetensors(path, {f"t.{i}": ("F32", [size // 16]) for i in range(4)}, seed=seed)
    return path


def image_of(raw, path):
    """(where it came from, its bytes) of a load with a lease, which is given back."""
    with opened(path) as fd:
        result, fds = raw.call_fds("load", {"attach": True, "map": True}, [fd])
    bytes_ = os.pread(fds[1], 64 * MIB, 0)
    close_all(fds)
    raw.call("unmapped", {"lease": result["lease"]})
    raw.call("detach", {"lease": result["lease"]})
    return result["source"], bytes_


# ---- files on filesystems of all kinds ----------------------------------------------------------


@pytest.mark.fault("X07")
@pytest.mark.parametrize("kind", filesystem.ALL)
def test_a_model_loads_from_any_filesystem_and_is_known_again(mounts, daemon, kind):  # noqa: F811
    folder = mounts.make(kind)
    path = write_model(folder / "m.safetensors", 1)
    first = path.read_bytes()
    with daemon.raw() as raw:
        assert image_of(raw, path) == ("disk", first)
        assert image_of(raw, path) == ("ram", first)
        path = path.rename(folder / "renamed.safetensors")
        assert image_of(raw, path) == ("ram", first), "only its name is another"
        if kind == "ext4 folding":
            assert image_of(raw, folder / "RENAMED.safetensors") == ("ram", first)
        write_model(folder / "new", 2)
        (folder / "new").rename(path)
        second = path.read_bytes()
        assert image_of(raw, path) == ("disk", second) and second != first
        # The command line opens it as the library does, with O_DIRECT where there is that.
        copy = write_model(folder / "copy.safetensors", 3, 4 * MIB)
        done = subprocess.run([BUILD / "bin" / "distorchctl", "--socket", daemon.socket, "load",
                               copy], capture_output=True, text=True)
        assert done.returncode == 0 and "Loaded copy.safetensors" in done.stdout, done
        assert image_of(raw, copy) == ("ram", copy.read_bytes())


@pytest.mark.fault("X07")
def test_a_layer_that_is_copied_up_is_the_same_model_or_read_anew(mounts, daemon):  # noqa: F811
    lower, upper, work = (mounts.point(name) for name in ("lower", "upper", "work"))
    content = write_model(lower / "m.safetensors", 1).read_bytes()
    folder = mounts.mount("overlay", mounts.point("merged"), "overlay",
                          f"lowerdir={lower},upperdir={upper},workdir={work}")
    path = folder / "m.safetensors"
    with daemon.raw() as raw:
        assert image_of(raw, path) == ("disk", content)
        os.chmod(path, 0o600)  # copies it up, to another inode
        assert image_of(raw, path)[1] == content
        with open(path, "r+b") as file:
            file.seek(len(content) - 8)
            file.write(b"changed!")
        assert image_of(raw, path)[1] == content[:-8] + b"changed!"


@pytest.mark.fault("T04")
@pytest.mark.parametrize("kind", ["here", "tmpfs"])
def test_any_time_of_a_file_is_good_for_a_key(mounts, daemon, tmp_path, kind):  # noqa: F811
    folder = tmp_path if kind == "here" else mounts.make(kind)
    times = [0, -1, -(1 << 31), (1 << 31) - 1, TO_2200_S]
    times += [1 << 40, -(1 << 40)] if kind == "tmpfs" else []
    path = write_model(folder / "m.safetensors", 1)
    content = path.read_bytes()
    with daemon.raw() as raw:
        for number, seconds in enumerate(times):
            os.utime(path, (seconds, seconds))
            assert path.stat().st_mtime == seconds
            assert image_of(raw, path) == ("disk", content), "another time: perhaps another content"
            assert image_of(raw, path) == ("ram", content)
            assert raw.call("list")["models"][0]["generation"] == number + 1


@pytest.mark.fault("T04")
@pytest.mark.seconds(120)
@pytest.mark.parametrize("kind", ["ext4 whole seconds", "ext2", "vfat", "tmpfs", "xfs", "btrfs"])
def test_a_rewrite_of_the_same_size_in_the_same_second_is_seen(mounts, daemon, kind):  # noqa: F811
    path = mounts.make(kind) / "m.safetensors"
    for attempt in range(20):
        time.sleep(1.05 - time.time() % 1)  # the very beginning of a second
        write_model(path, 1)
        before, first = path.stat(), path.read_bytes()
        with daemon.raw() as raw, opened(path) as fd:
            lease, fds = raw.call_fds("load", {"attach": True, "map": True}, [fd])
            with open(path, "r+b") as file:
                file.seek(-100, os.SEEK_END)
                file.write(bytes(range(100)))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            after = path.stat()
            second = path.read_bytes()
            assert image_of(raw, path)[1] == second != first, attempt
            assert os.pread(fds[1], 64 * MIB, 0) == first, "who had it has what he had"
            close_all(fds)
            raw.call("detach", {"lease": lease["lease"]})
        daemon.unload_all()
        if kind not in ("ext4 whole seconds", "ext2", "vfat") or \
                before.st_ctime_ns == after.st_ctime_ns:
            break  # it was the hard case: nothing that stat says has changed
    assert before.st_mtime_ns == after.st_mtime_ns and before.st_size == after.st_size
    if kind in ("ext4 whole seconds", "ext2", "vfat"):
        assert before.st_ctime_ns == after.st_ctime_ns, "never within one second"


@pytest.mark.fault("T04")
def test_a_file_of_whole_seconds_is_read_once_more_and_then_known(mounts, daemon):  # noqa: F811
    path = write_model(mounts.make("ext4 whole seconds") / "m.safetensors", 1)
    with daemon.raw() as raw:
        content = path.read_bytes()
        assert image_of(raw, path) == ("disk", content)
        time.sleep(max(0.0, path.stat().st_ctime + 3.1 - time.time()))
        daemon.tell("fault pread:1:delay=1:ever")  # counts
        assert image_of(raw, path) == ("ram", content)
        n_reads = int(daemon.tell("hits pread"))
        assert n_reads > 0, "it may have been written after it was read"
        assert image_of(raw, path) == ("ram", content)
        assert int(daemon.tell("hits pread")) == n_reads, "now its times say that it was not"
        assert raw.call("list")["models"][0]["generation"] == 1


@pytest.mark.fault("X06")
def test_a_disk_that_is_gone_in_the_middle_is_an_error_in_words(mounts, daemon):  # noqa: F811
    folder = mounts.make("ext4")
    path = write_model(folder / "m.safetensors", 1, 16 * MIB)
    other = write_model(folder / "other.safetensors", 2)
    with daemon.raw() as raw, opened(path) as fd:
        content = image_of(raw, other)[1]
        os.sync()
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.truncate(mounts.disk_of("ext4"), MIB)
        with pytest.raises(RawError) as caught:
            raw.call("load", {}, [fd])
        error = caught.value.error
        assert error["code"] == "io" and "Input/output error" in error["message"], error
        assert error["detail"]["errno"] == errno.EIO
        assert image_of(raw, other) == ("ram", content), "what is in memory is served"
        wait_until(lambda: raw.call("status")["devices"][0]["used"] ==
                   len(content) // 4096 * 4096 + 4096, what="only that left")


@pytest.mark.fault("X06")
@pytest.mark.parametrize("call", ["pread", "statx"])
def test_a_stale_handle_of_a_share_is_named(daemon, make_model, call):
    path = make_model(size=8 * MIB)
    with daemon.raw() as raw:
        daemon.tell(f"fault {call}:{3 if call == 'pread' else 2}:ESTALE:ever")
        with pytest.raises(RawError) as caught:
            raw.load(path)
        assert caught.value.code == "io" and "Stale file handle" in str(caught.value)
        daemon.tell("clear")
        assert raw.load(path)["source"] == "disk"


# ---- files that are gone --------------------------------------------------------------------


@pytest.mark.fault("X08")
def test_a_deleted_file_stays_served_and_a_load_says_that_it_is_gone(daemon, make_model, child):
    path = make_model(size=2 * MIB)
    content = path.read_bytes()
    reader = child(READER, daemon.socket, path)
    assert "notice" not in show(daemon, path.name)
    path.unlink()
    with daemon.raw() as raw:
        assert "its file is gone" in show(daemon, path.name)["notice"]
        other = RawClient(daemon.socket)
        result, fds = other.call_fds("attach", {"model": path.name, "map": True})
        assert os.pread(fds[1], 64 * MIB, 0) == content, "by its name it is there for all"
        close_all(fds)
        other.call("unmapped", {"lease": result["lease"]})
        other.close()
        done = subprocess.run([BUILD / "bin" / "distorchctl", "--socket", daemon.socket, "load",
                               path], capture_output=True, text=True)
        assert done.returncode != 0 and f"there is no file {path}" in done.stderr, done
        assert reader.ask("look") == "same"
        reader.end()
        raw.call("unload", {"select": {"models": [path.name]}})
        wait_until(lambda: raw.call("status")["devices"][0]["used"] == 0, 5.0 * slowness(),
                   "its memory back")
        # Another file of that name is another model.
        make_model(size=2 * MIB, seed=5)
        assert image_of(raw, path) == ("disk", path.read_bytes())


def test_a_file_that_is_named_like_a_deleted_one_keeps_its_name(daemon, raw, make_model):
    named = make_model("m.safetensors (deleted)", seed=1)
    with opened(named) as fd:
        assert raw.call("load", {}, [fd])["model"]["path"] == str(named)
        named.unlink()
    gone = make_model("n.safetensors", seed=2)
    with opened(gone) as fd:
        gone.unlink()
        make_model("n.safetensors (deleted)", seed=3)  # which is another file
        assert raw.call("load", {}, [fd])["model"]["path"] == str(gone)


@pytest.mark.fault("X08", "M07")
def test_bad_bytes_of_a_deleted_file_are_read_again_from_what_is_open(held, make_model, child):
    need_hooks()
    path = make_model(size=2 * MIB)
    content = path.read_bytes()
    reader = child(READER, held.socket, path)
    path.unlink()
    assert held.tell("corrupt 1000000") == "ok"
    held.kill_daemon()
    wait_until(lambda: show(held, path.name).get("loaded_from") == "file", 10 * slowness(),
               "the copy read anew from the parked source")
    assert "its file is gone" in show(held, path.name)["notice"]
    reader.end()
    with held.raw() as raw:
        result, fds = raw.call_fds("attach", {"model": path.name, "map": True})
        assert os.pread(fds[1], 64 * MIB, 0) == content
        close_all(fds)
        raw.call("unmapped", {"lease": result["lease"]})
        raw.call("detach", {"lease": result["lease"]})


# ---- where the daemon writes ------------------------------------------------------------------


def start_and_end(folder, *arguments, **options):
    """Run distorchd on a socket in the folder until it ends by itself; (code, what it said)."""
    done = subprocess.run([str(BUILD / "bin" / "distorchd"), "--socket", str(folder / "d.sock"),
                           *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=20 * slowness(), **options)
    return done.returncode, done.stdout + done.stderr


def take_all_inodes(folder):
    with contextlib.suppress(OSError):
        for number in range(1000):
            (folder / f"x{number}").touch()


@pytest.mark.fault("X01", "X11")
def test_no_inode_for_the_lock_is_said_with_what_to_do(mounts):  # noqa: F811
    folder = mounts.tmpfs(options="size=1m,nr_inodes=20")
    take_all_inodes(folder)
    code, said = start_and_end(folder)
    assert code == 1 and f"cannot make {folder / 'd.sock.lock'}: no room there, or no inode" in said
    (folder / "x0").unlink()  # one: enough for the lock, not for the socket
    code, said = start_and_end(folder)
    assert code == 1 and f"cannot bind {folder / 'd.sock'}: no room there, or no inode" in said
    assert not list(folder.glob("d.sock*")), "what it made it took away"


@pytest.mark.fault("X01")
def test_a_read_only_folder_is_said_with_what_to_do(mounts):  # noqa: F811
    folder = mounts.tmpfs()
    mounts.mount("tmpfs", folder, "tmpfs", flags=32 | 1)  # MS_REMOUNT | MS_RDONLY
    code, said = start_and_end(folder)
    assert code == 1 and "it cannot be written there; choose another path" in said, said
    code, said = start_and_end(folder / "sub")
    assert code == 1 and f"cannot make the folder {folder / 'sub'}" in said, said


class PlacedDaemon(StoredDaemon):
    """Its socket is in a folder of the test's; kept: it is handed over as systemd does."""

    keeps_socket = False

    def place(self, folder):
        self.socket = folder / "d.sock"
        return self


@pytest.mark.fault("X01")
def test_a_full_folder_costs_only_the_pid_in_the_lock(
        mounts, start_daemon, make_model):  # noqa: F811
    folder = mounts.tmpfs(options="size=64k")
    with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))

    class Here(PlacedDaemon):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.place(folder)

    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=Here)
    daemon.is_checked = False  # the store keeps its socket's name
    assert "d.sock.lock says nothing of pid" in daemon.log()
    with daemon.raw() as raw:
        assert image_of(raw, make_model())[0] == "disk"
    code, said = start_and_end(folder)
    assert code == 1 and "already running, pid unknown" in said, said


@pytest.mark.fault("X01")
@pytest.mark.parametrize("how", ["read-only", "inodes"])
def test_a_socket_of_the_managers_is_served_without_the_extras(
        mounts, start_daemon, make_model, child, how):  # noqa: F811
    folder = mounts.tmpfs(options="size=1m,nr_inodes=20")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / "d.sock"))
    listener.listen(16)
    if how == "inodes":
        take_all_inodes(folder)
    else:
        mounts.mount("tmpfs", folder, "tmpfs", flags=32 | 1)

    class Here(PlacedDaemon):
        keeps_socket = True

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.place(folder)
            self.kept.append(("distorchd.socket", listener.detach()))

    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=Here)
    assert "serving without a lock: cannot make" in daemon.log()
    path = make_model()
    reader = child(READER, daemon.socket, path)
    daemon.die()
    daemon.start()
    wait_until(lambda: [model["leases"] for model in daemon.models()] == [1], 10 * slowness(),
               "its lease asserted again")
    assert reader.ask("close") == "same"


@pytest.mark.fault("X12")
@pytest.mark.parametrize("kind", ["daemon", "held"])
@pytest.mark.parametrize("what", ["symlink", "file", "socket"])
def test_a_name_that_became_something_else_is_left_alone(start_daemon, tmp_path, kind, what):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", check=False,
                          kind=HeldDaemon if kind == "held" else Daemon)
    precious = tmp_path / "precious"
    precious.write_text("precious")
    daemon.socket.unlink()
    other = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if what == "symlink":
        daemon.socket.symlink_to(precious)
    elif what == "file":
        daemon.socket.write_text("precious")
    else:
        other.bind(str(daemon.socket))
        other.listen(1)
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(10 * slowness()) == 0
    assert daemon.socket.is_symlink() if what == "symlink" else daemon.socket.exists()
    assert precious.read_text() == "precious"
    other.close()
    daemon.socket.unlink()


@pytest.mark.fault("X10")
@pytest.mark.parametrize("mask", [0, 0o777])
@pytest.mark.parametrize("whose", ["--system", "--user"])
def test_modes_are_as_meant_whatever_the_umask_says(start_daemon, make_model, whose, mask):

    class Masked(Daemon):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.socket = self.folder / "new" / "d.sock"

        def spawn(self, command, environment, log):
            return subprocess.Popen(["sh", "-c", f"umask {mask:o}; exec \"$@\"", "sh", *command],
                                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    start_new_session=True, env=environment)

    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=Masked, arguments=[whose])
    is_system = whose == "--system"

    def mode(path):
        return stat.S_IMODE(os.stat(path).st_mode)

    assert mode(daemon.socket) == (0o660 if is_system else 0o600)
    assert mode(f"{daemon.socket}.lock") == 0o600
    assert mode(daemon.socket.parent) == (0o755 if os.geteuid() == 0 else 0o700)
    assert mode(daemon.state) == 0o700
    with daemon.raw() as raw:
        result, fds = raw.call_fds("load", {"attach": True, "map": True}, [
            (fd := os.open(make_model(), os.O_RDONLY | os.O_CLOEXEC))])
        assert [mode(f"/proc/self/fd/{one}") for one in fds] == [0o444] * len(fds)
        close_all([fd, *fds])
        raw.call("unmapped", {"lease": result["lease"]})
        raw.call("detach", {"lease": result["lease"]})


# ---- the log ------------------------------------------------------------------------------------


def spawn_with(daemon_class, prepare):
    """A kind of daemon whose standard streams are as 'prepare' leaves them in the new process."""
    class Prepared(daemon_class):
        def spawn(self, command, environment, log):
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    start_new_session=True, env=environment, preexec_fn=prepare)

        def _wait_for_socket(self, seconds=10.0):
            def answers():
                assert self.process.poll() is None, "distorchd ended at start"
                with contextlib.suppress(OSError):
                    RawClient(self.socket).close()
                    return True
            wait_until(answers, seconds * slowness(), "a daemon that answers")

    return Prepared


def close_streams():
    os.closerange(0, 3)


@pytest.mark.fault("X05")
@pytest.mark.parametrize("kind", ["daemon", "held"])
def test_closed_standard_streams_take_nothing_of_a_model(start_daemon, make_model, child, kind):
    base = HeldDaemon if kind == "held" else Daemon
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", "log.level=debug",
                          kind=spawn_with(base, close_streams))
    paths = [make_model(f"m{number}.safetensors", seed=number) for number in range(3)]
    reader = child(READER, daemon.socket, *paths)
    pid = daemon.daemon_pid() if kind == "held" else daemon.pid
    for number in range(3):
        assert os.readlink(f"/proc/{pid}/fd/{number}") == "/dev/null"
    if kind == "held":
        for number in range(3):
            assert os.readlink(f"/proc/{daemon.pid}/fd/{number}") == "/dev/null"
        daemon.kill_daemon()
        assert len(daemon.models()) == 3
    with daemon.raw() as raw:
        assert [image_of(raw, path)[1] == path.read_bytes() for path in paths] == [True] * 3
        assert all(check["ok"] for check in raw.call("verify")["checks"])
    assert reader.ask("close") == "same"


@pytest.mark.fault("X05")
def test_a_log_on_a_full_disk_stops_nothing_and_says_later_what_it_lost(
        mounts, start_daemon, make_model):  # noqa: F811
    folder = mounts.tmpfs(options="size=64k")


    class Logged(Daemon):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.log_path = folder / "log"

    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=Logged)
    with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(100))
    path = make_model()
    with daemon.raw() as raw:
        for number in range(200):  # more lines than fit what is left of its last page
            assert image_of(raw, path)[1]
            raw.call("unload", {"select": {"models": [path.name]}})
        assert daemon.log().count("loaded ") < 200
        (folder / "filler").unlink()
        image_of(raw, path)
    wait_until(lambda: "lines were lost" in daemon.log(), what="the number of lost lines")


@pytest.mark.fault("X05")
def test_a_log_that_nobody_reads_stops_nothing(start_daemon, make_model):
    reading, writing = os.pipe()
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", "log.level=debug",
                          kind=spawn_with(Daemon, lambda: os.dup2(writing, 2)))
    path = make_model(size=64 << 10)
    begun = time.monotonic()
    with daemon.raw() as raw:
        for _ in range(700):  # 64 KiB is what a pipe takes
            raw.load(path)
            raw.call("unload", {"select": {"models": [path.name]}})
    assert time.monotonic() - begun < 20 * slowness()
    os.set_blocking(reading, False)
    said = b""
    while True:
        try:
            said += os.read(reading, 1 << 16)  # a late line may say it already
        except BlockingIOError:
            break
    with daemon.raw() as raw:
        raw.load(path)

    def is_said():
        nonlocal said
        with contextlib.suppress(BlockingIOError):  # nothing more yet
            said += os.read(reading, 1 << 16)
        return b"lines were lost" in said

    wait_until(is_said, what="what was lost")
    close_all([reading, writing])
    with daemon.raw() as raw:  # now its reader is gone altogether
        raw.load(path)
        assert raw.call("ping") == {}


@pytest.mark.fault("X05")
def test_a_journal_that_goes_leaves_the_lines_to_stderr(
        mounts, start_daemon, make_model):  # noqa: F811
    folder = mounts.tmpfs()
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    (folder / "journal").mkdir()
    os.makedirs("/run/systemd", exist_ok=True)
    mounts.mount(folder, "/run/systemd", "none", flags=4096)  # MS_BIND
    journal.bind("/run/systemd/journal/socket")
    journal.settimeout(5.0 * slowness())
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", "log.format=journal")
    path = make_model()
    with daemon.raw() as raw:
        raw.load(path)
        while b"loaded model.safetensors" not in journal.recv(65536):
            pass
        assert "loaded" not in daemon.log()
        for _ in range(300):  # nobody takes them any more: its queue is full
            raw.call("unload", {"select": {"models": [path.name]}})
            raw.load(path)
        journal.close()
        os.unlink("/run/systemd/journal/socket")
        raw.call("unload", {"select": {"models": [path.name]}})
        assert raw.call("ping") == {}
    wait_until(lambda: daemon.log().strip().split("\n")[-1].startswith("distorchd: unloaded"),
               what="the line on stderr")


# ---- a crash ------------------------------------------------------------------------------------


CORE_BYTES = 50 * MIB


def core_is_plain():
    with open("/proc/sys/kernel/core_pattern") as file:
        pattern = file.read().strip()
    return "/" not in pattern and "|" not in pattern


def wait_for_core(folder):
    """The size of the core file in the folder, once its process is gone."""
    cores = list(folder.glob("core*"))
    assert len(cores) == 1, f"no core: {list(folder.iterdir())}"
    return cores[0].stat().st_size, cores[0].stat().st_blocks * 512


@pytest.mark.fault("X09")
@pytest.mark.skipif(not core_is_plain(), reason="cores go to a program here")
@pytest.mark.skipif("asan" in BUILD.name or "tsan" in BUILD.name, reason="shadow memory is dumped")
def test_a_crash_in_the_middle_of_a_large_load_leaves_a_small_core(start_daemon, tmp_path):
    folder = tmp_path / "cwd"
    folder.mkdir()

    class Crashing(Daemon):
        def spawn(self, command, environment, log):
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
                start_new_session=True, env=environment,
                preexec_fn=lambda: resource.setrlimit(
                    resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)))

    daemon = start_daemon("memory.ram=3G", "memory.reserve=0", "load.direct-io=off", kind=Crashing,
                          check=False)
    there = make_sparse_model(tmp_path / "there.safetensors", 400 * MIB)
    half = make_sparse_model(tmp_path / "half.safetensors", 1200 * MIB)
    with daemon.raw(timeout=60.0) as raw, opened(half) as fd:
        raw.load(there)
        daemon.tell("fault pread:300:delay=60000:ever")  # 2 MiB each: in the middle of it
        raw.request("load", {}, [fd])

        def mapped_kib():
            with open(f"/proc/{daemon.pid}/smaps_rollup") as lines:
                return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))

        wait_until(lambda: mapped_kib() > 400 * 1024, 20.0 * slowness(), "much of it mapped")
        assert no_big_mapping_is_dumped(daemon.pid) > 1000 * MIB
        os.kill(daemon.pid, signal.SIGSEGV)
        daemon.process.wait(60 * slowness())
    size, allocated = wait_for_core(folder)
    print(f"core: {allocated} bytes")
    assert allocated < CORE_BYTES and size < 4 << 30


def no_big_mapping_is_dumped(pid):
    """How many bytes of large mappings there are; each is left out of a core."""
    total = size = 0
    with open(f"/proc/{pid}/smaps") as lines:
        for line in lines:
            if line.startswith("Size:"):
                size = int(line.split()[1]) << 10
            elif line.startswith("Rss:"):
                rss = int(line.split()[1]) << 10
            elif line.startswith("VmFlags:") and size >= 64 * MIB and rss > CORE_BYTES // 2:
                assert " dd" in line, f"{size} bytes, {rss} in memory: {line}"
                total += size
    return total


@pytest.mark.fault("X09")
@pytest.mark.skipif(not core_is_plain(), reason="cores go to a program here")
def test_a_client_that_crashes_dumps_no_weights_not_even_patched_ones(daemon, tmp_path, child):
    path = make_sparse_model(tmp_path / "large.safetensors", 400 * MIB)
    victim = child("""
import os, resource, sys, distorch
resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
w = distorch.connect(sys.argv[1]).open(sys.argv[2])
os.chdir(sys.argv[3])
memory = w["zeros"].buffer
for at in range(0, len(memory), 4096):
    memory[at] = 1
print("READY", flush=True)
sys.stdin.readline()
""", daemon.socket, path, tmp_path)
    assert no_big_mapping_is_dumped(victim.pid) >= 400 * MIB
    victim.signal(signal.SIGSEGV)
    victim.process.wait(60 * slowness())
    _size, allocated = wait_for_core(tmp_path)
    print(f"core: {allocated} bytes")
    assert allocated < CORE_BYTES
