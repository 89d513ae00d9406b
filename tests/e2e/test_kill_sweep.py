# SPDX-License-Identifier: Apache-2.0
"""A daemon killed at hundreds of moments: at named points, at each of its calls to the kernel, at
random, with its holder, with a full store, with a store that hands back rubbish, and with its
files changed meanwhile. Clients read on; no byte is ever wrong."""
import contextlib
import os
import random
import signal
import time

import pytest
from conftest import HeldDaemon, need_hooks, slowness, wait_until
from kills import ADOPTING, CUT_OFF, SERVING, World, check_all, in_a_child, live
from placed import attach, load, make_blocks
from store import StoredDaemon
from test_restart import READER, bend

SETTINGS = ("memory.ram=24M", "memory.reserve=0")
RUBBISH = ["missing hdr", "missing img", "missing src", "extra", "duplicate", "reordered",
           "swapped images", "swapped tables", "renamed", "unsealed image", "another image",
           "short image", "flipped table", "future table", "empty table", "another source",
           "a pipe for a table", "no ledger", "bent ledger"]
# The calls of a life, and how many of each are tried at most.
CALLS = {"recvmsg": 6, "sendmsg": 8, "accept": 2, "memfd_create": 4, "ftruncate": 4, "mmap": 6,
         "madvise": 6, "pread": 8, "write": 4, "fcntl": 8, "fchmod": 4, "fstat": 6, "statx": 6,
         "open": 6, "malloc": 12, "pthread_create": 3, "pipe": 3, "close": 8}
CALLS_OF_A_START = {"memfd_create": 2, "ftruncate": 2, "mmap": 4, "fcntl": 6, "fstat": 6,
                    "statx": 3, "open": 6, "malloc": 10, "pthread_create": 2, "sendmsg": 4,
                    "write": 2, "pipe": 1}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, random.Random(4))


@pytest.fixture
def readers(child, world):
    """readers(daemon) -> two processes that keep reading m0 and m1."""
    def start(daemon):
        return [child(READER, daemon.socket, world.path("m0"), world.path("m1"))
                for _ in range(2)]
    return start


