# SPDX-License-Identifier: Apache-2.0
"""Blocks on devices are compared with what they were made of: many at once take few threads and
descriptors, what they are compared with stays until they are done, and each is answered once."""
import os
import signal
import time

import pytest
from conftest import RawError, list_fds, need_hooks, opened, slowness, wait_until
from placed import MIB, account, load, make_blocks
from test_device_users import ALICE, BOB, SLOW, Person
from test_wire_hostile import needs_root


def n_threads(daemon):
    return len(os.listdir(f"/proc/{daemon.pid}/task"))


def n_images(daemon):
    return sum("/memfd:distorch:m.safetensors (" in link for link in list_fds(daemon.pid))


def test_hundreds_of_blocks_are_verified_with_few_threads_and_descriptors(start_daemon, tmp_path):
    daemon = start_daemon("sim.count=1", "sim.memory=1G", "gpu.budget=100%", "memory.ram=256M",
                          "memory.reserve=0")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [8192] * 300)
    with daemon.raw(timeout=SLOW) as raw:
        load(raw, path, "sim:0").close()
        threads, fds = n_threads(daemon), len(list_fds(daemon.pid))
        daemon.tell("fault pread:1:delay=100:ever")
        number = raw.request("verify", {})
        most_threads = most_fds = 0
        while int(daemon.tell("hits pread")) < 40:  # a part of them, with many still to come
            time.sleep(0.05)
            most_threads = max(most_threads, n_threads(daemon))
            most_fds = max(most_fds, len(list_fds(daemon.pid)))
        daemon.tell("clear")
        error, result, _fds = raw.wait(number)
        assert error is None and [check["ok"] for check in result["checks"]] == [True]
        assert threads < most_threads <= threads + 8, (threads, most_threads)
        assert most_fds <= fds + 16, (fds, most_fds)
        raw.call("unload", {"select": {"all": True}})


@pytest.fixture
def start_shared(start_daemon):
    """A daemon with a model that lies on a device and, for another user, in RAM as well."""
    def start(sizes):
        daemon = start_daemon("sim.count=1", "sim.memory=1G", "gpu.budget=100%", "memory.ram=64M",
                              "memory.reserve=0")
        os.chmod(daemon.folder, 0o755)
        os.chmod(daemon.socket, 0o666)
        path = daemon.folder / "m.safetensors"
        make_blocks(path, sizes)
        os.chmod(path, 0o644)
        for uid, allocation in (ALICE, "sim:0"), (BOB, None):
            person = Person(daemon, uid)
            person.do("load", path, allocation)
            person.do("close")
            person.end()
        with daemon.raw() as raw:
            assert account(raw, "sim:0")["used"] > 0 and account(raw, "cpu")["used"] > 0
        return daemon

    return start


@pytest.fixture
def shared(start_shared):
    return start_shared([2 * MIB] * 4)


@needs_root
def test_an_image_that_blocks_are_compared_with_goes_when_they_are_done(shared):
    with shared.raw(timeout=SLOW) as raw, shared.raw(timeout=SLOW) as other:
        shared.tell("fault mmap:1:delay=60000:ever")  # of the table
        number = raw.request("verify", {})
        wait_until(lambda: int(shared.tell("hits mmap")) >= 2, SLOW, "two comparisons under way")
        unload = other.request("unload", {"select": {"all": True}})
        check, = raw.wait(number)[1]["checks"]
        assert not check["ok"] and "offset" not in check, "the unload has been heard"
        time.sleep(0.3)
        assert n_images(shared) == 1, "\n".join(list_fds(shared.pid))
        shared.tell("clear")
        assert other.wait(unload)[0] is None
        wait_until(lambda: n_images(shared) == 0, 10.0 * slowness(), "the image's end")


