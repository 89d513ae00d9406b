# SPDX-License-Identifier: Apache-2.0
"""scripts/gpu-check where there is no card, and over the stand-in driver: what it prints there is
marked, so that nobody takes a figure of it for one of a card."""

import os
import re
import subprocess
import sys

import pytest
from conftest import BUILD, ROOT, slowness

FAKECUDA = BUILD / "fakecuda"
pytestmark = pytest.mark.skipif(not (BUILD / "gpu" / "gpu_check").exists(),
                                reason="built without the headers of CUDA")


def gpu_check(*words, script=ROOT / "scripts" / "gpu-check", build=("--build", BUILD)):
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("LD_LIBRARY_PATH", "FAKECUDA_DIR")}
    environment["ASAN_OPTIONS"] = "detect_leaks=0"  # processes that end in the middle are its point
    return subprocess.run([script, *build, *words], env=environment, capture_output=True, text=True,
                          timeout=600)


def has_driver():
    return subprocess.run(["ldconfig", "-p"], capture_output=True, text=True,
                          check=False).stdout.find("libcuda.so.1") >= 0


@pytest.mark.skipif(has_driver(), reason="this machine has a driver")
@pytest.mark.fault("G01")
def test_without_a_card_it_says_so_in_one_line():
    done = gpu_check()
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"gpu-check: nothing was tried: no NVIDIA driver: libcuda.so.1.*\n",
                        done.stdout)


def answers_of(done):
    assert done.returncode == 0, done.stdout + done.stderr
    title, *lines = done.stdout.splitlines()
    assert "gpu-check of" in title
    assert all(line.startswith("[stand-in] ") for line in lines), done.stdout
    return [line.removeprefix("[stand-in] ") for line in lines]


def test_every_question_is_answered_and_marked_as_the_stand_ins():
    lines = answers_of(gpu_check("--driver", FAKECUDA))
    numbers = {line.split()[0] for line in lines}
    assert {"1a", "1b", "1c", "1d", "2", "3", "4", "5", "6", "7"} <= numbers
    assert not any("refused" in line for line in lines)
    assert any(re.match(r"the contract suite over cuda: [1-9][0-9]+ passed, 0 failed", line)
               for line in lines)


@pytest.mark.fault("G05")
def test_a_driver_that_refuses_is_quoted_with_its_code(monkeypatch):
    monkeypatch.setenv("FAKECUDA_FAULT", "cuMemExportToShareableHandle:1:801:ever")
    done = gpu_check("--driver", FAKECUDA)
    assert done.returncode != 0  # the suite cannot pass
    assert re.search(r"\[stand-in\] 1a .*refused \(801; ", done.stdout), done.stdout
    assert re.search(r"\[stand-in\] 2 create and export .*refused \(801 ", done.stdout)


def with_library_of(made):
    """A Python that is not built with a sanitizer cannot load a library that is."""
    library = os.environ["DISTORCH_LIBRARY"] if slowness() > 1 else made / "lib/libdistorch.so.1"
    return {**os.environ, "DISTORCH_LIBRARY": str(library)}


def test_the_made_folder_runs_alone(tmp_path):
    made = tmp_path / "made"
    done = gpu_check("--make", made)
    assert done.returncode == 0, done.stderr
    lines = answers_of(gpu_check("--driver", FAKECUDA, script=made / "gpu-check", build=()))
    assert lines[-1].endswith(" 0 failed")
    # What tries the daemon finds all that it needs, and says why there is nothing to try.
    done = subprocess.run([sys.executable, made / "tour.py", made], capture_output=True, text=True,
                          cwd=tmp_path, env={**with_library_of(made), "CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, done.stdout) in ((77, "no torch\n"), (77, "torch sees no card\n"))
    said = subprocess.run([made / "bin" / "distorchd", "--version"], capture_output=True, text=True,
                          env={**os.environ, "LD_LIBRARY_PATH": str(made / "lib")}, check=True)
    assert said.stdout.startswith("distorchd ")
    assert {one.name for one in (made / "bin").iterdir()} == {
        "distorchd", "distorchd-hold", "distorchd-worker", "distorchctl"}


def test_unknown_words_are_refused():
    done = gpu_check("--fast")
    assert done.returncode == 1 and "gpu-check knows no --fast" in done.stderr
    assert "nothing is tried" in gpu_check("--help").stdout
