# SPDX-License-Identifier: Apache-2.0
"""Every call to the kernel and every allocation fails in turn, once and for ever, while the daemon
serves and while it takes over what an earlier life left (M10, M11). Each failure is undone
and named; what others hold is as it was."""

import contextlib
import os
import re

import pytest
from conftest import Daemon, RawError, close_all, need_hooks, opened, slowness, wait_until
from store import StoredDaemon
from test_wire_hostile import in_a_process

MAX_CALLS = 400

# ---- allocations, for each method ------------------------------------------------------------

# method (the first word) -> what it is asked with, of the model's name and a lease
VERBS = {
    "ping": {}, "status": {}, "devices": {}, "clients": {}, "config": {}, "events.history": {},
    "list": {"all": True}, "budget": {"device": "cpu"}, "verify": {}, "subscribe": {},
    "cancel": {"id": 4242}, "show": {"model": "{name}"},
    "set": {"model": "{name}", "policy": {"priority": 3, "ttl_ms": 60000}, "label": "x"},
    "unload": {"select": {"models": ["{name}"]}}, "load": {}, "attach": {"map": True},
    "map": {"lease": "{lease}", "segments": [0, 1]}, "unmapped": {"lease": "{lease}"},
    "plan": {"model": "{name}", "allocation": "cpu"},
    "plan of blocks": {"blocks": [{"name": "a.0", "bytes": 1}], "allocation": "cpu"},
    "detach": {"lease": "{lease}"}, "hello": {"protocol": [1, 1], "client": "raw/1"},
}


def filled_in(params, name, lease):
    if isinstance(params, dict):
        return {key: filled_in(value, name, lease) for key, value in params.items()}
    if isinstance(params, list):
        return [filled_in(value, name, lease) for value in params]
    return {"{name}": name, "{lease}": lease}.get(params, params)


def outcome(work):
    """How it ends: "ok", the code of an error, "closed", or "waits". Done by a process of its
    own, which then ends: what it may have mapped is not held for it."""
    def attempt():
        try:
            work()
            return "ok"
        except RawError as error:
            assert error.error["message"]
            return error.code
        except TimeoutError:
            return "waits"
        except (ConnectionError, OSError):
            return "closed"

    return in_a_process(attempt)


def call_once(daemon, path, verb, fault):
    """Call it while the fault strikes; says how often it did."""
    with daemon.raw(hello=verb != "hello") as raw, opened(path) as fd:
        lease = None
        if verb in ("map", "unmapped", "detach"):
            result, fds = raw.attach(path, map=False)
            close_all(fds)
            lease = result["lease"]
        params = filled_in(VERBS[verb], path.name, lease)
        daemon.tell(fault)
        close_all(raw.call_fds(verb.split()[0], params,
                               [fd] if verb in ("load", "attach") else [])[1])


@pytest.mark.fault("M10")
@pytest.mark.parametrize("verb", VERBS)
def test_the_nth_allocation_fails_for_every_method(daemon, make_model, verb):
    path = make_model(size=64 << 10)
    for how in ("once", "ever"):
        codes = []
        for nth in range(1, MAX_CALLS):
            with daemon.raw() as keeper:
                keeper.load(path)  # what the last round took is loaded again
                fault = f"fault malloc:{nth}:ENOMEM:{how}"
                codes.append(outcome(lambda: call_once(daemon, path, verb, fault)))
                n_hits = int(daemon.tell("hits malloc"))
                daemon.tell("clear")
                assert keeper.call("ping") == {}, "another connection came to harm"
            if n_hits == 0:
                break
        # No other error, and none at all when nothing failed.
        assert n_hits == 0 and codes.pop() == "ok"
        assert codes and set(codes) <= {"ok", "no-memory", "closed"}, (how, codes)
        assert verb in ("cancel", "unmapped") or set(codes) != {"ok"}, (how, codes)


# ---- each call with each errno, while it serves ------------------------------------------------

