# SPDX-License-Identifier: Apache-2.0
"""The models that the daemon loads at each start: from its configuration, and by warm add."""
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
from conftest import (BUILD, Daemon, HeldDaemon, RawError, close_all, let_others_in, list_fds,
                      make_sparse_model, need_hooks, slowness, wait_until)
from fuse import FuseFile
from test_ctl import ctl, ctl_json
from test_saved import load, saved, state_file
from test_settings import Folderless, refusal
from test_wire_hostile import as_nobody, needs_root

MIB = 1 << 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "d.conf"
    path.write_text("")
    return path


def write(file, *paths, ram="1G", more=""):
    lines = [f"model = {path}" for path in paths]
    file.write_text("\n".join([f"[memory]\nram = {ram}\nreserve = 0\nbacking = image\n{more}[warm]",
                               *lines]) + "\n")


@pytest.fixture
def start(start_daemon, file):
    """start(paths...): a daemon whose configuration lists these."""

    def begin(*paths, ram="1G", more="", **options):
        write(file, *paths, ram=ram, more=more)
        return start_daemon(arguments=["--config", str(file)], **options)

    return begin


def warm(daemon, **params):
    with daemon.raw(timeout=60.0) as raw:
        return raw.call("warm", params)["entries"]


def states(daemon):
    return [entry["state"] for entry in warm(daemon)]


def wait_for_states(daemon, *wanted):
    wait_until(lambda: states(daemon) == list(wanted), 10 * slowness(), f"states {wanted}")
    return warm(daemon)


def names(daemon):
    return sorted(model["name"] for model in daemon.models())


def loads(daemon):
    """The names of what was loaded, in order."""
    with daemon.raw() as raw:
        records = raw.call("events.history", {"types": ["load.done"]})["records"]
    return [record["name"] for record in records]


# ---- at the start ------------------------------------------------------------------------


def test_what_is_listed_is_loaded_in_order_and_is_the_daemons(start, make_model, file):
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in (2, 0, 1)]
    daemon = start(*paths)
    entries = wait_for_states(daemon, "loaded", "loaded", "loaded")
    assert loads(daemon) == [path.name for path in paths]
    assert [entry["path"] for entry in entries] == [str(path) for path in paths]
    assert [entry["source"] for entry in entries] == [f"{file}:{line}" for line in (6, 7, 8)]
    models = {model["id"]: model for model in daemon.models()}
    for entry, path in zip(entries, paths):
        assert models[entry["model"]]["name"] == path.name and "text" not in entry
        assert entry["bytes"] == models[entry["model"]]["bytes"] == os.stat(path).st_size
    assert {model["uid"] for model in models.values()} == {os.geteuid()}
    assert not any(model["pinned"] or model["keep"] for model in models.values())
    with daemon.raw() as raw:
        wait_until(lambda: len(raw.call("clients")["clients"]) == 1, 10 * slowness())
        result, fds = raw.attach(paths[0])
        close_all(fds)
        assert raw.load(paths[1])["source"] == "ram" and result["images"] == 1
        raw.call("unmapped", {"lease": result["lease"]})
        raw.call("detach", {"lease": result["lease"]})


@needs_root
def test_another_user_attaches_by_presenting_the_file(start, make_model):
    path = make_model()
    path.chmod(0o644)
    daemon = start(path)
    wait_for_states(daemon, "loaded")
    fd = os.open(path, os.O_RDONLY)

    def attach():
        with daemon.raw() as raw:
            listed = [model.get("name") for model in raw.call("list")["models"]]
            with contextlib.suppress(RawError):
                raw.call("attach", {"model": path.name})
                return "attached without a right"
            return f"{listed} {raw.call('attach', {}, [fd])['model']['name']}"

    assert as_nobody(daemon, attach) == f"[None] {path.name}"
    os.close(fd)


