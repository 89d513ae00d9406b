# SPDX-License-Identifier: Apache-2.0
"""Models, wishes and holders over the death of the daemon."""
import errno
import grp
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import (BUILD, HeldDaemon, close_all, list_fds, need_hooks, opened, slowness,
                      wait_until)
from sharded import Sharded
from store import StoredDaemon, kcmp_errno, source_in

MIB = 1 << 20
POINTS = ["filled", "stored", "parked", "published", "dropping", "unstored"]

READER = """
import hashlib, sys, distorch
d = distorch.connect(sys.argv[1])
weights = [d.open(path) for path in sys.argv[2:]]
def sums():
    return [hashlib.sha256(w[name].buffer).hexdigest() for w in weights for name in w.keys()]
first = sums()
print("READY", flush=True)
for line in sys.stdin:
    if line.strip() == "close":
        for w in weights:
            w.close()
        weights = []
    print("same" if sums() == first or not weights else "DIFFERENT", flush=True)
"""


def by_name(daemon):
    return {model["name"]: model for model in daemon.models()}


def show(daemon, name):
    with daemon.raw() as raw:
        return raw.call("show", {"model": name})


def held_bytes(daemon):
    return daemon.status()["devices"][0]["held"]


@pytest.mark.fault("S01")
def test_models_and_their_users_outlive_kill_9(held, make_model, child):
    paths = [make_model(f"m{i}.safetensors", size=4 * MIB, seed=i) for i in range(3)]
    readers = [child(READER, held.socket, *paths) for _ in range(5)]
    before = held.status()
    held.kill_daemon()
    after = held.status()
    assert after["epoch"] != before["epoch"] and after["restarts"] == before["restarts"] + 1
    assert after["survives_restart"] and after["bytes_read"] == 0, "nothing was read again"
    for path in paths:
        assert show(held, path.name)["loaded_from"] == "store"
    # The readers come back by themselves: their leases count as use, nothing as left behind.
    wait_until(lambda: [model["leases"] for model in held.models()] == [5, 5, 5],
               5 * slowness(), "the leases asserted again")
    assert [reader.ask("look") for reader in readers] == ["same"] * 5
    assert [reader.ask("close") for reader in readers] == ["same"] * 5
    wait_until(lambda: [model["leases"] for model in held.models()] == [0, 0, 0])
    held.unload_all()
    wait_until(lambda: held.status()["devices"][0]["used"] == 0, what="all bytes back")


def test_what_was_said_of_a_model_is_known_afterwards(held, make_model):
    path = make_model()
    with held.raw() as raw:
        raw.load(path, policy={"pin": True, "keep": True, "priority": 7, "ttl_ms": 3_600_000})
    held.kill_daemon()
    held.kill_daemon()
    model = by_name(held)[path.name]
    assert model["pinned"] and model["keep"] and model["priority"] == 7
    assert 3_000_000 < model["ttl_left_ms"] <= 3_600_000


def test_who_died_with_the_daemon_holds_nothing(held, make_model, child):
    reader = child(READER, held.socket, make_model())
    pid = held.daemon_pid()
    os.kill(held.pid, signal.SIGSTOP)  # the holder sleeps: the daemon stays dead for a while
    os.kill(pid, signal.SIGKILL)
    reader.end()
    os.kill(held.pid, signal.SIGCONT)
    held.wait_for_another(pid)
    assert held.models()[0]["leases"] == 0
    held.unload_all()
    wait_until(lambda: held.status()["devices"][0]["used"] == 0)
    assert held_bytes(held) == 0


