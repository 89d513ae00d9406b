# SPDX-License-Identifier: Apache-2.0
"""Models on cards with CUDA, over the stand-in driver: the bytes that lie there, what a driver that
fails in the midst of it does, and that nothing of it is left. Who reads a card's memory here maps
the stand-in's own, which is a file of the kernel's."""

import contextlib
import os
import pathlib
import signal
import time

import pytest
from conftest import RawError, close_all, need_hooks, opened, slowness, wait_until
from placed import MIB, account, attach, load, make_blocks
from store import StoredDaemon
from test_cards import FAKECUDA, cards, start, wait_for  # noqa: F401 (a fixture)
from test_devices import devices, environment, is_running, wait_ok

SLOW = 30 * slowness()
pytestmark = pytest.mark.skipif(not (FAKECUDA / "libcuda.so.1").exists(),
                                reason="built without the headers of CUDA")


@pytest.fixture
def daemon(cards, start_daemon):  # noqa: F811
    daemon = start(start_daemon, cards, "gpu.budget=100%", sizes="64M,64M")
    wait_for(daemon, "cuda:0", "cuda:1")
    return daemon


@pytest.fixture
def raw(daemon):
    with daemon.raw(timeout=120.0) as client:
        yield client


def unload_all(raw, cards, foreign=0):  # noqa: F811
    raw.call("unload", {"select": {"all": True}})
    wait_until(lambda: not any(one["used"] for one in raw.call("devices")["devices"]), SLOW,
               "accounts of zero")
    # What is dead there goes at the next count; the daemon's next look is one.
    wait_until(lambda: all(one.get("foreign", foreign) == foreign
                           for one in raw.call("devices")["devices"]),
               SLOW, "nothing left on the cards")


def test_every_byte_lies_on_the_card_that_was_asked_for(cards, raw, tmp_path):  # noqa: F811
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [3 * MIB + 5, 1, 2 * MIB, 5 * MIB, 77, 4 * MIB])
    lease = load(raw, path, "cuda:0,50%;cuda:1,*")
    assert lease.tensors() == expected
    assert {lease.device_of(block) for block in range(6)} == {"cuda:0", "cuda:1"}
    checks = raw.call("verify")["checks"]
    assert [check["ok"] for check in checks] == [True], checks
    other = attach(raw, path)
    assert other.tensors() == expected
    for number in 0, 1:  # in whole granules
        told = account(raw, f"cuda:{number}")
        assert told["used"] > 0 and told["used"] % (2 * MIB) == 0
        assert told["used"] == cards.used(number)
    other.close()
    lease.close()
    unload_all(raw, cards)


@pytest.mark.fault("S01", "G08")
def test_after_a_restart_it_is_on_the_same_card_whatever_that_is_called(  # noqa: F811
        cards, start_daemon, tmp_path):  # noqa: F811
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB] * 4)
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "gpu.devices=all",
                          "gpu.budget=100%", kind=StoredDaemon,
                          environment=cards.environment(sizes="64M,64M"))
    told = wait_for(daemon, "cuda:0", "cuda:1")
    with daemon.raw(timeout=120.0) as raw:
        load(raw, path, "cuda:1,5M;cpu,*", policy={"pin": True}).close()
    daemon.die()
    daemon.environment.update(cards.environment(sizes="64M,64M", order="1,0"))
    daemon.start()
    after = wait_for(daemon, "cuda:0", "cuda:1")
    assert after["cuda:0"]["uuid"] == told["cuda:1"]["uuid"] != told["cuda:0"]["uuid"]
    with daemon.raw(timeout=120.0) as raw:
        wait_until(lambda: raw.call("list")["models"][0]["state"] == "resident", SLOW, "it back")
        lease = attach(raw, path)
        assert lease.tensors() == expected and set(lease.bytes_on()) == {"cuda:0", "cpu"}
        lease.close()
        assert account(raw, "cuda:1")["used"] == 0
        raw.call("set", {"model": path.name, "policy": {"pin": False}})
        unload_all(raw, cards)