def test_one_that_is_missing_is_told_once_and_the_others_follow(start, make_model, tmp_path):
    missing = tmp_path / "later.safetensors"
    path = make_model()
    daemon = start(missing, path)
    entries = wait_for_states(daemon, "failed", "loaded")
    assert entries[0]["text"] == "the daemon cannot open it: No such file or directory"
    line = f"of the warm list {missing} is not loaded: {entries[0]['text']}"
    assert daemon.log().count(line) == 1 and daemon.log().count("later.safetensors") == 1
    done = ctl(daemon, "warm")
    assert done.returncode == 0 and "failed" in done.stdout and entries[0]["text"] in done.stdout
    done = ctl(daemon, "doctor")
    assert done.returncode == 9 and str(missing) in done.stdout and "warm rm" in done.stdout
    shutil.copy(path, missing)
    with daemon.raw() as raw:
        assert raw.call("reload") == {"applied": [], "later": []}
    wait_for_states(daemon, "loaded", "loaded")
    assert "2 models of the warm list" in ctl(daemon, "doctor").stdout


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize("make, part", [
    (os.mkfifo, "a pipe, not a file"), (os.mkdir, "a folder, not a file"),
    (make_socket, "a device or a socket"), (lambda path: path.symlink_to("/dev/zero"), "a device"),
    (lambda path: path.symlink_to(path), "Too many levels"),
    (lambda path: path.symlink_to("/nowhere"), "No such file"),
    (lambda path: path.write_bytes(b""), ""), (lambda path: path.write_bytes(b"\0" * 100), "")])
def test_what_is_no_model_is_skipped_in_words(start, make_model, tmp_path, make, part):
    odd, path = tmp_path / "odd.safetensors", make_model()
    make(odd)
    daemon = start(odd, path)
    entries = wait_for_states(daemon, "failed", "loaded")
    assert part in entries[0]["text"] and entries[0]["text"], entries[0]
    assert daemon.log().count("odd") == 1


@needs_root
def test_what_the_daemon_may_not_read_is_skipped_in_words(start, make_model, tmp_path):
    class Nobodys(Daemon):
        def command(self):
            self.folder.chmod(0o777)
            return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                    *super().command()]

    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv")
    secret, path = make_model("secret.safetensors", seed=1), make_model()
    secret.chmod(0o600)
    path.chmod(0o644)
    let_others_in(path)
    daemon = start(secret, path, kind=Nobodys)
    entries = wait_for_states(daemon, "failed", "loaded")
    assert "Permission denied" in entries[0]["text"]
    assert {model["uid"] for model in daemon.models()} == {65534}
    error = refusal(daemon, "warm", {"add": str(tmp_path / "secret.safetensors") + "/../x"})
    assert error["code"] == "not-found"
    other = make_model("other.safetensors", seed=2)
    other.chmod(0o600)
    error = refusal(daemon, "warm", {"add": str(other)})
    assert error["code"] == "not-allowed" and "its own user" in error["hint"]
    secret.chmod(0o644)
    with daemon.raw() as raw:
        raw.call("reload")
    wait_for_states(daemon, "loaded", "loaded")


def test_a_link_is_followed_at_each_start(start, make_model, tmp_path):
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(2)]
    link = tmp_path / "current"
    link.symlink_to(paths[0])
    daemon = start(link, paths[0])
    entries = wait_for_states(daemon, "loaded", "loaded")
    assert entries[0]["model"] == entries[1]["model"], "one file is one model"
    assert names(daemon) == [paths[0].name]
    daemon.stop()
    link.unlink()
    link.symlink_to(paths[1])
    daemon.start()
    wait_for_states(daemon, "loaded", "loaded")
    assert names(daemon) == [path.name for path in paths]


def test_a_file_that_was_replaced_is_loaded_as_it_is_now(start, make_model, tmp_path):
    path = make_model(seed=1)
    daemon = start(path)
    wait_for_states(daemon, "loaded")
    daemon.stop()
    make_model(seed=2, size=2 * MIB)
    daemon.start()
    entries = wait_for_states(daemon, "loaded")
    assert entries[0]["bytes"] == os.stat(path).st_size > 2 * MIB


def test_one_that_is_larger_than_the_budget_is_refused_with_the_numbers(start, make_model,
                                                                        tmp_path):
    large = make_sparse_model(tmp_path / "large.safetensors", 64 * MIB)
    path = make_model()
    daemon = start(large, path, ram="32M")
    entries = wait_for_states(daemon, "failed", "loaded")
    assert "needs 64.0M, budget 32.0M" in entries[0]["text"], entries[0]