def test_what_was_unmapped_meanwhile_is_not_held(held, make_model, child):
    reader = child(READER, held.socket, make_model())
    pid = held.daemon_pid()
    os.kill(held.pid, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    assert reader.ask("close") == "same"
    os.kill(held.pid, signal.SIGCONT)
    held.wait_for_another(pid)
    held.unload_all()
    wait_until(lambda: held.status()["devices"][0]["used"] == 0, 5 * slowness(),
               "the bytes that a living process has unmapped")


def test_who_does_not_come_back_holds_his_bytes_until_he_is_gone(held, make_model):
    path = make_model(size=2 * MIB)
    raw = held.raw()  # no library: nobody asserts the lease again
    with opened(path) as fd:
        result, fds = raw.call_fds("load", {"attach": True, "map": True}, [fd])
    held.kill_daemon()
    holders = show(held, path.name)["clients"]
    assert [client["pid"] for client in holders] == [os.getpid()]
    assert holders[0]["held_bytes"] >= 2 * MIB
    # Its word by the epoch and number that it knows ends that.
    with held.raw() as again:
        again.call("unmapped", {"lease": result["lease"], "epoch": raw.server["epoch"]})
    assert not show(held, path.name).get("clients")
    close_all(fds)
    raw.close()


def test_a_lease_is_asserted_again_once(held, make_model):
    path = make_model()
    raw = held.raw()
    with opened(path) as fd:
        result, fds = raw.call_fds("load", {"attach": True, "map": True}, [fd])
    held.kill_daemon()
    with held.raw() as again:
        params = {"lease": result["lease"], "epoch": raw.server["epoch"]}
        lease = again.call("attach", params, [fds[1]])["lease"]
        model = by_name(held)[path.name]
        assert model["leases"] == 1
        again.call("detach", {"lease": lease})
        assert not show(held, path.name).get("clients"), "the old lease went with the new one"
        for wrong in (fds[0], raw.sock.fileno()):
            with pytest.raises(Exception, match="not-resident|bad-fd"):
                again.call("attach", params, [wrong])
        with pytest.raises(Exception, match="bad-argument"):
            again.call("attach", {"lease": 1}, [fds[1]])
    close_all(fds)
    raw.close()


@pytest.mark.fault("M07")
def test_bytes_that_changed_unseen_are_found_and_loaded_again(held, make_model, distorch):
    need_hooks()
    path = make_model(size=2 * MIB)
    with distorch.connect(str(held.socket)) as d:
        weights = d.open(str(path))
        assert held.tell("corrupt 1000000") == "ok"
        held.kill_daemon()
        wait_until(lambda: show(held, path.name)["loaded_from"] == "file", 5 * slowness(),
                   "the copy read anew from the parked source")
        del weights
    with held.raw() as raw:
        assert raw.call("verify")["checks"][0]["ok"]


@pytest.mark.fault("S02")
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_moment_leaves_a_model_whole_or_absent(held, make_model, point):
    kept = make_model("kept.safetensors", seed=1)
    moved = make_model("moved.safetensors", seed=2)
    with held.raw() as raw:
        raw.load(kept)
        if point in ("dropping", "unstored"):
            raw.load(moved)
        raw.call("ping")  # the load's own points are behind it
    pid = held.daemon_pid()
    held.die_at(point)
    with pytest.raises((ConnectionError, OSError)), held.raw() as raw:
        if point in ("dropping", "unstored"):
            raw.call("unload", {"select": {"models": [moved.name]}})
            time.sleep(0.5)
            raw.call("ping")
        else:
            raw.load(moved)
            raw.call("ping")
    held.wait_for_another(pid)
    assert not held.point.exists(), "the point was never reached"
    states = {name: model["state"] for name, model in by_name(held).items()}
    assert states.pop(kept.name) == "resident"
    assert states.get(moved.name, "resident") == "resident"
    with held.raw() as raw:
        raw.load(moved)
        assert all(check["ok"] for check in raw.call("verify")["checks"])


@pytest.mark.fault("S11")
def test_a_model_that_kills_every_start_is_given_up(held, make_model):
    with held.raw() as raw:
        for number in range(3):
            raw.load(make_model(f"m{number}.safetensors", seed=number))
    held.die_at("adopted:3:ever")
    held.kill_daemon()
    held.point.unlink()
    assert len(held.models()) == 2, "the one that was looked at when it died is given up"
    assert "two starts ended while it was looked at" in held.log()


@pytest.mark.fault("S11")
def test_a_start_that_never_gets_ready_becomes_an_empty_one(held, make_model):
    with held.raw() as raw:
        for number in range(3):
            raw.load(make_model(f"m{number}.safetensors", seed=number))
    held.die_at("adopted:1:ever")
    held.kill_daemon()
    held.point.unlink()
    assert held.models() == [] and "starting empty" in held.log()
    with held.raw() as raw:
        raw.load(make_model("m9.safetensors", seed=9))


def test_a_holder_that_is_killed_takes_only_the_safety(held, make_model):
    path = make_model()
    pid = held.daemon_pid()
    with held.raw() as raw:
        raw.load(path)
        os.kill(held.pid, signal.SIGKILL)
        held.process.wait(10)
        wait_until(lambda: not raw.call("status")["survives_restart"], 5 * slowness(),
                   "the warning")
        raw.load(make_model("other.safetensors", seed=3))
        assert len(raw.call("list")["models"]) == 2
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: _has_ended(pid), 5 * slowness(), "its end")
    held.is_checked = False  # its own end was the case