def change_a_byte(cards, card):  # noqa: F811
    memory = next((cards.folder / str(card)).glob("a-*"))
    with open(memory, "r+b") as file:
        file.seek(12345)
        byte = file.read(1)
        file.seek(12345)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.fault("G06")
def test_a_fault_of_a_cards_memory_has_its_copies_compared(
        cards, daemon, raw, tmp_path):  # noqa: F811
    path, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors"
    expected = make_blocks(path, [2 * MIB] * 4)
    theirs = make_blocks(other, [2 * MIB] * 2, seed=60)
    load(raw, path, "cuda:0").close()
    load(raw, other, "cuda:1").close()
    change_a_byte(cards, 0)
    cards.write("0/xid", "31")  # some program's: nothing is to be feared for ours
    wait_until(lambda: "Xid 31" in daemon.log(), SLOW, "the look at it")
    assert raw.call("list")["models"][0]["state"] == "resident"
    assert not any(r["type"] == "quarantined" for r in raw.call("events.history")["records"])
    cards.write("0/xid", "95")
    wait_until(lambda: any(r["type"] == "quarantined"
                           for r in raw.call("events.history")["records"]), SLOW, "the finding")
    wait_until(lambda: all(model["state"] == "resident" for model in raw.call("list")["models"]),
               SLOW, "it anew")
    for file, bytes_of_it in (path, expected), (other, theirs):
        lease = attach(raw, file)
        assert lease.tensors() == bytes_of_it
        lease.close()
    assert all(one["state"] == "ok" for one in raw.call("devices")["devices"])
    unload_all(raw, cards)


@pytest.mark.fault("G06")
def test_a_fault_is_heard_whatever_is_moved_or_opened_meanwhile(cards, start_daemon,  # noqa: F811
                                                               tmp_path):
    need_hooks()
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "gpu.devices=all",
                          "gpu.budget=100%", environment={**cards.environment(sizes="64M,64M"),
                                                          **environment(look=1500)})
    told = wait_for(daemon, "cuda:0", "cuda:1")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [2 * MIB] * 4)
    with daemon.raw(timeout=SLOW) as raw:
        load(raw, path, "cuda:0").close()
        cards.write("0/xid", "48")
        raw.call("place", {"model": path.name, "allocation": "cuda:0,50%;cuda:1,50%"})
        cards.write("0/xid", "48 31")
        wait_until(lambda: "Xid 48 was reported" in daemon.log(), SLOW, "the graver one")
        raw.call("unload", {"select": {"all": True}})
    wait_until(lambda: cards.used(0) == 0, SLOW, "an empty card")
    cards.write("0/stop-create", "1")
    os.kill(told["cuda:0"]["pid"], signal.SIGKILL)
    wait_until(lambda: cards.used(0) > 0, SLOW, "another worker's opening it")
    cards.write("0/xid", "48 31 95")
    cards.write("0/stop-create", "0")
    wait_until(lambda: "Xid 95 was reported" in daemon.log(), SLOW, "what was reported meanwhile")


@pytest.mark.fault("G06")
def test_a_card_that_does_not_answer_is_given_up_and_the_rest_serves(
        cards, daemon, raw, tmp_path):  # noqa: F811
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB] * 4)
    load(raw, path, "cuda:0,50%;cuda:1,*").close()
    before = {one["name"]: one.get("pid") for one in raw.call("devices")["devices"]}
    cards.write("0/xid", "79")
    wait_until(lambda: "cuda:0 is lost" in daemon.log(), SLOW, "its loss")
    assert "Xid 79" in daemon.log()
    after = wait_for(daemon, "cuda:0", "cuda:1")  # the driver opens it again: it is well
    assert after["cuda:0"]["pid"] != before["cuda:0"]
    assert after["cuda:1"]["pid"] == before["cuda:1"]
    lease = load(raw, path, "cuda:0,50%;cuda:1,*")
    assert lease.tensors() == expected
    lease.close()
    unload_all(raw, cards)


