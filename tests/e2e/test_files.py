# SPDX-License-Identifier: Apache-2.0
"""Odd and hostile model files through the real socket, the library and the command line (F)."""

import errno
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import threading

import pytest
from conftest import (BUILD, RawError, close_all, let_others_in, make_sparse_model, opened, pattern,
                      slowness, wait_until)
from test_wire_hostile import as_nobody

MIB = 1 << 20
MAX_HEADER = 100_000_000


# The beginning of a header, and what follows until it has 100 MB. Those that begin as a header
# does are not refused by the first bytes that are read.
SHAPE = b'{"a":{"dtype":"U8","shape":['
BOMBS = {
    "zeros": (b"[", b"0,"), "zeros in a shape": (SHAPE, b"0,"),
    "a string": (b'{"', b"a"), "a string in the metadata": (b'{"__metadata__":{"a":"', b"a"),
    "depth": (b"[", b"["), "depth in a shape": (SHAPE, b"["), "maps in maps": (b"", b'{"a":'),
    "tensors": (b"{", None),
}


def tensor_texts():
    for first in range(0, 1_800_000, 100_000):
        yield b"".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' % number
                       for number in range(first, first + 100_000))


def write_bomb(path, kind):
    begin, unit = BOMBS[kind]
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER) + begin)
        for piece in tensor_texts() if unit is None else [unit * 1_000_000] * 100:
            file.write(piece)
            if file.tell() > MAX_HEADER:
                break
        file.truncate(8 + MAX_HEADER)


def peak_kib(daemon):
    with open(f"/proc/{daemon.pid}/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@pytest.mark.fault("F04:depth", "F04:zeros", "F04:string", "F04:tensors", "F02")
@pytest.mark.parametrize("kind", BOMBS)
def test_a_header_of_100_mb_is_refused_and_the_loop_answers_meanwhile(daemon, tmp_path, kind):
    path = tmp_path / "bomb.safetensors"
    write_bomb(path, kind)
    n_answers = 0
    with daemon.raw(timeout=30.0) as raw, daemon.raw() as other, opened(path) as fd:
        with open(f"/proc/{daemon.pid}/clear_refs", "w") as file:
            file.write("5")  # the peak begins anew
        before = peak_kib(daemon)
        number = raw.request("load", {}, [fd])
        raw.sock.settimeout(0.0005)
        while number not in raw.answers:
            try:
                message, _fds = raw.recv()
                if message[0] == 1:
                    raw.answers[message[1]] = (message[2], message[3], [])
            except (TimeoutError, BlockingIOError):
                assert other.call("ping") == {}
                n_answers += 1
        error = raw.wait(number)[0]
        assert error["code"] in ("bad-file", "unsupported") and error["message"], error
        assert other.call("ping") == {}
        assert n_answers > 0 or kind != "tensors", "the loop waited for the parser"
        # The header itself is read into memory, if it begins as one; its content costs 20 MB.
        allowed = MAX_HEADER if begins_well(kind) else 0
        assert slowness() > 1 or peak_kib(daemon) - before < (allowed >> 10) + 20 * 1024


def begins_well(kind):
    return kind in ("zeros in a shape", "a string in the metadata", "depth in a shape", "tensors")


# ---- rights and leases ------------------------------------------------------------------------


@pytest.mark.fault("F34:mode")
@pytest.mark.skipif(os.getuid() == 0, reason="root may read every file")
def test_a_file_without_permissions_is_refused_in_words(daemon, distorch, make_model):
    path = make_model()
    os.chmod(path, 0)
    refuse_in_words(daemon.socket, path)


@pytest.mark.fault("F34:mode")
@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_a_file_without_permissions_is_refused_another_user_in_words(daemon, make_model):
    path = make_model()
    let_others_in(path)
    os.chmod(path, 0)
    assert as_nobody(daemon, lambda: refuse_in_words(daemon.socket, path)) == "None"


def refuse_in_words(socket, path):
    """Neither the command line nor the library can open it, and both say why."""
    import distorch
    done = subprocess.run([BUILD / "bin" / "distorchctl", "--socket", socket, "load", path],
                          capture_output=True, text=True)
    assert done.returncode == 5, done
    assert f"you may not read {path}" in done.stderr, done.stderr
    connection = distorch.connect(str(socket))
    with pytest.raises(distorch.Error) as caught:
        connection.load(path)
    assert caught.value.code == "not-allowed" and str(path) in str(caught.value), caught.value
    connection.close()


@pytest.mark.fault("F34:lease")
def test_a_lease_of_another_process_is_said_and_nobody_waits_for_it(daemon, distorch, make_model):
    path = make_model(seed=3)
    asked = threading.Event()
    before = signal.signal(signal.SIGIO, lambda *_: asked.set())
    try:
        with opened(path, os.O_RDWR) as held:
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            done = subprocess.run([BUILD / "bin" / "distorchctl", "--socket", daemon.socket, "load",
                                   path], capture_output=True, text=True)
            assert done.returncode == 1 and "another process holds a lease" in done.stderr, done
            wait_until(asked.is_set, what="the kernel's word to the holder")
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        signal.signal(signal.SIGIO, before)
    connection = distorch.connect(str(daemon.socket))
    connection.load(path)
    connection.close()
    with daemon.raw() as raw, opened(path) as fd:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)  # a lease to read is no obstacle
        assert raw.load(path)["source"] == "ram"


