# SPDX-License-Identifier: Apache-2.0
"""What a host copy lies in: the file's own page cache while it is warm, an image otherwise."""
import contextlib
import fcntl
import hashlib
import os
import pathlib
import signal
import subprocess
import time

import pytest
from conftest import (BUILD, HeldDaemon, RawError, close_all, make_safetensors, opened,
                      need_hooks, slowness, wait_until)
from fuse import FuseFile
from test_ctl import ctl

MIB = 1 << 20
AUTO = ("memory.backing=auto", "memory.ram=64M", "memory.reserve=0")

READER = """
import hashlib, sys, distorch
d = distorch.connect(sys.argv[1])
weights = d.open(sys.argv[2])
def sums():
    return [hashlib.sha256(weights[name].buffer).hexdigest() for name in weights.keys()]
first = sums()
print("READY", flush=True)
for line in sys.stdin:
    if line.strip() == "events":
        events = []
        while (event := d.next_event(timeout=0.05)) is not None:
            events.append(event.type)
        print(events, flush=True)
    else:
        print("same" if sums() == first else "DIFFERENT", flush=True)
"""


@pytest.fixture
def auto(start_daemon):
    return start_daemon(*AUTO)


@pytest.fixture
def held_auto(start_daemon):
    return start_daemon(*AUTO, kind=HeldDaemon)