def has_driver_open(pid):
    return "libcuda.so" in pathlib.Path(f"/proc/{pid}/maps").read_text()


def test_a_drained_card_has_its_driver_let_go_of(cards, daemon, raw, tmp_path):  # noqa: F811
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB] * 4)
    lease = load(raw, path, "cuda:0,50%;cuda:1,*")
    pids = {one["name"]: one["pid"] for one in raw.call("devices")["devices"] if one.get("pid")}
    assert all(has_driver_open(pid) for pid in pids.values())
    raw.call("drain", {"device": "cuda:0", "on": True})
    time.sleep(0.3)  # several looks
    assert lease.tensors() == expected and is_running(pids["cuda:0"])
    lease.close()
    raw.call("unload", {"select": {"all": True}})
    wait_until(lambda: "pid" not in devices(daemon)["cuda:0"], SLOW, "its worker's end")
    assert not is_running(pids["cuda:0"]) and is_running(pids["cuda:1"])
    card = devices(daemon)["cuda:0"]
    assert card["state"] == "unavailable" and "drained" in card["text"], card
    time.sleep(0.5)
    assert devices(daemon)["cuda:0"]["state"] == "unavailable", "no other is begun"
    raw.call("drain", {"device": "cuda:0", "on": False})
    assert wait_for(daemon, "cuda:0", "cuda:1")["cuda:0"]["pid"] != pids["cuda:0"]
    lease = load(raw, path, "cuda:0,50%;cuda:1,*")
    assert lease.tensors() == expected
    lease.close()
    unload_all(raw, cards)


def test_no_worker_is_begun_for_a_card_that_drains(cards, daemon, raw, tmp_path):  # noqa: F811
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB] * 4)
    lease = load(raw, path, "cuda:0,50%;cuda:1,*")
    raw.call("drain", {"device": "cuda:0", "on": True})
    os.kill(devices(daemon)["cuda:0"]["pid"], signal.SIGKILL)
    wait_until(lambda: "drained" in devices(daemon)["cuda:0"].get("text", ""), SLOW)
    lease.close()
    time.sleep(1.0)  # longer than the rest before another
    assert "pid" not in devices(daemon)["cuda:0"]
    raw.call("drain", {"device": "cuda:0", "on": False})
    wait_for(daemon, "cuda:0", "cuda:1")
    lease = load(raw, path, "cuda:0,50%;cuda:1,*")
    assert lease.tensors() == expected
    lease.close()
    cards.write("faults", "cuInit:1:999:ever")  # of each new worker
    os.kill(devices(daemon)["cuda:0"]["pid"], signal.SIGKILL)
    wait_until(lambda: devices(daemon)["cuda:0"]["state"] == "unavailable", SLOW)
    raw.call("drain", {"device": "cuda:0", "on": True})  # while it is tried again and again
    wait_until(lambda: "drained" in devices(daemon)["cuda:0"].get("text", ""), SLOW)
    cards.write("faults", "none:1:1")
    raw.call("drain", {"device": "cuda:0", "on": False})
    wait_for(daemon, "cuda:0", "cuda:1")
    unload_all(raw, cards)


@pytest.mark.fault("G09")
def test_a_byte_that_somebody_changed_on_a_card_is_found(cards, raw, tmp_path):  # noqa: F811
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB] * 4)
    user = load(raw, path, "cuda:0")
    change_a_byte(cards, 0)
    check = raw.call("verify")["checks"][0]
    assert not check["ok"], check
    # On a card whoever has a copy can write into it: those are named.
    suspect = pathlib.Path("/proc/self/comm").read_text().strip() + f"/{os.getpid()}"
    told = f"its bytes on cuda:0 no longer match their checksum; in use by {suspect}"
    assert check["text"] == told + "; it is being loaded again"
    record, = (record for record in raw.call("events.history")["records"]
               if record["type"] == "quarantined")
    assert record["why"] == told, record
    user.close()

    def is_good_again():
        checks = raw.call("verify")["checks"]
        return checks and all(check["ok"] for check in checks)

    wait_until(is_good_again, SLOW, "the block, read again")
    lease = attach(raw, path)
    assert lease.tensors() == expected
    lease.close()
    unload_all(raw, cards)


