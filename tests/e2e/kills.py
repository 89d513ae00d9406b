# SPDX-License-Identifier: Apache-2.0
"""Moments at which a daemon is killed, and what it is doing then: loads, attaches, unloads,
evictions, reloads, of files that change meanwhile."""
import contextlib
import hashlib
import os

from conftest import RawError, close_all, make_safetensors, opened
from test_wire_hostile import in_a_process

MIB = 1 << 20

# Where a daemon of a testing build can be told to die (daemon/testing.h): while it serves, …
SERVING = [
    "do-read-header", "do-fill", "do-recheck", "do-verify", "do-drop", "do-cancel", "do-publish",
    "do-retire", "do-close-file", "do-forget-job", "do-forget-client", "do-reply",
    "do-unload-item", "do-note", "do-record-lease", "do-record-wish", "got-header", "got-filled",
    "got-rechecked", "got-verified", "got-dropped", "got-measured", "filled", "stored", "parked",
    "published", "dropping", "unstored", "reloading",
]
# … and while it takes over what another life left.
ADOPTING = ["adopting", "adopted", "beginning", "begun"]

CUT_OFF = (ConnectionError, OSError)  # what its death makes of a request


CHANGING = {"m2": 2, "m3": 3, "big": 9}  # MiB


class World:
    """Files and what they have held: no image may ever hold anything else."""

    def __init__(self, folder, chance):
        self.folder, self.chance = folder, chance
        self.known = set()  # digests of every content of every file
        self.n_written = 0
        self.backing = "image"
        for name, mib in {"m0": 1, "m1": 2, **CHANGING}.items():
            self.write(name, mib)

    def path(self, name):
        return self.folder / f"{name}.safetensors"

    def write(self, name, mib, where=None):
        self.n_written += 1
        path = where or self.path(name)
        make_safetensors(path, {"t.0": ("F32", [mib * MIB // 4])}, seed=self.n_written)
        self.known.add(hashlib.sha256(path.read_bytes()).digest())
        return path

    def restore(self):
        """What was deleted is there again, and other than before."""
        for name, mib in CHANGING.items():
            if not self.path(name).exists():
                self.write(name, mib)

    def change(self):
        """One of the files that no reader has open, in one of the ways files change."""
        name, mib = self.chance.choice(list(CHANGING.items()))
        path = self.path(name)
        how = self.chance.choice(["replaced", "deleted", "touched", "rewritten"])
        if how == "replaced" or not path.exists():
            os.rename(self.write(name, mib, self.folder / "new"), path)
        elif how == "deleted":
            path.unlink()
        elif how == "touched":
            os.chmod(path, 0o640)
        else:
            self.rewrite(path)

    def rewrite(self, path):
        """In place, and so that nobody can see a half of it: eight bytes, then another time."""
        content = bytearray(path.read_bytes())
        content[-8:] = os.urandom(8)
        self.known.add(hashlib.sha256(content).digest())
        with open(path, "r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(content[-8:])
        os.utime(path)

    def compare(self, raw, name, load=True):
        """Load or attach it: what comes is what the file holds now."""
        with contextlib.suppress(FileNotFoundError), opened(self.path(name)) as fd:
            params = {"attach": True, "backing": self.backing} if load else {}
            result, fds = raw.call_fds("load" if load else "attach", {"map": True, **params}, [fd])
            image = os.pread(fds[1], 16 * MIB, 0)
            close_all(fds)
            assert image == os.pread(fd, 16 * MIB, 0), f"wrong bytes of {name}"
            raw.call("unmapped", {"lease": result["lease"]})
            raw.call("detach", {"lease": result["lease"]})

    def check_all(self, raw):
        """Whatever is in memory is a content that some file has had, whole."""
        for model in raw.call("list")["models"]:
            if model["state"] != "resident":
                continue
            try:
                result, fds = raw.call_fds("attach", {"model": model["id"], "map": True})
            except RawError:
                continue  # it went meanwhile, or its file has changed
            image = os.pread(fds[1], 16 * MIB, 0)
            close_all(fds)
            raw.call("unmapped", {"lease": result["lease"]})
            raw.call("detach", {"lease": result["lease"]})
            assert hashlib.sha256(image).digest() in self.known, f"wrong bytes of {model['name']}"


def in_a_child(work):
    """What work() returns, true or not, done by a process of its own: what a dying daemon believes
    it to hold is free when it has ended. It may not change the world."""
    said = in_a_process(lambda: "yes" if work() else "no")
    assert said in ("yes", "no"), said
    return said == "yes"


def live(daemon, world):
    """All that a daemon does in its life, once. False: its death has cut it off."""
    return in_a_child(lambda: live_once(daemon, world))


def check_all(daemon, world, names=()):
    """Whatever is in memory is right, and so is what is loaded now. False: it died meanwhile."""
    def look():
        try:
            with daemon.raw(timeout=20.0) as raw:
                world.check_all(raw)
                for name in names:
                    with contextlib.suppress(RawError):  # there may be no room beside the readers'
                        world.compare(raw, name)
        except CUT_OFF:
            return False
        return True

    return in_a_child(look)


def live_once(daemon, world):
    def wish(raw):
        raw.call("set", {"model": "m3.safetensors", "policy": {"keep": True, "for_ms": 60000}})

    def touch(raw):
        for name in ("m2", "m3"):
            os.chmod(world.path(name), 0o644)  # another ctime: its bytes are compared
            world.compare(raw, name)

    def cancel(raw):
        with opened(world.path("big")) as fd:
            number = raw.request("load", {"backing": world.backing}, [fd])
            raw.call("cancel", {"id": number})
            close_all(raw.wait(number)[2])

    def look_after(raw):
        raw.call("verify")
        raw.call("reload")
        daemon.tell("pressure", wait=False)
        raw.call("ping")

    steps = [
        lambda raw: world.compare(raw, "m2"), lambda raw: world.compare(raw, "m3"), wish, touch,
        cancel,
        lambda raw: world.compare(raw, "big"),
        lambda raw: world.compare(raw, "big", load=False),
        lambda raw: raw.call("budget", {"device": "cpu", "bytes": 8 * MIB}),  # evicts what is idle
        lambda raw: raw.call("budget", {"device": "cpu", "bytes": 24 * MIB}),
        lambda raw: world.compare(raw, "big"),
        lambda raw: raw.call("unload", {"select": {"models": ["big.safetensors"]}}), look_after,
        lambda raw: raw.call("unload", {"select": {"mine": True, "not_kept": True}}),
        lambda raw: raw.call("ping"),
    ]
    try:
        with daemon.raw(timeout=20.0) as raw:
            for step in steps:
                with contextlib.suppress(RawError, FileNotFoundError):
                    step(raw)
    except CUT_OFF:
        return False
    return True