@pytest.fixture
def local(tmp_path):
    """A folder on a filesystem whose files may serve as they are."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True,
                          check=True).stdout.strip()
    if kind not in ("ext2/ext3", "xfs", "f2fs", "tmpfs"):
        pytest.skip(f"the temporary folder lies on {kind}")
    return tmp_path


@pytest.fixture
def make(make_model, local):
    return make_model


def chill(path):
    """Out of the page cache."""
    with opened(path) as fd:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def where(daemon, name):
    with daemon.raw() as raw:
        model = raw.call("show", {"model": name})["model"]
    return [(place["device"], place["backing"], place["bytes"]) for place in model["where"]]


def backing(daemon, name):
    with daemon.raw() as raw:
        return raw.call("show", {"model": name}).get("backing")


def state(daemon, name):
    return {m["name"]: m["state"] for m in daemon.models(True)}.get(name, "forgotten")


def used(daemon):
    return daemon.status()["devices"][0]["used"]


def becomes(daemon, path, kind):
    wait_until(lambda: [place[1] for place in where(daemon, path.name)] == [kind],
               10 * slowness(), f"backing {kind}")


def mapped(raw, path):
    """All bytes of what serves, by its descriptor, which is given back."""
    result, fds = raw.attach(path)
    data = os.pread(fds[1], os.fstat(fds[1]).st_size, 0)
    let_go(raw, result, fds)
    return data


def let_go(raw, result, fds):
    close_all(fds)
    raw.call("unmapped", {"lease": result["lease"]})
    raw.call("detach", {"lease": result["lease"]})


def rewrite(path, seed):
    """Other content of the same length, in place."""
    data = path.read_bytes()
    with open(path, "r+b") as file:
        file.seek(len(data) - 1000)
        file.write(bytes([seed]) * 1000)


# ---- which one -------------------------------------------------------------------------


def test_a_warm_file_serves_as_it_is_and_costs_no_budget(auto, make):
    path = make(size=200 * MIB)  # of a budget of 64 MiB
    with auto.raw() as raw:
        raw.load(path)
        assert [(d, b) for d, b, _ in where(auto, path.name)] == [("cpu", "file")]
        assert where(auto, path.name)[0][2] >= 200 * MIB and used(auto) == 0
        result, fds = raw.attach(path)
        assert os.fstat(fds[1]).st_ino == path.stat().st_ino, "the file itself"
        assert fcntl.fcntl(fds[1], fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        with pytest.raises(OSError):
            os.write(fds[1], b"x")
        let_go(raw, result, fds)


def test_a_cold_file_becomes_an_image(auto, make):
    path = chill(make(size=8 * MIB))
    with auto.raw() as raw:
        raw.load(path)
    assert backing(auto, path.name) == "image" and used(auto) >= 8 * MIB


def test_half_a_warm_file_becomes_an_image(auto, make):
    path = chill(make(size=16 * MIB))
    with opened(path) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # and nothing ahead of it
        os.pread(fd, 8 * MIB, 0)
    with auto.raw() as raw:
        raw.load(path)
    assert backing(auto, path.name) == "image"


@pytest.mark.parametrize("policy", [{"pin": True}, {"keep": True}])
def test_what_shall_stay_is_an_image_from_the_start(auto, make, policy):
    path = make(size=4 * MIB)
    with auto.raw() as raw:
        raw.load(path, policy=policy)
    assert backing(auto, path.name) == "image"


def test_what_can_be_written_by_its_descriptor_is_not_handed_on(auto, make):
    path = make(size=4 * MIB)
    with auto.raw() as raw, opened(path, os.O_RDWR) as fd:
        raw.call("load", {}, [fd])
        assert backing(auto, path.name) == "image"
    auto.unload_all()
    with auto.raw() as raw, opened(path, os.O_RDWR) as fd:
        with pytest.raises(RawError) as caught:
            raw.call("load", {"backing": "file"}, [fd])
        assert caught.value.code == "bad-fd" and "reading only" in caught.value.error["message"]


def test_a_filesystem_that_may_change_behind_the_kernel_is_copied(auto, start_daemon, tmp_path):
    source = tmp_path / "m.safetensors"
    make_safetensors(source, {"a": ("F32", [MIB])})
    server = FuseFile("quick", source)
    try:
        if server.why_not:
            pytest.skip(server.why_not)
        with auto.raw() as raw:
            server.path.read_bytes()
            raw.load(server.path)
            assert backing(auto, "m") == "image"
            with pytest.raises(RawError) as caught:
                raw.load(server.path, backing="file")
            assert caught.value.code == "unsupported"
            assert "FUSE" in caught.value.error["message"]
        auto.unload_all()
        configured = start_daemon("memory.backing=file")
        with configured.raw() as raw:
            raw.load(server.path)
            assert backing(configured, "m") == "image", "nobody insists"
        configured.unload_all()
    finally:
        server.end()


@pytest.mark.daemon("memory.backing=file")
def test_a_server_that_never_answers_holds_nobody_up(daemon, local):
    """Whatever is asked of such a file is asked on a thread of its own."""
    source = local / "m.safetensors"
    make_safetensors(source, {"a": ("F32", [MIB])})
    server = FuseFile("deaf", source)
    try:
        if server.why_not:
            pytest.skip(server.why_not)
        with daemon.raw() as raw, daemon.raw() as other, opened(server.path) as fd:
            raw.send([0, 77, "load", {"backing": "file", "fds": 1}], [fd])
            for _ in range(20):
                begun = time.monotonic()
                other.call("status")
                assert time.monotonic() - begun < 5 * slowness()
                time.sleep(0.02)
        server.answer()
    finally:
        server.end()


def test_the_word_of_the_request_counts_more_than_the_configuration(start_daemon, make):
    daemon = start_daemon("memory.backing=file", "memory.ram=64M", "memory.reserve=0")
    path = chill(make(size=8 * MIB))
    with daemon.raw() as raw:
        raw.load(path)  # cold: read into the page cache first
        assert backing(daemon, path.name) == "file" and used(daemon) == 0
        raw.load(path, backing="image")
        becomes(daemon, path, "image")
        assert raw.load(path)["model"]["where"][0]["backing"] == "image"
        raw.load(path, backing="file")
        becomes(daemon, path, "file")
        wait_until(lambda: used(daemon) == 0, what="the image's bytes back")
        with pytest.raises(RawError) as caught:
            raw.load(path, backing="cloud")
        assert caught.value.code == "bad-argument"


@pytest.mark.daemon("memory.backing=file")
def test_a_descriptor_of_the_file_is_nobody_elses_to_move_or_set(daemon, make, connect):
    path = make(size=1 * MIB)
    with connect() as one, connect() as other, one.open(path) as mine, other.open(path) as theirs:
        assert backing(daemon, path.name) == "file"
        with os.fdopen(mine.fd(), "rb", 0) as file, os.fdopen(theirs.fd(), "rb", 0) as strange:
            fcntl.fcntl(strange, fcntl.F_SETFL, os.O_NONBLOCK)
            strange.seek(4096)
            assert file.read() == path.read_bytes()
            assert not fcntl.fcntl(file, fcntl.F_GETFL) & os.O_NONBLOCK
            with pytest.raises(OSError):
                os.pwrite(file.fileno(), b"x", 0)


# ---- moving ----------------------------------------------------------------------------


def test_a_pin_makes_an_image_and_nobody_waits_for_it(auto, make, child):
    path = make(size=32 * MIB)
    reader = child(READER, auto.socket, path)
    auto.tell("fault pread:1:delay=60000:ever")  # the image takes its time
    with auto.raw() as raw:
        raw.call("set", {"model": path.name, "policy": {"pin": True}})
        assert mapped(raw, path) == path.read_bytes()
        assert raw.load(path)["source"] == "ram"
        assert where(auto, path.name)[0][1] == "file", "the file serves while the image is made"
        auto.tell("clear x")
        becomes_image_beside(auto, path)
        assert used(auto) >= 32 * MIB
        assert mapped(raw, path) == path.read_bytes()
    assert reader.ask("look") == "same" and "lost" not in reader.ask("events")
    reader.end()
    becomes(auto, path, "image")  # nobody reads the file any more
    with auto.raw() as raw:
        raw.call("set", {"model": path.name, "policy": {"pin": False}})
    time.sleep(0.2)
    assert backing(auto, path.name) == "image", "what is an image stays one"


def becomes_image_beside(daemon, path):
    wait_until(lambda: "image" in [place[1] for place in where(daemon, path.name)],
               10 * slowness(), "an image")


def test_a_pin_that_finds_no_room_leaves_the_file_serving(auto, make):
    path = make(size=128 * MIB)
    with auto.raw() as raw:
        raw.load(path)
        raw.call("set", {"model": path.name, "policy": {"pin": True}})
        wait_until(lambda: daemon_history(raw, path.name)[0]["type"] in ("refused", "load.failed"),
                   what="the refusal in the history")
        assert mapped(raw, path) == path.read_bytes()
        assert backing(auto, path.name) == "file" and state(auto, path.name) == "resident"


def daemon_history(raw, name):
    records = raw.call("events.history", {"model": name})["records"]
    return sorted(records, key=lambda record: -record["seq"])


def locked_kib(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmLck")))


@pytest.mark.skipif("asan" in BUILD.name or "tsan" in BUILD.name,
                    reason="sanitizers turn mlock into nothing")
def test_a_pinned_file_is_locked_and_charged(auto, make):
    path = make(size=16 * MIB)
    with auto.raw() as raw:
        raw.load(path, backing="file", policy={"pin": True})
        assert backing(auto, path.name) == "file"
        assert used(auto) >= 16 * MIB and locked_kib(auto.pid) >= 16 * 1024
        raw.call("set", {"model": path.name, "policy": {"pin": False}})
        wait_until(lambda: used(auto) == 0 and locked_kib(auto.pid) == 0, 10 * slowness(),
                   "the lock to go with the pin")
        raw.call("set", {"model": path.name, "policy": {"pin": True}})
        wait_until(lambda: used(auto) >= 16 * MIB and locked_kib(auto.pid) >= 16 * 1024,
                   10 * slowness(), "the lock to come back")
        assert mapped(raw, path) == path.read_bytes()


def test_files_are_no_victims(auto, make):
    """Giving up what costs nothing makes no room."""
    cached = make("cached.safetensors", size=8 * MIB)
    images = [chill(make(f"i{i}.safetensors", size=30 * MIB, seed=i)) for i in range(3)]
    with auto.raw() as raw:
        raw.load(cached)
        for path in images:
            raw.load(path)
        assert state(auto, cached.name) == "resident"
        assert state(auto, images[0].name) == "registered"
        assert [state(auto, path.name) for path in images[1:]] == ["resident", "resident"]


def test_unloading_and_times_work_alike(auto, make, child):
    path = make(size=4 * MIB)
    with auto.raw() as raw:
        raw.load(path, policy={"ttl_ms": 300})
        wait_until(lambda: state(auto, path.name) == "registered", 5 * slowness(), "its end")
        raw.load(path)
        report = raw.call("unload", {"select": {"all": True}})
        assert [line["name"] for line in report["unloaded"]] == [path.name]
        assert report["unloaded"][0]["bytes"] >= 4 * MIB and report["total_bytes"] == 0
    reader = child(READER, auto.socket, path)
    with auto.raw() as raw:
        report = raw.call("unload", {"select": {"all": True}})
        assert [line["name"] for line in report["held"]] == [path.name]
        assert reader.ask("look") == "same"
    reader.signal(signal.SIGKILL)
    wait_until(lambda: state(auto, path.name) == "registered", what="the copy to go with its user")


def test_the_command_line_says_why_unloading_it_frees_nothing(auto, make):
    path = make(size=4 * MIB)
    for backing, is_cached in ("auto", True), ("image", False):
        assert ctl(auto, "load", path, "--backing", backing).returncode == 0
        told = ctl(auto, "unload", path.name).stdout
        assert told.startswith(f"unloaded  {path.name}  4.0M")
        assert ("in its file's page cache, which the system frees\nFreed 0.\n" in told) == is_cached
        assert ("\nFreed 4.0M.\n" in told) != is_cached, told


def test_there_is_nothing_to_verify(auto, make):
    path = make(size=4 * MIB)
    with auto.raw() as raw:
        raw.load(path)
        with pytest.raises(RawError) as caught:
            raw.call("verify", {"models": [path.name]})
        assert caught.value.code == "unsupported" and "page cache" in caught.value.error["message"]
        assert raw.call("verify", {})["checks"] == []


# ---- files that change -----------------------------------------------------------------


def change_written(path):
    rewrite(path, 7)


def change_cut(path):
    os.truncate(path, path.stat().st_size - 4096)


def change_grown(path):
    with open(path, "ab") as file:
        file.write(b"\0" * 4096)


def change_touched(path):
    os.utime(path)


def change_in_secret(path):
    """Written, and its time of change set back."""
    before = path.stat()
    rewrite(path, 9)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = [change_written, change_cut, change_grown, change_touched, change_in_secret]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("is_told", [True, False], ids=["told", "untold"])
def test_a_file_that_changes_is_served_no_longer(start_daemon, make, child, change, is_told):
    if not is_told:
        need_hooks()
    daemon = start_daemon(*AUTO)
    if not is_told:
        daemon.tell("fault inotify_add_watch:1:ENOSPC:ever")
    path = make(size=4 * MIB)
    reader = child(READER, daemon.socket, path)
    assert backing(daemon, path.name) == "file"
    change(path)
    if is_told:
        wait_until(lambda: state(daemon, path.name) != "resident", 5 * slowness(), "inotify")
        wait_until(lambda: "lost" in reader.ask("events") or change is change_in_secret,
                   5 * slowness(), "the holder's being told")
    with daemon.raw() as raw:
        with pytest.raises(RawError) as caught:
            raw.attach(path)
        assert caught.value.code in ("not-resident", "stale")
        if change in (change_written, change_touched, change_in_secret):
            raw.load(path)
            assert mapped(raw, path) == path.read_bytes()
        else:
            with pytest.raises(RawError) as caught:
                raw.load(path)
            assert caught.value.code == "bad-file"


def test_a_file_without_a_name_serves_those_who_have_it(auto, make, child):
    path = make(size=4 * MIB)
    reader = child(READER, auto.socket, path)
    kept = path.read_bytes()
    path.unlink()
    time.sleep(0.3)
    assert state(auto, path.name) == "resident" and "lost" not in reader.ask("events")
    with auto.raw() as raw:
        result, fds = raw.call_fds("attach", {"model": path.name, "map": True})
        assert os.pread(fds[1], len(kept), 0) == kept
        let_go(raw, result, fds)
    assert reader.ask("look") == "same"


def test_another_file_under_the_name_is_another_model(auto, make, child):
    path = make(size=4 * MIB)
    other = make("other.safetensors", size=4 * MIB, seed=5)
    reader = child(READER, auto.socket, path)
    os.replace(other, path)
    with auto.raw() as raw:
        raw.load(path)
        assert mapped(raw, path) == path.read_bytes()
    assert reader.ask("look") == "same"


def test_a_renamed_file_is_told_to_nobody_and_loads_anew(auto, make, child):
    path = make(size=4 * MIB)
    reader = child(READER, auto.socket, path)
    path.rename(path.with_name("renamed.safetensors"))
    path = path.with_name("renamed.safetensors")
    with auto.raw() as raw:
        raw.load(path)
        assert mapped(raw, path) == path.read_bytes()
    assert reader.ask("look") == "same" and "lost" not in reader.ask("events")


def test_a_flood_of_changes_holds_nobody_up(auto, make):
    path = make(size=4 * MIB)
    with auto.raw() as raw:
        raw.load(path)
        for i in range(3000):
            os.utime(path, ns=(i, i))
        for _ in range(20):
            begun = time.monotonic()
            raw.call("ping")
            assert time.monotonic() - begun < 3 * slowness()
        raw.load(path)
        assert mapped(raw, path) == path.read_bytes()


# ---- what clients see ------------------------------------------------------------------


def test_a_patch_in_place_stays_the_clients_own(auto, make, distorch):
    path = make(size=4 * MIB, n=2)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with distorch.connect(str(auto.socket)) as one, distorch.connect(str(auto.socket)) as two:
        with one.open(path) as mine, two.open(path) as theirs:
            untouched = bytes(theirs["t.0"].buffer)
            mine["t.0"].buffer[0:4] = b"\xff\xff\xff\xff"
            assert bytes(mine["t.0"].buffer)[:4] == b"\xff\xff\xff\xff"
            assert bytes(theirs["t.0"].buffer) == untouched
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_the_right_to_a_file_is_to_read_it(held_auto, make):
    """Who only knows a file's inode gets no lease by it."""
    path = make(size=4 * MIB)
    with held_auto.raw() as raw:
        result, fds = raw.attach(path) if raw.load(path) else None
        epoch = held_auto.status()["epoch"]
        for flags in (os.O_PATH, os.O_WRONLY):
            with opened(path, flags) as fd, pytest.raises(RawError) as caught:
                raw.call("attach", {"lease": result["lease"], "epoch": epoch}, [fd])
            assert caught.value.code == "not-resident"
        let_go(raw, result, fds)


