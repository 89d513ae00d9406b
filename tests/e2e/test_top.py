# SPDX-License-Identifier: Apache-2.0
"""distorchctl top: the live view on a real terminal, and what it prints without one."""
import os
import pathlib
import signal
import subprocess
import time

import pytest
from conftest import make_sparse_model, wait_until
from screen import Terminal
from test_ctl import CTL, ctl, ctl_json

UP, DOWN, END, PAGE_UP = b"\x1bOA", b"\x1bOB", b"\x1bOF", b"\x1b[5~"


def environment_of(daemon, **more):
    kept = {k: v for k, v in os.environ.items() if k not in ("LINES", "COLUMNS", "LS_COLORS")}
    return {**kept, "DISTORCH_SOCKET": str(daemon.socket), "TERM": "xterm", "LANG": "C.UTF-8",
            **more}


def top_on(daemon, *words, rows=24, columns=80, **environment):
    return Terminal([CTL, "top", *words], environment_of(daemon, **environment), rows, columns)


def load_all(daemon, make_model, *names):
    for i, name in enumerate(names):
        assert ctl(daemon, "load", make_model(f"{name}.safetensors", size=4096 * (i + 1),
                                              seed=i)).returncode == 0


def names_on(lines):
    """The models on the screen, from the top."""
    begin = next(i for i, line in enumerate(lines) if line.startswith(" NAME"))
    rows = [line.split() for line in lines[begin + 1:]]
    return [row[0] for row in rows[:rows.index([])]]


def test_three_panes_fit_a_small_terminal(daemon, make_model, connect):
    path = make_model("flux.safetensors")
    with connect(label="ComfyUI") as d, d.open(path), top_on(daemon) as top:
        # All of it: a frame may come in several pieces.
        lines = top.wait_for(lambda lines: "? help" in lines[23] and "ComfyUI" in "".join(lines))
        assert len(lines) == 24 and lines[0].startswith("distorchd ") and "clients" in lines[0]
        assert lines[1].lstrip().startswith("ram ") and "░" in lines[1] and "free" in lines[1]
        assert lines[2].startswith("MODELS by use")
        model = next(line for line in lines if "flux" in line)
        assert "in use" in model and str(os.getpid()) in model
        client = next(line for line in lines if line.lstrip().startswith(f"ComfyUI/{os.getpid()}"))
        assert "1 leased" in client
        assert "q quit" in lines[23] and "? help" in lines[23]
        assert all(len(line) <= 80 for line in lines)
        top.press("q")
        assert top.wait() == 0
        assert top.is_given_back()


def test_keys_sort_pin_evict_and_filter(daemon, make_model):
    load_all(daemon, make_model, "flux", "ae", "t5xxl")

    def pinned():
        return {m["name"] for m in ctl_json(daemon, "ps")["models"] if m["pinned"]}

    with top_on(daemon, columns=100) as top:
        top.wait_for("t5xxl")
        top.press("s")
        top.wait_for(lambda lines: "by size" in "".join(lines) and names_on(lines) == [
            f"{n}.safetensors" for n in ("t5xxl", "ae", "flux")])
        top.press("s")
        top.wait_for(lambda lines: "by name" in "".join(lines) and names_on(lines) == [
            f"{n}.safetensors" for n in ("ae", "flux", "t5xxl")])
        top.press(UP + UP + UP + DOWN + b"p")  # wherever the sorting left the selection
        wait_until(lambda: pinned() == {"flux.safetensors"}, 20)
        top.wait_for("pinned flux")
        top.press("p")
        wait_until(lambda: not pinned(), 20)
        top.press("e")
        top.wait_for("Evict flux.safetensors?")
        top.press("x")
        top.wait_for("q quit")
        assert len(ctl_json(daemon, "ps")["models"]) == 3
        top.press("e")
        top.wait_for("Evict flux.safetensors?")
        top.press("y")
        top.wait_for("unloaded flux.safetensors")
        top.wait_for(lambda lines: names_on(lines) == ["ae.safetensors", "t5xxl.safetensors"])
        top.press("/T5x")
        assert names_on(top.wait_for("1 of 2 match T5x")) == ["t5xxl.safetensors"]
        top.press(b"\x7f\x7f\x7fzz\xc3\xa9")
        top.wait_for("No model matches.")
        top.press("\x1b")
        top.wait_for(lambda lines: len(names_on(lines)) == 2)
        top.press("/ae\r")
        top.wait_for(lambda lines: names_on(lines) == ["ae.safetensors"])
        top.press("?")
        top.wait_for("Any key goes back.")
        top.press(" ")
        top.wait_for("MODELS by name")
        top.press("q")
        assert top.wait() == 0 and top.is_given_back()