def _has_ended(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:  # init may have waited for it at any moment
        return True


def test_an_upgrade_keeps_everything(held, make_model, child):
    path = make_model(size=4 * MIB)
    reader = child(READER, held.socket, path)
    pid = held.daemon_pid()
    os.kill(held.pid, signal.SIGUSR1)
    held.wait_for_another(pid)
    assert show(held, path.name)["loaded_from"] == "store"
    assert reader.ask("look") == "same"


@pytest.mark.parametrize("left", ["nothing", "a dead socket", "a file"])
def test_a_socket_whose_name_is_gone_gets_it_back(held, make_model, left):
    path = make_model()
    with held.raw() as raw:
        raw.load(path)
    pid = held.daemon_pid()
    held.socket.unlink()
    if left == "a dead socket":
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.bind(str(held.socket))
    elif left == "a file":
        held.socket.touch()
    os.kill(held.pid, signal.SIGUSR1)
    if left == "a file":  # not ours to remove: it costs no model
        wait_until(lambda: "exists and is not a socket" in held.log(), what="the warning")
        held.socket.unlink()
        pid = wait_until(held.daemon_pid)
        os.kill(held.pid, signal.SIGUSR1)
    held.wait_for_another(pid)
    made = held.socket.stat().st_ino
    held.kill_daemon()
    assert held.socket.stat().st_ino == made, "the new one is kept as the old one was"
    assert show(held, path.name)["loaded_from"] == "store"
    with held.raw() as raw:
        assert [line["name"] for line in raw.call("store")["parked"]].count("sock") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a socket to other groups: needs root")
def test_who_may_connect_is_what_is_said_now(start_daemon, tmp_path):
    def rights():
        made = held.socket.stat()
        return made.st_mode & 0o777, made.st_gid

    def say_group(name):
        file.write_text(f"[access]\ngroup = {name}\n")

    one, other = [group for group in grp.getgrall() if group.gr_gid != os.getegid()][:2]
    file = tmp_path / "c.conf"
    say_group(one.gr_name)
    held = start_daemon(arguments=["--config", str(file)], kind=HeldDaemon)
    made = held.socket.stat().st_ino
    assert rights() == (0o660, one.gr_gid)
    say_group(other.gr_name)
    held.socket.chmod(0o666)
    held.kill_daemon()
    assert rights() == (0o660, other.gr_gid)
    say_group("")
    held.kill_daemon()
    assert rights() == (0o660, os.getegid())
    os.chown(held.folder, -1, one.gr_gid)
    held.folder.chmod(0o2755)  # then what is made there is of the folder's group
    held.kill_daemon()
    assert rights() == (0o660, one.gr_gid)
    assert held.socket.stat().st_ino == made


TWICE = """
import array, os, signal, socket, sys
if "LISTEN_FDNAMES" in os.environ:
    open(sys.argv[1], "w").write(os.environ["LISTEN_FDNAMES"])
    sys.exit(0)
hold = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
hold.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])
def say(text, fd):
    hold.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
fd = os.open(sys.argv[0], os.O_RDONLY)
for name, fd in (("first", fd), ("again", os.dup(fd)), ("apart", os.open(sys.argv[0], os.O_RDONLY))):
    say("FDSTORE=1\\nFDNAME=" + name, fd)
ends = os.pipe()
say("BARRIER=1", ends[1])
os.close(ends[1])
os.read(ends[0], 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(kcmp_errno() in (errno.EPERM, errno.ENOSYS), reason="kcmp is refused here, as "
                    "seccomp does in some containers: open files cannot be compared")
def test_hold_keeps_an_open_file_once_as_systemd_does(tmp_path):
    script, names = tmp_path / "twice.py", tmp_path / "names"
    script.write_text(TWICE)
    subprocess.run([BUILD / "bin" / "distorchd-hold", "--", sys.executable, script, names],
                   check=True, timeout=30)
    assert names.read_text() == "first:apart"


# ---- a store that hands back rubbish -------------------------------------------------------


@pytest.fixture
def stored(start_daemon, make_model):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=StoredDaemon)
    with daemon.raw() as raw:
        for number in range(3):
            raw.load(make_model(f"m{number}.safetensors", seed=number))
    daemon.die()
    return daemon


def parts(daemon, number):
    """The entries of the number-th model, by kind."""
    ids = sorted({name.split(".")[1] for name, _fd in daemon.kept if name.startswith("hdr.")})
    mine = {entry[0].split(".")[0]: entry for entry in daemon.kept
            if entry[0].split(".")[1:2] == [ids[number]]}
    source = source_in(daemon.kept, mine["hdr"][1])
    return {**mine, "src": source} if source else mine  # bent before, perhaps


def memfd(content, seal=True):
    import fcntl

    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(fd, content)
    if seal:
        fcntl.fcntl(fd, 1033, 0x1 | 0x2 | 0x4 | 0x8)  # F_ADD_SEALS: seal, shrink, grow, write
    return fd


def bend(daemon, how):
    """Bend what belongs to the first model; returns how many models should come back."""
    mine = parts(daemon, 0)
    other = parts(daemon, 1)
    kept = daemon.kept

    def table():  # what was bent before may be there still, where a kill came early
        return os.pread(mine["hdr"][1], 1 << 20, 0)

    def put(kind, fd):
        kept[kept.index(mine[kind])] = (mine[kind][0], fd)

    if how.startswith("missing "):
        kept.remove(mine[how.split()[1]])
    elif how == "extra":
        kept.append(("what.is.this", memfd(b"x")))
        kept.append(("img.zz.1.0", memfd(b"x")))
        return 3
    elif how == "duplicate":
        kept.extend((name, os.dup(fd)) for name, fd in list(mine.values()))
        return 3
    elif how == "reordered":
        kept.reverse()
        return 3
    elif how == "swapped images":
        put("img", os.dup(other["img"][1]))  # each entry is closed once
    elif how == "swapped tables":
        put("hdr", os.dup(other["hdr"][1]))
    elif how == "renamed":
        kept[kept.index(mine["hdr"])] = ("hdr." + "0" * 32 + ".1", mine["hdr"][1])
    elif how == "unsealed image":
        put("img", memfd(os.pread(mine["img"][1], 1 << 22, 0), seal=False))
    elif how == "another image":
        put("img", memfd(os.pread(mine["img"][1], 1 << 22, 0)))
    elif how == "short image":
        put("img", memfd(b"short"))
    elif how == "flipped table":
        put("hdr", memfd(table()[:200] + bytes([table()[200] ^ 1]) + table()[201:]))
    elif how == "future table":
        put("hdr", memfd(table()[:8] + b"\xff\x00\x00\x00" + table()[12:]))
    elif how == "empty table":
        put("hdr", memfd(b""))
    elif how == "another source":
        put("src", os.open("/etc/passwd", os.O_RDONLY))
    elif how == "a pipe for a table":
        put("hdr", os.pipe()[0])
    elif how == "no ledger":
        daemon.kept[:] = [entry for entry in kept if not entry[0].startswith("ledger.")]
        return 3
    elif how == "bent ledger":
        index = next(i for i, entry in enumerate(kept) if entry[0].startswith("ledger."))
        kept[index] = (kept[index][0], memfd(os.urandom(70000)))
        return 3
    return 2


@pytest.mark.fault("S03", "S13")
@pytest.mark.parametrize("how", [
    "missing hdr", "missing img", "missing src", "extra", "duplicate", "reordered",
    "swapped images", "swapped tables", "renamed", "unsealed image", "another image",
    "short image", "flipped table", "future table", "empty table", "another source",
    "a pipe for a table", "no ledger", "bent ledger"])
def test_a_store_that_hands_back_rubbish_costs_only_that(stored, how):
    n_models = bend(stored, how)
    stored.start()
    models = stored.models()
    assert len(models) == n_models, stored.log()
    with stored.raw() as raw:
        assert all(check["ok"] for check in raw.call("verify")["checks"])
    # What was given up is not parked any more; what was adopted is.
    def is_parked():  # the test's own thread hears of it
        names = [name.split(".")[0] for name in {name for name, _fd in stored.kept}]
        return names.count("hdr") == n_models and names.count("ledger") == 1

    wait_until(is_parked, 5 * slowness(), "what is parked")
    stored.die()
    stored.start()
    assert len(stored.models()) == n_models, stored.log()


def test_what_a_process_maps_of_a_model_that_is_lost_is_told(start_daemon, make_model, child):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=StoredDaemon)
    reader = child(READER, daemon.socket, make_model())
    daemon.die()
    image, = [entry for entry in daemon.kept if entry[0].startswith("img.")]
    daemon.kept.remove(image)
    os.close(image[1])
    daemon.start()
    assert f"pid {reader.process.pid} may map" in daemon.log(), daemon.log()


# ---- files, of which the store takes each once ------------------------------------------------


def kinds(daemon):
    """Those of what is parked, but for the daemon's own."""
    kinds = [name.split(".")[0] for name, _fd in daemon.kept]
    return sorted(kind for kind in kinds if kind not in ("ledger", "sock"))


@pytest.mark.fault("S01")
@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_model_that_became_an_image_is_parked_with_the_same_files(start_daemon, make_model,
                                                                    distorch, tmp_path, is_sharded):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=StoredDaemon)
    model = Sharded(tmp_path / "m").index if is_sharded else make_model()
    n_files = 3 if is_sharded else 1
    with distorch.connect(str(daemon.socket)) as d:
        d.load(model, backing="file")
        name = daemon.models()[0]["name"]
        d.load(model, backing="image")
    wait_until(lambda: show(daemon, name)["model"]["generation"] == 2, 10 * slowness(), "an image")
    whole = sorted(["hdr"] + ["img", "src"] * n_files + ["idx"] * is_sharded)
    wait_until(lambda: kinds(daemon) == whole, 10 * slowness(), "all of it")
    for life in range(2):
        daemon.die()
        daemon.start()
        assert show(daemon, name)["loaded_from"] == "store", daemon.log()
        assert show(daemon, name)["model"]["generation"] == 2
        with daemon.raw() as raw:
            assert raw.call("store")["descriptors"] == len(whole) + 2
            assert all(check["ok"] for check in raw.call("verify")["checks"])
    with daemon.raw() as raw:
        raw.call("unload", {"select": {"all": True}})
    wait_until(lambda: kinds(daemon) == [], 10 * slowness(), "nothing of it")