@pytest.mark.parametrize("format", ["gguf", "raw", "memfd"])
def test_every_format_can_serve_as_it_is(auto, local, format):
    if format == "gguf":
        gguf = pytest.importorskip("gguf")
        np = pytest.importorskip("numpy")
        path = local / "m.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_tensor("t", np.arange(4096, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    else:
        path = local / "m.bin"
        make_safetensors(path, {"a": ("F32", [4096])})
    params = {"format": "raw"} if format == "raw" else {}
    with auto.raw() as raw:
        if format == "memfd":
            sealed = os.memfd_create("m", os.MFD_ALLOW_SEALING)
            os.write(sealed, path.read_bytes())
            fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW |
                        fcntl.F_SEAL_WRITE)
            fd = os.open(f"/proc/self/fd/{sealed}", os.O_RDONLY)
            model = raw.call("load", {"name": "m"}, [fd])["model"]
            os.close(fd)
            os.close(sealed)
        else:
            model = raw.load(path, **params)["model"]
        assert model["where"][0]["backing"] == "file"
        result, fds = raw.call_fds("attach", {"model": model["id"], "map": True})
        assert os.pread(fds[1], MIB, 0) == path.read_bytes()
        let_go(raw, result, fds)


# ---- restarts --------------------------------------------------------------------------


