# SPDX-License-Identifier: Apache-2.0
"""What a connection keeps over trouble of its process and of the daemon, and what ends with it."""
import os
import signal
import time

import pytest
from conftest import pattern, run_python, wait_until

WITHOUT_DESCRIPTORS = """
import os, resource, sys, distorch
d = distorch.connect(sys.argv[1])
w = d.open(sys.argv[2], backing="image")
first = d.server().client
taken = []
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
codes = set()
for _ in range(50):
    try:
        d.attach(w.id)
    except distorch.Error as error:
        codes.add(error.code)
d.ping()
for fd in taken:
    os.close(fd)
with d.attach(w.id) as again:
    same = again["t.0"].buffer == w["t.0"].buffer
print(codes, d.server().client == first, same)
"""


def resume(daemon):
    os.kill(daemon.pid, signal.SIGCONT)


def n_leases(daemon):
    """Those of closed connections that still map something included."""
    with daemon.raw() as raw:
        return sum(client["leases"] for client in raw.call("clients")["clients"])


def test_without_descriptors_a_call_fails_and_the_connection_stays(daemon, make_model):
    """It was lost, connected anew and lost again, until no client had a place in the daemon."""
    said = run_python(WITHOUT_DESCRIPTORS, daemon.socket, make_model(size=1 << 20))
    assert said.strip() == "{'too-many'} True True"
    wait_until(lambda: daemon.status()["clients"] == 1, what="the end of the process")


def test_a_reservation_that_comes_after_its_call_gave_up_is_released(start_daemon, distorch):
    daemon = start_daemon("sim.count=1", "sim.memory=64M")
    with distorch.connect(str(daemon.socket), timeout=0.3) as d:
        os.kill(daemon.pid, signal.SIGSTOP)
        with pytest.raises(distorch.Error) as caught:
            d.reserve("sim:0", 16 << 20)
        resume(daemon)
        assert caught.value.code == "timeout"
        # nobody calls again: the daemon is asked by others
        wait_until(lambda: daemon.status()["devices"][1]["reserved"] == 0, what="the room is free again")
        time.sleep(0.2)
        assert daemon.status()["devices"][1]["reserved"] == 0


def test_a_reservation_of_the_daemon_before_releases_none_of_this_one(start_daemon, distorch):
    daemon = start_daemon("sim.count=1", "sim.memory=64M")
    with distorch.connect(str(daemon.socket)) as d:
        first = d.reserve("sim:0", 16 << 20)
        daemon.kill()
        daemon.start()
        wait_until(lambda: len(d.devices()) == 2 and d.devices()[1].state == "ok", what="sim:0")
        with d.reserve("sim:0", 8 << 20):
            first.release()
            assert d.devices()[1].reserved == 8 << 20
        assert d.devices()[1].reserved == 0


def test_the_first_call_after_a_restart_finds_the_new_daemon(start_daemon, distorch):
    daemon = start_daemon()
    with distorch.connect(str(daemon.socket)) as d:
        before = d.server().epoch
        daemon.kill()
        daemon.start()
        assert d.status().models == 0
        assert d.server().epoch != before


def test_a_lost_lease_is_told_by_its_number(start_daemon, distorch, make_model):
    daemon = start_daemon()
    with distorch.connect(str(daemon.socket)) as d:
        lost, other = (d.open(make_model(f"{name}.safetensors")) for name in "ab")
        assert lost["t.0"].buffer and d.table(lost.id).lease == 0
        numbers = {lost.lease, other.lease}
        daemon.kill()
        daemon.start()
        event = d.next_event(timeout=10)
        assert event.type == "lost" and event.lease == lost.lease and len(numbers) == 2
        assert d.open(make_model("c.safetensors")).lease not in numbers


@pytest.mark.parametrize("closes", [False, True])
def test_leases_end_though_the_daemon_took_nothing_when_they_did(daemon, distorch, make_model, closes):
    """What the socket did not take is said when there is room, after a close by another one."""
    path = make_model(size=1 << 20, seed=3)
    d = distorch.connect(str(daemon.socket))
    model = d.load(path, backing="image")
    weights = [d.attach(model.id) for _ in range(900)]
    assert all(bytes(one["t.0"].buffer[:16]) == pattern(3, 16) for one in weights)
    os.kill(daemon.pid, signal.SIGSTOP)
    for one in weights:
        one.close()
    if closes:
        d.close()
    resume(daemon)
    wait_until(lambda: n_leases(daemon) == 0, what="the end of all leases")
    d.close()


def test_a_lease_that_was_given_back_to_a_daemon_that_died_is_not_asked_for_again(held, distorch,
                                                                                 make_model):
    with distorch.connect(str(held.socket)) as d:
        gone, kept = (d.open(make_model(f"{name}.safetensors")) for name in "ab")
        assert gone["t.0"].buffer and kept["t.0"].buffer
        pid = held.daemon_pid()
        os.kill(pid, signal.SIGSTOP)
        gone.close()
        os.kill(pid, signal.SIGKILL)
        held.wait_for_another(pid)
        d.ping()
        wait_until(lambda: n_leases(held) == 1, what="the one that is kept")
        kept.close()
        wait_until(lambda: n_leases(held) == 0, what="the end of all leases")


FORKS = """
import os, sys, threading, distorch
for i in range(40):
    d = distorch.connect(sys.argv[1])
    w = d.open(sys.argv[2])
    w["t.0"].buffer
    closing = threading.Thread(target=d.close)
    closing.start()
    if i % 2:
        closing.join()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with distorch.connect(sys.argv[1]) as own:
                own.ping()
                code = 0
        finally:
            os._exit(code)
    closing.join()
    w.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def test_a_fork_beside_or_after_a_close_leaves_a_child_that_can_connect(daemon, make_model):
    run_python(FORKS, daemon.socket, make_model())
    wait_until(lambda: n_leases(daemon) == 0, what="the end of all leases")