def test_a_list_that_does_not_fit_evicts_nothing_of_itself(start, make_model):
    paths = [make_model(f"m{i}.safetensors", size=6 * MIB, seed=i) for i in range(3)]
    daemon = start(*paths, ram="14M")
    entries = wait_for_states(daemon, "loaded", "loaded", "failed")
    assert "the others of the list take" in entries[2]["text"], entries[2]
    assert "budget of 14" in entries[2]["text"]
    assert names(daemon) == [path.name for path in paths[:2]]
    # What is no part of the list and was used before goes for it, as for any load.
    with daemon.raw() as raw:
        raw.call("unload", {"select": {"models": [paths[1].name]}})
        raw.load(make_model("other.safetensors", size=6 * MIB, seed=9))
        raw.load(paths[0], policy={"priority": 1})  # else the slower to load would stay
        raw.call("reload")
    wait_for_states(daemon, "loaded", "unloaded", "loaded")
    assert names(daemon) == [paths[0].name, paths[2].name]


def test_what_lies_on_a_card_takes_nothing_of_the_ram_of_a_list(start, make_model, file):
    paths = [make_model(f"m{i}.safetensors", size=6 * MIB, seed=i) for i in range(3)]
    card = "[sim]\ncount = 1\nmemory = 64M\n"
    daemon = start(paths[0], ram="14M", more=card)
    wait_for_states(daemon, "loaded")
    with daemon.raw(timeout=60.0) as raw:
        raw.call("place", {"model": paths[0].name, "allocation": "sim:0"})
        write(file, *paths, ram="14M", more=card)
        raw.call("reload")
    wait_for_states(daemon, "loaded", "loaded", "loaded")
    assert names(daemon) == [path.name for path in paths]


def test_a_long_list_is_loaded_to_its_end(start, make_model):
    paths = [make_model(f"m{i:03}.safetensors", size=4096, seed=i) for i in range(200)]
    daemon = start(*paths, paths[0])  # twice counts once
    wait_until(lambda: set(states(daemon)) == {"loaded"}, 30 * slowness())
    assert len(states(daemon)) == 200 and loads(daemon) == [path.name for path in paths]


def test_a_relative_path_is_refused_where_it_is_written(file):
    write(file, "/models/x.safetensors", "models/y.safetensors")
    done = subprocess.run([BUILD / "bin" / "distorchd", "--config", file, "--check-config"],
                          capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert f"{file}:7: warm.model: models/y.safetensors is no absolute path" in done.stderr


# ---- over restarts -----------------------------------------------------------------------


def test_what_survived_is_not_read_again(start, make_model):
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(3)]
    daemon = start(*paths, kind=HeldDaemon)
    wait_for_states(daemon, "loaded", "loaded", "loaded")
    daemon.kill_daemon()
    wait_for_states(daemon, "loaded", "loaded", "loaded")
    assert daemon.status()["bytes_read"] == 0
    with daemon.raw() as raw:
        assert raw.call("show", {"model": paths[0].name})["loaded_from"] == "store"


@pytest.mark.parametrize("point", ["filled:2", "stored:2", "published:2"])
def test_killed_in_between_it_goes_on(start, make_model, point):
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(3)]
    daemon = start(kind=HeldDaemon)
    daemon.die_at(point)
    pid = daemon.daemon_pid()
    write(daemon.folder.parent / daemon.arguments[1], *paths)
    os.kill(daemon.daemon_pid(), signal.SIGHUP)
    daemon.wait_for_another(pid)
    wait_for_states(daemon, "loaded", "loaded", "loaded")
    assert names(daemon) == [path.name for path in paths]


def test_a_reload_loads_what_is_new_and_keeps_what_is_there(start, make_model, file):
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(3)]
    daemon = start(paths[0])
    wait_for_states(daemon, "loaded")
    write(file, paths[1], paths[0], paths[2])
    daemon.process.send_signal(signal.SIGHUP)
    wait_for_states(daemon, "loaded", "loaded", "loaded")
    assert [entry["path"] for entry in warm(daemon)] == \
        [str(path) for path in (paths[1], paths[0], paths[2])]
    write(file, paths[2])
    with daemon.raw() as raw:
        assert raw.call("reload")["applied"] == ["warm.model"]
    wait_for_states(daemon, "loaded")
    assert len(names(daemon)) == 3, "what is off the list stays until it is needed"
    with daemon.raw() as raw:
        raw.call("unload", {"select": {"all": True}})
    wait_for_states(daemon, "unloaded")
    write(file)
    daemon.process.send_signal(signal.SIGHUP)
    wait_for_states(daemon)


