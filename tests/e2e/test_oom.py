# SPDX-License-Identifier: Apache-2.0
"""M14: the kernel runs out of memory, in a cgroup of the test's own, and kills somebody."""
import os
import pathlib

import pytest
from conftest import HeldDaemon, make_safetensors, slowness, wait_until
from test_memory import own_memory_cgroup

MIB = 1 << 20
LIMIT = 256 * MIB

# Joins the cage of its first argument. "eat" takes memory until somebody is killed for it: who has
# most, and the daemon counts for half the limit more.
ENTER = """
import hashlib, mmap, os, sys
cage = sys.argv[1]
open(cage + "/cgroup.procs", "w").write(str(os.getpid()))
def kills():
    return int(open(cage + "/memory.oom_control").read().split()[-1])
def eat():
    before, eaten = kills(), []
    while kills() == before:
        eaten.append(mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        eaten[-1].write(b"x" * (1 << 20))
    return len(eaten)  # and lets go of it
"""
# Attached to the model of its third argument.
CLIENT = ENTER + """
import distorch
d = distorch.connect(sys.argv[2])
data = d.open(sys.argv[3])["t"].buffer
print("READY", flush=True)
for line in sys.stdin:
    print(eat() if line == "eat\\n" else hashlib.sha256(bytes(data)).hexdigest(), flush=True)
"""
# Does not wait for the processor when it can let go.
NEIGHBOUR = ENTER + """
os.nice(-20)
print("READY", flush=True)
for line in sys.stdin:
    print(eat(), flush=True)
"""


class CagedDaemon(HeldDaemon):
    """The holder and its daemon in a memory cgroup of their own, of the first generation."""

    def start(self):
        self.cage = pathlib.Path(f"/sys/fs/cgroup/memory{own_memory_cgroup()}/"
                                 f"distorch-oom-{os.getpid()}")
        self.cage.mkdir(exist_ok=True)
        (self.cage / "memory.limit_in_bytes").write_text(str(LIMIT))
        return super().start()

    def command(self):
        enter = f"echo $$ > '{self.cage}/cgroup.procs' && exec \"$0\" \"$@\""
        return ["sh", "-c", enter, *super().command()]

    def kills(self):
        return int((self.cage / "memory.oom_control").read_text().split()[-1])

    def remove(self):
        super().remove()
        wait_until(lambda: not (self.cage / "cgroup.procs").read_text(), what="an empty group")
        wait_until(self._is_removed, what="the end of the group")

    def _is_removed(self):
        try:
            self.cage.rmdir()
        except OSError:
            return False
        return True


@pytest.fixture
def caged(start_daemon):
    group = own_memory_cgroup()
    if group is None or not os.access(f"/sys/fs/cgroup/memory{group}", os.W_OK):
        pytest.skip("no memory cgroup of the first generation that can be written here")
    if slowness() > 1:
        pytest.skip("a sanitizer's own memory does not fit")
    return start_daemon("memory.ram=192M", "memory.reserve=0", kind=CagedDaemon)


def load(daemon, path, seed, size=16 * MIB, **policy):
    make_safetensors(path, {"t": ("U8", [size])}, seed=seed)
    with daemon.raw() as raw:
        raw.load(path, policy=policy)
    return path


def leases(daemon, path):
    with daemon.raw() as raw:
        return [one["pid"] for one in raw.call("show", {"model": path.name})["clients"]]


@pytest.mark.fault("M14")
def test_a_client_killed_for_want_of_memory_frees_its_lease(caged, child, tmp_path):
    path = load(caged, tmp_path / "model.safetensors", seed=1)
    daemon_pid = caged.daemon_pid()
    greedy, other = (child(CLIENT, caged.cage, caged.socket, path) for _ in range(2))
    before = other.ask("look")
    assert sorted(leases(caged, path)) == sorted([greedy.pid, other.pid])
    assert greedy.ask("eat") == "", "it got no further"
    assert greedy.process.wait(30) == -9 and caged.kills() == 1
    wait_until(lambda: leases(caged, path) == [other.pid], what="the lease of the one that is gone")
    assert caged.daemon_pid() == daemon_pid and other.ask("look") == before
    other.end()
    wait_until(lambda: caged.status()["devices"][0]["held"] == 0, what="nothing held")


@pytest.mark.fault("M14")
def test_a_daemon_killed_for_want_of_memory_comes_back_with_every_model(caged, child, tmp_path):
    used = load(caged, tmp_path / "used.safetensors", 1, 56 * MIB)
    pinned = load(caged, tmp_path / "pinned.safetensors", 2, 56 * MIB, pin=True)
    idle = load(caged, tmp_path / "idle.safetensors", 3, 56 * MIB)
    client = child(CLIENT, caged.cage.parent, caged.socket, used)
    before = client.ask("look")
    pid = caged.daemon_pid()
    scores = [int(pathlib.Path(f"/proc/{one}/oom_score_adj").read_text())
              for one in (pid, caged.pid)]
    assert scores == [500, int(pathlib.Path("/proc/self/oom_score_adj").read_text())]
    for _attempt in range(5):
        neighbour = child(NEIGHBOUR, caged.cage)
        eaten = neighbour.ask("eat")
        caged.wait_for_another(pid)
        if eaten:
            break
        pid = caged.daemon_pid()  # the next to go was the neighbour, before it could let go
    assert int(eaten) > 32 and caged.kills() >= 1
    assert caged.is_alive(), "not the holder: what it keeps would have been lost"
    with caged.raw() as raw:
        for path in (used, pinned, idle):
            shown = raw.call("show", {"model": path.name})
            assert (shown["model"]["state"], shown["loaded_from"]) == ("resident", "store")
        assert all(check["ok"] for check in raw.call("verify")["checks"])
        assert raw.call("status")["bytes_read"] == 0
    wait_until(lambda: leases(caged, used) == [client.pid], 10 * slowness(), "its lease again")
    assert client.ask("look") == before
    client.end()
    neighbour.end()