# call -> errno -> how a use may end that it strikes
WORKS = {"ok"}
REFUSED = {"ok", "internal", "bad-fd", "too-many"}
CLOSED = {"ok", "closed"}
SERVING = {
    "recvmsg": {"EINTR": WORKS, "EAGAIN": WORKS, "ENOMEM": CLOSED, "ECONNRESET": CLOSED},
    "sendmsg": {"EINTR": WORKS, "EAGAIN": WORKS, "ETOOMANYREFS": WORKS, "ENOBUFS": WORKS,
                "EPIPE": CLOSED, "ENOMEM": CLOSED},
    "accept": {"EMFILE": CLOSED, "ENFILE": CLOSED, "ECONNABORTED": CLOSED, "EINTR": WORKS,
               "ENOMEM": CLOSED},
    "memfd_create": {"ENOMEM": {"no-memory"}, "EMFILE": {"too-many"}, "ENFILE": {"too-many"},
                     "EPERM": {"internal"}},
    "ftruncate": {"EFBIG": {"too-large"}, "ENOSPC": {"no-memory"}, "EINTR": WORKS},
    "mmap": {"ENOMEM": {"no-memory"}, "EAGAIN": {"no-memory"}, "EPERM": {"no-memory"}},
    "madvise": {"EINVAL": WORKS, "EAGAIN": WORKS, "ENOMEM": WORKS},
    "pread": {"EIO": {"ok", "io"}, "EINTR": WORKS},
    "write": {"ENOSPC": {"no-memory"}, "EINTR": WORKS, "EIO": {"no-memory"}},
    "fcntl": {"EBUSY": REFUSED, "EPERM": REFUSED,
              "EINVAL": REFUSED, "EMFILE": REFUSED},
    "fchmod": {"EPERM": {"internal"}},
    "fstat": {"EIO": {"ok", "internal"}, "ENOMEM": {"ok", "internal"}},
    "statx": {"EIO": {"bad-fd", "io"}, "ESTALE": {"bad-fd", "io"}},
    "open": {"EMFILE": {"ok", "too-many"}, "EACCES": {"ok", "internal", "unsupported"}},
    "malloc": {"ENOMEM": {"ok", "no-memory", "closed"}},
    "pthread_create": {"EAGAIN": {"ok", "no-memory"}},
    "getrandom": {"EAGAIN": {"internal"}, "EINTR": {"ok", "internal"}},
    "mlock": {"ENOMEM": WORKS, "EAGAIN": WORKS, "EPERM": WORKS},
    "inotify_add_watch": {"ENOSPC": WORKS, "ENOMEM": WORKS, "EACCES": WORKS},
    "pipe": {"EMFILE": WORKS, "ENFILE": WORKS},
}
# How it serves: images that nobody keeps; kept by who restarts it, and in memory; files that serve
# themselves, to which some calls belong and others do not.
WAYS = {
    "image": ((), Daemon, {"mlock", "inotify_add_watch", "pipe"}),
    "kept": (("memory.lock=on",), StoredDaemon, {"inotify_add_watch"}),
    "file": (("memory.backing=file",), Daemon,
             {"memfd_create", "ftruncate", "madvise", "fchmod", "write", "pipe", "mlock",
              "mmap"}),
}


def use(daemon, path, patience):
    """The whole way through the door: connect, load with a lease, look at the bytes, let go."""
    def work():
        with daemon.raw(timeout=patience) as raw, opened(path) as fd:
            result, fds = raw.call_fds("load", {"attach": True, "map": True}, [fd])
            assert os.pread(fds[1], 1 << 20, 0) == path.read_bytes(), "wrong bytes"
            close_all(fds)
            raw.call("unmapped", {"lease": result["lease"]})
            raw.call("detach", {"lease": result["lease"]})

    return outcome(work)


@contextlib.contextmanager
def another_user(daemon, make_model):
    """Somebody who holds a model all the while; it is as it was in the end."""
    path = make_model("held.safetensors", size=64 << 10, seed=77)
    with daemon.raw() as raw, opened(path) as fd:
        result, fds = raw.call_fds("load", {"attach": True, "map": True}, [fd])
        yield raw
        assert os.pread(fds[1], 1 << 20, 0) == path.read_bytes()
        close_all(fds)
        raw.call("unmapped", {"lease": result["lease"]})
        raw.call("detach", {"lease": result["lease"]})


def is_undone(daemon, charged):
    """Nothing of the last use is left but perhaps its model, at rest."""
    def is_at_rest():
        models = {model["name"]: model for model in daemon.models()}
        mine = models.get("used.safetensors", {"state": "failed", "leases": 0})
        there = mine["state"] == "resident"
        used = daemon.status()["devices"][0]["used"]
        return (mine["leases"] == 0 and mine["state"] in ("resident", "failed", "registered")
                and (there or used == charged))
    wait_until(is_at_rest, 5.0 * slowness(), "what a failed call left behind")


