# SPDX-License-Identifier: Apache-2.0
"""Clocks that jump, a machine that slept, a loop that was held up (T)."""
import ctypes
import os
import select
import signal
import struct
import sys
import time

import pytest
from conftest import (BUILD, HeldDaemon, close_all, list_fds, opened, slowness, wait_until)
from test_restart import READER, show
from test_wire_hostile import fill

MIB = 1 << 20
YEAR_S, HOUR_S = 365 * 86400, 3600
TO_2040_S = 2208988800 - int(time.time())
WALL_CLOCK = BUILD / "tests" / "libwall_clock.so"


def resident(daemon):
    return {model["name"] for model in daemon.models() if model["state"] == "resident"}


# ---- the wall clock ----------------------------------------------------------------------


@pytest.mark.fault("T01")
@pytest.mark.daemon("memory.ram=12M", "log.format=json")
@pytest.mark.parametrize("jump_s", [-YEAR_S, TO_2040_S, -1, 1], ids=["back a year", "to 2040",
                                                                     "leap", "leap less"])
def test_setting_the_wall_clock_moves_no_deadline_and_no_order(daemon, make_model, tmp_path,
                                                               jump_s):
    with daemon.raw() as raw, daemon.raw() as waiting:
        raw.load(make_model("old.safetensors", size=4 * MIB, seed=1))
        time.sleep(1.0 * slowness())  # idle for longer than any difference in cost could outweigh
        daemon.tell(f"clock {jump_s}")
        raw.load(make_model("long.safetensors", size=3 * MIB, seed=2),
                 policy={"ttl_ms": HOUR_S * 1000})
        raw.load(make_model("short.safetensors", size=MIB // 2, seed=3), policy={"ttl_ms": 300})
        wait_until(lambda: "short.safetensors" not in resident(daemon), 5.0 * slowness(),
                   "the end of a time to live")
        new = make_model("new.safetensors", size=6 * MIB, seed=4)
        raw.load(tmp_path / "long.safetensors")  # used again
        raw.load(new)  # room for it is made
        assert resident(daemon) == {"long.safetensors", "new.safetensors"}, "the oldest went"
        daemon.tell(f"clock {-jump_s}")
        assert "long.safetensors" in resident(daemon)
        assert waiting.call("ping") == {} and not waiting.events, "nobody was sent away"
        ages = [record["age_ms"] for record in raw.call("events.history")["records"]]
        assert ages and max(ages) < 60_000 * slowness()
        assert 1000 <= raw.call("status")["uptime_ms"] < 60_000 * slowness()
    # Only what is for people to read tells the time of the wall.
    times = [line["time_ms"] / 1000 for line in daemon.log_events() if "time_ms" in line]
    assert any(abs(at - (time.time() + jump_s)) < 60 * slowness() for at in times)


@pytest.mark.fault("T01")
@pytest.mark.skipif(not WALL_CLOCK.exists(), reason="a sanitizer has to be the first library")
def test_a_client_whose_wall_clock_jumps_waits_as_long_as_before(held, make_model, child,
                                                                 tmp_path):
    clock = tmp_path / "clock"

    def set_clock(seconds):
        clock.write_bytes(struct.pack("q", seconds))

    set_clock(0)
    path = make_model(size=2 * MIB)
    reader = child("import time\nbegun = time.time()\n" + READER.replace(
        'print("same"', 'print(int(time.time() - begun), "same"'), held.socket, path,
        environment={"LD_PRELOAD": str(WALL_CLOCK), "WALL_CLOCK": str(clock)})
    for jump_s in (-YEAR_S, TO_2040_S, 0, 1, -1):
        set_clock(jump_s)
        seconds, said = reader.ask("look").split()
        assert said == "same" and abs(int(seconds) - jump_s) < 60 * slowness(), "it did jump"
    for jump_s in (TO_2040_S, -YEAR_S):
        pid = held.daemon_pid()
        os.kill(pid, 9)
        set_clock(jump_s)  # while its library waits to connect again
        held.wait_for_another(pid)
        wait_until(lambda: [model["leases"] for model in held.models()] == [1], 5 * slowness(),
                   "its lease asserted again")
        assert reader.ask("look").endswith("same")


# ---- a machine that slept ------------------------------------------------------------------


@pytest.mark.fault("T02")
def test_a_sleep_of_8_hours_ends_what_has_a_time_and_no_client(daemon, make_model):
    paths = {name: make_model(f"{name}.safetensors", seed=seed) for seed, name in enumerate(
        ("hour", "day", "none", "used", "pinned"), 1)}
    with daemon.raw() as raw, daemon.raw(hello=False) as late, daemon.raw() as deaf:
        clients = [daemon.raw() for _ in range(20)]
        raw.load(paths["hour"], policy={"ttl_ms": HOUR_S * 1000})
        raw.load(paths["day"], policy={"ttl_ms": 24 * HOUR_S * 1000})
        raw.load(paths["none"])
        raw.load(paths["pinned"], policy={"pin": True, "for_ms": HOUR_S * 1000})
        with opened(paths["used"]) as fd:
            lease, fds = clients[0].call_fds(
                "load", {"attach": True, "map": True, "policy": {"ttl_ms": 1000}}, [fd])
        assert fill(deaf, ["config", {}]) < 10_000
        assert {m["name"][:4] for m in daemon.models() if m["pinned"]} == {"pinn"}
        # Nobody asks for anything: it wakes by itself.
        daemon.tell(f"suspend {8 * HOUR_S}")
        wait_until(lambda: "evicted hour.safetensors" in daemon.log(), 5.0 * slowness(),
                   "the end of an hour in the log")
        assert resident(daemon) == {f"{name}.safetensors"
                                    for name in ("day", "none", "used", "pinned")}
        models = {model["name"]: model for model in raw.call("list")["models"]}
        assert not any(model["pinned"] for model in models.values()), "its hour is over"
        assert abs(models["day.safetensors"]["ttl_left_ms"] - 16 * HOUR_S * 1000) < 600_000
        assert raw.call("status")["uptime_ms"] >= 8 * HOUR_S * 1000
        # Who was waited for keeps all of his time: the sleep was none of it.
        assert all(client.call("ping") == {} for client in clients)
        assert late.call("hello", {"protocol": [1, 1], "client": "raw/1"})["epoch"]
        assert deaf.wait(1000)[0] is None, "it still gets what was queued for it"
        assert os.pread(fds[1], 1 << 22, 0) == paths["used"].read_bytes()
        close_all(fds)
        clients[0].call("unmapped", {"lease": lease["lease"]})
        clients[0].call("detach", {"lease": lease["lease"]})
        wait_until(lambda: "used.safetensors" not in resident(daemon), 10.0 * slowness(),
                   "the end of a second after its last use")
        for client in clients:
            client.close()


# ---- a loop that was held up ----------------------------------------------------------------


IMPATIENT_MS = 1000 * max(2, slowness())  # a test has to be quicker, busy as the machine may be
STALL_MS = 3 * IMPATIENT_MS


@pytest.fixture
def impatient(start_daemon):
    return start_daemon("memory.ram=1G", "memory.reserve=0", environment={
        "DISTORCHD_TEST_HELLO_MS": str(IMPATIENT_MS),
        "DISTORCHD_TEST_DRAIN_MS": str(IMPATIENT_MS)})


def stall(daemon, ms=STALL_MS):
    """Hold the loop up. Returns once it is."""
    daemon.tell(f"stall {ms}", wait=False)
    wait_until(lambda: b"stall" in open(f"/proc/{daemon.pid}/wchan", "rb").read()
               or b"nanosleep" in open(f"/proc/{daemon.pid}/wchan", "rb").read(), 10.0,
               "the loop's sleep")


def await_hook(daemon):
    wait_until(lambda: not (daemon.folder / "order").exists(), 30.0 * slowness(),
               "the end of a hook")


@pytest.mark.fault("T03")
@pytest.mark.seconds(120)
def test_who_kept_its_time_is_not_sent_away_for_a_stall_of_ours(impatient):
    with impatient.raw(timeout=60.0) as other:
        slow = impatient.raw(timeout=60.0)
        n_sent = fill(slow, ["config", {}])
        assert 0 < n_sent < 10_000, "its socket is full"
        late = [impatient.raw(hello=False, timeout=60.0) for _ in range(20)]
        silent = impatient.raw(hello=False, timeout=60.0)
        assert other.call("ping") == {}
        stall(impatient)
        numbers = [raw.request("hello", {"protocol": [1, 1], "client": "raw/1"}) for raw in late]
        slow.sock.settimeout(0.2)  # takes what is there, and waits for more
        n_taken = 0
        while select.select([slow.sock], [], [], 0.2)[0]:
            message, _fds = slow.recv()
            assert message[0] == 1, message
            n_taken += 1
        assert (impatient.folder / "order").exists(), "the loop was still held up"
        await_hook(impatient)
        for raw, number in zip(late, numbers):
            error, result, _fds = raw.wait(number)
            assert error is None and result["epoch"]
        slow.sock.settimeout(60.0)
        while n_taken < n_sent:
            message, _fds = slow.recv()
            assert message and message[0] == 1, f"{message} after {n_taken} of {n_sent}"
            n_taken += 1
        assert silent.is_closed(60.0), "who said nothing was sent away"
        assert "took nothing" not in impatient.log()
        for raw in (*late, slow, silent):
            raw.close()


@pytest.mark.fault("T03")
@pytest.mark.seconds(120)
def test_who_comes_in_during_a_stall_has_all_of_its_time(impatient):
    impatient.tell(f"fault accept:1:delay={STALL_MS}")
    with impatient.raw(hello=False, timeout=60.0) as late:
        time.sleep((STALL_MS + IMPATIENT_MS / 4) / 1000)
        assert late.call("hello", {"protocol": [1, 1], "client": "raw/1"})["epoch"]


def n_pipes(daemon):
    return sum("->pipe:" in link for link in list_fds(daemon.daemon_pid()))


@pytest.mark.fault("T03")
@pytest.mark.seconds(120)
def test_a_stall_of_3_s_costs_nobody_and_no_promise(held, make_model, child):
    """With the times that people get. A model that is being parked meanwhile is safe after it."""
    reader = child(READER, held.socket, make_model("used.safetensors", seed=1))
    clients = [held.raw(timeout=60.0) for _ in range(50)]
    new = [held.raw(hello=False, timeout=60.0) for _ in range(10)]
    path = make_model("parked.safetensors", seed=2)
    n_pipes_before = n_pipes(held)
    os.kill(held.pid, signal.SIGSTOP)  # the load waits for the holder's word, 2 s at most
    with opened(path) as fd:
        load = clients[0].request("load", {}, [fd])
    wait_until(lambda: n_pipes(held) > n_pipes_before, 5.0 * slowness(), "its wait for the word")
    held.tell("stall 3000", wait=False)
    os.kill(held.pid, signal.SIGCONT)
    for raw in new:
        raw.request("hello", {"protocol": [1, 1], "client": "raw/1"})
    assert clients[0].wait(load)[0] is None
    assert [raw.wait(1)[0] for raw in new] == [None] * len(new)
    assert [raw.call("ping") for raw in clients] == [{}] * len(clients)
    assert reader.ask("look") == "same"
    assert "notice" not in show(held, "parked.safetensors"), "it survives a restart"
    held.kill_daemon()
    assert show(held, "parked.safetensors")["loaded_from"] == "store"
    for raw in (*clients, *new):
        raw.close()


# ---- other clocks in each life ----------------------------------------------------------------


# Each life in a time namespace of its own, its clocks off by the next number of the file.
OTHER_CLOCKS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
offsets, command = sys.argv[1], sys.argv[2:]
with open(offsets) as file:
    first, *rest = file.read().split()
with open(offsets, "w") as file:
    file.write(" ".join(rest or [first]))
def must(result):
    if result != 0:
        sys.exit(os.strerror(ctypes.get_errno()))
must(libc.unshare(0x80))  # CLONE_NEWTIME
with open("/proc/self/timens_offsets", "w") as file:
    file.write(f"monotonic {first} 0\\nboottime {first} 0\\n")
must(libc.setns(os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC), 0x80))
os.execv(command[0], command)
"""


class ElsewhenDaemon(HeldDaemon):
    def command(self):
        hold, dashes, *command = super().command()
        return [hold, dashes, sys.executable, "-c", OTHER_CLOCKS, str(self.folder / "offsets"),
                *command]

    def start(self):
        up_s = int(time.clock_gettime(time.CLOCK_MONOTONIC))
        (self.folder / "offsets").write_text(f"0 {100 * 86400} {-(up_s // 2)} {10 * YEAR_S}")
        return super().start()


def can_shift_clocks():
    pid = os.fork()
    if pid == 0:
        os._exit(ctypes.CDLL(None).unshare(0x80) != 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.fault("T06")
@pytest.mark.seconds(120)
@pytest.mark.skipif(not can_shift_clocks(), reason="no time namespaces here")
def test_lives_with_other_clocks_serve_the_same_models(start_daemon, make_model, child):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=ElsewhenDaemon)
    path = make_model("read.safetensors", size=2 * MIB, seed=1)
    reader = child(READER, daemon.socket, path)
    with daemon.raw() as raw:
        raw.load(make_model("kept.safetensors", seed=2), policy={"keep": True, "priority": 3})
    for _life in range(3):  # far ahead, back, and further ahead than before
        daemon.kill_daemon()
        wait_until(lambda: {m["name"]: m["leases"] for m in daemon.models()} == {
            "read.safetensors": 1, "kept.safetensors": 0}, 10 * slowness(),
            "both models, and the lease asserted again")
        assert reader.ask("look") == "same"
        kept = show(daemon, "kept.safetensors")
        assert kept["model"]["keep"] and kept["model"]["priority"] == 3
        assert kept["loaded_from"] == "store"
        with daemon.raw() as raw, daemon.raw(hello=False) as late:
            raw.load(make_model("brief.safetensors", seed=3), policy={"ttl_ms": 300})
            wait_until(lambda: "brief.safetensors" not in resident(daemon), 5.0 * slowness(),
                       "the end of a time to live")
            assert raw.call("status")["uptime_ms"] < 60_000 * slowness()
            assert late.call("hello", {"protocol": [1, 1], "client": "raw/1"})["epoch"]
    assert reader.ask("close") == "same"
