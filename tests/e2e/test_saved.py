# SPDX-License-Identifier: Apache-2.0
"""What outlives the machine: pins and keeps in state.json, over a cold start (no store)."""
import json
import os
import pathlib
import shutil
import subprocess
import time

import pytest
from conftest import BUILD, RawError, need_hooks, pattern, slowness, wait_until
from test_wire_hostile import as_nobody, needs_root

MIB = 1 << 20
SETTINGS = ("memory.ram=1G", "memory.reserve=0")


def state_file(daemon):
    return daemon.state / "state.json"


def saved(daemon):
    """What the file says; None while there is none."""
    try:
        return json.loads(state_file(daemon).read_text())
    except FileNotFoundError:
        return None


def wishes(daemon):
    return (saved(daemon) or {"wishes": []})["wishes"]


def wait_for_wishes(daemon, count):
    wait_until(lambda: len(wishes(daemon)) == count, 10 * slowness(), f"{count} saved wishes")
    return wishes(daemon)


def kill(daemon):
    daemon.kill()


def restart(daemon, end=None):
    (end or (lambda one: one.stop()))(daemon)
    daemon.start()


def load(daemon, path, **params):
    with daemon.raw() as raw:
        return raw.load(path, **params)["model"]


def say(daemon, path, **policy):
    with daemon.raw() as raw:
        raw.call("set", {"model": str(path.name), "policy": policy})


def stays(daemon, path):
    """(pinned, kept) as the model is listed."""
    model = {model["name"]: model for model in daemon.models(True)}[path.name]
    return model["pinned"], model["keep"]


@pytest.fixture
def cold(start_daemon):
    """A daemon without a store: what it knows after a start it has from its folder."""
    return start_daemon(*SETTINGS)


# ---- pins that come back -----------------------------------------------------------------


@pytest.mark.parametrize("end", [None, kill], ids=["stop", "kill"])
def test_a_pin_and_a_keep_outlive_the_machine(cold, make_model, end):
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(3)]
    for path in paths:
        load(cold, path)
    say(cold, paths[0], pin=True)
    say(cold, paths[1], keep=True)
    wait_for_wishes(cold, 2)
    assert os.stat(state_file(cold)).st_mode & 0o777 == 0o600
    restart(cold, end)
    assert cold.models(True) == [], "nothing is loaded by a pin"
    assert len(wishes(cold)) == 2, "and it waits"
    for path in paths:
        load(cold, path)
    assert [stays(cold, path) for path in paths] == [(True, False), (False, True), (False, False)]
    say(cold, paths[0], pin=False)
    wait_for_wishes(cold, 1)
    restart(cold, end)
    load(cold, paths[0])
    assert stays(cold, paths[0]) == (False, False)


def test_an_end_in_order_writes_what_is_not_written(start_daemon, make_model):
    daemon = start_daemon(*SETTINGS, environment={"DISTORCHD_TEST_SAVE_MS": "600000"})
    need_hooks()
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(3)]
    for path in paths:
        load(daemon, path, policy={"pin": True})
    wait_for_wishes(daemon, 1)  # the others wait for their turn
    daemon.stop()
    assert len(wishes(daemon)) == 3
    daemon.start()


def test_what_has_lapsed_is_saved_no_more(cold, make_model):
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(2)]
    for path, hours in zip(paths, (1, 100)):
        load(cold, path, policy={"pin": True, "for_ms": hours * 3600000})
    wait_for_wishes(cold, 2)
    cold.tell("suspend 7200")
    assert wait_for_wishes(cold, 1)[0]["pin_left_s"] > 90 * 3600


