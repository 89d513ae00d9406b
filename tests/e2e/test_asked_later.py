# SPDX-License-Identifier: Apache-2.0
"""What is asked while a load or a move is under way: the last word counts, and is told truly."""
import os
import signal
import subprocess

import distorch
import pytest
from conftest import close_all, need_hooks, opened, slowness, wait_until
from placed import MIB, load, make_blocks
from test_ctl import CTL, ctl, ctl_json


def start(start_daemon, link):
    return start_daemon("memory.ram=256M", "sim.count=2", "sim.memory=64M", f"sim.link={link}",
                        "gpu.budget=100%")


@pytest.fixture
def slow(start_daemon):
    """A model takes three seconds."""
    return start(start_daemon, "8M")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.safetensors"
    make_blocks(path, [4 * MIB] * 6)
    return path


def begin(daemon, *words):
    return subprocess.Popen([CTL, "--socket", str(daemon.socket), *map(str, words)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def model_of(daemon):
    models = daemon.models(everything=True)
    return models[0] if models else None


def places(daemon):
    return [place["device"] for place in model_of(daemon)["where"] if place.get("tensor_bytes")]


def is_moving(daemon):
    return model_of(daemon).get("moving", False)


def is_still(daemon):
    return not is_moving(daemon) and model_of(daemon)["state"] == "resident"


def test_a_load_to_where_it_is_being_moved_from_has_it_back(slow, path):
    """It was answered at once, and lay elsewhere a moment later."""
    assert ctl(slow, "load", "--to", "sim:0", path).returncode == 0
    move = begin(slow, "place", path.name, "sim:1")
    wait_until(lambda: is_moving(slow), what="the move")
    loaded = ctl_json(slow, "load", "--to", "sim:0", path)["models"][0]
    assert [place["device"] for place in loaded["where"] if place["tensor_bytes"]] == ["sim:0"]
    assert "lies in sim:1 now" in move.communicate(timeout=30)[0]
    assert places(slow) == ["sim:0"] and not is_moving(slow)
    # who says no place takes it as it is
    move = begin(slow, "place", path.name, "sim:1")
    wait_until(lambda: is_moving(slow), what="the move")
    assert ctl(slow, "load", path).returncode == 0 and is_moving(slow)
    assert move.wait(30) == 0


def test_of_those_who_do_not_wait_the_last_counts(slow, path):
    assert ctl(slow, "load", path, "--backing", "image").returncode == 0
    for device in ("sim:0", "sim:1", "ram"):
        assert ctl(slow, "load", "--no-wait", "--to", device, path).returncode == 0
    wait_until(lambda: is_still(slow), what="the moves' end", seconds=30)
    assert places(slow) == ["cpu"]


def test_who_waits_is_not_moved_away_by_an_older_word(slow, path):
    assert ctl(slow, "load", path, "--backing", "image").returncode == 0
    move = begin(slow, "place", path.name, "sim:0")
    wait_until(lambda: is_moving(slow), what="the move")
    assert ctl(slow, "load", "--no-wait", "--to", "sim:1", path).returncode == 0
    done = ctl(slow, "place", path.name, "ram")
    assert "lies in ram now" in done.stdout, done
    assert is_still(slow) and places(slow) == ["cpu"]
    assert move.wait(30) == 0


def test_unload_says_that_it_ended_a_load(start_daemon, path):
    """It said that nothing was there."""
    slow = start(start_daemon, "4M")
    load = begin(slow, "load", "--to", "sim:0", path)
    wait_until(lambda: model_of(slow) is not None, what="the load")
    done = ctl(slow, "unload", "--all")
    assert "being loaded or moved\n" in done.stdout, "nobody uses it: no last user is spoken of"
    done = ctl(slow, "unload", path.name)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].split(None, 2) == ["unloaded", path.name, "0  its load was ended"]
    assert load.wait(30) == 1 and "was cancelled" in load.stderr.read()


def test_what_only_its_user_has_still_is_listed(slow, path):
    """Its copies of before a move are in use, and memory is taken: ps said that there is none."""
    with distorch.connect(str(slow.socket)) as d, d.open(path, to="sim:0,8M;cpu,*") as w:
        assert len(w[next(iter(w))].buffer) > 0
        assert ctl(slow, "place", path.name, "sim:1").returncode == 0
        assert ctl(slow, "unload", path.name).returncode == 0
        shown = ctl(slow, "ps").stdout
        assert path.name in shown and "older on" in shown, shown
    wait_until(lambda: "No models" in ctl(slow, "ps").stdout, what="its end")


def test_after_drain_off_a_load_finds_the_device(slow, path):
    assert ctl(slow, "drain", "--device", "sim:0").returncode == 0
    wait_until(lambda: "pid" not in slow.status()["devices"][1], what="the device is let go of")
    assert "are taken" in ctl(slow, "drain", "--off", "--device", "sim:0").stdout
    done = ctl(slow, "load", "--to", "sim:0", path)
    assert done.returncode == 0, done.stderr


def test_what_is_still_being_loaded_is_not_to_be_loaded_first(slow, path):
    load = begin(slow, "load", "--to", "sim:0", path)
    wait_until(lambda: model_of(slow) is not None, what="the load")
    for verb in "place", "plan":
        done = ctl(slow, verb, path.name, "sim:1")
        assert done.returncode != 0 and "is still being loaded" in done.stderr, done
        assert "load it first" not in done.stderr
    assert load.wait(30) == 0


def test_what_is_pinned_on_its_way_off_a_device_stays_there(start_daemon, tmp_path):
    """Each time it is seen on its way; now and then it has arrived before the word does."""
    daemon = start_daemon("memory.ram=512M", "sim.count=1", "sim.memory=256M", "gpu.budget=100%",
                          "gpu.linger=500ms")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [16 * MIB] * 8)

    def stays():
        assert ctl(daemon, "load", "--to", "sim:0", path).returncode == 0
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with daemon.raw() as raw:
            wait_until(lambda: raw.call("list", {})["models"][0].get("moving", False), 20,
                       "the end of its time there")
            raw.call("set", {"model": path.name, "policy": {"pin": True}})
        wait_until(lambda: is_still(daemon), what="an end", seconds=20)
        return places(daemon) == ["sim:0"]

    for _ in range(10):
        if stays():
            return
        assert ctl(daemon, "unpin", path.name).returncode == 0
    pytest.fail("it left, however early it was pinned")