def test_a_question_is_about_its_model_and_ends_with_it(daemon, make_model):
    load_all(daemon, make_model, "flux", "ae")
    with top_on(daemon) as top:
        top.wait_for("flux")
        top.press("ss")  # by name
        top.wait_for(lambda lines: names_on(lines) == ["ae.safetensors", "flux.safetensors"])
        top.press(UP + UP + b"e")
        top.wait_for("Evict ae.safetensors?")
        assert ctl(daemon, "unload", "ae").returncode == 0
        lines = top.wait_for("ae.safetensors is gone")
        assert "Evict" not in "\n".join(lines)
        top.press("y")
        time.sleep(1.2)  # another look
        top.read(0)
        assert [m["name"] for m in ctl_json(daemon, "ps")["models"]] == ["flux.safetensors"]
        top.press("q")
        assert top.wait() == 0


def test_a_refusal_of_the_daemon_is_shown_with_its_hint(daemon, make_model, connect):
    path = make_model("flux.safetensors")
    with connect() as d, d.open(path), top_on(daemon) as top:
        top.wait_for("flux")
        top.press("ey")
        top.wait_for("held: flux.safetensors")
        top.press("q")
        assert top.wait() == 0


def test_many_models_are_scrolled_and_the_selection_stays(daemon, make_model):
    load_all(daemon, make_model, *(f"m{i:02}" for i in range(30)))
    with top_on(daemon) as top:
        top.wait_for("by use")
        top.press("ss")
        top.wait_for("of 30")
        top.press(END)
        lines = top.wait_for("m29")
        assert "m00.safetensors" not in "\n".join(lines)
        row = next(i for i, line in enumerate(lines) if "m29" in line)
        assert top.screen.reverse[row]
        time.sleep(1.2)  # another look
        top.read(0)
        assert "m29" in top.screen.text()
        top.press(PAGE_UP + PAGE_UP + PAGE_UP)
        top.wait_for("m00")
        top.press(b"\x03")
        assert top.wait() == 0


@pytest.mark.fault("U03")
def test_it_follows_the_size_of_the_terminal(daemon, make_model):
    load_all(daemon, make_model, "a-rather-long-name-of-a-model-that-is-cut")
    with top_on(daemon) as top:
        top.wait_for("a-rather")
        for rows, columns in ((10, 40), (50, 200), (24, 80), (2, 10), (1, 1), (6, 20), (24, 80)):
            top.resize(rows, columns)
            if rows >= 6:
                # What was under way for the size before may still come.
                top.wait_for(lambda lines, last=rows - 1: lines[last].startswith("q quit"))
                top.wait_for("a-rat" if rows > 6 else "distorchd")
            else:
                top.read(0.3)
            assert top.process.poll() is None
        top.press("q")
        assert top.wait() == 0 and top.is_given_back()


@pytest.mark.fault("U05")
def test_it_outlives_the_daemon_and_finds_the_next_one(start_daemon, make_model):
    daemon = start_daemon("memory.ram=64M", check=False)
    load_all(daemon, make_model, "flux")
    with top_on(daemon) as top:
        top.wait_for("flux")
        daemon.kill()
        lines = top.wait_for("reconnecting")
        assert "last answer" in lines[0] and "flux" in "\n".join(lines), "the last figures stay"
        top.press("p")
        top.wait_for("no daemon answers")
        top.press("s")
        top.wait_for("by size")
        daemon.start()
        lines = top.wait_for(lambda lines: lines[0].startswith("distorchd ") and "up" in lines[0])
        top.wait_for("No models.")
        load_all(daemon, make_model, "again")
        top.wait_for("again")
        top.press("q")
        assert top.wait() == 0 and top.is_given_back()
    daemon.stop()


def test_keys_work_while_the_daemon_stands_still(daemon, make_model):
    load_all(daemon, make_model, "flux")
    with top_on(daemon) as top:
        top.wait_for("flux")
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            top.wait_for("no answer from the daemon")
            top.press("s")
            top.wait_for("by size", 5)
            top.press("p")
            top.press("p")
            top.wait_for("still under way")
            top.press("q")
            assert top.wait(5) == 0 and top.is_given_back()
        finally:
            daemon.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM),
                                            (signal.SIGHUP, -signal.SIGHUP),
                                            (signal.SIGQUIT, -signal.SIGQUIT)])
def test_a_signal_gives_the_terminal_back(daemon, number, status, tmp_path):
    with top_on(daemon) as top:
        top.wait_for("q quit")
        assert not top.is_given_back()
        top.process.send_signal(number)
        assert top.wait() == status
        assert top.is_given_back()


def test_it_ends_when_its_terminal_is_gone(daemon):
    top = top_on(daemon)
    top.wait_for("q quit")
    os.close(top.slave)
    os.close(top.master)
    assert top.process.wait(20) in (0, -signal.SIGHUP)


