#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Soak and chaos: clients that load, map, write, fork, send garbage, stop and die, against a
daemon under distorchd-hold that is killed at random moments, reloaded and starved, while the
files change beneath it. Every byte of every mapping is compared with what its file has to hold.

Usage: soak.py [--minutes N] [--seed S] [--clients N] [--keep]

The last line counts the checks: N passed, N failed. What is drawn follows from the seed; when it
happens is the machine's affair. DISTORCH_BUILD is the build that is tested (build/test).
"""
import argparse
import collections
import contextlib
import json
import mmap
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
os.environ.setdefault("DISTORCH_BUILD", str(ROOT / "build" / "test"))
from conftest import (BUILD, HeldDaemon, RawError,  # noqa: E402
                      _die_with_parent, list_fds, slowness, wait_until)
from kills import ADOPTING, SERVING  # noqa: E402

MIB = 1 << 20
SIZES = [MIB] * 8 + [2 * MIB] * 4 + [4 * MIB] * 4 + [8 * MIB] * 4 + [16 * MIB] * 2 \
    + [32 * MIB, 64 * MIB]
N_ROUGH = 8  # of them, written and truncated in place
BUDGETS = ["96M", "160M", "256M"]
HUNG_S = 10 * slowness()
CALM_SHARE = 0.25  # of the time, at the end: the daemon lives, so that its memory can be watched
WARM_S, WATCHED_S = 120, 60  # a life's buffers are all there then; shorter says nothing of a slope
DAEMON_SLOPE_KIB, HOLD_SLOPE_KIB, DAEMON_MOST_KIB = 1024, 512, 32 * 1024
N_CELLS = 32
CELLS = ["pid", "step", "began_ms", "longest_ms", "lives", "steps", "requests", "refused",
         "mappings", "bytes", "writes", "forks", "garbage", "lost", "wrong", "surprises"]
FAULTS = ["recvmsg:ENOMEM", "sendmsg:ENOBUFS", "accept:EMFILE", "memfd_create:ENOMEM",
          "mmap:ENOMEM", "ftruncate:ENOSPC", "madvise:ENOMEM", "pread:EIO", "open:EMFILE", "malloc:ENOMEM",
          "pthread_create:EAGAIN", "write:ENOSPC"]


class Board:
    """What the clients tell (board.h)."""

    def __init__(self, path, n_rows):
        with open(path, "wb") as file:
            file.truncate(n_rows * N_CELLS * 8)
        with open(path, "r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)
        self.n_rows = n_rows

    def row(self, number):
        cells = struct.unpack_from(f"={len(CELLS)}Q", self.memory, number * N_CELLS * 8)
        return dict(zip(CELLS, cells))

    def total(self, cell):
        return sum(self.row(number)[cell] for number in range(self.n_rows))


class Files:
    """The models on disk, each a slot that is replaced, deleted and damaged."""

    def __init__(self, folder, chance):
        self.folder, self.chance = folder, chance
        self.client = str(BUILD / "tests" / "soak_client")
        self.versions = [0] * len(SIZES)
        self.stamps = [0] * len(SIZES)
        for slot in range(len(SIZES)):
            self.replace(slot)

    def path(self, slot):
        return self.folder / f"m{slot:02}.safetensors"

    def replace(self, slot):
        self.versions[slot] += 1
        self.stamps[slot] = 0
        seed = slot << 32 | self.versions[slot]
        subprocess.run([self.client, "write", self.path(slot), str(slot), str(seed),
                        str(SIZES[slot])], check=True)

    def change(self):
        """One change of one file; its name."""
        slot = self.chance.randrange(len(SIZES))
        if not self.path(slot).exists():
            self.replace(slot)
            return "written again"
        what = self.chance.choice(["replaced", "deleted", "stamped", "truncated", "touched"])
        if what in ("stamped", "truncated"):
            slot %= N_ROUGH
        if what == "replaced":
            self.replace(slot)
        elif what == "deleted":
            self.path(slot).unlink()
        elif what == "stamped":
            self.stamps[slot] += 1
            subprocess.run([self.client, "stamp", self.path(slot), str(self.stamps[slot])])
        elif what == "truncated":
            with contextlib.suppress(OSError):
                os.truncate(self.path(slot), self.chance.randrange(SIZES[slot]))
        else:
            with contextlib.suppress(OSError):
                os.chmod(self.path(slot), 0o644)
        return what


class SoakDaemon(HeldDaemon):
    def command(self):
        return [*super().command(), "--config", str(self.folder / "soak.conf")]

    def spawn(self, command, environment, log):
        """With core files, small as they are, for whoever has to find out."""
        def prepare():
            _die_with_parent()
            resource.setrlimit(resource.RLIMIT_CORE, (64 * MIB, resource.RLIM_INFINITY))

        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                cwd=self.folder, start_new_session=True, env=environment,
                                preexec_fn=prepare)

    def stacks(self):
        """Of every core that was left."""
        for core in self.folder.glob("core*"):
            done = subprocess.run(["gdb", BUILD / "bin" / "distorchd", core, "-batch", "-ex",
                                   "bt 30", "-ex", "thread apply all bt 12"],
                                  capture_output=True, text=True)
            yield f"{core.name}:\n{done.stdout[-6000:]}"

    def write_config(self, budget):
        new = self.folder / "soak.conf.new"
        new.write_text(f"[memory]\nram = {budget}\nreserve = 0\n"
                       "[limits]\nconnections = 2048\nconnections-per-user = 1024\n")
        new.rename(self.folder / "soak.conf")


def own_kib(pid):
    with contextlib.suppress(OSError, StopIteration):
        with open(f"/proc/{pid}/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
    return None


class Soak:
    def __init__(self, options):
        self.options = options
        self.chance = random.Random(options.seed)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="distorch-soak-"))
        self.board = Board(self.folder / "board", options.clients)
        (self.folder / "models").mkdir()
        self.files = Files(self.folder / "models", self.chance)
        self.daemon = SoakDaemon(["memory.backing=auto"])
        self.clients = [None] * options.clients
        self.lives = [0] * options.clients
        self.stopped = {}  # row -> when it may go on
        self.stops = {}    # row -> when it last went on
        self.hung = {}     # row -> the step
        self.done = collections.Counter()
        self.odd_ends = []
        self.daemon_kib, self.hold_kib = [], []  # (seconds of the run, KiB)
        self.checks = []

    # ---- clients ----

    def spawn(self, row):
        seed = self.options.seed * 1_000_003 + row * 10_007 + self.lives[row]
        self.lives[row] += 1
        with open(self.folder / "clients.log", "ab") as log:
            self.clients[row] = subprocess.Popen(
                [self.files.client, "run", self.daemon.socket, self.folder / "models",
                 self.folder / "board", str(row), str(seed), str(len(SIZES)), str(N_ROUGH),
                 str(self.options.pace)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=_die_with_parent)

    def tend_clients(self):
        now = time.monotonic()
        for row, client in enumerate(self.clients):
            code = client.poll()
            if code is not None:
                if code not in (0, -signal.SIGKILL):
                    self.odd_ends.append(f"client {row} ended with {code}")
                self.spawn(row)
            elif row in self.stopped and now >= self.stopped[row]:
                del self.stopped[row]
                self.stops[row] = now
                client.send_signal(signal.SIGCONT)
            elif row not in self.stopped:
                self.look_whether_hung(row, now)

    def look_whether_hung(self, row, now):
        cells = self.board.row(row)
        began = max(cells["began_ms"] / 1000, self.stops.get(row, 0.0))
        if cells["began_ms"] and now - began > HUNG_S and row not in self.hung:
            self.hung[row] = f"client {row}, pid {cells['pid']}, step {cells['step']} for " \
                f"{now - began:.0f} s"
            print(f"HUNG: {self.hung[row]}", flush=True)
            self.show_stack(cells["pid"])

    def show_stack(self, pid):
        """Where it hangs, for whoever reads the log."""
        if shutil.which("gdb"):
            command = ["gdb", "-p", str(pid), "-batch", "-ex", "thread apply all bt 12"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            print(done.stdout[-4000:], flush=True)

    def harm_a_client(self):
        row = self.chance.randrange(len(self.clients))
        if self.chance.random() < 0.7:
            self.clients[row].kill()
            self.stopped.pop(row, None)
            self.done["clients killed"] += 1
        elif row not in self.stopped and self.clients[row].poll() is None:
            self.clients[row].send_signal(signal.SIGSTOP)
            self.stopped[row] = time.monotonic() + self.chance.random() * 3
            self.done["clients stopped"] += 1

    # ---- the daemon ----

    def harm_the_daemon(self):
        how = self.chance.choice(["kill"] * 6 + ["point"] * 3 + ["upgrade"])
        pid = self.daemon.daemon_pid()
        if pid == 0:
            return
        if how == "point" and has_hooks():
            point = self.chance.choice(SERVING + ADOPTING)
            self.daemon.die_at(f"{point}:{self.chance.randrange(1, 4)}")
        elif how == "upgrade":
            os.kill(self.daemon.pid, signal.SIGUSR1)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.done[f"daemon: {how}"] += 1

    def disturb_the_daemon(self):
        """What it has to live through."""
        how = self.chance.choice(["reload", "reload", "pressure", "fault", "fault", "fault"])
        if how == "reload" or not has_hooks():
            self.daemon.write_config(self.chance.choice(BUDGETS))
            os.kill(self.daemon.pid, signal.SIGHUP)
        elif how == "pressure":
            self.order("pressure")
        else:
            call, error = self.chance.choice(FAULTS).split(":")
            self.order(f"fault {call}:{self.chance.randrange(1, 30)}:{error}:once")
        self.done[f"daemon: {how}"] += 1

    def order(self, line):
        """A hook of a testing build; whether it is carried out before a death is all the same."""
        (self.daemon.folder / "order.new").write_text(line + "\n")
        os.rename(self.daemon.folder / "order.new", self.daemon.folder / "order")
        pid = self.daemon.daemon_pid()
        # Not before it listens for the signal, which would end it otherwise.
        if pid and is_handling(pid, signal.SIGUSR2):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)

    # ---- the whole ----

    def holder_sockets(self):
        return sum("socket:" in link for link in list_fds(self.daemon.pid))

    def begin(self):
        self.daemon.write_config(BUDGETS[-1])
        self.daemon.start()
        self.first_fds = self.daemon.baseline_fds
        wait_until(lambda: self.holder_sockets() == 2, 10.0 * slowness(),
                   "the holder's having the daemon's socket beside its own")
        self.first_hold_fds = len(list_fds(self.daemon.pid))
        self.witness_path = self.folder / "witness.safetensors"
        subprocess.run([self.files.client, "write", self.witness_path, "99", "99", str(4 * MIB)],
                       check=True)
        with self.daemon.raw() as raw:
            raw.load(self.witness_path, policy={"pin": True}, backing="image")
        for row in range(len(self.clients)):
            self.spawn(row)

    def run(self):
        begun = time.monotonic()
        seconds = self.options.minutes * 60
        calm_from = begun + seconds * (1 - CALM_SHARE)
        next_word = begun + 30
        while time.monotonic() < begun + seconds:
            now = time.monotonic()
            self.tend_clients()
            draw = self.chance.random()
            if draw < 0.45:
                self.harm_a_client()
            elif draw < 0.70:
                self.done[f"file {self.files.change()}"] += 1
            elif draw < 0.78:
                self.disturb_the_daemon()
            elif now < calm_from and draw < 0.86:
                self.harm_the_daemon()
            self.sample(now >= calm_from)
            if now >= next_word:
                next_word += 30
                print(f"{now - begun:5.0f} s: {self.figures()}", flush=True)
            time.sleep(0.05 + 0.15 * self.chance.random())
            if now >= calm_from:
                self.daemon.point.unlink(missing_ok=True)

    def sample(self, is_calm):
        now = time.monotonic()
        self.hold_kib.append((now, own_kib(self.daemon.pid)))
        if is_calm:
            self.daemon_kib.append((now, own_kib(self.daemon.daemon_pid())))

    def figures(self):
        return ", ".join(f"{self.board.total(cell)} {cell}" for cell in (
            "steps", "requests", "refused", "mappings", "lives", "wrong", "surprises"))

    def end(self):
        """Everybody lets go, in order; what is left is what should not be."""
        self.tend_clients()  # who was killed last lives once more
        for client in self.clients:
            client.send_signal(signal.SIGCONT)
            client.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 60 * slowness()
        late = []
        for row, client in enumerate(self.clients):
            try:
                code = client.wait(max(0.1, deadline - time.monotonic()))
                if code not in (0, -signal.SIGTERM):  # it had just begun
                    self.odd_ends.append(f"client {row} ended with {code} at the end")
            except subprocess.TimeoutExpired:
                late.append(row)
                client.kill()
                client.wait()
        self.check("every client ends when it is told to", not late, late)

    # ---- judging ----

    def check(self, what, is_good, detail=""):
        self.checks.append(bool(is_good))
        print(f"  {'ok    ' if is_good else 'FAILED'} {what}" + (f": {detail}" if detail else ""),
              flush=True)

    def judge(self):
        log = (self.folder / "clients.log").read_text(errors="replace")
        daemon_log = self.daemon.log_path.read_text(errors="replace")
        self.check("no byte was wrong", self.board.total("wrong") == 0,
                   f"{self.board.total('bytes') / (1 << 30):.1f} GiB of "
                   f"{self.board.total('mappings')} mappings compared")
        self.check("no failure that the world does not give", self.board.total("surprises") == 0)
        self.check("nobody hung", not self.hung, list(self.hung.values())
                   or f"the longest step took {self.longest_ms()} ms")
        self.check("no client crashed", not self.odd_ends, self.odd_ends[:5])
        broken = [line for line in daemon_log.splitlines()
                  if "broken:" in line or "Sanitizer" in line or "bus error" in line
                  or "runtime error" in line]
        self.check("the daemon broke no promise of its own", not broken, broken[:3])
        lines = daemon_log.splitlines()
        odd = [number for number, line in enumerate(lines) if "ended by" in line
               and "signal 9" not in line]
        self.check("it died of nothing but kills", not odd, [lines[number] for number in odd[:3]])
        for number in odd:
            print("\n".join(lines[max(0, number - 20):number + 2]))
        self.judge_memory()
        self.judge_rest()
        if not all(self.checks):
            for stack in self.daemon.stacks() if shutil.which("gdb") else ():
                print(stack)
            print("clients said:\n" + log[-6000:] + "\nthe daemon said:\n" + daemon_log[-6000:])

    def longest_ms(self):
        return max(self.board.row(row)["longest_ms"] for row in range(self.board.n_rows))

    def judge_memory(self):
        most = max(kib for _at, kib in self.daemon_kib if kib)
        self.check("the daemon's own memory is little", most <= DAEMON_MOST_KIB * slowness(),
                   f"{most} KiB at most")
        for what, samples, limit in (("the daemon's", self.daemon_kib, DAEMON_SLOPE_KIB),
                                     ("the holder's", self.hold_kib, HOLD_SLOPE_KIB)):
            begun, ended = samples[0][0], samples[-1][0]
            kib = [kib for at, kib in samples if kib and at >= begun + WARM_S]
            if ended - begun < WARM_S + WATCHED_S:
                print(f"  (too short to tell whether {what} memory grows)")
                continue
            part = len(kib) // 4
            early, late = sum(kib[:part]) / part, sum(kib[-part:]) / part
            self.check(f"{what} own memory is flat", late - early <= limit,
                       f"{early:.0f} KiB, later {late - early:+.0f} KiB")

    def judge_rest(self):
        daemon = self.daemon
        with daemon.raw(timeout=60.0) as raw:
            checks = raw.call("verify")["checks"]
            self.check("every copy in memory has its checksum", all(c["ok"] for c in checks),
                       f"{len(checks)} of them")
            detail = raw.call("show", {"model": self.witness_path.name})
            self.check("what was pinned outlived it all, unread",
                       detail["model"]["state"] == "resident" and detail["model"]["pinned"]
                       and (detail["loaded_from"] == "store" or not self.n_deaths()),
                       detail["loaded_from"])
            restarts = raw.call("status")["restarts"]
            print(f"  {restarts} restarts; {json.dumps(self.done, sort_keys=True)}")
            raw.call("set", {"model": self.witness_path.name, "policy": {"pin": False}})
        self.wait_for("no account has a charge", self.is_empty)
        self.wait_for("the daemon's descriptors are back at the baseline",
                      lambda: daemon.fds_at_rest() <= self.first_fds)
        self.wait_for("the holder's descriptors are back at the baseline",
                      lambda: len(list_fds(daemon.pid)) <= self.first_hold_fds)
        left = [link for pid in (daemon.pid, daemon.daemon_pid()) for link in list_fds(pid)
                if "memfd:distorch:" in link and "distorch:ledger" not in link]
        self.check("no image and no table is left", not left, left[:5])
        daemon.stop(seconds=10.0)
        self.check("the daemon ends in order", True)

    def n_deaths(self):
        return sum(n for what, n in self.done.items() if what in (
            "daemon: kill", "daemon: point", "daemon: upgrade"))

    def is_empty(self):
        with contextlib.suppress(RawError):
            self.daemon.unload_all()
        return all(device["used"] == device["held"] == 0
                   for device in self.daemon.status()["devices"])

    def wait_for(self, what, condition, seconds=30):
        end = time.monotonic() + seconds * slowness()
        while time.monotonic() < end:
            if condition():
                self.check(what, True)
                return
            time.sleep(0.1)
        detail = {"fds": list_fds(self.daemon.daemon_pid())[-12:],
                  "holder's": list_fds(self.daemon.pid)[-12:], "models": [
            (m["name"], m["state"], m["leases"]) for m in self.daemon.models(True)][:8],
            "device": self.daemon.status()["devices"]}
        self.check(what, False, json.dumps(detail)[:1500])

    def remove(self):
        for client in self.clients:
            if client is not None and client.poll() is None:
                client.kill()
                client.wait()
        self.daemon.remove()
        if not self.options.keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def has_hooks():
    return BUILD.name != "shipped"


def is_handling(pid, number):
    with contextlib.suppress(OSError, StopIteration):
        with open(f"/proc/{pid}/status") as lines:
            mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
            return bool(mask >> (number - 1) & 1)
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--pace", type=int, default=250, help="ms between steps, on average")
    parser.add_argument("--keep", action="store_true", help="leave the folder of the run")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(4), "little")
    soak = Soak(options)
    print(f"{options.minutes:g} minutes, {options.clients} clients, seed {options.seed}, "
          f"in {soak.folder}: repeat it with --seed {options.seed}", flush=True)
    try:
        soak.begin()
        soak.run()
        soak.end()
        print(f"  {soak.figures()}")
        soak.judge()
    except Exception as error:  # noqa: BLE001: it is a failure of the run, counted as one
        soak.check(f"the run itself: {type(error).__name__}", False, str(error)[-3000:])
    finally:
        soak.remove()
    n_passed = sum(soak.checks)
    print(f"{n_passed} passed, {len(soak.checks) - n_passed} failed")
    return 0 if n_passed == len(soak.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
