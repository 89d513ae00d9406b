# SPDX-License-Identifier: Apache-2.0
"""Workers that are killed, stopped or hang at random moments of everything that is done with
blocks on their device: that device's copies are lost and come back, and nobody else sees a wrong
byte, an error or a wait. And a daemon killed while blocks are in use."""
import contextlib
import os
import random
import signal
import time

import pytest
from conftest import HeldDaemon, RawError, close_all, need_hooks, opened, slowness, wait_until
from placed import MIB, account, attach, load, make_blocks
from test_devices import children, devices, environment, is_running

SLOW = 30 * slowness()
ANSWER_MS = 1500 * slowness()  # what a worker may take, also on a busy machine
SETTINGS = ("sim.count=2", "sim.memory=64M", "sim.link=512M", "gpu.budget=100%", "memory.ram=256M",
            "memory.reserve=0")
ON_BOTH = "sim:0,60%;sim:1,20%;cpu,20%"
ELSEWHERE = "sim:1,60%;cpu,40%"
READ_ON = {"sim:1": "sim:1,70%;cpu,30%", "host": None}


class Bystander:
    """A process that uses a model all the time: what it maps, and what it leases anew."""

    def __init__(self, daemon, path, allocation, expected):
        self.says, writing = os.pipe()
        stopped, self.stop = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            text = "an end"
            try:
                os.close(self.stop)
                os.set_blocking(stopped, False)
                text = self.live(daemon, path, allocation, expected, stopped)
            except BaseException as failure:  # whatever it is, the parent shows it
                text = repr(failure)
            finally:
                os.write(writing, text.encode())
                os._exit(0)
        os.close(writing)
        os.close(stopped)

    @staticmethod
    def live(daemon, path, allocation, expected, stopped):
        longest = n_rounds = 0
        with daemon.raw(timeout=SLOW) as raw:
            raw.call("subscribe", {"events": ["lost"]})
            held = load(raw, path, allocation)
            while True:
                with contextlib.suppress(BlockingIOError):
                    os.read(stopped, 1)
                    break
                began = time.monotonic()
                raw.call("ping")
                longest = max(longest, time.monotonic() - began)
                assert held.tensors() == expected
                again = attach(raw, path)
                assert again.tensors() == expected
                again.close()
                n_rounds += 1
                time.sleep(0.02)
            held.close()
            assert "lost" not in [name for name, _ in raw.events]
        assert longest < 2 * slowness(), f"the daemon did not answer for {longest} s"
        return f"right {n_rounds}"

    def end(self):
        os.write(self.stop, b"x")  # a close would not do: later ones have inherited this end
        os.close(self.stop)
        with os.fdopen(self.says) as answer:
            text = answer.read()
        assert os.waitpid(self.pid, 0)[1] == 0
        return text