def test_a_file_serves_again_after_kill_9_and_is_not_read(held_auto, make, child):
    path = make(size=8 * MIB)
    reader = child(READER, held_auto.socket, path)
    assert backing(held_auto, path.name) == "file"
    held_auto.kill_daemon()
    with held_auto.raw() as raw:
        shown = raw.call("show", {"model": path.name})
        assert shown["loaded_from"] == "store" and shown["backing"] == "file"
        assert held_auto.status()["bytes_read"] == 0 and used(held_auto) == 0
        wait_until(lambda: held_auto.models()[0]["leases"] == 1, 5 * slowness(), "the lease again")
        assert mapped(raw, path) == path.read_bytes()
        lines = raw.call("store")["parked"]
        assert sorted(line["kind"] for line in lines) == ["ledger", "socket", "source", "table"]
    assert reader.ask("look") == "same" and "lost" not in reader.ask("events")
    rewrite(path, 3)
    wait_until(lambda: "lost" in reader.ask("events"), 5 * slowness(), "it is watched again")


@pytest.mark.parametrize("change", CHANGES[:3] + [change_in_secret])
def test_a_file_that_changed_while_the_daemon_was_dead_is_given_up(held_auto, make, child, change):
    path = make(size=8 * MIB)
    other = make("other.safetensors", size=4 * MIB, seed=2)
    reader = child(READER, held_auto.socket, path)
    with held_auto.raw() as raw:
        raw.load(other)
    os.kill(held_auto.pid, signal.SIGSTOP)  # the holder: nobody starts it again for now
    pid = held_auto.daemon_pid()
    os.kill(pid, signal.SIGKILL)
    change(path)
    os.kill(held_auto.pid, signal.SIGCONT)
    held_auto.wait_for_another(pid)
    assert state(held_auto, path.name) == "forgotten" and state(held_auto, other.name) == "resident"
    assert "its file has changed" in held_auto.log()
    wait_until(lambda: "lost" in reader.ask("events"), 10 * slowness(), "the holder's being told")
    with held_auto.raw() as raw:
        assert mapped(raw, other) == other.read_bytes()