def test_a_pin_for_a_time_has_what_is_left_of_it(cold, make_model):
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(3)]
    for path, minutes in zip(paths, (60, 60, 10)):
        load(cold, path, policy={"pin": True, "for_ms": minutes * 60000})
    left = sorted(one["pin_left_s"] for one in wait_for_wishes(cold, 3))
    assert all(wanted - 60 * slowness() < one <= wanted
               for wanted, one in zip((600, 3600, 3600), left)), left
    cold.stop()
    state = saved(cold)
    state["saved_s"] -= 1200  # the machine was off for 20 minutes
    state_file(cold).write_text(json.dumps(state))
    cold.start()
    for path in paths:
        load(cold, path)
    assert [stays(cold, path)[0] for path in paths] == [True, True, False]
    with cold.raw() as raw:
        left = raw.call("show", {"model": paths[0].name})["wishes"][0]["pin_left_ms"]
    assert 2390000 - 60000 * slowness() < left <= 2400000
    cold.stop()
    state = saved(cold)
    assert len(state["wishes"]) == 2
    state["saved_s"] += 10**9  # a clock that went back gives nothing
    state_file(cold).write_text(json.dumps(state))
    cold.start()
    load(cold, paths[0])
    with cold.raw() as raw:
        assert raw.call("show", {"model": paths[0].name})["wishes"][0]["pin_left_ms"] \
            <= left + 1000  # whole seconds
    cold.stop()
    state = saved(cold)
    state["saved_s"] = 100  # nor does one that was not set yet
    state_file(cold).write_text(json.dumps(state))
    cold.start()
    load(cold, paths[0])
    assert stays(cold, paths[0])[0]


def test_what_is_said_now_is_not_said_over(cold, make_model):
    path = make_model()
    load(cold, path, policy={"pin": True, "keep": True})
    restart(cold)
    load(cold, path, policy={"pin": False, "priority": 7})
    assert stays(cold, path) == (False, True)
    with cold.raw() as raw:
        assert raw.call("show", {"model": path.name})["wishes"][0]["priority"] == 7


def test_raw_and_not_are_two_models(cold, make_model):
    path = make_model()
    load(cold, path, format="raw", policy={"pin": True})
    wait_for_wishes(cold, 1)
    restart(cold)
    load(cold, path)
    assert stays(cold, path) == (False, False)
    load(cold, path, format="raw")
    assert sorted(model["pinned"] for model in cold.models()) == [False, True]


# ---- which file --------------------------------------------------------------------------


def touched(path):
    os.utime(path, ns=(1, 1))


def overwritten(path):
    times = os.stat(path).st_mtime_ns
    with open(path, "r+b") as file:
        file.seek(-100, 2)
        file.write(pattern(9, 100))
    assert os.stat(path).st_mtime_ns != times


def replaced(path):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def moved(path):
    path.rename(path.with_name("elsewhere"))
    path.with_name("elsewhere").rename(path)


def chmodded(path):
    path.chmod(0o604)


def restored(path):
    """As from a backup: another inode of the same size and times."""
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


@pytest.mark.parametrize("change, is_back", [
    (touched, False), (overwritten, False), (replaced, False), (moved, True), (chmodded, True),
    (restored, True)])
def test_a_pin_goes_to_no_other_content(cold, make_model, change, is_back):
    path = make_model()
    load(cold, path, policy={"pin": True})
    wait_for_wishes(cold, 1)
    cold.stop()
    change(path)
    cold.start()
    load(cold, path)
    assert stays(cold, path) == (is_back, False)
    wait_for_wishes(cold, 1 if is_back else 0)
    assert cold.log().count("another content now") == (0 if is_back else 1)


def test_a_file_that_was_renamed_keeps_its_pin(cold, make_model):
    path = make_model()
    load(cold, path, policy={"pin": True})
    wait_for_wishes(cold, 1)
    cold.stop()
    path = path.rename(path.with_name("other.safetensors"))
    cold.start()
    load(cold, path)
    assert stays(cold, path) == (True, False)
    wait_until(lambda: wishes(cold)[0]["path"] == str(path), 10 * slowness())


def test_the_file_follows_a_change_of_its_times(cold, make_model):
    """A rename changes the inode's time: it is looked at once, and its key is another then."""
    path = make_model()
    load(cold, path, policy={"pin": True})
    before = wait_for_wishes(cold, 1)[0]["ctime_ns"]
    chmodded(path)
    load(cold, path)
    wait_until(lambda: wishes(cold)[0]["ctime_ns"] == str(os.stat(path).st_ctime_ns) != before,
               10 * slowness(), "the new time in the file")


def test_a_new_content_of_a_pinned_file_is_what_is_saved(cold, make_model):
    path = make_model()
    load(cold, path, policy={"pin": True})
    wait_for_wishes(cold, 1)
    overwritten(path)
    load(cold, path)
    wait_until(lambda: wishes(cold)[0]["mtime_ns"] == str(os.stat(path).st_mtime_ns),
               10 * slowness(), "the new content in the file")
    restart(cold)
    load(cold, path)
    assert stays(cold, path) == (True, False)