@pytest.mark.fault("S01")
def test_an_old_content_and_two_models_of_one_file_need_it_once(start_daemon, make_model, child):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=StoredDaemon)
    path = make_model(size=2 * MIB)
    with opened(path) as fd, daemon.raw() as raw:
        for format in ("auto", "raw"):
            raw.call("load", {"format": format}, [fd])
        reader = child(READER, daemon.socket, path)
        os.utime(path, ns=(1, 1))
        path.write_bytes(make_model("other.safetensors", size=2 * MIB, seed=9).read_bytes())
        raw.call("load", {}, [fd])  # the reader has the old one
    whole = ["hdr"] * 3 + ["img"] * 3 + ["src"]
    wait_until(lambda: kinds(daemon) == whole, 10 * slowness(), "all three")
    daemon.die()
    daemon.start()
    assert [model["state"] for model in daemon.models()] == ["resident"] * 2, daemon.log()
    assert reader.ask("look") == "same" and reader.ask("close") == "same"
    wait_until(lambda: kinds(daemon) == ["hdr"] * 2 + ["img"] * 2 + ["src"], 10 * slowness(),
               "the old content to go, and not the file")
    with daemon.raw() as raw:
        raw.call("unload", {"select": {"models": [daemon.models()[0]["id"]]}})
    wait_until(lambda: kinds(daemon) == ["hdr", "img", "src"], 10 * slowness(), "one of each")
    daemon.die()
    daemon.start()
    assert len(daemon.models()) == 1, daemon.log()