def events_of(raw, name):
    def found():
        raw.call("ping")
        return [event for one, event in raw.events if one == name]
    wait_until(found, 30 * slowness(), f"{name}")
    return found()


def refusal(answer):
    error, _result, _fds = answer
    return error and error["code"]


def test_who_joined_for_another_place_does_not_fail_with_the_first(slow, path):
    """He was told of the first one's card, which is full, though he asked for RAM."""
    need_hooks()
    make_blocks(path, [4 * MIB] * 20)  # more than sim:0 has
    with slow.raw(timeout=60.0) as first, slow.raw(timeout=60.0) as second, opened(path) as fd:
        for wish in {}, {"attach": True}:
            slow.tell("fault pread:1:delay=300")  # of the header: all are there by then
            asked = first.request("load", {"allocation": "sim:0"}, [fd])
            joined = second.request("load", {"allocation": "cpu"} | wish, [fd])
            assert refusal(first.wait(asked)) == "no-memory"
            error, result, fds = second.wait(joined)
            assert error is None and places(slow) == ["cpu"], error
            close_all(fds)
            if wish:
                second.call("detach", {"lease": result["lease"]})
            slow.unload_all()


def test_of_those_who_do_not_wait_one_may_fail_alone_and_each_hears_of_his(slow, path):
    need_hooks()
    make_blocks(path, [4 * MIB] * 20)
    with slow.raw(timeout=60.0) as first, slow.raw(timeout=60.0) as second, opened(path) as fd:
        slow.tell("fault pread:1:delay=300")
        one = first.request("load", {"allocation": "sim:0", "no_wait": True}, [fd])
        other = second.request("load", {"allocation": "cpu", "no_wait": True}, [fd])
        assert refusal(first.wait(one)) is None and refusal(second.wait(other)) is None
        (done,), (loaded,) = (events_of(raw, "load.done") for raw in (first, second))
        assert done["request"] == one and done["error"]["code"] == "no-memory"
        assert loaded["request"] == other and "error" not in loaded
        assert places(slow) == ["cpu"]


def test_a_card_that_dies_is_no_matter_for_who_waits_for_another(slow, path):
    with slow.raw(timeout=60.0) as first, slow.raw(timeout=60.0) as second:
        load(first, path, "cpu").close()
        asked = first.request("place", {"model": path.name, "allocation": "sim:0"})
        wait_until(lambda: is_moving(slow), what="the move")
        joined = second.request("place", {"model": path.name, "allocation": "sim:1"})
        second.call("status")
        os.kill(slow.status()["devices"][1]["pid"], signal.SIGKILL)
        assert refusal(first.wait(asked)) == "device-lost"
        assert refusal(second.wait(joined)) is None
        assert places(slow) == ["sim:1"]


def test_a_move_that_only_others_wait_behind_is_not_carried_out(slow, path):
    with slow.raw(timeout=60.0) as first, slow.raw(timeout=60.0) as second:
        load(first, path, "cpu").close()
        asked = first.request("place", {"model": path.name, "allocation": "sim:0"})
        wait_until(lambda: is_moving(slow), what="the move")
        joined = second.request("place", {"model": path.name, "allocation": "sim:1"})
        second.call("status")
        assert first.call("cancel", {"id": asked})["found"]
        assert refusal(first.wait(asked)) == "cancelled"
        assert refusal(second.wait(joined)) is None
        assert places(slow) == ["sim:1"]
        types = [record["type"] for record in first.call("events.history", {})["records"]]
        assert types.count("placed") == 1, types


@pytest.mark.parametrize("how", ["move", "recheck"])
def test_a_load_begun_without_waiting_is_told_of_however_it_ends(slow, path, how):
    with slow.raw(timeout=60.0) as raw:
        load(raw, path).close()
        if how == "recheck":
            os.chmod(path, 0o600)
        with opened(path) as fd:
            wish = {"allocation": "sim:0"} if how == "move" else {}
            number = raw.request("load", wish | {"no_wait": True}, [fd])
            assert raw.wait(number)[1]["source"] == "begun"
        done, = events_of(raw, "load.done")
        assert done["request"] == number and "error" not in done
        assert places(slow) == (["sim:0"] if how == "move" else ["cpu"])