def test_lists_that_change_while_they_are_loaded(start, make_model, file):
    paths = [make_model(f"m{i}.safetensors", size=4 * MIB, seed=i) for i in range(8)]
    daemon = start(*paths)
    for turn in range(12):
        write(file, *(paths[turn % 8:] + paths[:turn % 5]))
        daemon.process.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    write(file, *paths[:4])
    daemon.process.send_signal(signal.SIGHUP)  # also while the last one is carried out
    wait_for_states(daemon, *["loaded"] * 4)


# ---- add and rm --------------------------------------------------------------------------


def test_what_is_added_is_loaded_now_and_at_each_start(start, make_model):
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(2)]
    daemon = start(paths[0])
    done = ctl(daemon, "warm", "add", paths[1].name, cwd=paths[1].parent)
    assert done.returncode == 0 and str(paths[1]) in done.stdout, done.stderr
    entries = wait_for_states(daemon, "loaded", "loaded")
    assert entries[1]["source"] == str(state_file(daemon))
    assert saved(daemon)["warm"] == [str(paths[1])]
    assert ctl(daemon, "warm", "add", paths[1]).returncode == 0, "twice is fine"
    assert len(warm(daemon)) == 2
    daemon.kill()
    daemon.start()
    wait_for_states(daemon, "loaded", "loaded")
    assert names(daemon) == [path.name for path in paths]
    done = ctl(daemon, "warm", "rm", paths[0])
    assert done.returncode == 2 and "d.conf:6" in done.stderr
    done = ctl(daemon, "warm", "rm", paths[0].with_name("other"))
    assert done.returncode == 4 and "not listed" in done.stderr
    paths[1].unlink()  # it is listed all the same
    done = ctl(daemon, "warm", "rm", paths[1])
    assert done.returncode == 0 and "stays" in done.stdout
    wait_for_states(daemon, "loaded")
    assert names(daemon) == [path.name for path in paths] and saved(daemon)["warm"] == []


def test_words_and_lists_of_the_command_line(start, make_model):
    path = make_model("esc\033[1m.safetensors")
    daemon = start()
    for words, part in ((["add"], "usage"), (["rm"], "usage"), (["ls", "x"], "usage"),
                        (["nosuch"], "warm add FILE")):
        done = ctl(daemon, "warm", *words)
        assert done.returncode == 2 and part in done.stderr
    assert ctl(daemon, "warm").returncode == 0
    error = refusal(daemon, "warm", {"add": str(path)})
    assert error["code"] == "bad-argument" and "control byte" in error["message"]
    good = make_model("a b#c é.safetensors")
    assert ctl(daemon, "warm", "add", good).returncode == 0
    wait_for_states(daemon, "loaded")
    answer = ctl_json(daemon, "warm", "ls")["warm"]
    assert answer[0]["path"] == str(good) and answer[0]["text"] is None
    assert ctl(daemon, "warm", "-o", "csv").stdout.splitlines()[0].startswith("PATH,ID,SIZE")
    daemon.stop()
    daemon.start()
    wait_for_states(daemon, "loaded")


@pytest.mark.parametrize("params, code", [
    ({"add": "relative"}, "bad-argument"), ({"add": ""}, "bad-argument"),
    ({"add": "/a\nb"}, "bad-argument"), ({"add": "/" + "x" * 4096}, "bad-argument"),
    ({"add": "/" + "x" * 300}, "io"), ({"add": "/nowhere/x"}, "not-found"),
    ({"add": "/etc"}, "bad-file"), ({"add": "/dev/zero"}, "bad-file"),
    ({"add": "/proc/version"}, None), ({"remove": "/x"}, "not-found"), ({"remove": ""}, "not-found"),
    ({"add": "/x", "remove": "/x"}, "bad-argument"), ({"nonsense": 1}, "unknown-field")])