@pytest.mark.fault("U04")
def test_hostile_names_stay_on_their_row(daemon, make_model, connect):
    load_all(daemon, make_model, "esc\033[31m", "line\nbreak", "rtl\u202egnp", "bell\a", "日本語のモデル" * 5)
    with connect(label="\033[2Jlabel\n") as d, d.open(make_model("plain.safetensors", seed=9)), \
            top_on(daemon, columns=120) as top:
        # The screen refuses control characters and colours.
        lines = top.wait_for(lambda lines: "q quit" in lines[23] and "plain" in "".join(lines))
        text = "\n".join(lines)
        assert r"esc\x1b[31m" in text and r"line\x0abreak" in text and r"bell\x07" in text
        assert "\u202e" not in text and "日本語" in text and "label" in text
        top.press("/\x01\x02")
        top.press(b"\xff\xfe")
        top.read(0.5)
        top.press("\x1b")
        top.wait_for("q quit")
        top.press("q")
        assert top.wait() == 0


def test_a_load_is_shown_while_it_runs(start_daemon, tmp_path):
    daemon = start_daemon("memory.ram=4G", "memory.reserve=0",
                          environment={"DISTORCHD_FAULT": "pread:3:delay=200:ever"})
    path = make_sparse_model(tmp_path / "slow.safetensors", 1 << 30)
    with subprocess.Popen([CTL, "load", "-q", path], env=environment_of(daemon)) as load, \
            top_on(daemon) as top:
        lines = top.wait_for("LOADS AND CLIENTS")
        top.wait_for(lambda lines: any("left" in line and "/s" in line and "slow" in line
                                       for line in lines), 40)
        assert any("loading" in line for line in lines)
        load.send_signal(signal.SIGINT)
        assert load.wait(20) == 130
        daemon.tell("clear")
        wait_until(lambda: daemon.status()["devices"][0]["used"] == 0, 20)
        top.press("q")
        assert top.wait() == 0


def test_it_looks_at_most_twice_a_second(daemon):
    def n_looks():
        return next(int(line.split()[-1]) for line in ctl(daemon, "metrics").stdout.splitlines()
                    if line.startswith('distorchd_requests_total{') and '"list"' in line
                    and '"ok"' in line)

    ctl(daemon, "ps")
    with top_on(daemon, "-d", "1ms") as top:
        top.wait_for("q quit")
        begun, before = time.monotonic(), n_looks()
        top.read(2)
        after = n_looks()
        assert 1 <= after - before <= 2 * (time.monotonic() - begun) + 2
        top.press("q")
        assert top.wait() == 0


def test_without_a_terminal_it_prints_once(daemon, make_model):
    load_all(daemon, make_model, "flux", "ae")
    done = ctl(daemon, "top")
    assert done.returncode == 0 and not done.stderr and "\033" not in done.stdout
    assert "RAM" in done.stdout and "flux" in done.stdout and "COMMAND" in done.stdout
    answer = ctl_json(daemon, "top")
    assert {m["name"] for m in answer["models"]} == {"flux.safetensors", "ae.safetensors"}
    assert answer["devices"][0]["name"] == "cpu" and answer["clients"][0]["pid"]
    assert ctl(daemon, "top", "-o", "csv").returncode == 2
    assert ctl(daemon, "top", "-d", "0").returncode == 2
    assert ctl(daemon, "top", "-d", "often").returncode == 2
    assert ctl(None, "top").returncode == 3
    with top_on(daemon, TERM="dumb") as top:
        assert top.wait() == 0
        assert "flux" in top.screen.text()


@pytest.mark.parametrize("why", ["no library", "no such terminal"])
def test_where_it_cannot_draw_it_says_so_and_prints_once(daemon, make_model, tmp_path, why):
    load_all(daemon, make_model, "flux")
    environment = {"TERM": "nosuch-terminal"}
    if why == "no library":
        (tmp_path / "libncursesw.so.6").write_bytes(b"not a library")
        environment = {"LD_LIBRARY_PATH": str(tmp_path)}
    with top_on(daemon, **environment) as top:
        assert top.wait() == 0
        text = top.screen.text()
        assert "no live view" in text and "flux" in text
        assert "libncursesw" in text or "nosuch-terminal" in text
        assert top.is_given_back()


def test_other_verbs_do_not_load_ncurses(daemon):
    def maps(pid):
        return pathlib.Path(f"/proc/{pid}/maps").read_text()

    with top_on(daemon) as top:
        top.wait_for("q quit")
        assert "libncursesw" in maps(top.process.pid)
        top.press("q")
        assert top.wait() == 0
    with subprocess.Popen([CTL, "ps", "--watch"], stdout=subprocess.PIPE,
                          env=environment_of(daemon)) as watch:
        watch.stdout.readline()
        assert "libncurses" not in maps(watch.pid) and "libtinfo" not in maps(watch.pid)
        watch.send_signal(signal.SIGINT)
