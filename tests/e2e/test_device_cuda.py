# SPDX-License-Identifier: Apache-2.0
"""Cards with CUDA that fail in the midst of loads and moves, over the stand-in driver: each class of
codes from each call costs one worker and what lay on its card, and nothing is left there."""

import re

import pytest
from conftest import RawError, need_hooks, slowness, wait_until
from placed import MIB, account, attach, load, make_blocks
from test_cards import FAKECUDA, cards, start, wait_for  # noqa: F401 (a fixture)
from test_devices import devices

SLOW = 30 * slowness()
STICKY = [214, 220, 226, 700, 702, 709, 714, 715, 716, 717, 718, 719, 999]
CALLS = ["cuMemCreate", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess", "cuMemcpyHtoDAsync",
         "cuMemcpyDtoDAsync", "cuMemExportToShareableHandle", "cuMemImportFromShareableHandle",
         "cuMemRelease", "cuMemUnmap", "cuMemAddressFree", "cuEventRecord", "cuStreamSynchronize"]
#: with every code, of which a daemon sees a quarter, as it would take a card that falls more often
#: for broken; the other calls, for time's sake, with one quarter
THOROUGH = ["cuMemMap", "cuMemcpyHtoDAsync", "cuMemExportToShareableHandle"]
FAULTS = [(call, STICKY[first::4]) for i, call in enumerate(CALLS)
          for first in (range(4) if call in THOROUGH else [i % 4])]
pytestmark = pytest.mark.skipif(not (FAKECUDA / "libcuda.so.1").exists(),
                                reason="built without the headers of CUDA")


@pytest.fixture
def daemon(cards, start_daemon):  # noqa: F811
    daemon = start(start_daemon, cards, "gpu.budget=100%", sizes="64M,64M")
    wait_for(daemon, "cuda:0", "cuda:1")
    return daemon


@pytest.fixture
def raw(daemon):
    with daemon.raw(timeout=SLOW) as client:
        yield client


def rest(raw):
    raw.call("unload", {"select": {"all": True}})
    wait_until(lambda: not any(one["used"] for one in raw.call("devices")["devices"]), SLOW,
               "accounts of zero")
    wait_until(lambda: all(one.get("foreign", 0) == 0 for one in raw.call("devices")["devices"]),
               SLOW, "nothing left on the cards")


def pids(daemon):
    return {one.get("pid") for one in devices(daemon).values()}


@pytest.mark.fault("G04")
@pytest.mark.seconds(120)
@pytest.mark.parametrize(("call", "codes"), FAULTS)
def test_a_fault_in_any_call_of_a_move_leaves_all_that_is_not_on_that_card(
        cards, daemon, raw, tmp_path, call, codes):  # noqa: F811
    """Between both cards and RAM; which of the cards the call strikes is the driver's affair."""
    need_hooks()
    path, host = tmp_path / "m.safetensors", tmp_path / "host.safetensors"
    expected = make_blocks(path, [2 * MIB] * 6)
    theirs = make_blocks(host, [MIB] * 2, seed=50)
    untouched = load(raw, host)
    for nth, code in enumerate(codes, 1):
        load(raw, path, "cuda:0,50%;cpu,50%").close()
        before = pids(daemon)
        cards.write("faults", f"{call}:{nth}:{code}")
        try:
            raw.call("place", {"model": path.name, "allocation": "cuda:1,50%;cuda:0,50%"})
        except RawError as failure:
            assert failure.code == "device-lost" and "cuda:" in failure.error["message"], \
                failure.error
        cards.write("faults", "none:1:1")
        assert untouched.tensors() == theirs
        wait_for(daemon, "cuda:0", "cuda:1")

        def is_back():
            try:
                lease = load(raw, path, "cuda:0,50%;cuda:1,*")
            except RawError as failure:  # of the fault's: a card may hear of it late
                assert failure.code == "device-lost", failure.error
                return False
            assert lease.tensors() == expected
            lease.close()
            return True

        wait_until(is_back, SLOW, "the model")
        assert pids(daemon) != before, f"{call} number {nth} with {code} has not struck"
    untouched.close()
    rest(raw)


@pytest.mark.fault("G02")
def test_out_of_memory_is_said_in_numbers_and_costs_no_worker(
        cards, daemon, raw, tmp_path):  # noqa: F811
    path = tmp_path / "m.safetensors"
    expected = make_blocks(path, [2 * MIB] * 6)
    pids = {name: one.get("pid") for name, one in devices(daemon).items()}
    lease = load(raw, path, "cuda:0")
    cards.write("1/foreign", str(60 << 20))  # between a look and a move
    with pytest.raises(RawError) as failure:
        raw.call("place", {"model": path.name, "allocation": "cuda:1"})
    error = failure.value.error
    assert error["code"] == "no-memory", error
    # By the driver, or by the plan where a look came between.
    assert re.search(r"cuda:1: taking \d\.0M of [0-9.]+M: out of memory|others use 60.0M\)",
                     error["message"]), error
    assert "close some of them" in error["hint"] and error["detail"]["device"] == "cuda:1"
    assert lease.tensors() == expected
    again = attach(raw, path)
    assert again.layout["places"] == lease.layout["places"]
    again.close()
    lease.close()
    cards.write("1/foreign", "0")
    wait_until(lambda: account(raw, "cuda:1").get("foreign", 0) == 0, SLOW, "the look at it")
    assert {name: one.get("pid") for name, one in devices(daemon).items()} == pids
    rest(raw)
