# SPDX-License-Identifier: Apache-2.0
"""distorchctl drain: new loads are refused, what is resident is served, and the end is waited for."""
import json
import signal
import subprocess

import distorch
import metrics
import pytest
from conftest import HeldDaemon, RawError, close_all, need_hooks, opened, slowness, wait_until
from placed import MIB, load, make_blocks
from test_ctl import CTL, ctl, ctl_json
from test_wire_hostile import as_nobody, needs_root

SLOW = 10 * slowness()


def start_drain(daemon, *words):
    return subprocess.Popen([CTL, "--socket", str(daemon.socket), "drain", *words], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def is_draining(daemon):
    return daemon.status()["devices"][0].get("draining", False)


def refusal(raw, path):
    with pytest.raises(RawError) as failure:
        raw.load(path)
    return failure.value.error


def lease_of(raw, path):
    result, fds = raw.attach(path)
    close_all(fds)
    return result["lease"]


def let_go(raw, lease):
    raw.call("unmapped", {"lease": lease})
    raw.call("detach", {"lease": lease})


def test_what_is_new_is_refused_and_what_is_there_is_served(daemon, make_model):
    there, new = make_model("there.safetensors"), make_model("new.safetensors", seed=9)
    with daemon.raw() as raw:
        raw.load(there)
        done = ctl(daemon, "drain")
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert done.stdout == "Drained: new loads are refused. Nothing is under way.\n"
        error = refusal(raw, new)
        assert error["code"] == "busy" and error["retryable"] is True
        assert "draining" in error["message"] and "distorchctl drain --off" in error["hint"]
        assert raw.load(there)["source"] == "ram"
        let_go(raw, lease_of(raw, there))
        raw.call("unload", {"select": {"models": ["there.safetensors"]}})
        assert refusal(raw, there)["code"] == "busy", "what has gone would have to be read"
        refused = ctl(daemon, "load", new)
        assert refused.returncode == 1 and "drain --off" in refused.stderr
        assert all(model.get("name") != "new.safetensors" for model in daemon.models(True))
        assert "   draining: new loads are refused" in ctl(daemon, "status").stdout
        assert ctl_json(daemon, "devices")["devices"][0]["draining"] is True
        assert "drain --off" in ctl(daemon, "doctor").stdout
        assert metrics.read(raw.call("metrics")["text"])["distorchd_draining"][{"tier": "ram"}] == 1
        done = ctl(daemon, "drain", "--off")
        assert done.returncode == 0 and done.stdout.startswith("New loads are taken.")
        assert raw.load(new)["source"] == "disk" and not is_draining(daemon)
        assert metrics.read(raw.call("metrics")["text"])["distorchd_draining"][{"tier": "ram"}] == 0
    assert "draining" not in ctl(daemon, "doctor").stdout
    assert daemon.log().count("draining: new loads are refused") == 1


def test_one_device_that_drains_is_named_and_auto_goes_elsewhere(start_daemon, tmp_path):
    daemon = start_daemon("sim.count=2", "sim.memory=64M", "memory.ram=64M", "memory.reserve=0")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 4)
    done = ctl(daemon, "drain", "--device", "sim:0")
    assert done.stdout.startswith("Drained: new loads on sim:0 are refused."), done.stdout
    refused = ctl(daemon, "load", "--to", "sim:0", str(path))
    assert refused.returncode == 1 and "error: sim:0 (Simulated device) is draining and takes no new" in refused.stderr
    assert "drain --off --device sim:0" in refused.stderr, refused.stderr
    assert "sim:0 (Simulated device) is draining" in ctl(daemon, "why", path.name).stdout
    plan = ctl_json(daemon, "plan", str(path), "auto")
    assert {block["device"] for block in plan["blocks"]} == {"sim:1"}
    with daemon.raw(timeout=60.0) as raw:
        lease = load(raw, path, "auto")
        assert set(lease.bytes_on()) == {"sim:1"}
        lease.close()
        raw.call("unload", {"select": {"all": True}})
        assert ctl(daemon, "drain", "--device", "sim:1").returncode == 0
        refused = ctl(daemon, "load", "--to", "sim:0,2M;sim:1,*", str(path))
        assert "sim:0 and sim:1 are draining and take no new loads" in refused.stderr
        lease = load(raw, path, "auto")
        assert set(lease.bytes_on()) == {"cpu"}, "no card takes it"
        lease.close()
    done = ctl(daemon, "drain", "--off", "--device", "sim:1")
    assert done.stdout.startswith("New loads on sim:1 are taken."), done.stdout
    assert ctl(daemon, "drain", "--no-wait").stdout.startswith("New loads are refused.")
    refused = ctl(daemon, "load", "--to", "sim:1", str(path))
    assert "distorchd is draining" in refused.stderr