@pytest.mark.fault("M11")
@pytest.mark.seconds(240)
@pytest.mark.parametrize("way, call", [(way, call) for way, (_settings, _kind, without)
                                       in WAYS.items() for call in SERVING if call not in without])
def test_each_call_fails_with_each_errno_while_the_daemon_serves(start_daemon, make_model, way,
                                                                 call):
    settings, kind, _without = WAYS[way]
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", *settings, kind=kind)
    path = make_model("used.safetensors", size=64 << 10)
    with another_user(daemon, make_model) as other:
        charged = daemon.status()["devices"][0]["used"]
        for error, allowed in SERVING[call].items():
            for how in ("once",) if error == "EINTR" else ("once", "ever"):
                n_struck = 0
                nth = 1
                patience_s = (0.1 if how == "ever" else 10.0) * slowness()
                while nth < MAX_CALLS:
                    daemon.tell(f"fault {call}:{nth}:{error}:{how}")
                    code = use(daemon, path, patience_s)
                    n_hits = int(daemon.tell("hits " + call))
                    daemon.tell("clear")
                    where = f"{call}:{nth}:{error}:{how} ended with {code}"
                    # What never works again may be waited for; the client gives up.
                    patience = {"waits"} if how == "ever" else set()
                    assert code in allowed | {"ok"} | patience, where
                    is_undone(daemon, charged)
                    daemon.unload_all_but("held.safetensors")
                    if n_hits > 0:
                        n_struck += 1
                        nth += 1
                    elif code != "waits":
                        assert code == "ok", where
                        break
                    else:  # its time was over before the nth
                        patience_s *= 2
                        assert patience_s < 60 * slowness(), where
                assert n_hits == 0 and n_struck > 0, (call, error, how, n_struck)
            assert other.call("ping") == {}
        assert use(daemon, path, 10.0 * slowness()) == "ok"


# ---- each call, while a life takes over what another left ----------------------------------------

# The calls of a start, each with the errno that it gives in earnest.
STARTING = {
    "malloc": "ENOMEM", "memfd_create": "EMFILE", "ftruncate": "ENOSPC", "mmap": "ENOMEM",
    "madvise": "EAGAIN", "fcntl": "EMFILE", "fstat": "EIO", "statx": "EIO",
    "open": "EMFILE", "pread": "EIO", "pthread_create": "EAGAIN", "getrandom": "EAGAIN",
    "sendmsg": "ENOBUFS", "write": "EIO", "pipe": "EMFILE", "timerfd_create": "EMFILE",
    "rename": "ENOSPC", "mlock": "ENOMEM",
}


class Life(StoredDaemon):
    """Its socket outlives it: only its word says that it serves."""

    def _wait_for_socket(self, seconds=10.0):
        wait_until(lambda: "ready: " in self.log() or not self.is_alive(), seconds * slowness(),
                   "a start or its end")
        assert self.is_alive(), "it ended"


def begin_a_life(daemon, fault=None):
    """Start a daemon on what is kept. How often the fault struck, or None: it did not start."""
    daemon.environment.pop("DISTORCHD_FAULT_AT_START", None)
    if fault:
        daemon.environment["DISTORCHD_FAULT_AT_START"] = fault
    daemon.log_path.write_text("")
    try:
        daemon.start()
    except AssertionError:
        assert not daemon.is_alive(), f"{fault}\n{daemon.log()}"
        assert "cannot start: " in daemon.log(), f"{fault}\n{daemon.log()}"
        assert daemon.process.returncode == 1, f"{fault}\n{daemon.log()}"
        daemon.drain()
        return None
    struck = re.search(r"failed (\d+) times at the start", daemon.log())
    return int(struck.group(1)) if struck else 0


def is_whole(daemon, path):
    """Is the model there, by its old bytes? If not, a line says that it was given up."""
    def at_rest():
        return [m for m in daemon.models() if m["state"] in ("resident", "failed", "registered")]

    for model in at_rest():
        if model["state"] == "resident":
            with daemon.raw() as raw:
                check, = raw.call("verify")["checks"]
                if not check["ok"]:  # it joined one that the fault struck: nothing was found
                    assert "offset" not in check, check
                    check, = raw.call("verify")["checks"]
                assert check["ok"], check
                result, fds = raw.attach(path, map=True)
                assert os.pread(fds[1], 1 << 20, 0) == path.read_bytes()
                close_all(fds)
                raw.call("unmapped", {"lease": result["lease"]})
                raw.call("detach", {"lease": result["lease"]})
            return True
    assert "given up" in daemon.log() or "starting empty" in daemon.log() or \
        "nothing survives" in daemon.log(), daemon.log()
    return False