def name_as_before(daemon, generation=None):
    """As a daemon of before parked it: each file once a generation, by the model's id; 'generation':
    of its files systemd has kept those of this one."""
    old = []
    for name, fd in daemon.kept:
        kind, *rest = name.split(".")
        if kind != "hdr":
            old += [(name, fd)] if kind not in ("src", "idx") else []
            continue
        old.append((".".join([kind, *rest[:2]]), fd))
        images = sum(other.startswith(f"img.{rest[0]}.{rest[1]}.") for other, _fd in daemon.kept)
        for number in range(images):
            end = f".{number}" if len(rest) > 2 else ""
            source = source_in(daemon.kept, fd, number)
            old.append((f"src.{rest[0]}.{generation or rest[1]}{end}", os.dup(source[1])))
        if len(rest) > 2:
            index = next(fd for other, fd in daemon.kept
                         if other == ".".join(["idx", *rest[2:]]))
            old.append((f"idx.{rest[0]}.{generation or rest[1]}", os.dup(index)))
    names = {name for name, _fd in old}
    for name, fd in daemon.kept:
        if name.startswith(("src.", "idx.")):
            os.close(fd)
    daemon.kept[:] = old
    return names


@pytest.mark.parametrize("n_files, generation", [(3, None), (3, 7), (1, 7)])
def test_what_a_daemon_of_before_parked_is_taken_over_and_given_up_by_its_names(
        start_daemon, make_model, distorch, tmp_path, n_files, generation):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=StoredDaemon)
    sharded = Sharded(tmp_path / "m", n_files)
    with distorch.connect(str(daemon.socket)) as d:
        d.load(sharded.index)
        d.load(make_model("single.safetensors"))
    daemon.die()
    before = name_as_before(daemon, generation)
    daemon.start()
    assert [one["loaded_from"] for one in (show(daemon, model["name"])
                                           for model in daemon.models())] == ["store"] * 2
    assert {name for name in before if not name.startswith("ledger")} <= \
        {name for name, _fd in daemon.kept}, "all as it was"
    with distorch.connect(str(daemon.socket)) as d:
        with open(sharded.paths[0], "r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(b"changed!")
        d.load(sharded.index)
    whole = sorted(["hdr", "img", "src"] + ["hdr", "idx"] + ["img", "src"] * n_files)
    wait_until(lambda: kinds(daemon) == whole, 10 * slowness(), "the new content's, no file twice")
    daemon.die()
    daemon.start()
    assert len(daemon.models()) == 2, daemon.log()
    with daemon.raw() as raw:
        raw.call("unload", {"select": {"all": True}})
    wait_until(lambda: kinds(daemon) == [], 10 * slowness(), "nothing of it")


def test_what_does_not_fit_any_more_goes_the_pinned_last(stored):
    stored.settings += ["memory.reserve=0"]
    stored.start()
    with stored.raw() as raw:
        raw.call("set", {"model": "m1.safetensors", "policy": {"pin": True}})
    stored.die()
    stored.settings[-1] = "memory.reserve=100%"  # as if somebody else had taken the memory
    stored.start()
    wait_until(lambda: [model["name"] for model in stored.models()] == ["m1.safetensors"],
               what="only the pinned one left")
    wait_until(lambda: sum(name.startswith("img.") for name, _fd in stored.kept) == 1)
    with stored.raw() as raw:
        raw.call("set", {"model": "m1.safetensors", "policy": {"pin": False}})


@pytest.mark.fault("S04")
def test_a_full_store_is_said_and_serves(start_daemon, make_model):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=StoredDaemon,
                          environment={"FDSTORE": "6"})
    with daemon.raw() as raw:
        for number in range(3):
            raw.load(make_model(f"m{number}.safetensors", seed=number))
    notices = [show(daemon, f"m{number}.safetensors").get("notice", "") for number in range(3)]
    assert [("store for descriptors is full" in notice) for notice in notices] == [
        False, True, True]
    daemon.die()
    daemon.start()
    assert [model["name"] for model in daemon.models()] == ["m0.safetensors"]