def test_a_load_that_was_begun_before_its_device_drained_goes_on(start_daemon, tmp_path):
    """Its header was not read yet, so that nothing was charged: the device was let go of at once."""
    need_hooks()
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "memory.ram=64M", "memory.reserve=0")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 4)
    with daemon.raw(timeout=SLOW) as raw, daemon.raw(timeout=SLOW) as other, opened(path) as fd:
        daemon.tell("fault pread:1:delay=1000")
        loading = other.request("load", {"allocation": "sim:0"}, [fd])
        wait_until(lambda: daemon.tell("hits pread") != "0", SLOW, "its header is read")
        raw.call("drain", {"device": "sim:0", "on": True})
        error, result, _fds = other.wait(loading)
        assert error is None, error
        assert [place["device"] for place in result["model"]["where"]] == ["sim:0"]
        raw.call("unload", {"select": {"models": [path.name]}})
        wait_until(lambda: "pid" not in raw.call("devices")["devices"][1], SLOW, "its end")


def test_it_waits_for_loads_and_leases_and_says_for_which(daemon, make_model):
    held, slow = make_model("held.safetensors"), make_model("slow.safetensors", seed=9)
    with daemon.raw(timeout=SLOW) as raw, daemon.raw() as other, opened(slow) as fd:
        raw.load(held)
        lease = lease_of(raw, held)
        daemon.tell("fault ftruncate:1:delay=60000:ever")  # of the load's image
        loading = other.request("load", {}, [fd])
        wait_until(lambda: daemon.status()["loading"] == 1, SLOW)
        drain = start_drain(daemon)
        first = drain.stderr.readline()
        assert first.startswith("waiting for 1 load (slow.safetensors) and 1 lease (python"), first
        daemon.tell("clear")
        error, _result, fds = other.wait(loading)
        close_all(fds)
        assert error is None, "what had begun goes on"
        second = drain.stderr.readline()
        assert second.startswith("waiting for 1 lease (python") and "/" in second, second
        assert drain.poll() is None
        let_go(raw, lease)
        out, err = drain.communicate(timeout=SLOW)
    assert (drain.returncode, err) == (0, "") and out.startswith("Drained")
    assert ctl(daemon, "drain", "--off").returncode == 0


@pytest.mark.parametrize("wanted", [20, 60])
def test_a_plan_takes_nothing_that_has_gone_from_a_device_for_there(start_daemon, tmp_path, wanted):
    """Some of it, and all of it: what would have to come back is refused, as place refuses it."""
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "memory.ram=64M", "memory.reserve=0")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB] * 8)
    with daemon.raw(timeout=SLOW) as raw:
        load(raw, path, "sim:0").close()
        assert ctl(daemon, "plan", path.name, "sim:0").returncode == 0
        room = raw.call("reserve", {"device": "sim:0", "bytes": wanted * MIB})
        raw.call("drain", {"device": "sim:0", "on": True})
        raw.call("release", {"token": room["token"]})  # what had to go cannot come back yet
        for verb in "plan", "place":
            refused = ctl(daemon, verb, path.name, "sim:0")
            assert refused.returncode == 1, (verb, refused.stdout)
            assert "sim:0 (Simulated device) is draining and takes no new" in refused.stderr, (verb, refused.stderr)
        raw.call("drain", {"device": "sim:0", "on": False})
        raw.call("unload", {"select": {"all": True}})


def test_what_is_used_counts_where_its_tensors_are(start_daemon, tmp_path):
    """In the page cache, which is charged to nobody, and not by the header that RAM always has."""
    daemon = start_daemon("memory.backing=auto", "sim.count=1", "sim.memory=64M", "memory.ram=64M",
                          "memory.reserve=0")
    cached, placed = tmp_path / "cached.safetensors", tmp_path / "placed.safetensors"
    make_blocks(cached, [MIB] * 4)
    make_blocks(placed, [MIB] * 4)
    with distorch.connect(daemon.socket) as d:
        d.load(cached)
        with d.open(cached):
            told = d.drain()
            assert told.leases == 1 and told.holders[0].held_bytes >= 4 * MIB
            assert d.drain(device="ram").leases == 1 and d.drain(device="sim:0").leases == 0
        d.load(placed, to="sim:0")
        with d.open(placed):
            assert d.drain(device="sim:0").leases == 1 and d.drain(device="ram").leases == 0
    late = ctl(daemon, "drain", "--device", "ram", "--timeout", "300ms")
    assert late.returncode == 0 and "Nothing is under way" in late.stdout