@pytest.mark.fault("G02")
def test_a_card_that_has_less_than_it_says_refuses_with_sizes(cards, raw, daemon,  # noqa: F811
                                                             tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [2 * MIB] * 6)
    cards.write("faults", "cuMemCreate:4:2:ever")
    with pytest.raises(RawError) as caught:
        load(raw, path, "cuda:0")
    assert caught.value.code == "no-memory"
    assert "cuda:0" in caught.value.error["message"]
    cards.write("faults", "none:1:1")
    wait_until(lambda: account(raw, "cuda:0")["used"] == 0, SLOW, "nothing half loaded")
    lease = load(raw, path, "cuda:0")
    lease.close()
    unload_all(raw, cards)


def test_all_that_a_card_says_is_free_can_be_loaded_and_stays(cards, start_daemon,  # noqa: F811
                                                               tmp_path):
    """With a context that takes memory as well, before it is there and after."""
    need_hooks()
    daemon = start(start_daemon, cards, "gpu.budget=100%", sizes="64M", context="4M")
    told = wait_for(daemon, "cuda:0")["cuda:0"]
    assert (told["foreign"], told["free"], cards.used(0)) == (4 * MIB, 60 * MIB, 0)
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB - 512] * 30, head=0)
    with daemon.raw(timeout=SLOW) as raw:
        lease = load(raw, path, "cuda:0")
        assert lease.tensors() == expected
        lease.close()
        cards.write("0/temperature", "60")
        wait_until(lambda: account(raw, "cuda:0").get("temperature") == 60, SLOW, "a look at it")
        told = account(raw, "cuda:0")
        assert (told["foreign"], told["free"], told["used"]) == (4 * MIB, 0, 60 * MIB)
        assert "short of memory" not in daemon.log()
        unload_all(raw, cards, foreign=4 * MIB)


@contextlib.contextmanager
def mapped_by_another(daemon, path):
    """A process that maps the model's blocks, and has no connection any more."""
    begun, beginning = os.pipe()
    ended, ending = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ending)
        with contextlib.suppress(BaseException), daemon.raw(timeout=SLOW) as raw:
            attach(raw, path).map_blocks()
            raw.close()
            os.write(beginning, b"y")
            os.read(ended, 1)
        os._exit(0)
    os.close(beginning)
    try:
        assert os.read(begun, 1) == b"y"
        yield
    finally:
        for fd in begun, ended, ending:
            os.close(fd)
        os.waitpid(pid, 0)


def look(cards, raw, temperature, *expected):  # noqa: F811
    """After a look at the card that has begun by now: what its account has, in MiB."""
    cards.write("0/temperature", str(temperature))
    wait_until(lambda: account(raw, "cuda:0").get("temperature") == temperature, SLOW, "a look")
    wait_until(lambda: tuple(account(raw, "cuda:0")[name] // MIB for name in (
        "budget", "held", "foreign", "free", "used")) == expected, SLOW, f"{expected}")


def test_what_is_unloaded_and_still_mapped_is_counted_once(cards, start_daemon,  # noqa: F811
                                                          tmp_path):
    need_hooks()
    daemon = start(start_daemon, cards, "gpu.budget=100%", sizes="64M")
    wait_for(daemon, "cuda:0")
    gone, idle = tmp_path / "gone.safetensors", tmp_path / "idle.safetensors"
    make_blocks(gone, [4 * MIB - 512] * 6, head=0)
    make_blocks(idle, [4 * MIB - 512] * 5, head=0)

    with daemon.raw(timeout=SLOW) as raw:
        load(raw, gone, "cuda:0").close()
        load(raw, idle, "cuda:0").close()
        with mapped_by_another(daemon, gone):
            raw.call("unload", {"select": {"models": [gone.name]}})
            wait_until(lambda: account(raw, "cuda:0")["held"] == 24 * MIB, SLOW, "what is held")
            look(cards, raw, 50, 64, 24, 0, 20, 44)
            cards.write("0/foreign", str(10 * MIB))
            look(cards, raw, 51, 54, 24, 10, 10, 44)
            cards.write("0/foreign", "0")
        wait_until(lambda: account(raw, "cuda:0")["held"] == 0, SLOW, "its end")
        look(cards, raw, 52, 64, 0, 0, 44, 20)
        assert "short of memory" not in daemon.log()
        unload_all(raw, cards)