@needs_root
def test_the_pin_of_one_user_comes_back_by_the_load_of_another(cold, make_model):
    path = make_model()
    path.chmod(0o644)
    fd = os.open(path, os.O_RDONLY)

    def load_it():
        with cold.raw() as raw:
            return str(raw.call("load", {}, [fd])["model"]["pinned"])

    load(cold, path, policy={"pin": True})
    wait_for_wishes(cold, 1)
    restart(cold)
    as_nobody(cold, load_it)
    assert stays(cold, path) == (True, False)
    with cold.raw() as raw:
        assert [(wish["uid"], wish["pin"]) for wish in
                raw.call("show", {"model": path.name})["wishes"]] == [(65534, False), (0, True)]
    # Not of a file that only looks the same: its own uid has to present it.
    cold.stop()
    restored(path)
    os.close(fd)
    fd = os.open(path, os.O_RDONLY)
    cold.start()
    as_nobody(cold, load_it)
    assert stays(cold, path) == (False, False)
    load(cold, path)
    assert stays(cold, path) == (True, False)
    os.close(fd)


def test_a_path_of_any_bytes_is_saved(cold, tmp_path, make_model):
    plain = make_model()
    path = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\n\x01%41\xff\".safetensors"))
    plain.rename(path)
    load(cold, path, policy={"pin": True})
    assert wait_for_wishes(cold, 1)[0]["path"].endswith("/n%0A%01%2541%FF\".safetensors")
    restart(cold)
    load(cold, path)
    assert [model["pinned"] for model in cold.models()] == [True]


@needs_root
def test_many_pins_of_one_leave_room_for_those_of_another(start_daemon, tmp_path):
    """Three bytes for each of a path's: a few hundred long ones fill the file."""
    daemon = start_daemon(*SETTINGS)
    folder = tmp_path
    while len(str(folder)) < 3700:
        folder = folder / ("x" * 200)
    folder.mkdir(parents=True)
    with daemon.raw() as raw:
        for number in range(500):
            path = folder / f"{number}.bin"
            path.write_bytes(b"x" * 4096)
            raw.load(path, format="raw", policy={"pin": True})
    path = folder / "nobodys.bin"
    path.write_bytes(b"y" * 4096)
    with open(path, "rb") as file:
        def pin():
            with daemon.raw() as raw:
                return raw.call("load", {"format": "raw", "policy": {"pin": True}},
                                [file.fileno()])["source"]

        assert as_nobody(daemon, pin) == "disk"
    wait_until(lambda: {one["uid"] for one in wishes(daemon)} == {0, 65534}, 10 * slowness(),
               "nobody's pin in the file")
    assert 300 < len(wishes(daemon)) < 500
    wait_until(lambda: "pins and keeps are not saved" in daemon.log(), 10 * slowness())


# ---- the store and the file --------------------------------------------------------------


def test_what_the_store_knows_wins(start_daemon, make_model):
    """Unpinned a moment before it was killed, with the file not written since."""
    need_hooks()
    from conftest import HeldDaemon
    daemon = start_daemon(*SETTINGS, environment={"DISTORCHD_TEST_SAVE_MS": "600000"},
                          kind=HeldDaemon)
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(2)]
    load(daemon, paths[0], policy={"pin": True})
    wait_for_wishes(daemon, 1)
    load(daemon, paths[1], policy={"pin": True})
    say(daemon, paths[0], pin=False)
    daemon.kill_daemon()
    assert [stays(daemon, path)[0] for path in paths] == [False, True]
    load(daemon, paths[0])
    assert stays(daemon, paths[0]) == (False, False)
    wait_until(lambda: [one["path"] for one in wishes(daemon)] == [str(paths[1])],
               10 * slowness(), "the file of what is so now")


# ---- a file that is none -----------------------------------------------------------------


def write(text):
    return lambda path: path.write_bytes(text)


def make_large(path):
    path.write_bytes(b"{")
    os.truncate(path, 1 << 30)


GOOD = b'{"version": 1, "saved_s": 1, "settings": {%s}, "warm": [%s], "wishes": []}'


@pytest.mark.fault("X04")
@pytest.mark.parametrize("make, part", [
    (write(b""), "empty"), (write(b"\0" * 100), "byte 0"), (write(GOOD[:40]), "middle"),
    (write(b'{"version": 2, "saved_s": 1}'), "version 2"), (make_large, "1073741824 bytes"),
    (os.mkfifo, "not a regular file"), (os.mkdir, "not a regular file"),
    (write(b"[" * 100000), "byte")])