def test_what_cannot_be_listed_is_refused_and_nothing_is_done(start, params, code):
    daemon = start()
    if code is None:  # a file by its kind; that it holds no model is known when it is read
        assert warm(daemon, **params)
        entries = wait_for_states(daemon, "failed")
        assert entries[0]["text"]
        warm(daemon, remove=params["add"])
        return
    assert refusal(daemon, "warm", params)["code"] == code
    assert warm(daemon) == [] and saved(daemon) is None


def test_what_cannot_be_saved_is_not_listed(start, start_daemon, make_model):
    path = make_model()
    daemon = start()
    daemon.tell("fault fsync:1:ENOSPC:ever")
    error = refusal(daemon, "warm", {"add": str(path)})
    assert error["code"] == "io" and "nothing was done" in error["message"]
    assert warm(daemon) == [] and daemon.models() == []
    daemon.tell("clear")
    other = start_daemon("memory.ram=1G", kind=Folderless)
    error = refusal(other, "warm", {"add": str(path)})
    assert error["code"] == "unsupported" and "--state-dir" in error["message"]


def test_there_are_so_many_and_no_more(start, make_model):
    daemon = start()
    paths = [make_model(f"m{i:03}.safetensors", size=4096, seed=i) for i in range(129)]
    with daemon.raw(timeout=60.0) as raw:
        for path in paths[:128]:
            raw.call("warm", {"add": str(path)})
        with pytest.raises(RawError) as caught:
            raw.call("warm", {"add": str(paths[128])})
        assert caught.value.code == "too-many" and "128" in caught.value.error["message"]
    wait_until(lambda: states(daemon) == ["loaded"] * 128, 30 * slowness())


@needs_root
def test_only_an_administrator_may(start, make_model):
    path = make_model()
    path.chmod(0o644)
    daemon = start(path)

    def try_all():
        codes = []
        with daemon.raw() as raw:
            for params in ({}, {"add": str(path)}, {"remove": str(path)}):
                try:
                    raw.call("warm", params)
                    codes.append("done")
                except RawError as failure:
                    codes.append(failure.code)
            told = raw.call("config")["settings"]
        return " ".join(codes + [one["key"] for one in told if str(path) in one["value"]])

    with daemon.raw() as raw:
        told = {one["key"]: one["value"] for one in raw.call("config")["settings"]}
    assert told["warm.model"] == str(path)
    assert as_nobody(daemon, try_all) == "not-allowed not-allowed not-allowed"
    wait_for_states(daemon, "loaded")


def test_who_asked_and_left_did_not_ask(start, make_model):
    daemon = start()
    for number in range(20):
        raw = daemon.raw()
        raw.request("warm", {"add": str(make_model(f"m{number}.safetensors", seed=number))})
        raw.close()
    wait_until(lambda: set(states(daemon)) <= {"loaded"} and
               [entry["path"] for entry in warm(daemon)] == (saved(daemon) or {"warm": []})["warm"],
               10 * slowness(), "a list that agrees with the file")


def test_additions_that_cross_each_other_are_each_answered(start, make_model):
    daemon = start()
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(10)]
    with daemon.raw(timeout=60.0) as raw:
        numbers = [raw.request("warm", {"add": str(path)}) for path in paths + paths[:3]]
        codes = [(raw.wait(number)[0] or {"code": "done"})["code"] for number in numbers]
    assert set(codes) <= {"done", "busy"} and "done" in codes
    wait_until(lambda: set(states(daemon)) == {"loaded"} and
               [entry["path"] for entry in warm(daemon)] == saved(daemon)["warm"],
               10 * slowness(), "a list that agrees with the file")
    listed = [entry["path"] for entry in warm(daemon)]
    assert len(listed) == len(set(listed))
    assert {str(path) for path, code in zip(paths, codes) if code == "done"} <= set(listed)


def test_what_two_add_at_once_is_listed_once(start, make_model):
    daemon = start(environment={"DISTORCHD_TEST_SAVE_MS": "1"})
    path = make_model()
    for attempt in range(20):
        with daemon.raw(timeout=60.0) as raw:
            numbers = [raw.request("warm", {"add": str(path)}) for _ in range(4)]
            codes = {(raw.wait(number)[0] or {"code": "done"})["code"] for number in numbers}
            assert codes <= {"done", "busy"} and "done" in codes
            assert saved(daemon)["warm"] == [str(path)], attempt
            raw.call("warm", {"remove": str(path)})
        assert saved(daemon).get("warm", []) == []