@needs_root
def test_an_image_that_has_to_go_ends_what_is_compared_with_it(start_shared, make_model):
    daemon = start_shared([8192] * 200)
    big = make_model("big.safetensors", size=63 * MIB)
    with daemon.raw(timeout=SLOW) as raw, daemon.raw(timeout=SLOW) as other:
        daemon.tell("fault mmap:1:delay=60000:ever")  # of the table
        number = raw.request("verify", {"models": ["m.safetensors"]})
        wait_until(lambda: int(daemon.tell("hits mmap")) >= 2, SLOW, "two comparisons under way")
        with opened(big) as fd:
            loading = other.request("load", {}, [fd])
        wait_until(lambda: account(other, "sim:0")["used"] and
                   account(other, "cpu").get("dropping"), SLOW, "the image's having to go")
        daemon.tell("clear")
        assert other.wait(loading)[0] is None
        check, = raw.wait(number)[1]["checks"]
        assert check["ok"], check["text"]  # compared with the file then
        wait_until(lambda: n_images(daemon) == 0, 10.0 * slowness(), "the image's end")
        other.call("unload", {"select": {"all": True}})


@needs_root
def test_short_of_memory_each_verification_has_one_answer_and_keeps_nothing(shared):
    n_hit, n_refused = 0, 0
    for nth in range(1, 60):
        with shared.raw(timeout=SLOW) as raw:
            shared.tell(f"fault malloc:{nth}:ENOMEM")
            try:
                for check in raw.call("verify")["checks"]:
                    assert check["ok"] or "memory" in check["text"], check
                    n_refused += not check["ok"]
            except RawError as failure:
                assert failure.code == "no-memory"
            except ConnectionError:
                pass  # there was none for the answer itself
            is_hit = shared.tell("hits malloc") != "0"
            shared.tell("clear")
        n_hit += is_hit
        if not is_hit:
            break
    with shared.raw(timeout=SLOW) as raw:
        assert n_hit > 5 and n_refused > 2
        assert [check["ok"] for check in raw.call("verify")["checks"]] == [True]
        raw.call("unload", {"select": {"all": True}})
        wait_until(lambda: n_images(shared) == 0, 10.0 * slowness(), "the image's end")


def test_blocks_are_verified_while_they_are_moved(start_daemon, tmp_path):
    """It said that the file had changed: the move has the file meanwhile."""
    need_hooks()
    daemon = start_daemon("sim.count=2", "sim.memory=64M", "gpu.budget=100%", "memory.ram=256M",
                          "memory.reserve=0")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB] * 4)
    with daemon.raw(timeout=SLOW) as raw, daemon.raw(timeout=SLOW) as mover:
        load(raw, path, "sim:0").close()
        daemon.tell("worker sim:1 alloc:1:hang")
        place = mover.request("place", {"model": path.name, "allocation": "sim:1"})
        wait_until(lambda: raw.call("list")["models"][0].get("moving"), what="the move")
        checks = raw.call("verify")["checks"]
        assert [check["ok"] for check in checks] == [True], checks
        os.kill(daemon.status()["devices"][2]["pid"], signal.SIGKILL)
        error, _result, _fds = mover.wait(place)
        assert error["code"] == "device-lost"


def test_a_move_that_ends_meanwhile_ends_no_verification(start_daemon, tmp_path):
    need_hooks()
    daemon = start_daemon("sim.count=2", "sim.memory=64M", "gpu.budget=100%", "memory.ram=256M",
                          "memory.reserve=0")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB] * 4)
    with daemon.raw(timeout=SLOW) as raw, daemon.raw(timeout=SLOW) as mover:
        load(raw, path, "sim:0").close()
        daemon.tell("worker sim:0 read:1:hang:ever")
        verify = raw.request("verify", {})
        raw.call("status")  # the verification has been heard
        mover.call("place", {"model": path.name, "allocation": "sim:1"})
        check, = raw.wait(verify)[1]["checks"]
        assert check["ok"], "what lies there now is told of"
        os.kill(daemon.status()["devices"][1]["pid"], signal.SIGKILL)