def test_a_file_that_is_none_is_set_aside(cold, make_model, make, part):
    cold.stop()
    make(state_file(cold))
    cold.start()
    assert cold.log().count("is of no use") == 1 and part in cold.log(), cold.log()
    assert state_file(cold).with_name("state.json.bad").exists()
    path = make_model()
    load(cold, path, policy={"pin": True})
    wait_for_wishes(cold, 1)
    restart(cold)
    load(cold, path)
    assert stays(cold, path) == (True, False)
    assert cold.log().count("is of no use") == 1


def test_a_size_of_before_that_has_no_unit_is_one_of_bytes(cold):
    """A budget was saved so; to say it so is refused since."""
    with cold.raw() as raw:
        raw.call("config.set", {"key": "limits.ram-per-user", "value": "70%"})
    cold.stop()
    text = state_file(cold).read_text()
    state_file(cold).write_text(text.replace('"70%"', '"100000001"'))
    cold.start()
    with cold.raw() as raw:
        settings = {one["key"]: one["value"] for one in raw.call("config")["settings"]}
        assert settings["limits.ram-per-user"] == "100000001", cold.log()
        assert "left out" not in cold.log()
        with pytest.raises(RawError, match="unit"):
            raw.call("config.set", {"key": "limits.ram-per-user", "value": "100000001"})


@pytest.mark.fault("X04")
@pytest.mark.parametrize("settings, paths, part", [
    (b'"memory.rma": "1G", ', b"", 'no key "rma"'),
    (b'"memory.ram": "many", "memory.rma": "1G", ', b"", "memory.ram"),
    (b"", b'"a\\nb", ', "control byte")])
def test_a_line_that_cannot_be_set_is_left_out_by_itself(cold, make_model, settings, paths, part):
    path = make_model()
    load(cold, path, policy={"pin": True})
    wait_for_wishes(cold, 1)
    cold.stop()
    text = json.dumps({**saved(cold), "settings": {"memory.lock": "off"},
                       "warm": [str(path)]}).encode()
    text = text.replace(b'"settings": {', b'"settings": {' + settings)
    state_file(cold).write_bytes(text.replace(b'"warm": [', b'"warm": [' + paths))
    cold.start()
    assert part in cold.log() and "is left out" in cold.log(), cold.log()
    wait_until(lambda: [model["pinned"] for model in cold.models()] == [True], 10 * slowness(),
               "the rest of it: " + cold.log())
    with cold.raw() as raw:
        rows = raw.call("config")["settings"]
        assert [row["source"] for row in rows if row["key"] == "memory.lock"] == \
            [str(state_file(cold))]
    assert "state.json.bad" not in os.listdir(cold.state)


@pytest.mark.fault("X04")
def test_a_start_that_fails_leaves_a_file_of_no_use_where_it_is(cold):
    cold.stop()
    state_file(cold).write_bytes(GOOD[:40])
    good = list(cold.settings)
    cold.settings += ["memory.rma=1G"]
    with pytest.raises((AssertionError, OSError)):
        cold.start()
    assert os.listdir(cold.state) == ["state.json"]
    cold.settings[:] = good
    cold.start()
    assert "is of no use" in cold.log()
    assert os.listdir(cold.state) == ["state.json.bad"]


@pytest.mark.fault("X04")
def test_a_file_that_cannot_be_opened_is_not_written_over(cold, make_model):
    path = make_model()
    load(cold, path, policy={"pin": True})
    wait_for_wishes(cold, 1)
    cold.stop()
    good = state_file(cold).rename(cold.state / "good.json")
    state_file(cold).symlink_to(state_file(cold).name)
    cold.start()
    assert "it cannot be opened" in cold.log() and "nothing is saved over it" in cold.log()
    load(cold, path, policy={"pin": True})
    cold.stop()
    assert sorted(os.listdir(cold.state)) == ["good.json", "state.json"]
    good.replace(state_file(cold))
    cold.start()
    assert load(cold, path) and stays(cold, path) == (True, False)


@pytest.mark.fault("X04")
def test_a_file_that_cannot_even_be_set_aside_stops_nothing(cold, make_model):
    cold.stop()
    state_file(cold).mkdir()
    (state_file(cold) / "x").mkdir()
    bad = state_file(cold).with_name("state.json.bad")
    (bad / "x").mkdir(parents=True)
    cold.start()
    assert "cannot be renamed" in cold.log()
    load(cold, make_model(), policy={"pin": True})
    wait_until(lambda: "is not saved" in cold.log(), 10 * slowness())