@pytest.mark.parametrize("how", ["setting", "environment"])
def test_what_is_kept_no_more_is_given_back(start_daemon, make_model, how):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=StoredDaemon)
    with daemon.raw() as raw:
        raw.load(make_model())
    daemon.die()
    if how == "setting":
        daemon.settings += ["restart.keep=no"]
    else:
        daemon.environment["FDSTORE"] = "0"
    daemon.start()
    assert daemon.models() == [] and not daemon.status()["survives_restart"]
    assert "1 models of before the restart are given up" in daemon.log()
    wait_until(lambda: [name for name, _fd in daemon.kept] == ["sock"], 10 * slowness(),
               "the rest to go")
    assert not any("memfd:" in link for link in list_fds(daemon.pid)), "nor does it hold any"
    daemon.die()
    daemon.start()  # by the socket that was kept
    assert daemon.models() == []


@pytest.mark.fault("S04")
@pytest.mark.parametrize("environment, size", [
    ({"FDSTORE": "6", "FDSTORE_DEFAULT": "100"}, 6), ({"FDSTORE_DEFAULT": "7"}, 7),
    ({"FDSTORE": "0", "FDSTORE_DEFAULT": "100"}, 0)])
def test_what_the_manager_says_of_its_store_counts(start_daemon, environment, size):
    class Managed(StoredDaemon):
        def spawn(self, command, told, log):
            told = {key: value for key, value in told.items() if key in environment or
                    key != "FDSTORE"}
            return super().spawn(command, told, log)

    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=Managed,
                          environment=environment)
    with daemon.raw() as raw:
        assert raw.call("store")["max_descriptors"] == size