def test_what_was_mapped_until_a_load_began_is_nobody_elses(cards, start_daemon,  # noqa: F811
                                                            tmp_path):
    """While memory is being taken no look counts: the one before counted what was held then."""
    need_hooks()
    daemon = start(start_daemon, cards, "gpu.budget=100%", sizes="64M")
    wait_for(daemon, "cuda:0")
    gone, idle, new = (tmp_path / f"{name}.safetensors" for name in ("gone", "idle", "new"))
    for path, n_blocks in (gone, 6), (idle, 9), (new, 1):
        make_blocks(path, [4 * MIB - 512] * n_blocks, head=0)
    with daemon.raw(timeout=SLOW) as raw, daemon.raw(timeout=SLOW) as other:
        load(raw, gone, "cuda:0").close()
        load(raw, idle, "cuda:0").close()
        with mapped_by_another(daemon, gone):
            raw.call("unload", {"select": {"models": [gone.name]}})
            wait_until(lambda: account(raw, "cuda:0")["held"] == 24 * MIB, SLOW, "what is held")
            look(cards, raw, 50, 64, 24, 0, 4, 60)
            cards.write("0/stop-create", "1")
            with opened(new) as fd:
                number = other.request("load", {"allocation": "cuda:0"}, [fd])
            wait_until(lambda: cards.used(0) == 64 * MIB, SLOW, "the memory of the new one")
        wait_until(lambda: account(raw, "cuda:0")["held"] == 0, SLOW, "its end")
        look(cards, raw, 51, 64, 0, 0, 24, 40)
        cards.write("0/stop-create", "0")
        error, _result, fds = other.wait(number)
        close_all(fds)
        assert error is None, error
        look(cards, raw, 52, 64, 0, 0, 24, 40)
        assert "short of memory" not in daemon.log()
        states = {one["name"]: one["state"] for one in raw.call("list")["models"]}
        assert states == {idle.name: "resident", new.name: "resident"}
    with daemon.raw(timeout=SLOW) as raw:
        unload_all(raw, cards)


CALLS = ["cuMemCreate", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess", "cuMemsetD8Async",
         "cuMemcpyHtoDAsync", "cuEventRecord", "cuStreamSynchronize", "cuMemUnmap"]


@pytest.mark.fault("G04")
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_in_any_call_of_a_load_costs_one_worker(cards, raw, daemon, call,  # noqa: F811
                                                        tmp_path):
    need_hooks()
    path, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors"
    expected = make_blocks(path, [2 * MIB] * 4)
    theirs = make_blocks(other, [2 * MIB] * 4, seed=50)
    untouched = load(raw, other, "cuda:1")
    before = devices(daemon)
    cards.write("faults", f"{call}:2:700")  # of cuda:0: nothing is done with the other one

    def is_struck():
        now = devices(daemon)["cuda:0"]
        return now["state"] != "ok" or now.get("pid") != before["cuda:0"]["pid"]

    try:
        load(raw, path, "cuda:0").close()
    except RawError as failure:
        assert failure.code in ("device-lost", "not-resident"), failure.error
    wait_until(is_struck, SLOW, "the loss")
    cards.write("faults", "none:1:1")
    wait_for(daemon, "cuda:0")
    assert devices(daemon)["cuda:1"]["pid"] == before["cuda:1"]["pid"]
    assert untouched.tensors() == theirs
    lease = load(raw, path, "cuda:0")
    assert lease.tensors() == expected
    lease.close()
    untouched.close()
    unload_all(raw, cards)


