# SPDX-License-Identifier: Apache-2.0
"""Budgets, eviction and refusals with real memory, and what fails below them (M cases, F31-F33)."""

import contextlib
import errno
import mmap
import os
import pathlib
import resource
import shutil
import threading
import time

import pytest
from conftest import (Daemon, RawError, close_all, list_fds, make_safetensors, make_sparse_model,
                      need_hooks, opened, pattern, slowness, wait_until)
from placed import account, load, make_blocks
from store import StoredDaemon
from test_ctl import ctl

MIB = 1 << 20


def states(daemon):
    return {m["name"]: m["state"] for m in daemon.models(True)}


def image_of(raw, path):
    """All bytes of the model's image; nothing of it is held afterwards."""
    result, fds = raw.attach(path)
    image = os.pread(fds[1], os.fstat(fds[1]).st_size, 0)
    close_all(fds)
    let_go(raw, result)
    return image


def let_go(raw, result):
    raw.call("unmapped", {"lease": result["lease"]})
    raw.call("detach", {"lease": result["lease"]})


def refused(raw, path, **params):
    with pytest.raises(RawError) as caught:
        raw.load(path, **params)
    return caught.value.error


@pytest.mark.fault("M01:budget")
@pytest.mark.daemon("memory.ram=64M")
def test_what_can_never_fit_is_refused_with_numbers_and_nothing_is_evicted(daemon, raw,
                                                                          make_model):
    raw.load(make_model("idle.safetensors", size=16 * MIB))
    error = refused(raw, make_model("huge.safetensors", size=80 * MIB, seed=2))
    detail = error["detail"]
    assert error["code"] == "no-memory" and error["hint"]
    assert detail["need"] >= 80 * MIB and detail["budget"] == 64 * MIB
    assert detail["free"] <= 48 * MIB and detail["evictable"] >= 16 * MIB
    assert detail["need"] > detail["free"] + detail["evictable"]
    assert states(daemon)["idle.safetensors"] == "resident"
    assert daemon.status()["evictions"] == 0 and daemon.status()["refusals"] == 1


@pytest.mark.fault("M11")
def test_a_limit_on_files_is_named_and_no_want_of_memory(daemon, raw, make_model):
    path = make_model(size=8 * MIB)
    before = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (4 * MIB, resource.RLIM_INFINITY))
    error = refused(raw, path)
    assert error["code"] == "too-large" and not error["retryable"]
    assert "ulimit -f" in error["message"] and error["detail"]["errno"] == errno.EFBIG
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, before)
    assert raw.load(path)["source"] == "disk"
    assert daemon.status()["refusals"] == 0


CARD = ("sim.count=1", "sim.memory=64M", "gpu.budget=100%", "memory.ram=16M", "memory.reserve=0")


