# SPDX-License-Identifier: Apache-2.0
"""Files that are slow, silent or broken where they are read (F33), and memory that is (M08)."""

import contextlib
import ctypes
import errno
import os
import pathlib
import signal
import time

import pytest
from conftest import LIBC, RawError, close_all, make_sparse_model, opened, slowness, wait_until
from fuse import FuseFile
from test_wire_hostile import as_nobody

MIB = 1 << 20
STALL_MS = 500 * max(2, slowness())  # what a test does between two of these takes less


@pytest.fixture
def fuse_file(request):
    """fuse_file(how, shown) -> a FuseFile; ends before the daemon does."""
    files = []

    def start(how, shown):
        files.append(FuseFile(how, shown))
        if files[-1].why_not:
            pytest.skip(f"no FUSE here: {files[-1].why_not}")
        return files[-1]

    yield start
    for file in files:
        file.end()


@pytest.fixture
def impatient(start_daemon):
    """A daemon for which a read is stalled soon."""
    return start_impatient(start_daemon)


def start_impatient(start_daemon, *settings):
    return start_daemon("memory.ram=1G", "memory.reserve=0", "load.direct-io=off", *settings,
                        environment={"DISTORCHD_TEST_STALL_MS": str(STALL_MS)})


def phases(raw):
    return [params["phase"] for name, params in raw.events if name == "load.progress"]


def await_phase(raw, number, phase, nbytes=0):
    """Take events until one says 'phase', with so many bytes there; its params."""
    while True:
        for name, params in raw.events:
            if (name == "load.progress" and params["phase"] == phase
                    and params["bytes"] >= nbytes):
                return params
        message, _fds = raw.recv()
        assert message is not None and message[0] == 2, message
        raw.events.append((message[1], message[2]))


def used(daemon):
    return daemon.status()["devices"][0]["used"]


def any_used(daemon):
    return any(device["used"] for device in daemon.status()["devices"])


def others_are_served(daemon, make_model):
    with daemon.raw() as raw:
        assert raw.call("ping") == {}
        assert raw.load(make_model("other.safetensors", seed=40))["source"] in ("disk", "ram")
        raw.call("unload", {"select": {"models": ["other.safetensors"]}})


def nothing_is_kept(daemon):
    wait_until(lambda: used(daemon) == 0, 5.0 * slowness(), "the freed entry")
    assert all(not model["where"] for model in daemon.models(True))


@pytest.mark.fault("F33:silent")
def test_a_server_that_never_answers_is_shown_as_stalled_and_holds_nobody_up(
        impatient, make_model, fuse_file):
    path = make_model(size=4 * MIB)
    file = fuse_file("silent", path)
    with impatient.raw(timeout=20 * slowness()) as raw, opened(file.path) as fd:
        number = raw.request("load", {"name": "silent"}, [fd])
        stalled = await_phase(raw, number, "stalled")
        assert 0 < stalled["bytes"] < stalled["total"] == path.stat().st_size
        others_are_served(impatient, make_model)
        cancel = raw.request("cancel", {"id": number})
        error, _result, _fds = raw.wait(number)
        assert error["code"] == "cancelled" and raw.wait(cancel)[1] == {"found": True}
        assert used(impatient) >= 4 * MIB, "the memory of a read that is stuck is charged"
    file.end()
    nothing_is_kept(impatient)


def test_a_server_that_does_not_say_what_its_file_is_holds_nobody_up(daemon, fuse_file):
    file = fuse_file("nostat", "")
    with daemon.raw() as raw, daemon.raw() as other, opened(file.path) as fd:
        number = raw.request("attach", {"lease": 1, "epoch": 1}, [fd])
        assert other.call("ping") == {}
        error, _result, _fds = raw.wait(number)
    assert error["code"] == "not-resident"


