# SPDX-License-Identifier: Apache-2.0
"""Weights on cards in a client process, over the stand-in driver (tests/fakecuda): imported when they
are asked for, read by the driver, given back before the daemon is told."""
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile

import pytest
from conftest import BUILD, ROOT, make_safetensors, slowness, wait_until
from test_ctl import ctl
from test_devices import devices

FAKECUDA = BUILD / "fakecuda"
MIB = 1 << 20
pytestmark = pytest.mark.skipif(not (FAKECUDA / "libcuda.so.1").exists(),
                                reason="built without the headers of CUDA")

# A program of a user: opens the model, reads each tensor from where it lies, lets go, waits.
CLIENT = """
import ctypes, hashlib, os, sys
import distorch

cuda = ctypes.CDLL("libcuda.so.1")
def read(address, size):
    context, buffer = ctypes.c_void_p(), ctypes.create_string_buffer(size)
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert cuda.cuCtxPushCurrent_v2(context) == 0
    stream = ctypes.c_void_p()
    assert cuda.cuStreamCreate(ctypes.byref(stream), 1) == 0
    assert cuda.cuMemcpyDtoHAsync_v2(buffer, ctypes.c_uint64(address), ctypes.c_size_t(size),
                                     stream) == 0
    assert cuda.cuStreamSynchronize(stream) == 0 and cuda.cuStreamDestroy_v2(stream) == 0
    cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
    cuda.cuDevicePrimaryCtxRelease_v2(0)
    return buffer.raw

d = distorch.connect()
w = d.open(sys.argv[1])
held = []
for name, tensor in w.items():
    kind, ordinal = tensor.__dlpack_device__()
    if tensor.device == "cpu":
        assert kind == 1
        data = bytes(tensor.buffer)
    else:
        assert (kind, ordinal) == (2, 0), (kind, ordinal)
        held.append(tensor.__dlpack__())
        what = tensor._exchange()._what
        data = read(what[1], tensor.nbytes)
        try:
            tensor.buffer
            raise SystemExit("a card's memory is not this process's to see")
        except ValueError as failure:
            assert "lies on cuda:0" in str(failure)
    print(name, tensor.device, hashlib.sha256(data).hexdigest())
w.close()
tensor = what = None
print("holds", flush=True)
sys.stdin.readline()
held.clear()
print("let go", flush=True)
sys.stdin.readline()
"""

# Another one: a child that it forks lets the weights go, and says whether they are mapped there.
FORKING_CLIENT = """
import gc, os, sys
import distorch

d = distorch.connect()
w = d.open(sys.argv[1])
for tensor in w.values():
    tensor.__dlpack__()
address = tensor._exchange()._what[1]
tensor = None
gc.collect()

def is_mapped():
    spans = ([int(end, 16) for end in line.split()[0].split("-")] + [line.split()[1]]
             for line in open("/proc/self/maps"))
    return any(first <= address < last and how[0] == "r" for first, last, how in spans)

assert is_mapped()
child = os.fork()
if child == 0:
    w.close()
    gc.collect()
    print("child", is_mapped(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0 and is_mapped()
w.close()
gc.collect()
print("parent", is_mapped(), flush=True)
"""


@pytest.fixture
def card():
    """The environment of a machine with one card of 64 MiB."""
    folder = tempfile.mkdtemp(prefix="distorch-card.", dir="/dev/shm")
    yield {"LD_LIBRARY_PATH": str(FAKECUDA), "FAKECUDA_DIR": folder, "FAKECUDA_CARDS": "64M"}
    shutil.rmtree(folder)


@pytest.fixture
def daemon_with_card(card, start_daemon):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "gpu.devices=all",
                          "gpu.budget=100%", environment=card)
    wait_until(lambda: devices(daemon).get("cuda:0", {}).get("state") == "ok", 20 * slowness())
    daemon.baseline_fds = max(daemon.baseline_fds, daemon.fds_at_rest())
    return daemon


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.safetensors"
    return path, make_safetensors(path, {f"layers.{i}.w": ("U8", [MIB + i]) for i in range(6)})


def client(daemon, path, program=CLIENT, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, "DISTORCH_SOCKET": str(daemon.socket),
             "PYTHONPATH": str(ROOT / "client" / "python"), **environment})


def failure_of(call):
    """As text: its traceback would hold the tensor."""
    try:
        call()
    except Exception as failure:
        return str(failure)
    raise AssertionError("it did not fail")


def used(daemon):
    return devices(daemon)["cuda:0"]["used"]


@pytest.mark.skipif(slowness() > 1, reason="Python cannot load a driver with a sanitizer in it")
def test_a_clients_tensors_are_those_of_the_card(daemon_with_card, card, model):
    daemon, (path, expected) = daemon_with_card, model
    assert ctl(daemon, "load", path, "--to", "cuda:0,50%;cpu,50%").returncode == 0
    with client(daemon, path, **card) as process:
        lines = [process.stdout.readline().split() for _ in range(6)]
        if process.stdout.readline() != "holds\n":
            pytest.fail(process.communicate()[1])
        assert [line[1] for line in lines] == ["cuda:0"] * 3 + ["cpu"] * 3
        assert {line[0]: line[2] for line in lines} == \
            {name: hashlib.sha256(data).hexdigest() for name, data in expected.items()}
        assert ctl(daemon, "unload", "m").returncode == 0
        assert used(daemon) > 0, "what a process has mapped is held"
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "let go\n"
        wait_until(lambda: used(daemon) == 0, 20 * slowness())
        process.communicate("\n", timeout=60)
        assert process.returncode == 0


@pytest.mark.skipif(slowness() > 1, reason="Python cannot load a driver with a sanitizer in it")
def test_a_forked_child_leaves_the_driver_alone(daemon_with_card, card, model):
    daemon, (path, _expected) = daemon_with_card, model
    assert ctl(daemon, "load", path, "--to", "cuda:0").returncode == 0
    with client(daemon, path, FORKING_CLIENT, **card) as process:
        out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("child True\nparent False\n", 0), err
    assert ctl(daemon, "unload", "m").returncode == 0
    wait_until(lambda: used(daemon) == 0, 20 * slowness())


def test_without_a_driver_the_rest_can_be_read(daemon_with_card, model, distorch):
    daemon, (path, expected) = daemon_with_card, model
    assert ctl(daemon, "load", path, "--to", "cuda:0,50%;cpu,50%").returncode == 0
    with distorch.connect(str(daemon.socket)) as d, d.open(path) as w:
        assert bytes(w["layers.5.w"].buffer) == expected["layers.5.w"]
        assert "lies on cuda:0" in failure_of(lambda: w["layers.0.w"].buffer)
        assert failure_of(w["layers.0.w"].__dlpack__).startswith("unsupported: ")


def test_a_client_that_is_killed_gives_the_card_back(daemon_with_card, card, model):
    daemon, (path, _expected) = daemon_with_card, model
    assert ctl(daemon, "load", path, "--to", "cuda:0").returncode == 0
    with client(daemon, path, **card) as process:
        for _ in range(7):
            process.stdout.readline()
        process.kill()
    assert ctl(daemon, "unload", "m").returncode == 0
    wait_until(lambda: used(daemon) == 0, 20 * slowness())