# ---- a disk that does not answer ---------------------------------------------------------


@pytest.fixture
def hung(make_model):
    """A file whose server answers no open until it is told to."""
    files = []

    def make():
        files.append(FuseFile("noopen", make_model("shown.safetensors", seed=77)))
        if files[-1].why_not:
            pytest.skip(f"no FUSE here: {files[-1].why_not}")
        return files[-1]

    yield make
    for one in files:
        one.end()


def test_a_disk_that_does_not_answer_holds_nobody_up(start, make_model, hung):
    need_hooks()
    daemon = start(environment={"DISTORCHD_TEST_OPEN_MS": "500"})
    file, path = hung(), make_model()
    begun = time.monotonic()
    error = refusal(daemon, "warm", {"add": str(file.path)})
    assert error["code"] == "timeout" and "does not answer" in error["message"]
    assert time.monotonic() - begun < 10 * slowness() and saved(daemon) is None
    assert warm(daemon, add=str(path))
    wait_for_states(daemon, "loaded")
    file.answer()  # too late: it is not listed
    wait_until(lambda: not any(str(file.folder) in link for link in list_fds(daemon.pid)),
               10 * slowness(), "the file closed again")
    assert len(warm(daemon)) == 1


def test_at_the_start_the_others_do_not_wait_for_it(start, make_model, hung):
    need_hooks()
    file = hung()
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(2)]
    daemon = start(file.path, *paths, environment={"DISTORCHD_TEST_OPEN_MS": "300"})
    wait_until(lambda: states(daemon) == ["opening", "loaded", "loaded"], 10 * slowness())
    assert "does not answer" in warm(daemon)[0]["text"]
    assert daemon.log().count("does not answer") == 1
    file.answer()
    entries = wait_for_states(daemon, "loaded", "loaded", "loaded")  # when it does at last
    assert "text" not in entries[0]


def test_an_end_does_not_wait_for_a_disk(start, make_model, hung):
    file = hung()
    daemon = start(file.path, check=False)
    wait_for_states(daemon, "opening")
    file.end()  # else it could not be ended at all: the kernel waits for the server
    daemon.stop(seconds=10)


def test_a_drained_daemon_says_so_and_a_reload_tries_again(start, make_model, file):
    daemon = start()
    with daemon.raw() as raw:
        raw.call("drain", {"on": True})
        write(file, make_model())
        raw.call("reload")
        entries = wait_for_states(daemon, "failed")
        assert entries[0]["text"] and daemon.log().count("of the warm list") == 1
        raw.call("drain", {"on": False})
        raw.call("reload")
    wait_for_states(daemon, "loaded")


def test_an_end_in_between_is_an_end(start, tmp_path):
    large = make_sparse_model(tmp_path / "large.safetensors", 512 * MIB)
    daemon = start(large)
    wait_until(lambda: states(daemon) == ["loading"] or states(daemon) == ["loaded"],
               10 * slowness())
    daemon.stop()
    daemon.start()
    wait_until(lambda: states(daemon) == ["loaded"], 30 * slowness())


# ---- from Python -------------------------------------------------------------------------


def test_python_has_the_list(start, distorch, make_model):
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(2)]
    daemon = start(paths[0])
    with distorch.connect(str(daemon.socket)) as d:
        listed = d.warm_add(os.path.relpath(paths[1]))
        assert [entry.path for entry in listed] == [str(path) for path in paths]
        wait_until(lambda: [entry.state for entry in d.warm()] == ["loaded", "loaded"],
                   10 * slowness())
        assert [entry.path for entry in d.warm_remove(paths[1])] == [str(paths[0])]
        with pytest.raises(distorch.Error) as caught:
            d.warm_add("/nowhere")
        assert caught.value.code == "not-found"
        assert json.loads(state_file(daemon).read_text())["warm"] == []
        assert load(daemon, paths[1])["state"] == "resident"