@pytest.mark.fault("X06")
def test_a_disk_that_is_unplugged_while_it_is_read_is_named(impatient, make_model, fuse_file):
    file = fuse_file("silent", make_model(size=4 * MIB))
    with impatient.raw(timeout=20 * slowness()) as raw:
        fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        number = raw.request("load", {"name": "unplugged"}, [fd])
        await_phase(raw, number, "stalled")
        file.end()
        error, _result, _fds = raw.wait(number)
        with contextlib.suppress(OSError):
            os.close(fd)
    assert error["code"] == "io" and os.strerror(error["detail"]["errno"]) in error["message"]
    assert error["detail"]["errno"] in (errno.ECONNABORTED, errno.ENOTCONN)
    assert error["detail"]["offset"] >= 2 * MIB, "where it stood"
    others_are_served(impatient, make_model)
    nothing_is_kept(impatient)


@pytest.mark.fault("F33:silent")
def test_a_server_that_answers_too_late_finds_its_load_given_up(impatient, make_model, fuse_file):
    file = fuse_file("silent", make_model(size=4 * MIB))
    with impatient.raw(timeout=20 * slowness()) as raw, opened(file.path) as fd:
        number = raw.request("load", {"name": "late"}, [fd])
        await_phase(raw, number, "stalled")
        time.sleep(2 * STALL_MS / 1000)  # no proof: it is given up after as much again
        file.answer()
        error, _result, _fds = raw.wait(number)
    assert error["code"] == "timeout" and "hint" in error
    assert f"no byte came for {2 * STALL_MS // 1000} s at byte" in error["message"]
    assert error["detail"]["offset"] == 2 * MIB, "where it stood"
    nothing_is_kept(impatient)


@pytest.mark.fault("F33:silent")
def test_a_header_that_never_comes_is_given_up_while_its_read_still_waits(
        impatient, make_model, fuse_file):
    file = fuse_file("deaf", make_model(size=4 * MIB))
    with impatient.raw(timeout=20 * slowness()) as raw, opened(file.path) as fd:
        with pytest.raises(RawError) as caught:
            raw.call("load", {"name": "deaf"}, [fd])
        assert caught.value.code == "timeout" and caught.value.error["retryable"]
        others_are_served(impatient, make_model)
        nothing_is_kept(impatient)
    file.end()


def load_code(daemon, fd):
    with daemon.raw() as raw:
        try:
            raw.call("load", {}, [fd])
        except RawError as error:
            return f"{error.code}: {error.error['message']}"
    return "loaded"


def hang(raw, files, fds):
    """Four reads of each file that are given up and hang still: one before the next begins."""
    for n in range(1, 5):
        numbers = [raw.request("load", {"name": f"deaf-{fd}"}, [fd]) for fd in fds]
        wait_until(lambda: all(file.count_waiting() == n for file in files),  # noqa: B023
                   what="the reads")
        for number in numbers:
            raw.call("cancel", {"id": number})
        assert {raw.wait(number)[0]["code"] for number in numbers} == {"cancelled"}


@pytest.mark.fault("F33:silent")
def test_reads_that_hang_after_their_cancel_are_few_of_each_filesystem(start_daemon, make_model,
                                                                       fuse_file):
    impatient = start_impatient(start_daemon, "limits.loads-per-user=1")
    path = make_model()
    file = fuse_file("deaf", path)
    with impatient.raw(timeout=20 * slowness()) as raw, opened(file.path) as fd, \
            opened(path) as readable:
        hang(raw, [file], [fd])
        dev = os.fstat(fd).st_dev
        for _ in range(2):
            said = load_code(impatient, fd)
            assert said.startswith("too-many: ") and " 4 reads of files of uid" in said, said
            assert f" on the filesystem {os.major(dev)}:{os.minor(dev)} hang already" in said, said
            assert load_code(impatient, readable) == "loaded", "it lies elsewhere"
        assert file.count_waiting() == 4
        file.answer()
        wait_until(lambda: load_code(impatient, fd) == "loaded", what="reads that come back")


@pytest.mark.fault("F33:silent")
def test_reads_that_hang_after_their_cancel_are_few_of_each_user(start_daemon, make_model,
                                                                 fuse_file):
    impatient = start_impatient(start_daemon, "limits.loads-per-user=8")
    path = make_model()
    files = [fuse_file("deaf", path) for _ in range(8)]
    with contextlib.ExitStack() as stack:
        readable = stack.enter_context(opened(path))
        raw = stack.enter_context(impatient.raw(timeout=20 * slowness()))
        hang(raw, files, [stack.enter_context(opened(file.path)) for file in files])
        said = load_code(impatient, readable)
        assert said.startswith("too-many: ") and " 32 reads of files of uid" in said, said
        if os.getuid() == 0:
            assert as_nobody(impatient, lambda: load_code(impatient, readable)) == "loaded"
        files[0].answer()
        wait_until(lambda: load_code(impatient, readable) == "loaded", what="reads that come back")


