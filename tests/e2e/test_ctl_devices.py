# SPDX-License-Identifier: Apache-2.0
"""distorchctl devices: the account of each memory, for people and programs."""
import os

import distorch
import pytest
from test_ctl import ctl, ctl_json, on_terminal


def test_devices_tell_the_account(daemon, make_model):
    assert ctl(daemon, "load", make_model("flux.safetensors", size=1 << 20)).returncode == 0
    device = ctl_json(daemon, "devices")["devices"][0]
    assert device["name"] == "cpu" and device["state"] == "ok" and device["models"] == 1
    assert device["used"] >= 1 << 20 and device["free"] == device["budget"] - device["used"]
    assert {"product", "pci", "foreign", "temperature", "last_xid", "dropping"} <= set(device)
    lines = ctl(daemon, "devices").stdout.splitlines()
    assert lines[0].split()[:3] == ["DEVICE", "STATE", "TOTAL"] and "OTHERS" in lines[0]
    assert lines[1].split()[:2] == ["ram", "ok"]
    assert ctl(daemon, "gpu").stdout.splitlines()[0] == lines[0]
    wide = ctl(daemon, "devices", "-o", "wide").stdout.splitlines()
    assert wide[0].split()[-3:] == ["TEMP", "XID", "UUID"]
    rows = ctl(daemon, "devices", "-o", "csv").stdout.splitlines()
    named = dict(zip(rows[0].split(","), rows[1].split(",")))
    assert named["DEVICE"] == "cpu" and named["USED"] == str(device["used"])
    assert ctl(daemon, "devices", "-o", "id").stdout == "cpu\n"
    assert len(on_terminal(daemon, ["devices"], 80).splitlines()) == 2


def test_status_counts_models_by_device_and_what_is_pinned_once(start_daemon, make_model):
    daemon = start_daemon("memory.ram=64M", "sim.count=1", "sim.memory=64M")
    path = make_model("pinned.safetensors", size=1 << 20)
    assert ctl(daemon, "load", path, "--to", "sim:0", "--pin").returncode == 0
    lines = ctl(daemon, "status").stdout.splitlines()
    assert lines[1].split()[0] == "RAM" and lines[1].endswith("0 models")
    assert lines[2].split()[0] == "sim:0" and "1 model " in lines[2]
    assert lines[3].startswith("  Models 1 (1 pinned)    clients 1")


@pytest.mark.parametrize("word", ["ram", "cpu", "host", "RAM"])
def test_one_device_is_shown_in_full(daemon, word):
    text = ctl(daemon, "devices", word).stdout
    assert text.startswith("ram ") and "budget" in text and "free" in text
    assert len(ctl_json(daemon, "devices", word)["devices"]) == 1


def test_a_device_that_is_not_there_is_named_with_those_that_are(daemon):
    done = ctl(daemon, "devices", "cuda:7")
    assert done.returncode == 4
    assert 'there is no device "cuda:7"; there is ram' in done.stderr
    assert ctl_json(daemon, "devices", "cuda:7", status=4)["error"]["code"] == "not-found"
    assert ctl(daemon, "devices", "a", "b").returncode == 2
    assert 'there is no device "\\x1b[2J";' in ctl(daemon, "devices", "\033[2J").stderr, "once"


def test_a_word_for_several_devices_is_refused_with_their_names(start_daemon):
    daemon = start_daemon("memory.ram=64M", "sim.count=2")
    for word in ("Simulated device", "SIM-0000"):
        done = ctl(daemon, "devices", word)
        assert done.returncode == 2
        assert f'2 devices are a "{word}": sim:0, sim:1' in done.stderr
        assert "by its number or UUID" in done.stderr
        assert ctl_json(daemon, "devices", word, status=2)["error"]["code"] == "bad-argument"
    uuids = [device["uuid"] for device in ctl_json(daemon, "devices")["devices"][1:]]
    assert ctl_json(daemon, "devices", uuids[1])["devices"][0]["name"] == "sim:1"
    assert ctl_json(daemon, "devices", "SIM:0")["devices"][0]["uuid"] == uuids[0]


@pytest.mark.parametrize("has_peers", ["yes", "no"])
def test_what_a_load_could_have_and_which_devices_read_from_each_other(
        start_daemon, make_model, has_peers):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "sim.count=2", "sim.memory=32M",
                          "sim.link=1G", f"sim.peers={has_peers}", "gpu.budget=100%")
    path = make_model("m.safetensors", size=4 << 20)
    assert ctl(daemon, "load", path, "--to", "sim:0").returncode == 0
    ram, first, second = ctl_json(daemon, "devices")["devices"]
    assert first["room"] == first["free"] == (32 << 20) - first["used"] and first["later"] == 0
    assert first["evictable"] == first["used"] > 4 << 20 and first["loading"] == 0
    assert first["granularity"] == 2 << 20 and ram["granularity"] == os.sysconf("SC_PAGE_SIZE")
    assert ram["peers"] == []
    wanted = [{"device": "sim:1", "link": 1 << 30}] if has_peers == "yes" else []
    assert first["peers"] == wanted
    assert [one["device"] for one in second["peers"]] == (["sim:0"] if wanted else [])
    said = ctl(daemon, "devices", "sim:0").stdout
    assert ("peers     sim:1 (1.0G/s)" in said) == bool(wanted), said
    with distorch.connect(str(daemon.socket)) as d:
        told = d.devices()[1]
        assert [(one.device, one.link) for one in told.peers] == [("sim:1", 1 << 30)] * len(wanted)
        with d.open(path):
            assert d.devices()[1].evictable == 0 and told.evictable == told.used


def test_csv_has_the_names_that_a_plan_has(start_daemon, make_model):
    daemon = start_daemon("memory.ram=64M", "sim.count=2")
    path = make_model("m.safetensors", size=1 << 20)
    assert "sim:0 (Simulated device)" in ctl(daemon, "devices").stdout, "for people"

    def names(*words):
        rows = ctl(daemon, *words, "-o", "csv").stdout.splitlines()[1:]
        return sorted(row.split(",")[0] for row in rows)

    assert names("devices") == names("plan", path, "sim:0") == ["cpu", "sim:0", "sim:1"]
    assert names("devices", "ram") == ["cpu"]


def test_the_budget_of_one_device_is_shown(start_daemon):
    daemon = start_daemon("memory.ram=64M", "sim.count=2", "sim.memory=32M", "gpu.budget=100%")
    rows = ctl(daemon, "budget").stdout.splitlines()
    whole = ctl_json(daemon, "budget")["devices"]
    for word, at in ("ram", 0), ("sim:1", 2), (whole[1]["uuid"], 1):
        done = ctl(daemon, "budget", word)
        assert done.returncode == 0 and done.stdout.splitlines() == [rows[at]], done.stderr
        assert ctl_json(daemon, "budget", word)["devices"] == [whole[at]]
    for word, status in ("cuda:7", 4), ("Simulated device", 2):
        done = ctl(daemon, "budget", word)
        assert done.returncode == status and done.stderr == ctl(daemon, "devices", word).stderr
    assert ctl_json(daemon, "budget")["devices"] == whole, "nothing was set"
