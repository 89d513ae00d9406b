# SPDX-License-Identifier: Apache-2.0
"""Files that serve as they are, and who would make something else of that."""
import contextlib
import ctypes
import fcntl
import mmap
import os
import signal
import subprocess
import time

import pytest
from conftest import (Daemon, RawError, close_all, make_safetensors, opened, slowness,
                      wait_until)
from test_backing import (AUTO, MIB, READER, auto, backing, becomes, daemon_history, held_auto,
                          let_go, local, locked_kib, make, mapped, rewrite, state, used, where)
from test_time import n_pipes

__all__ = ["auto", "held_auto", "local", "make"]  # fixtures
NOBODY = 65534


class StrangersDaemon(Daemon):
    """A daemon of a user who may not read what is its owner's alone."""

    def command(self):
        return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
                *super().command()]

    def start(self):
        if os.geteuid() != 0:
            pytest.skip("needs root, to be another user")
        os.chown(self.folder, NOBODY, NOBODY)
        self.environment |= {"HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        return super().start()


@contextlib.contextmanager
def stopped(daemon):
    """Whatever happens meanwhile comes to the daemon at once."""
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def write_in_secret(fd):
    """Write, and set the time of it back."""
    before = os.fstat(fd)
    os.pwrite(fd, b"\x77" * 1000, before.st_size - 2000)
    os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))


# ---- what a lease is of ----------------------------------------------------------------


def assert_again(raw, lease, epoch, fd):
    result, fds = raw.call_fds("attach", {"lease": lease, "epoch": epoch}, [fd])
    close_all(fds)
    return result


def test_a_lease_of_an_older_content_is_not_had_again_for_a_newer_one(auto, make):
    """Both lie in one inode: the descriptor alone does not tell which of them is mapped."""
    path = make(size=4 * MIB)
    epoch = auto.status()["epoch"]
    with auto.raw() as raw:
        raw.load(path)
        result, fds = raw.attach(path)
    rewrite(path, 3)
    with auto.raw() as raw:
        raw.load(path)
        with pytest.raises(RawError) as caught:
            assert_again(raw, result["lease"], epoch, fds[1])
        assert caught.value.code == "not-resident"
        with pytest.raises(RawError) as caught:  # by a number that is nobody's
            assert_again(raw, 1 << 40, epoch, fds[1])
        assert caught.value.code == "not-resident"
        raw.call("unmapped", {"lease": result["lease"], "epoch": epoch})
    close_all(fds)


def test_of_two_models_in_one_file_the_right_one_is_leased_again(auto, make):
    path = make(size=4 * MIB)
    epoch = auto.status()["epoch"]
    with auto.raw() as raw:
        models = [raw.load(path)["model"]["id"], raw.load(path, format="raw")["model"]["id"]]
        for model in models:
            with auto.raw() as gone:
                result, fds = gone.call_fds("attach", {"model": model, "map": True})
            wait_until(lambda: raw.call("clients")["clients"], what="the ghost")
            again = assert_again(raw, result["lease"], epoch, fds[1])
            assert again["model"]["id"] == model
            let_go(raw, again, fds)


def test_a_client_that_comes_back_to_another_content_is_told(held_auto, make, child):
    """The daemon dies, the file changes and is loaded anew before its reader is back."""
    path = make(size=8 * MIB)
    reader = child(READER, held_auto.socket, path)
    reader.signal(signal.SIGSTOP)
    held_auto.kill_daemon()
    rewrite(path, 3)
    with held_auto.raw() as raw:
        raw.load(path)
        reader.signal(signal.SIGCONT)
        wait_until(lambda: "lost" in reader.ask("events"), 10 * slowness(), "its being told")
        assert mapped(raw, path) == path.read_bytes()


# ---- what is asked for while something else is under way -------------------------------


def test_who_insists_on_an_image_gets_none_of_a_file_that_others_load(auto, make):
    path = make(size=32 * MIB)
    auto.tell("fault pread:1:delay=60000:ever")
    with auto.raw(timeout=30 * slowness()) as raw, auto.raw(timeout=30 * slowness()) as other:
        with opened(path) as fd:
            first = raw.request("load", {"attach": True, "map": True}, [fd])
            wait_until(lambda: state(auto, path.name) == "loading", what="the load of the file")
            second = other.request("load", {"backing": "image"}, [fd])
        other.call("ping")  # so it has been read
        auto.tell("clear x")
        error, result, _ = other.wait(second)
        assert error is None and result["model"]["where"][0]["backing"] == "image"
        error, result, fds = raw.wait(first)
        assert error is None and os.fstat(fds[1]).st_ino != path.stat().st_ino
        let_go(raw, result, fds)


def test_a_move_that_finds_no_room_is_not_tried_at_each_load(auto, make):
    path = make(size=128 * MIB)
    with auto.raw() as raw:
        raw.load(path)
        with pytest.raises(RawError) as caught:
            raw.load(path, backing="image")
        assert caught.value.code == "no-memory"
        begun = [record["type"] for record in daemon_history(raw, path.name)]
        for _ in range(3):
            assert raw.load(path)["source"] == "ram"
        assert [record["type"] for record in daemon_history(raw, path.name)] == begun