# ---- a folder that takes nothing ---------------------------------------------------------


def wait_for_hit(daemon, call):
    wait_until(lambda: daemon.tell(f"hits {call}") != "0", 10 * slowness(), f"a failed {call}")


@pytest.mark.fault("X02")
@pytest.mark.parametrize("call, error", [
    ("write", "ENOSPC"), ("fsync", "ENOSPC"), ("rename", "ENOSPC"), ("open", "EROFS"),
    ("write", "EDQUOT"), ("fsync", "EIO")])
def test_a_full_folder_leaves_the_old_file_and_is_told_once(start_daemon, make_model, call, error):
    daemon = start_daemon(*SETTINGS, environment={"DISTORCHD_TEST_SAVE_MS": "1"})
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(4)]
    for path in paths:
        load(daemon, path)
    say(daemon, paths[0], pin=True)
    wait_for_wishes(daemon, 1)
    before = state_file(daemon).read_bytes()
    daemon.tell(f"fault {call}:1:{error}:ever")
    for path in paths[1:]:
        say(daemon, path, pin=True)
        wait_for_hit(daemon, call)
        # Other things are opened as well.
        wait_until(lambda: "is not saved" in daemon.log(), 10 * slowness())
    assert all(stays(daemon, path) == (True, False) for path in paths), "it goes on"
    if (call, error) != ("fsync", "EIO"):
        assert state_file(daemon).read_bytes() == before
    daemon.tell("clear")
    wait_for_wishes(daemon, 4)
    wait_until(lambda: "is saved again" in daemon.log(), 10 * slowness())
    assert daemon.log().count("what is said is not saved") == 1, daemon.log()
    assert os.listdir(daemon.state) == ["state.json"]


@pytest.mark.fault("X02")
def test_what_stands_in_the_file_is_not_refused(start_daemon):
    """The folder cannot be synced: the second of the two calls."""
    daemon = start_daemon(*SETTINGS, environment={"DISTORCHD_TEST_SAVE_MS": "600000"})
    daemon.tell("fault fsync:2:EIO")
    with daemon.raw() as raw:
        raw.call("config.set", {"key": "log.level", "value": "debug"})
    assert saved(daemon)["settings"] == {"log.level": "debug"}
    assert "a loss of power may undo it" in daemon.log(), daemon.log()
    with daemon.raw() as raw:
        raw.call("config.set", {"key": "log.level", "value": "info"})
    assert "is saved again" in daemon.log()


@needs_root
@pytest.mark.fault("X02")
def test_a_disk_that_is_really_full(start_daemon, make_model, tmp_path):
    """A tmpfs of two pages, in a mount namespace of the daemon's own."""
    from conftest import Daemon

    class Cramped(Daemon):
        def command(self):
            self.state.mkdir(mode=0o700, exist_ok=True)
            script = ('mount -t tmpfs -o size=64k,mode=0700 tmpfs "$0" && exec "$@"')
            return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script,
                    str(self.state), *super().command()]

        def inside(self):
            return pathlib.Path(f"/proc/{self.pid}/root{self.state}")

    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("no mount namespace to be had")
    daemon = start_daemon(*SETTINGS, kind=Cramped,
                          environment={"DISTORCHD_TEST_SAVE_MS": "1"})
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(2)]
    load(daemon, paths[0], policy={"pin": True})
    file = daemon.inside() / "state.json"
    wait_until(file.exists, 10 * slowness())
    before = file.read_bytes()
    filler = daemon.inside() / "filler"
    with open(filler, "wb", buffering=0) as out:
        try:
            while True:
                out.write(b"x" * 4096)
        except OSError:
            pass
    load(daemon, paths[1], policy={"pin": True})
    wait_until(lambda: "No space left" in daemon.log(), 10 * slowness(), "a word on it")
    assert file.read_bytes() == before and stays(daemon, paths[1]) == (True, False)
    wait_until(lambda: sorted(os.listdir(daemon.inside())) == ["filler", "state.json"],
               10 * slowness(), "the end of the attempt")  # it is tried again and again
    filler.unlink()
    wait_until(lambda: len(json.loads(file.read_text())["wishes"]) == 2, 10 * slowness())


