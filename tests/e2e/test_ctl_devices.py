# SPDX-License-Identifier: Apache-2.0
"""distorchctl devices: the account of each memory, for people and programs."""
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


def test_csv_has_the_names_that_a_plan_has(start_daemon, make_model):
    daemon = start_daemon("memory.ram=64M", "sim.count=2")
    path = make_model("m.safetensors", size=1 << 20)
    assert "sim:0 (Simulated device)" in ctl(daemon, "devices").stdout, "for people"

    def names(*words):
        rows = ctl(daemon, *words, "-o", "csv").stdout.splitlines()[1:]
        return sorted(row.split(",")[0] for row in rows)

    assert names("devices") == names("plan", path, "sim:0") == ["cpu", "sim:0", "sim:1"]
    assert names("devices", "ram") == ["cpu"]
