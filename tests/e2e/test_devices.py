# SPDX-License-Identifier: Apache-2.0
"""Devices with a worker process each: what is told of them, and workers that die, hang, are not
there or are told to fail. Over simulated devices, so that every machine runs it."""
import contextlib
import ctypes
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import stat
import threading
import time

import distorch
import metrics
import pytest
from conftest import (BUILD, Daemon, HeldDaemon, RawClient, RawError, need_hooks, slowness,
                      wait_until)
from placed import load as placed
from placed import make_blocks
from test_ctl import ctl, ctl_json

SLOW = 20 * slowness()
PTRACE_SEIZE = 0x4206
TWO = pytest.mark.daemon("sim.count=2", "sim.memory=64M", "sim.memory.1=128M")


def devices(daemon):
    with daemon.raw() as raw:
        return {device["name"]: device for device in raw.call("devices")["devices"]}


def state(daemon, name="sim:0"):
    return devices(daemon)[name]["state"]


def wait_ok(daemon, name="sim:0", after=None):
    """Its worker's pid, when it is there; another one than 'after'."""
    def pid():
        device = devices(daemon)[name]
        pid = device.get("pid")  # none between two workers
        return device["state"] == "ok" and pid != after and pid
    return wait_until(pid, SLOW, f"{name} being ok again")