def test_unloading_ends_a_move(auto, make):
    path = make(size=32 * MIB)
    with auto.raw() as raw:
        raw.load(path)
        auto.tell("fault pread:1:delay=100:ever")
        raw.call("set", {"model": path.name, "policy": {"pin": True}})
        report = raw.call("unload", {"select": {"models": [path.name]}})
        assert [line["name"] for line in report["unloaded"]] == [path.name]
        auto.tell("clear x")
        time.sleep(0.5)
        wait_until(lambda: used(auto) == 0, what="the end of what was read last")
        assert state(auto, path.name) == "registered"


def test_pins_that_come_and_go_lock_a_file_once(auto, make):
    """Whoever maps it meanwhile keeps the lock; each pin would otherwise be charged again."""
    path = make(size=16 * MIB)
    with auto.raw() as raw:
        raw.load(path, backing="file", policy={"pin": True})
        held = []
        for _ in range(5):
            held.append(raw.attach(path))
            for pin in (False, True):
                raw.call("set", {"model": path.name, "policy": {"pin": pin}})
                time.sleep(0.1)
        assert used(auto) < 17 * MIB and locked_kib(auto.pid) < 17 * 1024
        raw.call("set", {"model": path.name, "policy": {"pin": False}})
        for result, fds in held:
            let_go(raw, result, fds)
        wait_until(lambda: used(auto) == 0 and locked_kib(auto.pid) == 0, 10 * slowness(),
                   "the lock to go with its last user")
        assert [place[1] for place in where(auto, path.name)] == ["file"]


def test_a_drained_daemon_serves_files_and_moves_none(auto, make):
    path = make(size=8 * MIB)
    other = make("other.safetensors", size=8 * MIB, seed=2)
    with auto.raw() as raw:
        raw.load(path)
        raw.call("drain", {"on": True})
        with pytest.raises(RawError) as caught:
            raw.load(other)
        assert caught.value.code == "busy"
        raw.call("set", {"model": path.name, "policy": {"pin": True}})
        assert mapped(raw, path) == path.read_bytes()
        time.sleep(0.2)
        assert backing(auto, path.name) == "file" and used(auto) == 0


# ---- changes that hide -----------------------------------------------------------------


def test_a_file_without_a_name_that_is_written_serves_no_longer(auto, make, child):
    path = make(size=4 * MIB)
    reader = child(READER, auto.socket, path)
    with opened(path, os.O_RDWR) as fd:
        path.unlink()
        time.sleep(0.2)
        assert state(auto, path.name) == "resident"
        with stopped(auto):
            write_in_secret(fd)
        wait_until(lambda: state(auto, path.name) != "resident", 5 * slowness(), "inotify")
        wait_until(lambda: "lost" in reader.ask("events"), 5 * slowness(), "its being told")


def test_a_name_lost_does_not_hide_what_comes_after(start_daemon, make, child):
    """Also where nothing is told: by the times alone."""
    daemon = start_daemon(*AUTO)
    daemon.tell("fault inotify_add_watch:1:ENOSPC:ever")
    path = make(size=4 * MIB)
    with daemon.raw() as raw, opened(path, os.O_RDWR) as fd:
        model = raw.load(path)["model"]["id"]
        path.unlink()
        result, fds = raw.call_fds("attach", {"model": model, "map": True})
        let_go(raw, result, fds)
        write_in_secret(fd)
        with pytest.raises(RawError) as caught:
            raw.call_fds("attach", {"model": model, "map": True})
        assert caught.value.code == "not-resident"


def test_who_maps_what_was_written_in_secret_is_told(auto, make, child):
    path = make(size=4 * MIB)
    reader = child(READER, auto.socket, path)
    with auto.raw() as raw:
        with opened(path, os.O_RDWR) as fd, stopped(auto):
            # Looked at for this, before the daemon comes to hear of the write.
            number = raw.request("attach", {"model": path.name, "map": True})
            write_in_secret(fd)
        error, _, _ = raw.wait(number)
        assert error["code"] == "not-resident"
    wait_until(lambda: "lost" in reader.ask("events"), 5 * slowness(), "its being told")


def test_a_change_between_reading_and_watching_is_noticed(held_auto, make):
    """Who keeps the descriptors answers late: until then the load is not over."""
    path = make(size=4 * MIB)
    with held_auto.raw() as raw:
        n_before = n_pipes(held_auto)
        os.kill(held_auto.pid, signal.SIGSTOP)
        try:
            with opened(path) as fd:
                number = raw.request("load", {}, [fd])
            wait_until(lambda: n_pipes(held_auto) > n_before, what="its wait for the word")
            rewrite(path, 3)
        finally:
            os.kill(held_auto.pid, signal.SIGCONT)
        error, result, _ = raw.wait(number)
        assert error is None and result["model"]["where"][0]["backing"] == "file"
    wait_until(lambda: state(held_auto, path.name) != "resident", 5 * slowness(), "the change")