@pytest.mark.fault("F33:drip")
def test_one_byte_at_a_time_is_slow_and_not_stalled(impatient, make_model, fuse_file):
    file = fuse_file("drip", make_model(size=4 * MIB))
    with impatient.raw(timeout=20 * slowness()) as raw, opened(file.path) as fd:
        number = raw.request("load", {"name": "drip"}, [fd])
        seen = set()
        while len(seen) < 5 or time.monotonic() < begun + 2.5 * STALL_MS / 1000:
            begun = time.monotonic() if not seen else begun
            message, _fds = raw.recv()
            assert message[0] == 2 and message[2]["phase"] in ("header", "reading"), message
            seen.add(message[2]["bytes"])
        assert max(seen) < 1 * MIB, "it is slow"
        others_are_served(impatient, make_model)
        raw.request("cancel", {"id": number})
        assert raw.wait(number)[0]["code"] == "cancelled"
        nothing_is_kept(impatient)


@pytest.mark.fault("F33:drip", "G12")
def test_one_byte_at_a_time_is_not_stalled_on_its_way_to_a_card_either(start_daemon, make_model,
                                                                       fuse_file):
    daemon = start_impatient(start_daemon, "sim.count=1", "gpu.budget=100%")
    file = fuse_file("drip", make_model(size=4 * MIB))
    with daemon.raw(timeout=20 * slowness()) as raw, opened(file.path) as fd:
        number = raw.request("load", {"allocation": "sim:0,*"}, [fd])
        wait_until(lambda: any_used(daemon), 5.0 * slowness(), "its place")
        until = time.monotonic() + 2.5 * STALL_MS / 1000
        while time.monotonic() < until:
            time.sleep(0.1)
            raw.call("ping")
        assert "stalled" not in phases(raw) and number not in raw.answers
        raw.request("cancel", {"id": number})
        assert raw.wait(number)[0]["code"] == "cancelled"
        wait_until(lambda: not any_used(daemon), 5.0 * slowness(), "the freed entry")


@pytest.mark.fault("F33:eio", "X06")
def test_an_error_at_half_is_named_with_errno_and_offset(daemon, make_model, fuse_file):
    path = make_model(size=8 * MIB)
    half = path.stat().st_size // 2
    file = fuse_file("eio", path)
    with daemon.raw() as raw, opened(file.path) as fd:
        with pytest.raises(RawError) as caught:
            raw.call("load", {"name": "broken"}, [fd])
        error = caught.value.error
        assert error["code"] == "io" and error["detail"]["errno"] == errno.EIO
        assert half - 128 * 1024 <= error["detail"]["offset"] <= half + 4 * MIB
        assert f"at byte {error['detail']['offset']}" in error["message"]
        assert os.strerror(errno.EIO) in error["message"] and "broken" in error["message"]
        # The answer waits for no reader that is still at the file; its memory does.
        wait_until(lambda: daemon.models()[0]["state"] == "failed", 5.0 * slowness(), "the end")
        nothing_is_kept(daemon)
    others_are_served(daemon, make_model)


@pytest.mark.fault("F33:eintr", "F33:short", "D08")
def test_interrupted_and_short_reads_are_invisible(daemon, make_model, fuse_file):
    path = make_model(size=1 * MIB)
    file = fuse_file("eintr", path)
    with daemon.raw() as raw, opened(file.path) as fd:
        result, fds = raw.call_fds("load", {"attach": True, "map": True}, [fd])
        assert os.pread(fds[1], 2 * MIB, 0) == path.read_bytes()
        close_all(fds)
        raw.call("detach", {"lease": result["lease"]})