@pytest.mark.fault("G05")
def test_a_driver_that_goes_away_under_an_open_card_makes_it_unavailable(
        cards, raw, daemon, tmp_path):  # noqa: F811
    need_hooks()
    path = tmp_path / "m.safetensors"
    make_blocks(path, [2 * MIB] * 4)
    for code in 46, 201:
        before = devices(daemon)["cuda:0"]["pid"]
        cards.write("faults", f"cuMemCreate:1:{code}:ever")
        with pytest.raises(RawError) as failure:
            load(raw, path, "cuda:0")
        assert failure.value.code == "device-lost", failure.value.error
        wait_until(lambda: devices(daemon)["cuda:0"]["state"] == "unavailable", SLOW)
        assert "cuda:0: taking 2.0M of 64.0M: " in devices(daemon)["cuda:0"]["text"]
        cards.write("faults", "none:1:1")
        wait_ok(daemon, "cuda:0", after=before)
    load(raw, path, "cuda:0").close()
    unload_all(raw, cards)


@pytest.mark.fault("G04")
def test_who_maps_a_card_keeps_it_when_the_worker_is_killed(cards, raw, daemon,  # noqa: F811
                                                           tmp_path):
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB] * 4)
    mine = load(raw, path, "cuda:0")
    assert mine.tensors() == expected
    first = devices(daemon)["cuda:0"]["pid"]
    os.kill(first, signal.SIGKILL)
    wait_ok(daemon, "cuda:0", after=first)
    assert mine.tensors() == expected
    mine.close()

    def is_back():
        raw.call("ping")
        return next(one for one in raw.call("list")["models"])["state"] == "resident"

    wait_until(is_back, SLOW, "the blocks")
    again = attach(raw, path)
    assert again.tensors() == expected
    again.close()
    unload_all(raw, cards)


@pytest.mark.fault("G10")
@pytest.mark.parametrize("keeps", [False, True], ids=["lost", "saved by the driver"])
def test_what_a_card_lost_while_the_machine_slept_is_not_served(cards, start_daemon,  # noqa: F811
                                                                tmp_path, keeps):
    need_hooks()
    params = tmp_path / "params"
    params.write_text(f"EnableMSI: 1\nPreserveVideoMemoryAllocations: {int(keeps)}\nTCEBypass: 0\n")
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", "gpu.devices=all", "sim.count=1",
                          "sim.memory=32M", environment={
                              **cards.environment(), "DISTORCHD_TEST_NVIDIA_PARAMS": str(params)})
    wait_for(daemon, "cuda:0", "cuda:1", "sim:0")
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB] * 4)
    with daemon.raw(timeout=SLOW) as raw:
        mine = load(raw, path, "cuda:0,50%;sim:0,50%")
        before = devices(daemon)
        for memory in [] if keeps else list((cards.folder / "0").glob("a-*")):
            memory.write_bytes(bytes(memory.stat().st_size))
        daemon.tell("suspend 3600")
        with daemon.raw(timeout=SLOW) as other:  # the first to ask is served right
            again = load(other, path)
            assert again.tensors() == expected
            again.close()
        told = devices(daemon)
        assert told["sim:0"]["pid"] == before["sim:0"]["pid"], "which is no card"
        assert (told["cuda:0"].get("pid") == before["cuda:0"]["pid"]) == keeps
        raw.call("ping")
        assert ("lost" in {name for name, _ in raw.events}) != keeps, raw.events
        assert "the machine slept" in daemon.log() or keeps
        mine.close()
        wait_for(daemon, "cuda:0", "cuda:1")
        daemon.tell("suspend 1")  # once more, with nothing there
        raw.call("ping")
        wait_for(daemon, "cuda:0", "cuda:1")
        unload_all(raw, cards)
