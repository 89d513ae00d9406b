# SPDX-License-Identifier: Apache-2.0
"""What a newcomer runs: the demonstration, and the examples over devices."""
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import pytest
from conftest import BUILD, ROOT, slowness
from placed import MIB, make_blocks

DEMO = ROOT / "scripts" / "demo.py"


def demo(folder, *words):
    kept = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    environment = {**kept, "TMPDIR": str(folder), "DISTORCH_BUILD": str(BUILD)}
    return subprocess.run([sys.executable, DEMO, *words], env=environment,
                          capture_output=True, text=True, timeout=120 * slowness())


@pytest.mark.seconds(150)
def test_the_demonstration_shows_what_it_says_and_leaves_nothing(make_model):
    with tempfile.TemporaryDirectory(prefix="d-") as folder:  # short, for the socket
        done = demo(folder, make_model("some.safetensors", size=MIB))
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == "" and os.listdir(folder) == []
    said = done.stdout
    assert [int(number) for number in re.findall(r"^(\d+)\. ", said, re.M)] == list(range(1, 12))
    assert re.search(r"^NAME .*\nlayers\.safetensors .* sim:0 50% \+ sim:1 33% \+ ram 17% ",
                     said, re.M)
    for name, number in ("sim:0", 6), ("sim:1", 4), ("cpu", 2):
        assert re.search(rf"^   {name}: .* \({number} tensors\) equal the file's", said, re.M)
    assert "lies in sim:0 33% + sim:1 50% + ram 17% now: 16.0M copied" in said
    assert re.search(r"evicted .* 48\.0M  from sim:1  the device is gone$", said, re.M)
    assert re.search(r"evicted .* from sim:1  its room is reserved for \S+ \(PID \d+\)$", said, re.M)
    assert re.search(r"evicted .* from sim:1  to make room for other\.safetensors$", said, re.M)
    assert "nothing is left running" in said
    for pid in re.findall(r"PID (\d+)", said):
        assert not pathlib.Path(f"/proc/{pid}").exists()


def test_the_demonstration_ends_with_a_clear_line(tmp_path):
    done = demo(tmp_path, tmp_path / "nosuch.safetensors")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"demo: {tmp_path}/nosuch.safetensors is not a file\n"
    long = tmp_path / ("x" * 80)
    long.mkdir()
    done = demo(long, DEMO)
    assert done.returncode == 1 and re.fullmatch(
        "demo: the daemon did not start: .*the socket path has .*\n", done.stderr)
    environment = {**os.environ, "TMPDIR": str(tmp_path), "DISTORCH_BUILD": str(tmp_path)}
    done = subprocess.run([sys.executable, DEMO, DEMO], env=environment, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"demo: there is no {tmp_path}/bin/distorchd" in done.stderr


@pytest.mark.daemon("sim.count=1", "sim.memory=64M", "memory.ram=64M", "memory.reserve=0")
def test_the_examples_over_devices(daemon, tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [MIB] * 4, head=0)
    environment = {**os.environ, "DISTORCH_SOCKET": str(daemon.socket),
                   "PYTHONPATH": str(ROOT / "client" / "python")}

    def run(*words):
        return subprocess.run(list(map(str, words)), env=environment, capture_output=True,
                              text=True, timeout=60)

    found = []
    for allocation in "cpu", "sim:0,50%;cpu,50%", "sim:0":
        done = run(BUILD / "examples" / "example_placed", path, allocation)
        assert done.returncode == 0, done.stderr
        found.append([line.split("\t") for line in done.stdout.splitlines()])
    for one in found:
        assert [line[3] for line in one] == [line[3] for line in found[0]], "the same bytes"
    assert len({line[3] for line in found[0]}) == 4
    assert [line[2] for line in found[1]] == ["sim:0"] * 2 + ["cpu"] * 2
    example = ROOT / "docs" / "examples" / "placed.py"
    done = run(sys.executable, example, path, "sim:0,50%;cpu,50%", "sim:0")
    assert done.returncode == 0, done.stderr
    assert f"  sim:0: {2 * MIB} bytes" in done.stdout and f"  cpu: {2 * MIB} " in done.stdout
    assert f"  sim:0: {4 * MIB} bytes" in done.stdout and "were copied" in done.stdout
    refused = run(sys.executable, example, path, "sim:7")
    assert refused.returncode == 1 and refused.stderr.startswith("error: ")
    assert "sim:7" in refused.stderr and "Traceback" not in refused.stderr