def is_gone(pid):
    """Dead, whether or not its parent has noticed."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/stat") as file:
            state = file.read().rsplit(")", 1)[1].split()[0]
        # Its descriptors are closed when the last of its threads has gone.
        return state in "ZX" and len(os.listdir(f"/proc/{pid}/task")) <= 1
    return True


def all_see_the_same(readers):
    assert [reader.ask("look") for reader in readers] == ["same"] * len(readers)


def arm(daemon, spec):
    """What it does in the background may be the call, before it can say that it was told."""
    pid, order = daemon.hooked_pid(), daemon.folder / "order"
    daemon.tell(spec, wait=False)
    wait_until(lambda: not order.exists() or is_gone(pid), 10 * slowness(), spec)


def disarm(daemon):
    """What it does in the background may be the call even now: it is dead then."""
    with contextlib.suppress(ProcessLookupError):
        arm(daemon, "clear")


def die_in_the_middle(daemon, world, prepare):
    """Arm a death, live until it comes; another life serves right bytes. False: it did not come."""
    pid = wait_until(daemon.daemon_pid, 10 * slowness(), "a daemon")
    world.restore()
    prepare()
    if live(daemon, world):
        time.sleep(0.02)  # it may be about to
        if not is_gone(pid):
            return False
    wait_until(lambda: is_gone(pid), 10 * slowness(), "the death that cut all off")
    world.change()
    daemon.wait_for_another(pid)
    assert check_all(daemon, world)
    return True


@pytest.mark.fault("S02")
@pytest.mark.seconds(600)
@pytest.mark.parametrize("backing", ["image", "auto"])
def test_a_kill_at_each_named_point_shows_no_wrong_byte(start_daemon, world, readers, backing):
    world.backing = backing
    daemon = start_daemon(*SETTINGS, f"memory.backing={backing}", kind=HeldDaemon)
    mine = readers(daemon)
    reached = []
    for point in SERVING:
        for nth in (1, 2, 3, 5):
            if die_in_the_middle(daemon, world, lambda: daemon.die_at(f"{point}:{nth}")):
                reached.append(point)
            else:
                daemon.point.unlink(missing_ok=True)
        all_see_the_same(mine)
    print(f"{len(reached)} deaths")
    # The bytes of a file that serves itself are compared with nothing, and are there at once; so
    # may be others, before a cancel comes.
    quick = {"do-recheck", "got-rechecked"} if backing == "auto" else set()
    wanted = set(SERVING) - quick - {"do-cancel"}
    assert set(reached) >= wanted, wanted - set(reached)
    assert len(reached) >= 60
    end(daemon, mine)


@pytest.mark.fault("S02")
@pytest.mark.seconds(600)
def test_a_kill_at_each_call_shows_no_wrong_byte(start_daemon, world, readers):
    daemon = start_daemon(*SETTINGS, kind=HeldDaemon)
    mine = readers(daemon)
    deaths = {}
    for call, most in CALLS.items():
        for nth in range(1, most + 1):
            # Further apart as they go on: the first few are those of one request.
            spec = f"fault {call}:{nth * nth}:kill"
            if not die_in_the_middle(daemon, world, lambda: arm(daemon, spec)):
                disarm(daemon)
                break
            deaths[call] = nth
        all_see_the_same(mine)
    print(f"{sum(deaths.values())} deaths: {deaths}")
    assert set(deaths) == set(CALLS) and sum(deaths.values()) >= 60
    end(daemon, mine)


@pytest.mark.fault("S02")
@pytest.mark.seconds(600)
def test_kills_at_random_moments_show_no_wrong_byte(start_daemon, world, readers):
    """Also of a daemon that takes over what the last one left."""
    daemon = start_daemon(*SETTINGS, kind=HeldDaemon)
    mine = readers(daemon)
    chance = random.Random(5)
    for number in range(60 if slowness() == 1 else 20):
        pid = wait_until(daemon.daemon_pid, 10 * slowness(), "a daemon")
        if chance.random() < 0.3:
            daemon.die_at(f"{chance.choice(ADOPTING)}:{chance.randrange(1, 3)}")
        world.restore()
        wait_s = chance.random() * 0.15
        killer = os.fork()
        if killer == 0:  # at a moment that nobody here can know
            time.sleep(wait_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        live(daemon, world)
        os.waitpid(killer, 0)
        world.change()
        daemon.wait_for_another(pid)
        check_all(daemon, world)  # it may die once more
        daemon.point.unlink(missing_ok=True)
        if number % 10 == 0:
            all_see_the_same(mine)
    all_see_the_same(mine)
    end(daemon, mine)


def end(daemon, readers):
    """Everybody lets go: nothing is left (the fixture compares accounts and descriptors)."""
    assert [reader.ask("close") for reader in readers] == ["same"] * len(readers)
    wait_until(lambda: all(model["leases"] == 0 for model in daemon.models()), 10 * slowness(),
               "the end of all leases")


# ---- a manager of the tests' own, whose store is full or hands back rubbish ---------------------


class Life(StoredDaemon):
    """Its socket outlives it: only its word says that it serves, or it dies."""

    def _wait_for_socket(self, seconds=10.0):
        wait_until(lambda: "ready: " in self.log() or not self.is_alive(), seconds * slowness(),
                   "a start or its end")
        assert self.is_alive(), "it ended"

    def begin(self, fault=None):
        """Start; False: the fault has struck it dead."""
        self.environment.pop("DISTORCHD_FAULT_AT_START", None)
        if fault:
            self.environment["DISTORCHD_FAULT_AT_START"] = fault
        self.log_path.write_text("")
        try:
            self.start()
        except AssertionError:
            assert fault and self.process.wait(10) == -signal.SIGKILL, self.log()
            self.drain()
            return False
        return True

    def die_while_it_lives(self, world, spec):
        """By the fault, or if that does not strike, at the end of what it does."""
        arm(self, spec)
        if self.is_alive():
            live(self, world)
        if self.is_alive():
            self.die()
        self.process.wait(10)
        self.drain()


@pytest.mark.fault("S02", "S11")
@pytest.mark.seconds(600)
def test_a_kill_at_each_call_of_a_start_loses_nothing(start_daemon, world):
    need_hooks()
    daemon = start_daemon(*SETTINGS, kind=Life)
    n_deaths = 0
    for call, most in CALLS_OF_A_START.items():
        for nth in range(1, most + 1):
            assert check_all(daemon, world, ("m0", "m1"))
            daemon.die()
            if daemon.begin(f"{call}:{nth * nth}:kill"):
                break  # there are not so many
            n_deaths += 1
            assert daemon.begin()
            with daemon.raw(timeout=20.0) as raw:
                models = {model["name"]: model["state"] for model in raw.call("list")["models"]}
                assert models == {"m0.safetensors": "resident", "m1.safetensors": "resident"}, \
                    f"after {call}:{nth * nth}: {daemon.log()}"
                assert raw.call("status")["bytes_read"] == 0, "no disk was read"
            assert check_all(daemon, world)
    print(f"{n_deaths} deaths")
    assert n_deaths >= 25


@pytest.mark.fault("S03", "S02")
@pytest.mark.seconds(600)
def test_kills_with_a_store_that_hands_back_rubbish(start_daemon, world, readers):
    need_hooks()
    daemon = start_daemon(*SETTINGS, kind=Life)
    mine = readers(daemon)
    chance = random.Random(6)
    for how in RUBBISH:
        call = chance.choice(["sendmsg", "pread", "fcntl", "mmap", "open"])
        daemon.die_while_it_lives(world, f"fault {call}:{chance.randrange(1, 40)}:kill")
        kept = {name.split(".")[1] for name, _fd in daemon.kept if name.startswith("hdr.")}
        if len(kept) >= 2:  # two models, not two generations of one
            bend(daemon, how)
        world.change()
        assert daemon.begin(), daemon.log()
        assert check_all(daemon, world, ("m0", "m1", "m2", "m3"))
        all_see_the_same(mine)
    end(daemon, mine)


@pytest.mark.fault("S04", "S02")
@pytest.mark.seconds(600)
@pytest.mark.parametrize("limit", [2, 5, 8])
def test_kills_with_a_full_store(start_daemon, world, readers, limit):
    need_hooks()
    daemon = start_daemon(*SETTINGS, kind=Life, environment={"FDSTORE": str(limit)})
    daemon.limit = limit
    mine = readers(daemon)
    chance = random.Random(limit)
    for _ in range(12):
        call = chance.choice(["sendmsg", "pread", "fcntl", "mmap", "open"])
        daemon.die_while_it_lives(world, f"fault {call}:{chance.randrange(1, 40)}:kill")
        world.change()
        assert daemon.begin(), daemon.log()
        assert len(daemon.kept) <= limit
        assert check_all(daemon, world)
        all_see_the_same(mine)
    end(daemon, mine)


# ---- over devices --------------------------------------------------------------------------

PLACED = ("memory.ram=64M", "memory.reserve=0", "sim.count=2", "sim.memory=32M",
          "gpu.budget=100%")
PLACED_SERVING = ["do-read-header", "do-fill", "do-make-table", "do-drop", "do-publish",
                  "do-close-file", "do-forget-job", "do-reply", "do-note", "do-record-wish",
                  "do-record-placed", "got-header", "got-filled", "got-tabled", "got-dropped",
                  "filled", "stored", "parked", "published", "dropping", "unstored"]


def compare_placed(raw, path, expected):
    lease = attach(raw, path)
    assert lease.tensors() == expected, f"wrong bytes of {path.name}"
    lease.close()


def live_placed(daemon, path, expected):
    """A model is placed, moved, moved to RAM and back, and unloaded. False: a death cut it off."""
    def live():
        try:
            with daemon.raw(timeout=20.0) as raw:
                for allocation in ("sim:0,3M;cpu,*", "sim:0,2M;sim:1,2M;cpu,*", "cpu", "sim:1,*"):
                    load(raw, path, allocation).close()
                    raw.call("set", {"model": path.name,
                                     "policy": {"keep": True, "for_ms": 60000}})
                    compare_placed(raw, path, expected)
                raw.call("unload", {"select": {"models": [path.name]}})
                raw.call("ping")
        except CUT_OFF:
            return False
        return True

    return in_a_child(live)


def check_placed(daemon, models):
    """What comes back is whole and right. False: it died meanwhile."""
    def is_settled(raw):
        states = {model["state"] for model in raw.call("list")["models"]}
        return not states - {"resident"}

    def look():
        try:
            with daemon.raw(timeout=20.0) as raw:
                wait_until(lambda: is_settled(raw), 10 * slowness(), "all of it back, or gone")
                for model in raw.call("list")["models"]:
                    path, expected = models[model["name"]]
                    compare_placed(raw, path, expected)
        except CUT_OFF:
            return False
        return True

    return in_a_child(look)


@pytest.mark.fault("S02")
@pytest.mark.seconds(600)
def test_a_kill_at_each_point_of_a_placed_life_shows_no_wrong_byte(start_daemon, tmp_path):
    need_hooks()
    daemon = start_daemon(*PLACED, kind=HeldDaemon)
    models = {name: (tmp_path / name, make_blocks(tmp_path / name, [1 << 20] * 5, seed=seed))
              for seed, name in ((1, "kept.safetensors"), (50, "moved.safetensors"))}
    kept, moved = models["kept.safetensors"], models["moved.safetensors"]
    with daemon.raw() as raw:
        load(raw, kept[0], "sim:0,3M;sim:1,1M;cpu,*", policy={"pin": True}).close()
    reached = []
    for point in PLACED_SERVING:
        for nth in (1, 3):
            pid = wait_until(daemon.daemon_pid, 10 * slowness(), "a daemon")
            daemon.die_at(f"{point}:{nth}")
            if live_placed(daemon, *moved) and not is_gone(pid):
                daemon.point.unlink(missing_ok=True)
                continue
            daemon.wait_for_another(pid)
            reached.append(point)
            assert check_placed(daemon, models)
            with daemon.raw() as raw:
                model = raw.call("show", {"model": kept[0].name})["model"]
                assert model["pinned"] and "allocation" in model, "it is as it was"
    print(f"{len(reached)} deaths")
    assert set(reached) == set(PLACED_SERVING), set(PLACED_SERVING) - set(reached)
    with daemon.raw() as raw:
        raw.call("set", {"model": kept[0].name, "policy": {"pin": False}})


@pytest.mark.fault("S02", "S03", "S04")
@pytest.mark.seconds(600)
@pytest.mark.parametrize("limit", [4, 7, 100])
def test_kills_at_calls_of_a_placed_life_with_little_room_to_keep_it(start_daemon, tmp_path,
                                                                     limit):
    need_hooks()
    daemon = start_daemon(*PLACED, kind=Life, environment={"FDSTORE": str(limit)})
    daemon.limit = limit
    name = "moved.safetensors"
    models = {name: (tmp_path / name, make_blocks(tmp_path / name, [1 << 20] * 5))}
    chance = random.Random(limit)
    for _ in range(12):
        call = chance.choice(["sendmsg", "pread", "fcntl", "mmap", "open", "malloc", "fstat"])
        arm(daemon, f"fault {call}:{chance.randrange(1, 60)}:kill")
        if daemon.is_alive():
            live_placed(daemon, *models[name])
        if daemon.is_alive():
            daemon.die()
        daemon.process.wait(10)
        daemon.drain()
        assert daemon.begin(), daemon.log()
        assert len(daemon.kept) <= limit
        assert check_placed(daemon, models)


@pytest.mark.fault("S02", "S11")
@pytest.mark.seconds(600)
def test_a_kill_at_each_call_of_a_start_loses_no_placed_model(start_daemon, tmp_path):
    need_hooks()
    daemon = start_daemon(*PLACED, kind=Life)
    name = "m.safetensors"
    models = {name: (tmp_path / name, make_blocks(tmp_path / name, [1 << 20] * 3))}
    with daemon.raw() as raw:
        load(raw, models[name][0], "sim:0,2M;cpu,*", policy={"keep": True}).close()
    n_deaths = 0
    for call, most in CALLS_OF_A_START.items():
        for nth in range(1, most + 1):
            daemon.die()
            if daemon.begin(f"{call}:{nth * nth}:kill"):
                break  # there are not so many
            n_deaths += 1
            assert daemon.begin()
            assert check_placed(daemon, models)
            model = daemon.models()[0]
            assert (model["name"], model["keep"]) == (name, True), f"after {call}:{nth * nth}"
            assert model["allocation"] == "sim:0,2M;cpu,*"
    print(f"{n_deaths} deaths")
    assert n_deaths >= 25


# ---- the holder ----------------------------------------------------------------------------


@pytest.mark.fault("S02")
@pytest.mark.seconds(300)
def test_kills_of_the_holder_cost_the_safety_and_no_byte(start_daemon, world, readers):
    """The daemon goes on without it, until it dies too; another pair finds its clients again."""
    chance = random.Random(7)
    daemon = start_daemon(*SETTINGS, kind=HeldDaemon)
    mine = readers(daemon)
    for _ in range(6):
        pid = daemon.daemon_pid()
        if chance.random() < 0.5:
            daemon.tell(f"fault sendmsg:{chance.randrange(1, 30)}:delay=20")
        os.kill(daemon.pid, signal.SIGKILL)
        daemon.process.wait(10)
        live_without_a_holder(daemon, world, pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: is_gone(pid), 10 * slowness())
        world.change()
        daemon.start()
        assert check_all(daemon, world, ("m0", "m1"))
        all_see_the_same(mine)
    for reader in mine:
        reader.end()


def live_without_a_holder(daemon, world, pid):
    with daemon.raw(timeout=20.0) as raw:
        wait_until(lambda: not raw.call("status")["survives_restart"], 10 * slowness(),
                   "the daemon's word that its holder is gone")
    assert check_all(daemon, world, ("m2", "m3", "m0"))
    assert not is_gone(pid), "it went with its holder"