def begin_lives(daemon, fault=None):
    """Three in a row give up a model that kills the daemon; one that fails in order is no such."""
    for _life in range(3):
        if begin_a_life(daemon, fault) is not None:
            return True
    return False


@pytest.mark.fault("M10", "M11", "S11")
@pytest.mark.parametrize("call, error", [("mmap", "ENOMEM"), ("memfd_create", "ENFILE"),
                                         ("open", "ENFILE")])
def test_starts_that_fail_for_want_of_memory_cost_no_model(start_daemon, make_model, call, error):
    need_hooks()
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", "memory.backing=" +
                          ("file" if call == "open" else "image"), kind=Life, check=False)
    with daemon.raw() as raw:
        raw.load(make_model(size=64 << 10))
    ends = []
    while not ends or not ends[-1]:
        daemon.die() if daemon.is_alive() else None
        ends.append(begin_lives(daemon, f"{call}:{len(ends) + 1}:{error}:ever"))
        assert "given up" not in daemon.log() and "starting empty" not in daemon.log(), daemon.log()
    assert False in ends and len(daemon.models()) == 1, daemon.log()


class Cramped(Life):
    """So many descriptors and no more."""
    n_fds = 1024

    def spawn(self, command, environment, log):
        limit = ["prlimit", f"--nofile={self.n_fds}:{self.n_fds}"]
        return super().spawn([*limit, *command], environment, log)


@pytest.mark.fault("M11", "S11")
def test_a_limit_of_descriptors_ends_no_start_that_would_do_without_a_model(start_daemon,
                                                                            make_model):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", kind=Cramped, check=False)
    with daemon.raw() as raw:
        for number in range(30):
            raw.load(make_model(f"m{number}.safetensors", size=64 << 10, seed=number))
    daemon.die()
    daemon.n_fds = 160  # it has 90 at its start
    assert begin_a_life(daemon) == 0, daemon.log()
    said = [line for line in daemon.log().splitlines() if "given up" in line]
    n_models = len(daemon.models())
    assert 0 < n_models == 30 - len(said), daemon.log()
    assert all("no descriptors are left" in line and "which is 160" in line for line in said)


@pytest.mark.fault("M11", "S11")
def test_no_more_is_kept_than_a_start_can_take_over(start_daemon, make_model):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", "memory.backing=file", kind=Cramped,
                          check=False)
    daemon.die()
    daemon.n_fds = 200
    begin_a_life(daemon)
    with daemon.raw() as raw:
        assert raw.call("store")["max_descriptors"] == 34
        for number in range(20):
            raw.load(make_model(f"m{number}.safetensors", size=64 << 10, seed=number))
    daemon.die()
    assert sum(name.startswith("hdr.") for name, _fd in daemon.kept) == 16
    assert begin_a_life(daemon) == 0 and "given up" not in daemon.log(), daemon.log()
    assert len(daemon.models()) == 16


@pytest.mark.fault("M10", "M11")
@pytest.mark.seconds(240)
@pytest.mark.parametrize("how", ["once", "ever"])
@pytest.mark.parametrize("call", STARTING)
def test_each_call_fails_while_a_model_is_taken_over(start_daemon, make_model, call, how):
    need_hooks()
    path = make_model(size=64 << 10)
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0", "memory.lock=on", kind=Life,
                          check=False)
    nth, n_missed = 1, 0
    while nth < MAX_CALLS:
        if not any(name.startswith("img.") for name, _fd in daemon.kept):
            if daemon.is_alive() and not daemon.status()["survives_restart"]:
                daemon.die()
            begin_a_life(daemon) if not daemon.is_alive() else None
            with daemon.raw() as raw:
                raw.load(path)
            wait_until(lambda: sum(n.startswith("img.") for n, _fd in daemon.kept) == 1)
        if daemon.is_alive():
            daemon.die()
        n_hits = begin_a_life(daemon, f"{call}:{nth}:{STARTING[call]}:{how}")
        if n_hits is None:
            begin_a_life(daemon)  # nothing was lost by the start that failed
            assert is_whole(daemon, path), daemon.log()
        else:
            is_there = is_whole(daemon, path)
            if n_hits == 0:
                assert is_there
                n_missed += 1
                if nth > 1 or n_missed == 20:
                    break
                continue  # a thread's call may come when the start is over
        nth += 1
    assert n_hits == 0 and nth > 1, nth
