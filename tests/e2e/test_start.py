# SPDX-License-Identifier: Apache-2.0
"""What a start refuses, and what it leaves alone; numbers at the edge of their range."""
import subprocess

import pytest
from conftest import BUILD, RawError, wait_until

HUGE_MS = 18_446_744_073_710  # the first that does not fit 64 bits of nanoseconds


def start(*arguments):
    """Run distorchd until it ends; its exit code and what it said."""
    done = subprocess.run([str(BUILD / "bin" / "distorchd"), *map(str, arguments)],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.fault("S07", "X12")
@pytest.mark.parametrize("suffix", ["", "~", ".lock"])
def test_a_file_in_the_way_is_named_and_left_alone(tmp_path, suffix):
    there = tmp_path / f"d.sock{suffix}"
    there.write_text("precious")
    code, said = start("--socket", tmp_path / "d.sock")
    assert code == 1 and str(there) in said, said
    assert there.read_text() == "precious"


@pytest.mark.fault("S07")
def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "d.sock~").mkdir()
    code, said = start("--socket", tmp_path / "d.sock")
    assert code == 1 and "d.sock~" in said, said


@pytest.mark.fault("S07")
def test_a_path_that_is_too_long_is_named_with_its_length(tmp_path):
    code, said = start("--socket", tmp_path / ("x" * 200))
    assert code == 1 and "bytes" in said and "106" in said, said


@pytest.mark.fault("S08")
def test_a_second_daemon_names_the_first(daemon):
    code, said = start("--socket", daemon.socket)
    assert code == 1 and f"already running, pid {daemon.pid}" in said, said


def test_a_state_folder_that_is_none_is_refused(tmp_path):
    file = tmp_path / "state"
    file.write_text("x")
    code, said = start("--socket", tmp_path / "s", "--state-dir", file)
    assert code == 1 and str(file) in said, said
    file.unlink()
    file.symlink_to(tmp_path / "nowhere")
    code, said = start("--socket", tmp_path / "s", "--state-dir", file)
    assert code == 1 and str(file) in said, said


@pytest.mark.parametrize("setting", ["access.group=nosuchgroup", "access.control=nosuchuser"])
def test_a_name_that_nobody_has_is_refused(tmp_path, setting):
    code, said = start("--socket", tmp_path / "s", "--set", setting)
    assert code == 1 and setting.split("=")[1] in said, said


@pytest.mark.fault("P08", "T05")
def test_times_that_do_not_fit_are_for_ever(daemon, make_model):
    path = make_model()
    with daemon.raw() as raw:
        raw.load(path, policy={"ttl_ms": HUGE_MS, "pin": True, "for_ms": HUGE_MS})
        report = raw.call("unload", {"select": {"idle_ms": HUGE_MS}})
        assert report["unloaded"] == []
        model = raw.call("list")["models"][0]
        assert model["state"] == "resident" and model["pinned"]
        raw.call("set", {"model": path.name, "policy": {"pin": False}})
        assert raw.call("list")["models"][0]["state"] == "resident", "its time has not run out"


@pytest.mark.parametrize("select", [{"names": []}, {"under": ""}, {"models": []}, {"idle_ms": 0},
                                    {"names": [], "under": ""}])
def test_an_empty_selection_unloads_nothing(daemon, make_model, select):
    with daemon.raw() as raw:
        raw.load(make_model())
        with pytest.raises(RawError, match="nothing is selected|is empty: leave it out"):
            raw.call("unload", {"select": select})
    wait_until(lambda: daemon.models()[0]["state"] == "resident")