@pytest.mark.fault("X03")
def test_a_kill_before_the_rename_leaves_the_old_state(start_daemon, make_model):
    daemon = start_daemon(*SETTINGS, environment={"DISTORCHD_TEST_SAVE_MS": "1"})
    paths = [make_model(f"m{i}.safetensors", seed=i) for i in range(2)]
    for path in paths:
        load(daemon, path)
    say(daemon, paths[0], pin=True)  # one change, so one write
    wait_for_wishes(daemon, 1)
    stray = state_file(daemon).with_name("state.json.new")
    daemon.tell("fault rename:1:delay=60000")
    say(daemon, paths[1], pin=True)
    wait_for_hit(daemon, "rename")
    assert len(json.loads(stray.read_text())["wishes"]) == 2
    daemon.kill()
    assert len(wishes(daemon)) == 1
    daemon.start()
    assert not stray.exists()
    for path in paths:
        load(daemon, path)
    assert [stays(daemon, path)[0] for path in paths] == [True, False]


def test_a_folder_that_does_not_answer_holds_nobody_up(start_daemon, make_model):
    daemon = start_daemon(*SETTINGS, environment={"DISTORCHD_TEST_SAVE_MS": "1"}, check=False)
    path = make_model()
    load(daemon, path)
    daemon.tell("fault fsync:1:delay=60000")
    say(daemon, path, pin=True)
    wait_for_hit(daemon, "fsync")
    with daemon.raw() as raw:
        slowest = 0
        for _ in range(200):
            begun = time.monotonic()
            raw.call("status")
            slowest = max(slowest, time.monotonic() - begun)
    assert slowest < 5.0, "the loop waited"
    daemon.stop(seconds=10)
    assert not state_file(daemon).exists()


# ---- which folder ------------------------------------------------------------------------


def test_two_daemons_do_not_share_a_folder(cold, start_daemon, make_model):
    other = start_daemon(*SETTINGS, arguments=["--state-dir", str(cold.state)])
    assert "another daemon uses the folder" in other.log() and str(cold.state) in other.log()
    path = make_model()
    load(other, path, policy={"pin": True})
    load(cold, path, policy={"pin": True})
    wait_for_wishes(cold, 1)


def run_until_ready(command, environment, folder):
    """The log of a daemon that is started and ended again."""
    log = folder / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(command, env={"PATH": os.environ["PATH"], **environment},
                                   stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        wait_until(lambda: b"ready:" in log.read_bytes() or process.poll() is not None,
                   10 * slowness())
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        assert process.wait(10 * slowness()) == 0, log.read_text()
    return log.read_text()


def test_a_user_has_a_folder_without_naming_one(tmp_path):
    distorchd = str(BUILD / "bin" / "distorchd")
    (tmp_path / "run").mkdir(mode=0o700)
    base = {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    for extra, folder in (({"XDG_STATE_HOME": str(tmp_path / "a" / "b")}, tmp_path / "a" / "b"),
                          ({}, tmp_path / "home" / ".local" / "state"),
                          ({"XDG_STATE_HOME": "relative"}, tmp_path / "home" / ".local" / "state")):
        said = run_until_ready([distorchd, "--user"], {**base, **extra}, tmp_path)
        assert "forgotten" not in said and (folder / "distorchd").is_dir()
        assert os.stat(folder / "distorchd").st_mode & 0o777 == 0o700
    given = tmp_path / "systemd"
    run_until_ready([distorchd, "--user"],
                    {**base, "STATE_DIRECTORY": f"{given}:{tmp_path / 'second'}"}, tmp_path)
    assert given.is_dir() and not (tmp_path / "second").exists()


def test_a_private_socket_has_no_folder_unasked(tmp_path):
    said = run_until_ready([str(BUILD / "bin" / "distorchd"), "--socket", str(tmp_path / "s")],
                           {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}, tmp_path)
    assert "name one: --state-dir DIR" in said and not (tmp_path / "distorchd").exists()


def test_without_any_place_for_it_the_daemon_runs(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "run").mkdir()
    said = run_until_ready([str(BUILD / "bin" / "distorchd"), "--user"],
                           {"XDG_RUNTIME_DIR": str(tmp_path / "run"),
                            "XDG_STATE_HOME": str(tmp_path / "file")}, tmp_path)
    assert "cannot be made" in said