def test_a_pin_survives_as_what_it_was(held_auto, make):
    """Kept in memory before, kept in memory after."""
    locked = make("locked.safetensors", size=8 * MIB)
    with held_auto.raw() as raw:
        raw.load(locked, backing="file", policy={"pin": True})
    held_auto.kill_daemon()
    wait_until(lambda: used(held_auto) >= 8 * MIB, 10 * slowness(), "a pin that is kept")
    assert held_auto.models()[0]["pinned"]


@pytest.mark.parametrize("point", ["filled", "stored", "parked", "published", "dropping",
                                   "unstored"])
def test_a_kill_at_any_moment_leaves_a_file_whole_or_absent(held_auto, make, child, point):
    need_hooks()
    path = make(size=4 * MIB)
    other = make("other.safetensors", size=4 * MIB, seed=2)
    reader = child(READER, held_auto.socket, other)
    pid = held_auto.daemon_pid()
    held_auto.die_at(point)
    with contextlib.suppress(RawError, OSError, EOFError), held_auto.raw() as raw:
        raw.load(path)
        raw.call("unload", {"select": {"models": [path.name]}})
    held_auto.wait_for_another(pid)
    assert reader.ask("look") == "same"
    with held_auto.raw() as raw:
        raw.load(path)
        assert mapped(raw, path) == path.read_bytes()
        assert mapped(raw, other) == other.read_bytes()