class World:
    """A daemon, who does things with a model that lies over both cards, and those who use others."""

    def __init__(self, daemon, folder, chance):
        self.daemon, self.chance = daemon, chance
        self.path = folder / "m.safetensors"
        self.expected = make_blocks(self.path, [MIB] * 10)
        self.raw = daemon.raw(timeout=SLOW)
        self.lease = None
        self.may_die_late = False
        self.others = []
        for number, (name, allocation) in enumerate(READ_ON.items()):
            path = folder / f"{name}.safetensors"
            expected = make_blocks(path, [MIB // 2] * 4, seed=50 + 20 * number)
            self.others.append(Bystander(daemon, path, allocation, expected))

    def worker(self):
        """Of sim:0, which is to die."""
        def pid():
            device = account(self.raw, "sim:0")
            return device["state"] == "ok" and device.get("pid")
        return wait_until(pid, SLOW, "the card")

    def load(self, allocation=ON_BOTH):
        lease = load(self.raw, self.path, allocation)
        try:
            assert lease.tensors() == self.expected
        except RawError:  # its device was lost on the way: what is leased stays
            lease.close()
            raise
        return lease

    def model(self):
        return next((one for one in self.raw.call("list")["models"]
                     if one["name"] == self.path.name), None)

    def finish(self, number):
        """Wait for the deed and undo what it leaves behind; returns its error."""
        error, result, fds = self.raw.wait(number)
        close_all(fds)
        if self.lease is not None:
            self.lease.close()
        if error is None and "token" in result:
            self.raw.call("release", {"token": result["token"]})
        return error

    def check(self):
        """The card is back, the model can be had, whole, where it is wanted."""
        self.worker()
        if self.model() is not None:
            wait_until(lambda: (self.model() or {}).get("state") != "partial", SLOW,
                       "the model without being asked for")
        wait_until(self.is_loaded, SLOW, "the model")

    def is_loaded(self):
        """False: what was to hang did so only now."""
        try:
            self.load().close()
        except RawError as failure:
            assert failure.code == "device-lost" and self.may_die_late, failure
            return False
        return True

    def end(self):
        """All was well for everybody else, and nothing is left."""
        self.raw.call("unload", {"select": {"models": [self.path.name]}})
        said = [other.end() for other in self.others]
        self.others = []
        self.raw.call("unload", {"select": {"all": True}})
        wait_until(lambda: all(device["used"] == device["held"] == device["reserved"] == 0
                               for device in self.raw.call("devices")["devices"]),
                   SLOW, "accounts of zero")
        assert all(text.startswith("right") and int(text.split()[1]) > 0 for text in said), said

    def close(self):
        self.raw.close()
        for other in self.others:
            other.end()


@pytest.fixture
def make_world(start_daemon, tmp_path):
    """make_world(seed, setting...) -> World"""
    worlds = []

    def make(seed, *settings):
        daemon = start_daemon(*SETTINGS, *settings,
                              environment=environment(rest=5, steady=0, look=50,
                                                      worker=ANSWER_MS))
        worlds.append(World(daemon, tmp_path, random.Random(seed)))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


# ---- what is done: (before, the request, after) of each; "after" has a result -------------------


def begin_load(world):
    with contextlib.suppress(RawError):
        world.raw.call("unload", {"select": {"models": [world.path.name]}})
    with opened(world.path) as fd:
        return world.raw.request("load", {"allocation": ON_BOTH}, [fd])


def begin_place(world):
    world.load(ELSEWHERE).close()
    return world.raw.request("place", {"model": world.path.name, "allocation": ON_BOTH})


def begin_leave(world):
    world.load().close()
    return world.raw.request("place", {"model": world.path.name, "allocation": ELSEWHERE})


def begin_map(world):
    world.load().close()
    world.lease = attach(world.raw, world.path)
    return world.raw.request("map", {"lease": world.lease.number, "blocks": [0, 1 << 20]})


def begin_unload(world):
    world.load().close()
    return world.raw.request("unload", {"select": {"models": [world.path.name]}})


def begin_reserve(world):
    world.load("sim:0").close()
    return world.raw.request("reserve", {"device": "sim:0", "bytes": 60 * MIB})


def begin_verify(world):
    world.load().close()
    return world.raw.request("verify", {"models": [world.path.name]})


def begin_linger(world):
    world.load().close()
    return world.raw.request("ping")


DEEDS = {name[6:]: deed for name, deed in list(globals().items()) if name.startswith("begin_")}


CALLS = ["info", "alloc", "fill", "read", "seal", "release", "export", "import", "copy"]


def end_worker(world, how):
    """Returns who is to end, where somebody certainly will."""
    pid = account(world.raw, "sim:0").get("pid")
    if not pid:
        return None  # it has just died of what it was told the last time
    if how == "hang":  # at the next such call; perhaps there is none
        with contextlib.suppress(AssertionError):
            world.daemon.tell(f"worker sim:0 {world.chance.choice(CALLS)}:1:hang")
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[how])
    return pid


def one_moment(world, how, deed, longest):
    """The deed, with the death somewhere in it."""
    world.worker()
    world.lease, world.may_die_late = None, how == "hang"
    number = DEEDS[deed](world)
    time.sleep(world.chance.random() * longest)
    pid = end_worker(world, how)
    error = world.finish(number)
    if error is not None:
        assert error["code"] == "device-lost" and "sim:0" in error["message"], error
    if how == "hang":
        with contextlib.suppress(AssertionError):  # it is gone
            world.daemon.tell("worker sim:0 clear")
    elif pid is not None:
        wait_until(lambda: account(world.raw, "sim:0").get("pid") != pid, SLOW, "the loss")
        wait_until(lambda: not is_running(pid), SLOW, "its end")  # it may be given up before
    world.check()


@pytest.mark.fault("G04")
@pytest.mark.seconds(600)
@pytest.mark.parametrize("how, n_moments", [("kill", 15), ("stop", 3), ("hang", 3)])
@pytest.mark.parametrize("deed", DEEDS)
def test_a_worker_ends_at_any_moment_and_only_its_copies_are_lost(make_world, deed, how, n_moments):
    if how == "hang":
        need_hooks()
    world = make_world(f"{deed} {how}", *(["gpu.linger=100ms"] if deed == "linger" else []))
    spare = devices(world.daemon)["sim:1"]["pid"]
    world.worker()
    began = time.monotonic()
    world.finish(DEEDS[deed](world))
    longest = 0.3 if deed == "linger" else time.monotonic() - began
    for _ in range(n_moments if slowness() == 1 else -(-n_moments // 3)):
        one_moment(world, how, deed, longest)
    assert devices(world.daemon)["sim:1"]["pid"] == spare, "the other's worker lives on"
    world.end()
    wait_until(lambda: len(children(world.daemon.pid)) == 2, SLOW, "two workers and nothing else")


HOLDER = """
import sys
sys.path.insert(0, sys.argv[3])
from conftest import RawClient
from placed import load
raw = RawClient(sys.argv[1], timeout=60.0)
lease = load(raw, sys.argv[2], sys.argv[4])
first = lease.tensors()
print("READY")
for line in sys.stdin:
    print("same" if lease.tensors() == first else "other", flush=True)
"""


@pytest.mark.fault("G11")
@pytest.mark.seconds(180)
def test_a_daemon_killed_takes_its_workers_along_and_no_byte_from_who_maps_it(
        start_daemon, child, tmp_path):
    daemon = start_daemon(*SETTINGS, kind=HeldDaemon)
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [MIB] * 8)
    readers = []
    for number in range(4):
        readers += [child(HOLDER, daemon.socket, path, os.path.dirname(__file__), ON_BOTH)]
        with daemon.raw() as raw:
            workers = [one["pid"] for one in raw.call("devices")["devices"] if one.get("pid")]
        assert len(workers) == 2
        pid = daemon.daemon_pid()
        if number % 2 == 1:  # in the middle of a load and a move
            raw = daemon.raw()
            raw.request("place", {"model": path.name, "allocation": ELSEWHERE})
            time.sleep(0.004 * number)
        os.kill(pid, signal.SIGKILL)
        daemon.wait_for_another(pid)
        wait_until(lambda: not any(is_running(one) for one in workers), SLOW, "the workers' end")
        assert [reader.ask() for reader in readers] == ["same"] * len(readers)
        with daemon.raw(timeout=SLOW) as raw:
            wait_until(lambda: all(account(raw, f"sim:{i}")["state"] == "ok" for i in range(2)),
                       SLOW, "the cards")
            wait_until(lambda: [one["state"] for one in raw.call("list")["models"]] == ["resident"],
                       SLOW, "the model back by itself")
            lease = load(raw, path, ON_BOTH)
            assert lease.tensors() == expected
            lease.close()