@pytest.mark.fault("S05")
@pytest.mark.parametrize("address", ["@nobody-listens-here", "/nonexistent/notify", "x", "",
                                     "/" + "a" * 200])
def test_a_notify_socket_that_does_not_answer_is_no_fault(start_daemon, make_model, address):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0",
                          environment={"NOTIFY_SOCKET": address, "FDSTORE": "100"})
    with daemon.raw() as raw:
        raw.load(make_model())
        assert not raw.call("status")["survives_restart"]


@pytest.mark.fault("S05")
def test_a_manager_that_reads_nothing_does_not_block_a_load(start_daemon, make_model):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=StoredDaemon)
    daemon.is_deaf = True
    with daemon.raw() as raw:
        for number in range(2):  # the barrier's time runs out
            raw.load(make_model(f"m{number}.safetensors", seed=number))
            assert raw.call("ping") == {}
        assert "does not survive" in show(daemon, "m1.safetensors")["notice"]
    daemon.is_deaf = False


@pytest.mark.fault("S06")
@pytest.mark.parametrize("environment", [
    {"LISTEN_PID": "1", "LISTEN_FDS": "3"}, {"LISTEN_FDS": "1000000"},
    {"LISTEN_FDS": "-1"}, {"LISTEN_FDS": "x", "LISTEN_PID": "y"}])
def test_descriptors_that_are_not_ours_are_left_alone(start_daemon, environment):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", environment=environment)
    assert daemon.models() == []


@pytest.mark.fault("S10")
@pytest.mark.parametrize("state", ["attached", "closed", "loading"])
def test_sigterm_ends_in_order_whatever_clients_do(start_daemon, make_model, child, state):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", check=False)
    path = make_model(size=2 * MIB)
    raw = daemon.raw()
    with opened(path) as fd:
        _result, fds = raw.call_fds("load", {"attach": True, "map": True}, [fd])
    if state == "closed":
        raw.close()
        daemon.status()  # the close has been seen
    elif state == "loading":
        daemon.tell("fault pread:1:delay=60:ever")
        with opened(make_model("slow.safetensors", size=8 * MIB, seed=4)) as fd:
            raw.request("load", {}, [fd])
    daemon.stop()
    close_all(fds)
    raw.close()