def test_a_move_that_is_killed_leaves_one_that_serves(held_auto, make, child):
    need_hooks()
    path = make(size=8 * MIB)
    reader = child(READER, held_auto.socket, path)
    for point in ("filled", "stored", "parked", "published"):
        pid = held_auto.daemon_pid()
        held_auto.die_at(point)
        with contextlib.suppress(RawError, OSError, EOFError), held_auto.raw() as raw:
            raw.load(path, backing="image" if backing(held_auto, path.name) == "file" else "file")
        held_auto.wait_for_another(pid)
        assert reader.ask("look") == "same"
        with held_auto.raw() as raw:
            raw.load(path)
            assert mapped(raw, path) == path.read_bytes()


# ---- the command line ------------------------------------------------------------------


def test_the_command_line_says_cache(auto, make):
    path = make(size=4 * MIB)

    def ctl(*words):
        return subprocess.run([str(BUILD / "bin" / "distorchctl"), "-H", str(auto.socket), *words],
                              capture_output=True, text=True, timeout=60)

    assert " into cache in " in ctl("load", str(path)).stdout
    assert " is in cache already" in ctl("load", str(path)).stdout
    assert " cache " in ctl("ps").stdout
    assert "page cache" in ctl("show", path.name).stdout
    refused = ctl("verify", path.name)
    assert refused.returncode == 7 and "page cache" in refused.stderr
    assert "--backing image" in refused.stderr
    assert " into ram in " in ctl("load", "--backing", "image", str(path)).stdout
    assert " ram " in ctl("ps").stdout
    assert ctl("load", "--backing", "cloud", str(path)).returncode == 2