def test_a_hole_is_a_change(auto, make, child):
    path = make(size=4 * MIB)
    reader = child(READER, auto.socket, path)
    subprocess.run(["fallocate", "--punch-hole", "--offset", str(MIB), "--length", "4096", path],
                   check=True)
    wait_until(lambda: "lost" in reader.ask("events"), 5 * slowness(), "its being told")


def test_a_memfd_whose_maker_can_write_it_is_copied(auto, local):
    path = local / "m.bin"
    make_safetensors(path, {"a": ("F32", [4096])})
    content = path.read_bytes()
    sealed = os.memfd_create("m", os.MFD_ALLOW_SEALING)
    os.write(sealed, content)
    with contextlib.closing(mmap.mmap(sealed, 0)) as view, auto.raw() as raw:
        fcntl.fcntl(sealed, fcntl.F_ADD_SEALS,
                    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x10)  # F_SEAL_FUTURE_WRITE
        with opened(f"/proc/self/fd/{sealed}") as fd:
            model = raw.call("load", {"name": "m"}, [fd])["model"]
            assert model["where"][0]["backing"] == "image"
            with pytest.raises(RawError) as caught:
                raw.call("load", {"backing": "file"}, [fd])
            assert caught.value.code == "bad-fd" and "sealed" in caught.value.error["message"]
        view[len(content) - 1] ^= 0xff
        result, fds = raw.call_fds("attach", {"model": model["id"], "map": True})
        assert os.pread(fds[1], MIB, 0) == content
        let_go(raw, result, fds)
    os.close(sealed)


def test_many_changes_at_once_are_all_noticed_and_hold_nobody_up(auto, make):
    paths = [make(f"m{i}.safetensors", size=4096, seed=i) for i in range(300)]
    with auto.raw() as raw:
        for path in paths:
            raw.load(path)
        with stopped(auto):  # more than the kernel queues: it says only that there was more
            for path in paths[1::2]:
                os.utime(path)
            for _ in range(120):
                for path in paths[2::2]:
                    os.close(os.open(path, os.O_RDWR))
            os.utime(paths[0])  # that, nothing tells
        for _ in range(20):
            begun = time.monotonic()
            raw.call("ping")
            assert time.monotonic() - begun < 1 * slowness()
        wait_until(lambda: sum(model["state"] == "resident" for model in auto.models(True)) == 149,
                   10 * slowness(), "all that changed to be noticed, and no other")


# ---- whose descriptor it is ------------------------------------------------------------


def test_what_the_daemon_may_not_open_is_copied(start_daemon, local):
    """Else all would be given the descriptor of one: its offset, flags and locks."""
    path = local / "private.safetensors"
    make_safetensors(path, {"a": ("F32", [4096])})
    path.chmod(0o600)
    daemon = start_daemon(*AUTO, kind=StrangersDaemon)
    with daemon.raw() as raw, opened(path) as fd:
        model = raw.call("load", {}, [fd])["model"]
        assert model["where"][0]["backing"] == "image"
        with pytest.raises(RawError) as caught:
            raw.call("load", {"backing": "file"}, [fd])
        assert caught.value.code == "unsupported" and "user" in caught.value.error["message"]
        path.chmod(0o644)
        raw.call("load", {"backing": "file"}, [fd])
        becomes(daemon, path, "file")
        result, fds = raw.attach(path)
        os.lseek(fds[1], 100, os.SEEK_SET)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0, "not the sender's description"
        let_go(raw, result, fds)
        path.chmod(0o600)
        with pytest.raises(RawError) as caught:
            raw.attach(path)
        assert caught.value.code in ("stale", "not-resident")


def test_a_lease_on_the_file_holds_nobody_up(auto, make):
    path = make(size=MIB)
    with auto.raw() as raw, opened(path) as fd:
        raw.load(path)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        assert mapped(raw, path) == path.read_bytes()
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def test_a_scanner_of_opened_files_holds_nobody_up(auto, make):
    """fanotify lets others decide, in their time, whether a file may be opened."""
    path = make(size=MIB)
    libc = ctypes.CDLL(None, use_errno=True)
    scanner = libc.fanotify_init(4, os.O_RDONLY)  # FAN_CLASS_CONTENT
    if scanner < 0:
        pytest.skip(f"no fanotify: {os.strerror(ctypes.get_errno())}")
    try:
        with auto.raw() as raw:
            model = raw.load(path)["model"]["id"]
            if libc.fanotify_mark(scanner, 1, ctypes.c_uint64(0x10000), -100,  # FAN_OPEN_PERM
                                  str(path).encode()) < 0:
                pytest.skip(f"no fanotify: {os.strerror(ctypes.get_errno())}")
            result, fds = raw.call_fds("attach", {"model": model, "map": True})
            let_go(raw, result, fds)
    finally:
        os.close(scanner)  # whatever waits for it goes on
