# SPDX-License-Identifier: Apache-2.0
"""Many who want the same file: one read, one copy, everybody answered (F35, M06, C01)."""

import os
import signal

import pytest
from conftest import close_all, opened, pattern, slowness, wait_until

SIZE = 32 << 20


def slow_reads(daemon):
    """No read comes back until the test says clear."""
    daemon.tell("fault pread:1:delay=60000:ever")


def is_loading(daemon):
    return [model["state"] for model in daemon.models()] == ["loading"]  # "status" reads of /proc


def n_clients(daemon):
    with daemon.raw() as raw:
        return len(raw.call("clients")["clients"]) - 1


@pytest.mark.fault("F35")
@pytest.mark.daemon("load.direct-io=off")
def test_fifty_ask_at_once_and_the_file_is_read_once(daemon, make_model):
    path = make_model(size=SIZE)
    slow_reads(daemon)
    clients = [daemon.raw() for _ in range(50)]
    with opened(path) as fd:
        numbers = [client.request("load", {}, [fd]) for client in clients]
    for client in clients:
        client.call("ping")  # what it asked for before has been heard
    daemon.tell("clear")
    sources = []
    for client, number in zip(clients, numbers):
        error, result, _ = client.wait(number)
        assert error is None, error
        sources.append(result["source"])
        client.close()
    assert sorted(sources) == ["disk"] + ["joined"] * 49
    status = daemon.status()
    assert status["misses"] == 1
    assert SIZE <= status["bytes_read"] < SIZE + (1 << 20), "one read of the file"


@pytest.mark.fault("F35")
@pytest.mark.daemon("load.direct-io=off")
@pytest.mark.parametrize("how", ["cancel", "close"])
def test_forty_nine_give_up_and_the_fiftieth_gets_it(daemon, make_model, how):
    path = make_model(size=SIZE)
    slow_reads(daemon)
    clients = [daemon.raw() for _ in range(50)]
    with opened(path) as fd:
        numbers = [client.request("load", {}, [fd]) for client in clients]
    wait_until(lambda: is_loading(daemon), what="the load's beginning")
    for client, number in list(zip(clients, numbers))[:49]:
        if how == "cancel":
            assert client.call("cancel", {"id": number}) == {"found": True}
            assert client.wait(number)[0]["code"] == "cancelled"
        client.close()
    wait_until(lambda: n_clients(daemon) == 1, what="the others' end")
    daemon.tell("clear")
    error, result, _ = clients[49].wait(numbers[49])
    assert error is None and result["model"]["state"] == "resident", error
    clients[49].close()
    assert daemon.status()["misses"] == 1


@pytest.mark.daemon("load.direct-io=off")
def test_when_nobody_waits_any_more_the_load_ends(daemon, make_model):
    path = make_model(size=SIZE)
    slow_reads(daemon)
    with daemon.raw() as raw, opened(path) as fd:
        raw.request("load", {}, [fd])
        wait_until(lambda: is_loading(daemon), what="the load's beginning")
    wait_until(lambda: n_clients(daemon) == 0, what="the client's end")
    daemon.tell("clear")
    wait_until(lambda: daemon.status()["devices"][0]["used"] == 0, 5 * slowness(),
               "the memory's return")
    assert daemon.status()["misses"] == 0


LOADER = """
import sys
sys.path.insert(0, sys.argv[3])
from conftest import RawClient, opened
raw = RawClient(sys.argv[1])
with opened(sys.argv[2]) as fd:
    raw.request("load", {}, [fd])
print("READY")
sys.stdin.readline()
"""


@pytest.mark.fault("C01")
@pytest.mark.daemon("load.direct-io=off")
def test_a_client_killed_while_it_loads_stops_only_its_own_waiting(daemon, make_model, child):
    path = make_model(size=SIZE)
    slow_reads(daemon)
    victim = child(LOADER, daemon.socket, path, os.path.dirname(__file__))
    with daemon.raw() as raw, opened(path) as fd:
        number = raw.request("load", {}, [fd])
        wait_until(lambda: is_loading(daemon), what="the load's beginning")
        victim.signal(signal.SIGKILL)
        wait_until(lambda: n_clients(daemon) == 1, 5 * slowness(), "the victim's end")
        daemon.tell("clear")
        error, result, _ = raw.wait(number)
        assert error is None and result["model"]["state"] == "resident"


READER = """
import sys, distorch
d = distorch.connect(sys.argv[1])
w = d.attach(sys.argv[2])
total = sum(sum(t.buffer[::4096]) for t in (w[k] for k in w.keys()))
print("READY")
for line in sys.stdin:
    if line.startswith("write"):
        for k in w.keys():
            w[k].buffer[0:64] = bytes(64)
    pss = size = 0
    mine = False
    for row in open("/proc/self/smaps"):
        if "-" in row.split()[0] and ":" not in row.split()[0]:
            mine = "memfd:distorch:" in row and "table" not in row
        elif mine and row.startswith("Pss:"):
            pss += int(row.split()[1])
        elif mine and row.startswith("Rss:"):
            size += int(row.split()[1])
    print(pss, size, sum(bytes(w["t.0"].buffer[0:64])), flush=True)
"""


@pytest.mark.fault("M06")
def test_four_processes_hold_one_copy_and_one_writer_changes_nobody(daemon, make_model, child):
    path = make_model(size=SIZE)
    with daemon.raw() as raw:
        raw.load(path)
        first = sum(pattern(1, 64))
        readers = [child(READER, daemon.socket, path) for _ in range(4)]
        shares = [list(map(int, reader.ask().split())) for reader in readers]
        total = sum(pss for pss, _, _ in shares)
        assert SIZE * 0.95 / 1024 <= total <= SIZE * 1.1 / 1024, (total, shares)
        assert all(size >= SIZE * 0.95 / 1024 for _, size, _ in shares), shares
        assert int(readers[0].ask("write").split()[2]) == 0
        assert [int(r.ask().split()[2]) for r in readers[1:]] == [first] * 3
        checks = raw.call("verify", {"models": [str(path.name)]})["checks"]
        assert [check["ok"] for check in checks] == [True]