def test_what_is_idle_on_a_drained_device_is_told_with_how_it_goes(start_daemon, tmp_path):
    daemon = start_daemon("sim.count=2", "sim.memory=64M", "memory.ram=64M", "memory.reserve=0")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 4, head=0)
    assert ctl(daemon, "load", path, "--to", "sim:0").returncode == 0
    for device, is_told in ("sim:1", False), ("sim:0", True):
        said = ctl(daemon, "drain", "--device", device).stdout
        assert ("8.0M of models that nobody uses stay there, and its driver in use: "
                "distorchctl unload --device sim:0" in said) == is_told, said
    assert ctl(daemon, "unload", "--device", "sim:0").returncode == 0
    assert "stay there" not in ctl(daemon, "drain", "--device", "sim:0").stdout


def test_what_it_says_to_type_names_the_device_in_one_word(start_daemon, tmp_path):
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "memory.ram=64M", "memory.reserve=0")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 4, head=0)
    with daemon.raw() as raw:
        lease = load(raw, path, "sim:0")
        late = ctl(daemon, "drain", "--device", "Simulated device", "--timeout", "100ms")
        assert late.returncode == 8
        assert late.stderr.endswith("distorchctl drain --off --device sim:0\n"), late.stderr
        lease.close()
    said = ctl(daemon, "drain", "--device", "Simulated device").stdout
    assert "distorchctl unload --device sim:0 (pinned" in said, said


def test_a_device_waits_for_what_is_loaded_onto_it_alone(start_daemon, tmp_path):
    daemon = start_daemon("sim.count=2", "sim.memory=64M", "memory.ram=64M", "memory.reserve=0",
                          "sim.link=1M")
    path = tmp_path / "slow.safetensors"
    make_blocks(path, [MIB] * 16)
    with daemon.raw(timeout=60.0) as raw:
        with opened(path) as fd:
            raw.request("load", {"allocation": "sim:1"}, [fd])
        wait_until(lambda: daemon.status()["devices"][2]["used"] > 0, SLOW, "its room")
        idle = ctl(daemon, "drain", "--no-wait", "--device", "sim:0").stdout
        assert "Nothing is under way" in idle, idle
        for words in ((), ("--device", "sim:1")):
            assert "1 load (slow.safetensors)" in ctl(daemon, "drain", "--no-wait", *words).stdout
        assert ctl(daemon, "unload", path.name).returncode == 0
    wait_until(lambda: not any(one["used"] for one in daemon.status()["devices"]), SLOW, "its end")


def test_the_waiting_ends_with_its_time_or_ctrl_c_and_the_draining_goes_on(daemon, make_model):
    path = make_model()
    with daemon.raw() as raw:
        raw.load(path)
        lease = lease_of(raw, path)
        late = ctl(daemon, "drain", "--timeout", "300ms")
        assert late.returncode == 8 and not late.stdout
        assert "error: still under way: 1 lease" in late.stderr and "drain --off" in late.stderr
        answer = ctl_json(daemon, "drain", "--timeout", "300ms", status=8)
        assert answer["error"]["code"] == "timeout"
        drain = start_drain(daemon)
        assert drain.stderr.readline().startswith("waiting for 1 lease")
        drain.send_signal(signal.SIGINT)
        _out, err = drain.communicate(timeout=SLOW)
        assert drain.returncode == 130 and "drain --off" in err
        assert is_draining(daemon)
        answer = ctl_json(daemon, "drain", "--no-wait")
        assert answer["draining"] is True and answer["loads"] == 0 and answer["leases"] == 1
        assert answer["holders"][0]["held_bytes"] >= 1 << 20 and answer["loading"] == []
        assert "Under way: 1 lease" in ctl(daemon, "drain", "--no-wait").stdout
        let_go(raw, lease)
    assert ctl_json(daemon, "drain", "--off")["draining"] is False


def test_who_waits_is_told_when_somebody_else_ends_it(daemon, make_model):
    path = make_model()
    with daemon.raw() as raw:
        raw.load(path)
        lease = lease_of(raw, path)
        drain = start_drain(daemon)
        drain.stderr.readline()
        assert ctl(daemon, "drain", "--off").returncode == 0
        _out, err = drain.communicate(timeout=SLOW)
        assert drain.returncode == 1 and "drains no longer" in err
        let_go(raw, lease)