def fill_holes(image, end):
    """As who maps an image with holes and reads what does not lie there."""
    with mmap.mmap(image, end, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
        assert sum(memory[::mmap.PAGESIZE]) >= 0
    return os.fstat(image).st_blocks * 512


@pytest.mark.daemon(*CARD)
def test_holes_that_whoever_maps_an_image_fills_are_charged(daemon, raw, make_model, tmp_path):
    path = tmp_path / "blocks.safetensors"
    make_blocks(path, [4 * MIB] * 6)
    lease = load(raw, path, "sim:0,*")
    used, on_card = account(raw, "cpu")["used"], account(raw, "sim:0")["used"]
    assert used == os.fstat(lease.images[0]).st_blocks * 512 < 1 * MIB
    taken = fill_holes(lease.images[0], 6 * MIB)
    assert 6 * MIB <= taken < 8 * MIB and account(raw, "cpu")["used"] == taken
    error = refused(raw, make_model("other.safetensors", size=12 * MIB))
    assert error["code"] == "no-memory" and error["detail"]["free"] == 16 * MIB - taken
    assert account(raw, "sim:0")["used"] == on_card and states(daemon)[path.name] == "resident"
    # More than the budget, it goes as soon as nobody uses it; of the card nothing does.
    assert fill_holes(lease.images[0], 24 * MIB) >= 24 * MIB
    let_go(raw, lease.result)
    lease.close(detach=False)
    wait_until(lambda: account(raw, "cpu")["used"] == 0, 10 * slowness(), "an evicted image")
    assert account(raw, "sim:0")["used"] == on_card and states(daemon)[path.name] == "partial"
    with contextlib.closing(load(raw, path)) as again:
        assert account(raw, "cpu")["used"] == os.fstat(again.images[0]).st_blocks * 512 < 1 * MIB


FILLS = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from conftest import RawClient
from placed import load
from test_memory import fill_holes
client = RawClient(sys.argv[2])
lease = load(client, pathlib.Path(sys.argv[3]), "sim:0,*")
print("READY")
input()
taken = fill_holes(lease.images[0], 8 << 20)
client.close()
print(taken)
input()
"""


@pytest.mark.daemon(*CARD)
def test_filled_holes_are_held_and_charged_until_their_process_is_gone(daemon, raw, child,
                                                                      tmp_path):
    path = tmp_path / "blocks.safetensors"
    make_blocks(path, [4 * MIB] * 2)
    filler = child(FILLS, pathlib.Path(__file__).parent, daemon.socket, path)
    taken = int(filler.ask())
    assert taken >= 8 * MIB
    wait_until(lambda: account(raw, "cpu")["used"] == taken, 10 * slowness(), "what is mapped")
    raw.call("unload", {"select": {"all": True}})
    wait_until(lambda: account(raw, "cpu")["held"] == taken, 10 * slowness(), "held bytes")
    filler.end()
    wait_until(lambda: account(raw, "cpu")["used"] == 0, 10 * slowness(), "nothing held")


def is_advised(name):
    """Is the mapping of that image one for which 2 MiB pages were asked?"""
    found = []
    with open("/proc/self/smaps") as lines:
        for line in lines:
            if "-" in line.split(" ", 1)[0]:
                is_ours = f"/memfd:distorch:{name}" in line
            elif is_ours and line.startswith("VmFlags:"):
                found.append("hg" in line.split())
    assert found, "it is mapped"
    return any(found)


@pytest.mark.daemon(*CARD)
def test_nobody_asks_for_huge_pages_where_that_would_fill_holes(daemon, connect, tmp_path):
    path = tmp_path / "blocks.safetensors"
    make_blocks(path, [4 * MIB] * 2)
    with connect() as client:
        with client.open(path, to="sim:0"):
            assert not is_advised(path.name)
        with client.open(path, to="cpu"):
            assert is_advised(path.name) or not os.path.exists("/sys/kernel/mm/transparent_hugepage")


@pytest.mark.daemon("memory.ram=8M", "memory.reserve=0")
def test_how_little_is_lacking_is_told_where_the_numbers_look_the_same(daemon, raw, make_model):
    error = refused(raw, make_model(size=8 * MIB))
    assert "needs 8.0M, budget 8.0M, free 8.0M: 4.0K too little" in error["message"], error


@pytest.mark.fault("M01:available")
def test_what_the_machine_does_not_have_is_refused_whatever_the_budget(start_daemon, make_model):
    daemon = start_daemon("memory.ram=1T", f"memory.reserve={total_memory()}B")
    with daemon.raw() as raw:
        error = refused(raw, make_model(size=8 * MIB))
        assert error["code"] == "no-memory" and error["detail"]["free"] < 8 * MIB
        assert error["detail"]["foreign"] > 0
    planned = ctl(daemon, "plan", make_model("other.safetensors", size=8 * MIB), "cpu")
    assert planned.returncode == 6 and "0 free" in planned.stderr, planned.stderr


class CagedDaemon(Daemon):
    """A daemon in a memory cgroup of its own, of the first generation."""

    limit_bytes = 256 * MIB

    def start(self):
        self.cage = pathlib.Path(f"/sys/fs/cgroup/memory{own_memory_cgroup()}/"
                                 f"distorch-test-{os.getpid()}")
        self.cage.mkdir()
        (self.cage / "memory.limit_in_bytes").write_text(str(self.limit_bytes))
        return super().start()

    def command(self):
        enter = f"echo $$ > '{self.cage}/cgroup.procs' && exec \"$0\" \"$@\""
        return ["sh", "-c", enter, *super().command()]

    def remove(self):
        super().remove()
        wait_until(lambda: not (self.cage / "cgroup.procs").read_text(), what="an empty group")
        self.cage.rmdir()


def own_memory_cgroup():
    for line in open("/proc/self/cgroup"):
        _number, controllers, path = line.strip().split(":", 2)
        if "memory" in controllers.split(","):
            return "" if path == "/" else path
    return None


@pytest.mark.fault("M01:cgroup")
def test_what_the_cgroup_does_not_allow_is_refused_and_nobody_is_killed(start_daemon, tmp_path,
                                                                       make_model):
    group = own_memory_cgroup()
    folder = pathlib.Path(f"/sys/fs/cgroup/memory{group}")
    if group is None or not os.access(folder, os.W_OK):
        pytest.skip("no memory cgroup of the first generation that can be written here")
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=CagedDaemon)
    with daemon.raw() as raw:
        error = refused(raw, make_sparse_model(tmp_path / "large.safetensors", 400 * MIB))
        assert error["code"] == "no-memory" and error["detail"]["need"] >= 400 * MIB
        assert error["detail"]["free"] < daemon.limit_bytes
        assert int((daemon.cage / "memory.failcnt").read_text()) == 0, "it ran into the limit"
        assert raw.load(make_model(size=32 * MIB))["model"]["state"] == "resident"


def total_memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.fault("M02")
def test_a_full_budget_takes_no_page_more_without_a_victim(start_daemon, make_model):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0")
    one = make_model("one.safetensors", size=16 * MIB, seed=1)
    two = make_model("two.safetensors", size=16 * MIB, seed=2)
    three = make_model("three.safetensors", size=4096, seed=3)
    with daemon.raw() as raw:
        raw.load(one)
        raw.load(two)
        used = daemon.status()["devices"][0]["used"]
        raw.call("budget", {"device": "cpu", "bytes": used})  # exactly full
        assert states(daemon) == {one.name: "resident", two.name: "resident"}
        result = raw.load(three)
        assert [o["reason"] for o in result["evicted"]] == ["to make room"], "one is enough"
        gone = result["evicted"][0]["name"]  # by idle time and by what its load took
        assert states(daemon)[one.name if gone == two.name else two.name] == "resident"
        records = raw.call("events.history", {"model": gone})["records"]
        assert records[-1]["type"] == "evicted" and records[-1]["for_whom"] == three.name


@pytest.mark.daemon("memory.idle-evict=300ms")
def test_what_nobody_used_goes_after_the_time_of_the_configuration(daemon, raw, make_model):
    raw.load(make_model("idle.safetensors"))
    raw.load(make_model("kept.safetensors", seed=2), policy={"keep": True})
    raw.load(make_model("own-time.safetensors", seed=3), policy={"ttl_ms": 3600000})
    wait_until(lambda: states(daemon)["idle.safetensors"] != "resident", what="its eviction")
    assert states(daemon)["kept.safetensors"] == "resident"
    assert states(daemon)["own-time.safetensors"] == "resident"
    record = raw.call("events.history", {"model": "idle.safetensors"})["records"][-1]
    assert record["type"] == "evicted" and record["why"] == "its time without use ran out"


def test_a_setting_without_effect_is_warned_of(start_daemon):
    daemon = start_daemon("gpu.share=off", "memory.ram=1G")
    assert "gpu.share = off: command line, no effect in this version" in daemon.log()
    assert "memory.ram" not in daemon.log()


@pytest.mark.fault("M03")
@pytest.mark.daemon("memory.ram=64M")
def test_when_everything_is_in_use_the_holders_are_named(daemon, raw, make_model):
    leased = make_model("leased.safetensors", size=24 * MIB, seed=1)
    pinned = make_model("pinned.safetensors", size=24 * MIB, seed=2)
    raw.load(leased)
    result, fds = raw.attach(leased)
    close_all(fds)
    raw.load(pinned, policy={"pin": True})
    error = refused(raw, make_model("third.safetensors", size=24 * MIB, seed=3))
    assert error["code"] == "no-memory" and error["detail"]["evictable"] == 0
    assert os.getpid() in [h["pid"] for h in error["detail"]["holders"]]
    assert os.getuid() in error["detail"]["uids"]
    assert states(daemon)["leased.safetensors"] == states(daemon)["pinned.safetensors"]
    let_go(raw, result)
    assert raw.load(make_model("third.safetensors", size=24 * MIB, seed=3))["evicted"]


@pytest.mark.fault("M07")
def test_a_byte_that_goes_bad_is_found_and_the_model_loaded_again(daemon, raw, make_model):
    path = make_model(size=8 * MIB)
    raw.load(path)
    before = raw.call("show", {"model": path.name})["model"]["generation"]
    daemon.tell("corrupt 5000")
    checks = raw.call("verify", {"models": [path.name]})["checks"]
    assert [check["ok"] for check in checks] == [False] and "offset" in checks[0]
    wait_until(lambda: states(daemon)[path.name] == "resident", what="the new copy")
    shown = raw.call("show", {"model": path.name})["model"]
    assert shown["generation"] > before
    assert all(c["ok"] for c in raw.call("verify", {"models": [path.name]})["checks"])
    types = [r["type"] for r in raw.call("events.history", {"model": path.name})["records"]]
    assert "quarantined" in types


@pytest.mark.fault("M08", "F32")
@pytest.mark.parametrize("direct", ["auto", "off"])
def test_files_cut_and_grown_while_they_are_read_harm_nobody(start_daemon, make_model, direct):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", f"load.direct-io={direct}")
    path = make_model(size=48 * MIB)
    whole = path.stat().st_size
    stop = threading.Event()

    def cut_and_grow():
        while not stop.is_set():
            os.truncate(path, whole // 2)
            os.truncate(path, whole)

    changer = threading.Thread(target=cut_and_grow)
    changer.start()
    codes = set()
    try:
        with daemon.raw() as raw:
            for _ in range(10):
                try:
                    raw.load(path)
                    codes.add(None)
                    raw.call("unload", {"select": {"models": [path.name]}})
                except RawError as error:
                    codes.add(error.code)
    finally:
        stop.set()
        changer.join()
    assert codes <= {None, "changed-while-reading", "bad-file", "io"}, codes
    assert codes & {"changed-while-reading", "bad-file"}, codes


@pytest.mark.fault("F32")
@pytest.mark.daemon("load.direct-io=off", "memory.hugepages=off")
def test_a_file_that_changes_once_while_it_is_read_is_read_again(daemon, make_model):
    path = make_model(size=32 * MIB, seed=1)
    daemon.tell("fault madvise:3:delay=60000:ever")  # of what takes in the second half
    with daemon.raw() as raw, opened(path) as fd:
        number = raw.request("load", {}, [fd])
        wait_until(lambda: any(model.get("progress_bytes") for model in daemon.models()),
                   what="some of it read")
        wait_until(lambda: int(daemon.tell("hits madvise")) > 0, what="the rest's waiting")
        make_model(size=32 * MIB, seed=9)  # rewritten in place: the same inode
        daemon.tell("clear")
        error, result, _ = raw.wait(number)
        assert error is None, error
        image = image_of(raw, path)
        assert pattern(9, 8 * MIB) in image and pattern(1, 8 * MIB) not in image


def own_kib(daemon):
    with open(f"/proc/{daemon.pid}/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@pytest.mark.fault("M16")
@pytest.mark.seconds(120)
def test_many_cycles_of_load_and_eviction_cost_no_memory_and_no_descriptor(start_daemon,
                                                                          make_model):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0")
    paths = [make_model(f"{i}.safetensors", size=4096, seed=i) for i in range(4)]
    with contextlib.ExitStack() as stack, daemon.raw() as raw:
        fds = [stack.enter_context(opened(path)) for path in paths]
        raw.load(paths[0])
        room = daemon.status()["devices"][0]["used"]
        raw.call("budget", {"device": "cpu", "bytes": room})  # for one: each evicts the last

        def cycle(n):
            for number in range(1, n + 1):
                raw.call("load", {}, [fds[number % 4]])
                raw.events.clear()

        cycle(2000 // slowness())  # the history's records are all touched once
        n_fds = daemon.status()["open_fds"]
        n_cycles = 6000 // slowness()
        for _ in range(3):  # a leak grows each time; a thread's first use of an arena does not
            before, n_evictions = own_kib(daemon), daemon.status()["evictions"]
            cycle(n_cycles)
            assert daemon.status()["evictions"] - n_evictions >= n_cycles - 1
            growth = own_kib(daemon) - before
            if growth < 96 or slowness() > 1:  # a sanitizer keeps what was freed for a while
                break
        else:
            pytest.fail(f"{growth} KiB more after {n_cycles} cycles, and as often as that is tried")
        wait_until(lambda: daemon.status()["open_fds"] <= n_fds, what="the descriptors' return")


@pytest.mark.fault("F31")
def test_a_new_file_under_an_old_inode_or_path_is_never_the_old_bytes(daemon, raw, tmp_path):
    path = tmp_path / "model.safetensors"

    def write(seed):
        make_safetensors(path, {"t": ("U8", [1 << 16])}, seed=seed)

    def bytes_of(seed):
        return pattern(seed, 1 << 16) in image_of(raw, path)

    write(1)
    raw.load(path)
    inode = path.stat().st_ino
    path.unlink()  # the daemon still has it open: the inode cannot come again
    write(2)
    assert path.stat().st_ino != inode
    assert raw.load(path)["source"] == "disk" and bytes_of(2)
    raw.call("unload", {"select": {"not_kept": True}})
    daemon.unload_all()
    seen = set()
    for seed in range(3, 12):  # nothing keeps the inode any more: it does come again
        path.unlink()
        write(seed)
        os.utime(path, ns=(1, 1))  # not even the times tell them apart
        seen.add(path.stat().st_ino)
        raw.load(path)
        assert bytes_of(seed), "old bytes under a reused inode"
        daemon.unload_all()
    other = tmp_path / "other.safetensors"
    shutil.copy(path, other)
    assert raw.load(other)["source"] == "disk", "another inode is another model"
    if len(seen) == 9:
        pytest.skip("this filesystem never reuses an inode: that part could not be shown")


@pytest.mark.fault("M13")
def test_pressure_evicts_the_idle_and_says_so(daemon, make_model):
    with daemon.raw() as raw, daemon.raw() as watcher:
        watcher.call("subscribe", {"events": ["pressure", "evicted"]})
        raw.load(make_model("idle.safetensors", seed=1))
        raw.load(make_model("pinned.safetensors", seed=2), policy={"pin": True})
        with opened(make_model("used.safetensors", seed=3)) as fd:
            result, fds = raw.call_fds("load", {"attach": True, "map": True}, [fd])
        daemon.tell("pressure")  # nothing lacks: the reserve of this daemon is 0
        time.sleep(0.3)
        assert set(states(daemon).values()) == {"resident"}
        daemon.tell("reserve 1000000000000")  # as if somebody else had taken the memory
        daemon.tell("pressure")
        wait_until(lambda: states(daemon).get("idle.safetensors") != "resident",
                   what="the idle one given back")
        left = states(daemon)
        assert left["pinned.safetensors"] == "resident" and left["used.safetensors"] == "resident"
        watcher.call("ping")
        seen = {name: params for name, params in watcher.events}
        assert seen["pressure"]["wanted"] > seen["pressure"]["free"] > 0
        assert seen["evicted"]["name"] == "idle.safetensors"
        assert "memory was short" in seen["evicted"]["why"]
        assert "memory is short" in daemon.log() and "given back" in daemon.log()
        close_all(fds)
        raw.call("detach", {"lease": result["lease"]})


@pytest.mark.fault("M13")
def test_the_kernel_is_asked_to_tell_of_pressure(daemon):
    if not os.access("/proc/pressure/memory", os.W_OK):
        pytest.skip("this kernel tells nothing of memory pressure")
    links = list_fds(daemon.pid)
    assert any(link.endswith("/pressure/memory") for link in links), links


# ---- swap ----------------------------------------------------------------------------------


def need_mlock():
    if slowness() > 1:
        pytest.skip("sanitizers turn mlock into nothing")


def locked_bytes(daemon):
    status = pathlib.Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.split("VmLck:")[1].split()[0]) << 10


@pytest.mark.fault("M09")
def test_locked_models_stay_in_memory_until_they_go(start_daemon, make_model):
    need_mlock()
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", "memory.lock=yes")
    with daemon.raw() as raw:
        for number in range(2):
            raw.load(make_model(f"m{number}.safetensors", size=8 * MIB, seed=number))
        assert 16 * MIB <= locked_bytes(daemon) < 17 * MIB
        raw.call("unload", {"select": {"models": ["m0.safetensors"]}})
        wait_until(lambda: locked_bytes(daemon) < 9 * MIB, what="the lock of one to go")
        assert all(check["ok"] for check in raw.call("verify")["checks"])
        assert 8 * MIB <= locked_bytes(daemon) < 9 * MIB
        assert "notice" not in raw.call("show", {"model": "m1.safetensors"})


@pytest.mark.fault("M09")
def test_models_are_locked_again_after_a_restart(start_daemon, make_model):
    need_mlock()
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", "memory.lock=yes", kind=StoredDaemon)
    with daemon.raw() as raw:
        raw.load(make_model("m.safetensors", size=8 * MIB))
    daemon.die()
    daemon.start()
    wait_until(lambda: locked_bytes(daemon) >= 8 * MIB, what="the lock on what was taken over")


@pytest.mark.fault("M09")
def test_a_model_that_cannot_be_locked_serves_and_says_so(start_daemon, make_model):
    need_hooks()
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", "memory.lock=yes",
                          environment={"DISTORCHD_FAULT": "mlock:1:ENOMEM:ever"})
    path = make_model("m.safetensors", size=8 * MIB)
    with daemon.raw() as raw:
        raw.load(path)
        assert "RLIMIT_MEMLOCK" in raw.call("show", {"model": "m.safetensors"})["notice"]
        assert image_of(raw, path) == pathlib.Path(path).read_bytes()
    assert locked_bytes(daemon) == 0


@pytest.mark.fault("M09")
def test_without_asking_nothing_is_locked(daemon, make_model):
    with daemon.raw() as raw:
        raw.load(make_model("m.safetensors", size=8 * MIB))
    assert locked_bytes(daemon) == 0