# ---- sparse files and O_DIRECT ------------------------------------------------------------------


@pytest.mark.fault("F34:no-direct")
def test_a_filesystem_without_direct_reads_is_read_anyhow(daemon, make_model):
    if not os.path.isdir("/dev/shm"):
        pytest.skip("no tmpfs here")
    path = f"/dev/shm/distorch-test-{os.getpid()}.safetensors"
    shutil.copy(make_model(size=3 * MIB, seed=9), path)
    try:
        loaded_image_is(daemon, path)
    finally:
        os.unlink(path)


@pytest.mark.fault("F34:no-direct")
@pytest.mark.parametrize("error", ["EINVAL", "EOPNOTSUPP"])
def test_direct_reads_that_are_refused_become_buffered_ones(daemon, make_model, error):
    path = make_model(size=20 * MIB, seed=9)
    daemon.tell(f"fault pread:4:{error}:once")
    try:
        with opened(path) as fd, opened(path, os.O_RDONLY | os.O_DIRECT) as direct, \
                daemon.raw() as raw:
            result, fds = raw.call_fds("load", {"attach": True, "map": True}, [fd, direct])
            assert os.pread(fds[1], 64 * MIB, 0) == path.read_bytes()
            close_all(fds)
            raw.call("detach", {"lease": result["lease"]})
    except OSError as failure:
        assert failure.errno == errno.EINVAL
        pytest.skip("this filesystem opens nothing with O_DIRECT")


def loaded_image_is(daemon, path):
    """Is the image of the model, loaded with a lease, what the file holds?"""
    with daemon.raw() as raw, opened(path) as fd:
        result, fds = raw.call_fds("load", {"attach": True, "map": True}, [fd])
        with open(path, "rb") as file:
            assert os.pread(fds[1], 1 << 30, 0) == file.read()
        close_all(fds)
        raw.call("detach", {"lease": result["lease"]})


@pytest.mark.fault("F34:sparse")
def test_a_sparse_file_loads_with_its_holes(daemon, tmp_path):
    path = make_sparse_model(tmp_path / "sparse.safetensors", 24 * MIB)
    with open(path, "r+b") as file:
        file.seek(13 * MIB + 5)
        file.write(pattern(4, 5000))
    assert path.stat().st_blocks * 512 < 1 * MIB, "it has holes"
    loaded_image_is(daemon, path)


@pytest.mark.fault("F34:16tb", "M01:budget")
def test_a_sparse_file_of_16_tb_is_judged_by_its_size_and_not_read(daemon, tmp_path):
    try:
        path = make_sparse_model(tmp_path / "huge.safetensors", 16 * 10**12 - 4096)
    except OSError as error:
        assert error.errno == errno.EFBIG
        pytest.skip("this filesystem has no file of 16 TB")
    with daemon.raw() as raw:
        with pytest.raises(RawError) as caught:
            raw.load(path)
        error = caught.value.error
        assert error["code"] == "no-memory", error
        assert error["detail"]["need"] > 15 * 10**12 and error["detail"]["budget"] == 1 << 30
        assert raw.call("status")["bytes_read"] == 0
        assert raw.call("status")["devices"][0]["used"] == 0