def children(pid):
    return [int(child) for child in
            pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def environment(**ms):
    return {f"DISTORCHD_TEST_{name.upper()}_MS": str(value) for name, value in ms.items()}


class Tracer:
    """A process that traces another: the end of that is told to it, and not to the parent."""

    def __init__(self, pid):
        ready, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            libc = ctypes.CDLL(None, use_errno=True)
            libc.ptrace.argtypes = [ctypes.c_long] * 2 + [ctypes.c_void_p] * 2
            os.write(writing, b"n" if libc.ptrace(PTRACE_SEIZE, pid, None, None) else b"y")
            signal.pause()
        os.close(writing)
        said = os.read(ready, 1)
        os.close(ready)
        if said != b"y":
            self.let_go()
            pytest.skip("processes may not be traced here")

    def let_go(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.let_go()


class LoneDaemon(Daemon):
    """A distorchd in a folder of its own, which has only the worker that a test puts there."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.programs = self.folder / "bin"
        self.programs.mkdir()
        shutil.copy2(BUILD / "bin" / "distorchd", self.programs)

    @property
    def worker(self):
        return self.programs / "distorchd-worker"

    def command(self):
        return [str(self.programs / "distorchd"), *super().command()[1:]]

    def put(self, script):
        new = self.programs / "new"
        new.write_text("#!/bin/sh\n" + script)
        new.chmod(new.stat().st_mode | stat.S_IXUSR)
        new.rename(self.worker)


def lone(start_daemon, script, *settings, **ms):
    class Lone(LoneDaemon):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            if script is not None:
                self.put(script)

    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=1", *settings,
                          kind=Lone, environment=environment(**ms))
    daemon.baseline_fds += 2  # of the socket to a worker that may come
    return daemon


# ---- what is told ----------------------------------------------------------------------


@TWO
def test_a_device_is_there_when_the_daemon_is_and_tells_what_it_is(daemon):
    told = devices(daemon)
    assert list(told) == ["cpu", "sim:0", "sim:1"]
    for number, size in (0, 64 << 20), (1, 128 << 20):
        device = told[f"sim:{number}"]
        assert device["uuid"] == f"SIM-00000000-0000-4000-8000-{number:012}"
        assert device["state"] == "ok" and "text" not in device
        assert device["total"] == device["budget"] == device["free"] == size
        assert device["product"] == "Simulated device" and device["link"] == 12 << 30
        assert device["foreign"] == 0 and device["used"] == 0
        assert device["pid"] in children(daemon.pid)
        comm = pathlib.Path(f"/proc/{device['pid']}/comm").read_text()
        assert comm == f"worker sim:{number}\n"
    assert len(children(daemon.pid)) == 2
    assert "worker" not in told["cpu"] and daemon.status()["devices"][1] == told["sim:0"]


@TWO
def test_people_and_scrapers_see_them(daemon):
    assert re.search(r"^  sim:1 .* 0 of 128M   0 models   Simulated device$",
                     ctl(daemon, "status").stdout, re.M)
    assert re.search(r"^sim:1 .* ok +128M ", ctl(daemon, "devices").stdout, re.M)
    one = ctl(daemon, "devices", "sim:1").stdout
    assert "link      12.0G/s" in one and f"process {devices(daemon)['sim:1']['pid']}" in one
    told = ctl_json(daemon, "devices")["devices"][1]
    assert told["name"] == "sim:0" and told["state"] == "ok" and told["text"] is None
    assert told["pid"] in children(daemon.pid) and told["temperature"] is None
    checked = ctl(daemon, "doctor").stdout
    assert "sim:1 budget 128M of 128M" in checked and "no GPU is used: " in checked
    with daemon.raw() as raw:
        page = metrics.read(raw.call("metrics")["text"])
    assert page["distorchd_device_up"][{"tier": "sim:1"}] == 1
    assert page["distorchd_device_losses"][{"tier": "sim:0"}] == 0
    assert page["distorchd_budget_bytes"][{"tier": "sim:0"}] == 64 << 20
    assert page["distorchd_foreign_bytes"][{"tier": "sim:0"}] == 0


@TWO
def test_a_device_is_meant_by_its_name_and_by_its_uuid(daemon, raw, tmp_path):
    for name in "sim:1", "SIM:1", "SIM-00000000-0000-4000-8000-000000000001":
        raw.call("budget", {"device": name, "bytes": 32 << 20})
        assert devices(daemon)["sim:1"]["budget"] == 32 << 20
        raw.call("budget", {"device": name, "bytes": 0})
        assert devices(daemon)["sim:1"]["budget"] == 0
    with pytest.raises(RawError) as caught:
        raw.call("budget", {"device": "sim:2", "bytes": 1})
    assert caught.value.error["message"] == 'there is no device "sim:2"; there are ram, sim:0, sim:1'
    path = tmp_path / "m.safetensors"
    make_blocks(path, [1 << 20])
    for name in "Simulated device", "SIM-00000000":
        for method, params in (("budget", {"device": name, "bytes": 1}), ("drain", {"device": name}),
                               ("unload", {"select": {"device": name}}), ("list", {"device": name}),
                               ("reserve", {"device": name, "bytes": 1})):
            with pytest.raises(RawError) as caught:
                raw.call(method, params)
            assert caught.value.code == "bad-argument", method
            assert caught.value.error["message"] == f'2 devices are a "{name}": sim:0, sim:1'
    for status, words in ((4, ("devices", "sim:2")), (4, ("budget", "sim:2", "1M")),
                          (4, ("unload", "--device", "sim:2")), (4, ("drain", "--device", "sim:2")),
                          (4, ("ps", "--device", "sim:2")),
                          (4, ("make-room", "1M", "--device", "sim:2")),
                          (2, ("load", "--to", "sim:2", path)), (2, ("plan", path, "sim:2"))):
        told = ctl(daemon, *map(str, words))
        assert told.returncode == status, words
        assert 'there is no device "sim:2"; there are ram, sim:0, sim:1' in told.stderr, words


def test_without_settings_there_is_none_and_no_process(daemon):
    assert list(devices(daemon)) == ["cpu"] or BUILD.name == "cuda"
    wait_until(lambda: not children(daemon.pid), SLOW, "no worker")


@pytest.mark.parametrize("setting, says", [
    ("sim.count=16", "from 0 to 15"), ("sim.count=-1", "from 0 to 15"), ("sim.count=two", "two"),
    ("sim.memory=0", "sim.memory"), ("sim.memory=many", "many"), ("sim.link=0", "sim.link"),
    ("sim.latency=soon", "sim.latency"), ("sim.peers=maybe", "sim.peers"),
    ("sim.memory.1=10%", "10%")])
def test_what_cannot_be_is_refused_at_the_start(setting, says):
    daemon = Daemon([setting])
    try:
        with pytest.raises(AssertionError) as caught:
            daemon.start()
        assert says in str(caught.value) and daemon.process.returncode == 2
    finally:
        daemon.remove()


def test_fifteen_devices_are_the_most_and_are_all_there(start_daemon):
    daemon = start_daemon("sim.count=15", "sim.memory=8M")
    # The start waits for them, but not for as long as a busy machine may take for so many.
    wait_until(lambda: [device["state"] for device in devices(daemon).values()] == ["ok"] * 16,
               SLOW, "all of them")
    daemon.baseline_fds = max(daemon.baseline_fds, daemon.fds_at_rest())
    assert len(children(daemon.pid)) == 15


# ---- budgets ---------------------------------------------------------------------------


@TWO
def test_a_budget_is_of_the_device_and_is_kept_over_a_start(start_daemon):
    settings = "memory.ram=64M", "memory.reserve=0", "sim.count=2", "sim.memory=64M"
    daemon = start_daemon(*settings)
    saved = ctl(daemon, "budget", "sim:1", "48M", "--save")
    uuid = devices(daemon)["sim:1"]["uuid"]
    assert saved.returncode == 0 and f"config unset gpu.budget.{uuid} takes" in saved.stdout
    refused = ctl(daemon, "budget", "sim:1", "65M")
    assert refused.returncode == 2 and "65.0M is more than sim:1 (Simulated device) has (64.0M)" in refused.stderr
    assert devices(daemon)["sim:1"]["budget"] == 48 << 20
    daemon.stop()
    kept = daemon.start()
    assert devices(kept)["sim:1"]["budget"] == 48 << 20
    assert devices(kept)["sim:0"]["budget"] == 64 << 20
    pid = devices(kept)["sim:1"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_ok(kept, "sim:1", after=pid)
    assert devices(kept)["sim:1"]["budget"] == 48 << 20, "also of the next worker's"


def test_a_budget_in_percent_is_exact_and_the_rest_is_room_to_compute(start_daemon, tmp_path):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=2", "sim.memory=64M",
                          "gpu.budget.sim:0=100%", "gpu.budget.sim:1=85%")
    assert devices(daemon)["sim:0"]["budget"] == 64 << 20
    assert devices(daemon)["sim:1"]["budget"] == (64 << 20) * 85 // 100
    path = tmp_path / "m.safetensors"
    make_blocks(path, [9 << 20] * 5)
    plan = ctl_json(daemon, "plan", str(path), "sim:1")
    assert plan["warnings"] == [], "52M of 64M are less than 90 %"
    with daemon.raw(timeout=60.0) as raw:
        placed(raw, path, "cpu").close()
        assert raw.call("plan", {"model": path.name, "allocation": "sim:1"})["warnings"] == []
    large = tmp_path / "large.safetensors"
    make_blocks(large, [9 << 20] * 6)
    assert "62.0M of 64.0M of sim:0" in ctl(daemon, "plan", str(large), "sim:0").stderr


def test_what_others_take_is_not_there_to_be_used(start_daemon):
    need_hooks()
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=1",
                          environment=environment(look=50))
    daemon.tell(f"worker sim:0 foreign:{40 << 20}")
    wait_until(lambda: devices(daemon)["sim:0"]["budget"] == 24 << 20, SLOW)
    assert devices(daemon)["sim:0"]["foreign"] == 40 << 20
    daemon.tell("worker sim:0 foreign:0")
    wait_until(lambda: devices(daemon)["sim:0"]["budget"] == 64 << 20, SLOW)


# ---- workers that die ------------------------------------------------------------------


@TWO
@pytest.mark.fault("G05")
def test_a_killed_worker_costs_its_device_for_a_moment_and_nobody_else_anything(
        daemon, make_model):
    with daemon.raw() as raw:
        raw.load(make_model("held.safetensors"))
        raw.call("subscribe", {"events": ["device"]})
        before = devices(daemon)
        os.kill(before["sim:0"]["pid"], signal.SIGKILL)
        assert wait_ok(daemon, after=before["sim:0"]["pid"]) in children(daemon.pid)
        after = devices(daemon)
        assert after["sim:1"] == before["sim:1"] and after["cpu"] == before["cpu"]
        assert after["sim:0"]["budget"] == 64 << 20
        raw.call("ping")
        told = [(event["name"], event["state"]) for name, event in raw.events if name == "device"]
        assert told == [("sim:0", "lost"), ("sim:0", "ok")]
        page = metrics.read(raw.call("metrics")["text"])
        assert page["distorchd_device_losses"][{"tier": "sim:0"}] == 1
    log = daemon.log()
    assert log.count("sim:0 is lost, and what it held with it: its worker was ended by signal 9") == 1
    assert log.count("sim:0 is back") == 1 and "sim:1 is lost" not in log


def test_while_it_is_lost_people_are_told_why(start_daemon, make_model):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=1",
                          environment=environment(rest=8000 * slowness()))
    os.kill(devices(daemon)["sim:0"]["pid"], signal.SIGABRT)
    wait_until(lambda: state(daemon) == "lost", SLOW)
    device = devices(daemon)["sim:0"]
    assert device["text"] == "its worker was ended by signal 6" and "pid" not in device
    assert device["free"] == 0
    assert "lost: its worker was ended by signal 6" in ctl(daemon, "status").stdout
    assert "why       its worker was ended" in ctl(daemon, "devices", "sim:0").stdout
    plan = ctl(daemon, "plan", make_model("lost.safetensors"), "sim:0", "--json")
    assert json.loads(plan.stdout)["error"]["code"] == "device-lost" and plan.returncode == 1
    checked = ctl(daemon, "doctor")
    assert checked.returncode == 9 and "sim:0 is lost: its worker was ended" in checked.stdout
    with daemon.raw() as raw:
        page = metrics.read(raw.call("metrics")["text"])
        assert page["distorchd_device_up"][{"tier": "sim:0"}] == 0
        assert raw.call("drain", {"device": "cpu"})["draining"] is False
    wait_ok(daemon)


@TWO
@pytest.mark.seconds(180)
def test_workers_killed_at_any_moment_are_back_and_leave_nothing(start_daemon, make_model):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", "sim.count=2", "sim.memory=64M",
                          environment=environment(rest=0, look=20))
    choice = random.Random(5)
    path = make_model("held.safetensors")
    for _ in range(30):
        pids = children(daemon.pid)
        for pid in choice.sample(pids, k=min(1, len(pids))):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, choice.choice([signal.SIGKILL, signal.SIGSEGV]))
        with daemon.raw() as raw:
            raw.load(path)
            raw.call("unload", {"select": {"all": True}})
        time.sleep(choice.random() * 0.05)
    for name in "sim:0", "sim:1":
        wait_ok(daemon, name)
    wait_until(lambda: len(children(daemon.pid)) == 2, SLOW, "two workers")


@TWO
def test_workers_end_with_the_daemon_however_it_ends(start_daemon):
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGKILL:
        daemon = start_daemon("sim.count=2", "memory.ram=64M", check=False)
        pids = children(daemon.pid)
        assert len(pids) == 2
        if number == signal.SIGINT:  # as a terminal does: to all of the group
            os.killpg(daemon.pid, number)
        else:
            daemon.process.send_signal(number)
        daemon.process.wait(SLOW)
        wait_until(lambda: not any(is_running(pid) for pid in pids), SLOW, "no worker")
        assert "is lost" not in daemon.log()


def test_a_daemon_that_is_started_again_has_its_devices_again(start_daemon):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=1", kind=HeldDaemon)
    pid = devices(daemon)["sim:0"]["pid"]
    daemon.kill_daemon()
    assert wait_ok(daemon, after=pid)
    wait_until(lambda: not is_running(pid), SLOW)


# ---- workers that hang, fail or are not there --------------------------------------------


def test_a_worker_that_does_not_answer_is_ended(start_daemon):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=1",
                          environment=environment(worker=3000 * slowness(), look=50))
    pid = devices(daemon)["sim:0"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    while devices(daemon)["sim:0"].get("pid") == pid:
        with daemon.raw() as raw:
            asked = time.monotonic()
            raw.call("ping")
            assert time.monotonic() - asked < 1.5 * slowness(), "nobody waits for it"
        assert time.monotonic() - began < SLOW
        time.sleep(0.02)
    wait_ok(daemon, after=pid)
    assert not is_running(pid)
    assert f"its worker did not answer worker.info within {3000 * slowness()} ms" in daemon.log()


def test_a_worker_that_does_not_end_though_killed_is_lost(start_daemon):
    """As one that is stuck in the driver: who traces it keeps its end from its parent. Asked while
    it does not answer, so that look and hangup come back together."""
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=1",
                          environment=environment(look=20, rest=20))
    for _ in range(3):
        pid = wait_until(lambda: devices(daemon)["sim:0"].get("pid"), SLOW)
        wait_ok(daemon)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.2 * slowness())
        with Tracer(pid) as tracer:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: state(daemon) == "lost", SLOW, "the device being lost")
            assert devices(daemon)["sim:0"]["text"].endswith("it is stuck in the driver")
            tracer.let_go()
        wait_ok(daemon, after=pid)


def test_a_device_that_says_it_is_lost_gets_another_worker(start_daemon):
    need_hooks()
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=1",
                          environment=environment(look=50))
    pid = devices(daemon)["sim:0"]["pid"]
    daemon.tell("worker sim:0 info:1:device-lost")
    wait_ok(daemon, after=pid)
    assert "sim:0 is lost, and what it held with it: a fault was asked for" in daemon.log()


def test_without_its_program_a_device_is_unavailable_until_it_is_installed(start_daemon):
    daemon = lone(start_daemon, None, rest=20)
    device = devices(daemon)["sim:0"]
    assert device["state"] == "unavailable" and device["uuid"] == "" and device["total"] == 0
    assert re.fullmatch(r"/.*/distorchd-worker cannot be begun: no such file or directory",
                        device["text"]), device
    assert daemon.log().count("sim:0 cannot be used: ") == 1, "told once, not at each try"
    assert "sim:0 is unavailable: " in ctl(daemon, "doctor").stdout
    with daemon.raw() as raw, pytest.raises(RawError) as caught:
        raw.call("budget", {"device": "sim:0", "bytes": 0})
    assert caught.value.code == "device-lost"
    shutil.copy2(BUILD / "bin" / "distorchd-worker", daemon.worker)
    wait_ok(daemon)


def test_without_descriptors_it_is_begun_when_there_are_some_again(start_daemon):
    daemon = start_daemon("sim.count=1", "sim.memory=64M", environment=environment(rest=20))
    worker = wait_ok(daemon)
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    with daemon.raw() as raw:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (5, before[1]))
        os.kill(worker, signal.SIGKILL)
        text = wait_until(lambda: re.search("cannot be begun: .*", raw.call("devices")["devices"]
                                            [1].get("text", "")), SLOW, "the failure")[0]
        assert text == "cannot be begun: too many open files"
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)
    wait_ok(daemon, after=worker)


@pytest.mark.fault("G05")
def test_one_that_cannot_be_opened_is_tried_again_with_longer_and_longer_rests(start_daemon):
    daemon = lone(start_daemon, "date +%s.%N >> ${0%/*}/tries; exit 7\n", rest=20)
    tries = daemon.programs / "tries"

    def times():
        return [float(line) for line in tries.read_text().splitlines()]

    wait_until(lambda: tries.exists() and len(times()) >= 6, SLOW)
    device = devices(daemon)["sim:0"]
    assert device["state"] == "unavailable"
    assert device["text"] == "its worker ended with status 7"
    first = times()[:6]
    rests = [after - before for before, after in zip(first, first[1:])]
    # A busy machine makes some of them longer, and none shorter.
    assert rests[-1] >= 0.32 and rests[-1] > 2 * min(rests), rests
    shutil.copy2(BUILD / "bin" / "distorchd-worker", daemon.programs / "good")
    os.rename(daemon.programs / "good", daemon.worker)
    wait_ok(daemon)


def test_one_that_never_answers_keeps_nobody_waiting(start_daemon):
    daemon = lone(start_daemon, "exec sleep 1000\n", rest=20, worker=200 * slowness())
    with daemon.raw() as raw:
        raw.call("ping")
    wait_until(lambda: state(daemon) == "unavailable", SLOW)
    assert "did not answer worker.open within" in devices(daemon)["sim:0"]["text"]
    daemon.put("exit 0\n")


def test_one_that_speaks_no_language_of_ours_is_given_up(start_daemon):
    daemon = lone(start_daemon, "head -c 100 /dev/urandom >&3; exec sleep 1000\n", rest=20)
    wait_until(lambda: state(daemon) == "unavailable", SLOW)
    assert "does not speak our protocol" in devices(daemon)["sim:0"]["text"]
    daemon.put("exit 0\n")


# ---- the loop, and clients ---------------------------------------------------------------


@TWO
def test_what_daemon_and_workers_say_to_each_other_is_nothing_for_clients(daemon):
    with daemon.raw() as raw:
        for method in "worker.open", "worker.alloc", "worker.release", "worker.test":
            with pytest.raises(RawError) as caught:
                raw.call(method, {"extent": 1})
            assert caught.value.code == "unknown-method"
    with RawClient(daemon.socket, hello=False) as raw:
        with pytest.raises(RawError) as caught:
            raw.call("worker.probe", {"version": "x"})
        assert caught.value.code == "not-allowed"


# ---- models on them ----------------------------------------------------------------------


@pytest.mark.seconds(300)
def test_whenever_a_worker_dies_the_model_is_right_or_the_caller_is_told(start_daemon, tmp_path):
    """Loads, moves and reads over two devices, a worker killed at a random moment of each."""
    daemon = start_daemon("memory.ram=256M", "memory.reserve=0", "sim.count=2", "sim.memory=80M",
                          "sim.link=200M", environment=environment(rest=0, look=30))
    choice = random.Random(11)
    path, other = tmp_path / "blocks.safetensors", tmp_path / "other.safetensors"
    expected = make_blocks(path, [3 << 20] * 8)
    others = make_blocks(other, [1 << 20] * 3, seed=50)
    told = set()
    with daemon.raw(timeout=SLOW) as quiet:
        beside = placed(quiet, other, "cpu")
        for turn in range(40):
            victim = wait_ok(daemon, choice.choice(["sim:0", "sim:1"]))
            killer = threading.Timer(choice.random() * 0.25, kill, [victim])
            killer.start()
            with daemon.raw(timeout=SLOW) as raw:
                lease = None
                try:
                    lease = placed(raw, path, choice.choice(
                        ["sim:0,12M;sim:1,6M;cpu,*", "sim:1,50%;sim:0,50%", "sim:0"]))
                    if turn % 2:
                        raw.call("place", {"model": path.name, "allocation": "sim:1,75%;cpu,25%"})
                    try:
                        found = lease.tensors()
                    except (AssertionError, KeyError):  # not all blocks are there to be mapped
                        raw.call("ping")
                        assert ("lost", lease.number) in [(name, event.get("lease"))
                                                          for name, event in raw.events]
                        told.add("lost")
                    else:
                        assert found == expected
                except RawError as failure:
                    told.add(failure.code)
                    assert failure.code in ("device-lost", "not-found", "stale", "busy"), failure
                killer.join()
                wait_until(lambda: not is_running(victim), SLOW)
                if lease is not None:
                    lease.close(detach=False)
                    raw.call("unmapped", {"lease": lease.number})
                    raw.call("detach", {"lease": lease.number})
            assert beside.tensors() == others, "nobody else notices"
            for name in "sim:0", "sim:1":  # with another worker than the one that ended
                wait_ok(daemon, name, after=victim)
            with daemon.raw(timeout=SLOW) as raw:
                again = placed(raw, path, "sim:0,12M;sim:1,*")
                assert again.tensors() == expected
                again.close()
                raw.call("unload", {"select": {"models": [path.name]}})
                wait_until(lambda: not any(devices(daemon)[name]["used"] for name in
                                           ("sim:0", "sim:1")), SLOW, "devices that are empty")
        beside.close()
    assert "device-lost" in told, "some were told"


def test_a_drain_that_ends_has_the_device_back_at_once_however_often(start_daemon):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=1",
                          environment=environment(rest=30000))
    told = set()
    with daemon.raw() as raw:
        for _ in range(6):
            raw.call("drain", {"device": "sim:0", "on": True})
            wait_until(lambda: state(daemon) == "unavailable", SLOW)
            began = time.monotonic()
            raw.request("drain", {"device": "sim:0", "on": False})
            device = raw.call("devices")["devices"][1]
            told.add((device["state"], device.get("text")))
            wait_ok(daemon)
            assert time.monotonic() - began < 15, "it rests after failures alone"
    # Where it was looked at in time; it may be back already.
    assert told <= {("ok", None), ("starting", "it drains no longer, and its worker is begun")}


def test_a_budget_set_while_the_device_is_away_is_told_at_once_and_kept(start_daemon):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=1", "sim.memory=64M",
                          environment=environment(rest=3000 * slowness()))
    key = f"gpu.budget.{devices(daemon)['sim:0']['uuid']}"

    def set_to(text):
        done = ctl(daemon, "budget", "sim:0", text)
        assert done.returncode == 0 and f"budget {text}" in done.stdout, done.stdout
        return devices(daemon)["sim:0"]

    assert ctl(daemon, "drain", "--device", "sim:0").returncode == 0
    assert set_to("10.0M")["state"] == "unavailable"
    with daemon.raw() as raw:
        for words, budget in ({"value": "20M"}, 20), ({}, 64):
            assert raw.call("config.set", {"key": key, **words})["applied"] == [key]
            assert devices(daemon)["sim:0"]["budget"] == budget << 20
        set_to("10.0M")
        raw.call("drain", {"on": False})
    wait_ok(daemon)
    assert devices(daemon)["sim:0"]["budget"] == 10 << 20
    os.kill(devices(daemon)["sim:0"]["pid"], signal.SIGKILL)
    wait_until(lambda: state(daemon) == "lost", SLOW)
    assert set_to("12.0M")["state"] == "lost"
    wait_ok(daemon)
    assert devices(daemon)["sim:0"]["budget"] == 12 << 20


def test_a_worker_without_descriptors_refuses_and_keeps_what_it_has(start_daemon, tmp_path):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=1", "sim.memory=256M")
    kept, many = tmp_path / "kept.safetensors", tmp_path / "many.safetensors"
    expected = make_blocks(kept, [1 << 20] * 2)
    make_blocks(many, [1 << 10] * 100)
    worker = devices(daemon)["sim:0"]["pid"]
    _soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    with daemon.raw(timeout=60.0) as raw:
        lease = placed(raw, kept, "sim:0")
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (176, hard))
        with pytest.raises(RawError) as refused:
            placed(raw, many, "sim:0")
        assert refused.value.code == "too-many"
        assert "as many descriptors as it may (176)" in str(refused.value)
        assert devices(daemon)["sim:0"]["pid"] == worker and lease.tensors() == expected
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (hard, hard))
        placed(raw, many, "sim:0").close()
        lease.close()
        raw.call("unload", {"select": {"all": True}})


def test_a_budget_of_one_device_leaves_that_of_another(start_daemon):
    """Where it is not saved either: the settings of another one say nothing of it."""
    daemon = start_daemon("sim.count=2", "sim.memory=64M")

    def budgets():
        return [devices(daemon)[name]["budget"] >> 20 for name in ("sim:0", "sim:1")]

    assert ctl(daemon, "budget", "sim:1", "20M").returncode == 0
    assert ctl(daemon, "budget", "sim:0", "10M", "--save").returncode == 0
    assert budgets() == [10, 20]
    key = "gpu.budget." + devices(daemon)["sim:0"]["uuid"]
    assert ctl(daemon, "config", "unset", key).returncode == 0
    assert budgets() == [64, 20]
    assert ctl(daemon, "budget", "sim:1", "64M", "--save").returncode == 0, "as it is without"
    assert budgets() == [64, 64]
    slip = ctl(daemon, "config", "set", "gpu.budget.GPU-none", "1M")
    assert slip.returncode == 0 and "no device has the name or UUID GPU-none now" in slip.stdout
    done = ctl(daemon, "config", "set", "gpu.budget.SIM:0", "7M")
    assert done.returncode == 0 and "no device" not in done.stdout and budgets() == [7, 64]


def saved_budgets(daemon):
    """[(name of its setting, value)] of what is saved."""
    return [(item["key"].removeprefix("gpu.budget."), item["value"])
            for item in ctl_json(daemon, "config", "show")["settings"]
            if item["key"].startswith("gpu.budget.") and "state.json" in item["source"]]


def test_a_device_has_one_saved_budget_by_whatever_name(start_daemon):
    daemon = start_daemon("sim.count=1", "sim.memory=64M")
    uuid = devices(daemon)["sim:0"]["uuid"]

    def budget():
        return devices(daemon)["sim:0"]["budget"] >> 20

    assert ctl(daemon, "budget", "sim:0", "20M", "--save").returncode == 0
    assert saved_budgets(daemon) == [(uuid, "20M")]
    assert ctl(daemon, "config", "set", "gpu.budget.sim:0", "30M").returncode == 0
    assert budget() == 30 and saved_budgets(daemon) == [("sim:0", "30M")]
    assert ctl(daemon, "budget", "sim:0", "40M").returncode == 0
    done = ctl(daemon, "budget", "sim:0", "--save")
    assert done.returncode == 0 and "Saved" in done.stdout
    assert budget() == 40 and saved_budgets(daemon) == [(uuid, "40M")]
    with distorch.connect(str(daemon.socket)) as d:
        assert [one.budget for one in d.budget("sim:0", save=True)][1] == 40 << 20
        with pytest.raises(ValueError):
            d.budget(bytes=1, save=True)
    assert ctl(daemon, "config", "unset", "gpu.budget.sim:0").returncode == 0
    assert budget() == 64 and saved_budgets(daemon) == []
    assert "budget 12.8M" in ctl(daemon, "budget", "sim:0", "20%").stdout
    assert ctl(daemon, "budget", "sim:0", "101%").returncode == 2
    assert ctl(daemon, "budget", "sim:7", "20%").returncode == 4


def test_of_a_cards_two_names_the_setting_that_ranks_higher_counts(start_daemon):
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "gpu.budget.sim:0=8M")
    done = ctl(daemon, "config", "set", f"gpu.budget.{devices(daemon)['sim:0']['uuid']}", "20M")
    assert "the command line says gpu.budget.sim:0 = 8M, which ranks above" in done.stdout
    assert devices(daemon)["sim:0"]["budget"] == 8 << 20


def test_a_drain_of_a_device_waits_for_room_that_is_reserved_there(start_daemon):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=2", "sim.memory=64M")
    with daemon.raw() as raw:
        tokens = [raw.call("reserve", {"device": "sim:0", "bytes": size << 20})["token"]
                  for size in (1, 3)]
        raw.call("reserve", {"device": "sim:1", "bytes": 5 << 20})
        late = ctl(daemon, "drain", "--device", "sim:0", "--timeout", "300ms")
        assert late.returncode == 8
        assert "still under way: room reserved (" in late.stderr
        assert f"/{os.getpid()} 4.0M)" in late.stderr
        assert "end that: distorchctl drain --off --device sim:0\n" in late.stderr
        full = ctl(daemon, "make-room", "61M", "--device", "sim:0", "--", "true")
        assert "sim:0 (Simulated device) is draining" in full.stderr
        full = ctl(daemon, "make-room", "61M", "--device", "sim:1", "--", "true")
        assert "needs 61.0M, budget 64.0M, free 59.0M, 5.0M reserved" in full.stderr, full.stderr
        with pytest.raises(RawError) as more:
            raw.call("reserve", {"device": "sim:0", "bytes": 1 << 20})
        assert more.value.code == "busy" and "sim:0 (Simulated device) is draining" in str(more.value)
        told = raw.call("drain", {"device": "sim:0"})["reservers"]
        assert [(one["pid"], one["held_bytes"]) for one in told] == [(os.getpid(), 4 << 20)]
        with distorch.connect(daemon.socket) as d:
            assert [one.held_bytes for one in d.drain(device="sim:0").reservers] == [4 << 20]
            assert [one.held_bytes for one in d.drain().reservers] == [9 << 20]
        raw.call("reserve", {"device": "ram", "bytes": 1 << 20})  # which nobody lets go of
        assert ctl(daemon, "drain", "--device", "ram").returncode == 0
        done = ctl(daemon, "drain")  # a shutdown takes nothing from them
        assert done.returncode == 0 and "Nothing is under way" in done.stdout
        assert ctl(daemon, "drain", "--off").returncode == 0
        for token in tokens:
            raw.call("release", {"token": token})
        done = ctl(daemon, "drain", "--device", "sim:0")
        assert done.returncode == 0 and "Nothing is under way" in done.stdout
        assert raw.call("drain", {"device": "sim:0"})["reservers"] == []


def test_a_draining_device_is_let_go_of_when_the_last_room_there_is_given_back(start_daemon):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=1", "sim.memory=64M",
                          environment=environment(look=600_000))
    with daemon.raw() as raw:
        def reserve(holder, **more):
            wait_ok(daemon)
            token = holder.call("reserve", {"device": "sim:0", "bytes": 1 << 20, **more})["token"]
            raw.call("drain", {"device": "sim:0", "on": True})
            device = devices(daemon)["sim:0"]
            assert device["state"] == "ok" and device["reserved"] == 1 << 20
            return token

        def end():
            wait_until(lambda: state(daemon) == "unavailable", SLOW, "its being let go of")
            wait_until(lambda: not children(daemon.pid), SLOW, "no worker")
            raw.call("drain", {"device": "sim:0", "on": False})

        raw.call("release", {"token": reserve(raw)})
        end()
        with daemon.raw() as other:
            reserve(other)
        end()
        reserve(raw, ttl_ms=1000 * slowness())
        end()
        wait_ok(daemon)
        raw.call("drain", {"device": "sim:0", "on": True})
        raw.call("drain", {"device": "sim:0", "on": False})
        raw.call("drain", {"device": "sim:0", "on": True})  # most likely while it is begun
        end()