def test_a_client_that_has_gone_and_still_maps_is_waited_for(daemon, make_model, child):
    path = make_model()
    process = child("""
import sys, distorch
d = distorch.connect(sys.argv[1])
w = d.open(sys.argv[2])
print("READY", flush=True)
sys.stdin.readline()
""", daemon.socket, path)
    drain = start_drain(daemon)
    assert f"/{process.pid} " in drain.stderr.readline()
    process.end()
    out, _err = drain.communicate(timeout=SLOW)
    assert drain.returncode == 0 and out.startswith("Drained")
    assert ctl(daemon, "drain", "--off").returncode == 0


def test_a_restart_ends_it(start_daemon, make_model):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=HeldDaemon)
    assert ctl(daemon, "drain").returncode == 0 and is_draining(daemon)
    daemon.kill_daemon()
    assert not is_draining(daemon)
    with daemon.raw() as raw:
        assert raw.load(make_model())["source"] == "disk"


def test_a_reload_and_a_shutdown_do_not_mind(daemon):
    assert ctl(daemon, "drain").returncode == 0
    assert ctl(daemon, "reload").returncode == 0 and is_draining(daemon)


def test_refusals_are_in_words(daemon):
    done = ctl(daemon, "drain", "--device", "cuda:0")
    assert done.returncode == 4 and 'there is no device "cuda:0"; there is ram' in done.stderr
    assert ctl(daemon, "drain", "--device", "ram").returncode == 0 and is_draining(daemon)
    done = ctl(daemon, "drain", "--off", "--no-wait")
    assert done.returncode == 2 and "means nothing" in done.stderr
    assert ctl(daemon, "drain", "now").returncode == 2
    assert ctl(None, "drain").returncode == 3
    assert ctl(daemon, "drain", "--off").returncode == 0
    with daemon.raw() as raw:
        with pytest.raises(RawError) as failure:
            raw.call("drain", {"on": 1})
        assert failure.value.code == "bad-argument"
        assert raw.call("drain")["draining"] is False, "looking changes nothing"


@needs_root
def test_it_needs_an_administrator(daemon):
    def ask():
        with daemon.raw() as raw:
            try:
                return json.dumps(raw.call("drain", {"on": True}))
            except RawError as failure:
                return failure.code

    assert as_nobody(daemon, ask) == "not-allowed" and not is_draining(daemon)


def test_a_plan_is_refused_as_what_is_planned_would_be(start_daemon, tmp_path):
    daemon = start_daemon("sim.count=2", "sim.memory=64M", "memory.ram=64M", "memory.reserve=0")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 4)
    with daemon.raw() as raw:
        lease = load(raw, path, "sim:1")
        assert ctl(daemon, "drain", "--device", "sim:1", "--no-wait").returncode == 0
        assert ctl(daemon, "plan", "m", "sim:1").returncode == 0, "it lies there"
        assert ctl(daemon, "place", "m", "sim:0,50%;sim:1,50%").returncode == 0
        lease.close()
        for verb in "plan", "place":
            refused = ctl(daemon, verb, "m", "sim:1")
            assert refused.returncode == 1 and "drain --off --device sim:1" in refused.stderr
            assert "sim:1 (Simulated device) is draining and takes no new loads" in refused.stderr, refused.stderr
        raw.call("unload", {"select": {"all": True}})
        refused = ctl(daemon, "plan", path, "sim:1")  # of a file
        assert refused.returncode == 1 and "sim:1 (Simulated device) is draining and takes no" in refused.stderr
        assert "drain --off" in refused.stderr
        wait_until(lambda: daemon.status()["devices"][2]["state"] == "unavailable", SLOW)
        end = "distorchctl drain --off --device sim:1\n"  # and no other's
        assert f"fix: end the drain: {end}" in ctl(daemon, "doctor").stdout
        assert f"its driver is let go of, until: {end}" in ctl(daemon, "devices", "sim:1").stdout
        refused = ctl(daemon, "make-room", "1M", "--device", "sim:1", "--", "true")
        assert "sim:1 (Simulated device), which was to have the reservation, is drained and let go of" in refused.stderr
        assert refused.stderr.endswith(end)


def test_it_is_there_from_python(connect, distorch, make_model):
    path = make_model()
    with connect() as d:
        assert d.drain().draining is False
        assert d.drain(True, device="ram").draining is True
        with pytest.raises(distorch.Error) as failure:
            d.load(path)
        assert failure.value.code == "busy"
        with pytest.raises(TypeError, match="^on must be True or False"):
            d.drain("off")
        drain = d.drain(False)
        assert (drain.draining, drain.loads, drain.loading, drain.leases, drain.holders) == \
            (False, 0, [], 0, [])
        with d.open(path) as weights:
            assert len(weights) == 4 and d.drain().leases == 1
            assert d.drain().holders[0].held_bytes >= 1 << 20