@pytest.mark.fault("F33")
def test_a_read_that_returns_too_late_was_given_up(impatient, tmp_path, make_model):
    """As with FUSE, where there is none: the reads themselves are slow."""
    path = make_sparse_model(tmp_path / "slow.safetensors", 256 * MIB)
    impatient.tell("fault pread:1:delay=100:ever")
    with impatient.raw(timeout=20 * slowness()) as raw, opened(path) as fd:
        number = raw.request("load", {}, [fd])
        await_phase(raw, number, "reading", 32 * MIB)  # the first of them are long done
        impatient.tell(f"fault pread:1:delay={3 * STALL_MS}:ever")
        await_phase(raw, number, "stalled")
        impatient.tell("fault pread:1:delay=1:ever")
        error, _result, _fds = raw.wait(number)
        assert error["code"] == "timeout" and "no byte came for" in error["message"]
        assert error["detail"]["offset"] > 0
        impatient.tell("clear")
        nothing_is_kept(impatient)
        assert raw.load(path)["model"]["state"] == "resident"


def test_the_end_of_a_cancelled_load_hides_no_later_refusal(start_daemon, tmp_path):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", "load.direct-io=off", "sim.count=1",
                          "sim.memory=16M", "gpu.budget=100%")
    path = make_sparse_model(tmp_path / "m.safetensors", 64 * MIB)
    daemon.tell("fault pread:1:delay=50:ever")
    with daemon.raw(timeout=20 * slowness()) as raw, opened(path) as fd:
        number = raw.request("load", {}, [fd])
        await_phase(raw, number, "reading", MIB)
        daemon.tell("fault pread:1:delay=60000")  # one read is still to come when it is cancelled
        wait_until(lambda: int(daemon.tell("hits pread")) > 0, what="that read")
        raw.call("cancel", {"id": number})
        assert raw.wait(number)[0]["code"] == "cancelled"
        with pytest.raises(RawError) as refused:
            raw.call("load", {"allocation": "sim:0"}, [fd])
        assert refused.value.code == "no-memory" and used(daemon) > 0
        daemon.tell("clear")
        nothing_is_kept(daemon)
        assert "sim:0" in raw.call("show", {"model": path.name})["notice"]


# ---- memory that is gone under the daemon ---------------------------------------------------


def thread_named(daemon, name):
    for task in pathlib.Path(f"/proc/{daemon.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended since
            if (task / "comm").read_text().strip() == name:
                return int(task.name)
    return None


@pytest.mark.fault("M08")
def test_a_bus_error_names_the_file_at_hand_and_ends_the_daemon(start_daemon, tmp_path):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", "load.direct-io=off", check=False)
    path = make_sparse_model(tmp_path / "flux.safetensors", 256 * MIB)
    daemon.tell("fault pread:1:delay=100:ever")
    with daemon.raw() as raw, opened(path) as fd:
        raw.request("load", {}, [fd])
        wait_until(lambda: daemon.models() and daemon.models()[0].get("progress_bytes"),
                   what="bytes that were read")
        thread = wait_until(lambda: thread_named(daemon, "distorch-load"), what="a loader thread")
        tgkill = 234 if os.uname().machine == "x86_64" else 131
        assert LIBC.syscall(ctypes.c_long(tgkill), daemon.pid, thread, signal.SIGBUS) == 0
        assert daemon.process.wait(10 * slowness()) == -signal.SIGABRT
    assert f"bus error, the memory behind a mapping is gone or failed; at hand was {path}" \
        in daemon.log()


@pytest.mark.fault("M08")
def test_the_daemon_maps_no_file_of_a_client(daemon, tmp_path):
    path = make_sparse_model(tmp_path / "flux.safetensors", 256 * MIB)
    daemon.tell("fault pread:1:delay=50:ever")
    with daemon.raw() as raw, opened(path) as fd:
        number = raw.request("load", {}, [fd])
        n_looks = 0
        while not raw.answers:
            maps = pathlib.Path(f"/proc/{daemon.pid}/maps").read_text()
            assert str(path) not in maps
            n_looks += "/memfd:distorch:flux" in maps
            if n_looks == 3:
                daemon.tell("clear")
            message, fds = raw.recv()
            if message[0] == 1:
                raw.answers[message[1]] = (message[2], message[3], fds)
        assert raw.wait(number)[0] is None
        assert n_looks > 0, "it was never looked at while it was filled"
        daemon.tell("clear")
        assert raw.call("verify")["checks"][0]["ok"]
