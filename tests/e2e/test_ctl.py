# SPDX-License-Identifier: Apache-2.0
"""distorchctl as people and scripts use it: output, JSON keys, hints, exit codes."""
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import threading
import time

import msgpack
import pytest
from conftest import (BUILD, ROOT, close_all, make_safetensors, make_sparse_model, slowness,
                      wait_until)
from placed import make_blocks

CTL = str(BUILD / "bin" / "distorchctl")


def ctl(daemon, *words, environment=None, **options):
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    env.update({"DISTORCH_SOCKET": str(daemon.socket) if daemon else "/nonexistent/d.sock",
                "TERM": "xterm", "LANG": "C.UTF-8"})
    env.update(environment or {})
    return subprocess.run([CTL, *map(str, words)], capture_output=True, text=True, timeout=60,
                          env=env, **options)


def ctl_json(daemon, *words, status=0):
    done = ctl(daemon, *words, "--json")
    assert done.returncode == status, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["schema"] == 1
    return answer


def test_every_verb_has_help_without_a_daemon():
    names = [line.split()[0] for line in ctl(None, "--help").stdout.splitlines()
             if line.startswith("  ") and not line.startswith("  distorchctl")]
    assert {"status", "ps", "show", "load", "unload", "pin", "unpin", "keep", "unkeep", "why",
            "verify", "clients", "events", "budget", "config", "doctor", "ping", "version",
            "help", "store", "metrics", "completion"} <= set(names)
    for name in names:
        done = ctl(None, name, "--help")
        assert done.returncode == 0 and "Usage:" in done.stdout, name
        assert ctl(None, "help", name).returncode == 0, name


def test_the_examples_of_the_help_can_be_copied():
    """Whole lines, on a screen of the usual width."""
    names = [line.split()[0] for line in ctl(None, "--help").stdout.splitlines()
             if line.startswith("  ") and not line.startswith("  distorchctl")]
    for name in names:
        wide = ctl(None, name, "--help", environment={"ARGP_HELP_FMT": "rmargin=1000"}).stdout
        lines = ctl(None, name, "--help").stdout.splitlines()
        for line in wide.splitlines():
            if line.startswith(("  distorchctl ", "  '")):
                assert line in lines, (name, line)


@pytest.mark.fault("U01")
@pytest.mark.parametrize("verb", ["status", "ps", "ping", "clients", "doctor"])
def test_without_a_daemon_it_says_how_to_start_one(verb):
    done = ctl(None, verb)
    assert done.returncode == (9 if verb == "doctor" else 3)
    assert "distorchd" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.fault("U02")
def test_a_wrong_verb_or_flag_names_the_nearest_one(daemon):
    done = ctl(daemon, "lod", "x")
    assert done.returncode == 2 and "did you mean load?" in done.stderr
    done = ctl(daemon, "load", "--pinn", "x")
    assert done.returncode == 2 and "did you mean --pin?" in done.stderr
    assert ctl(daemon, "load", "--pri", "1", "x").returncode == 2, "no abbreviations"
    assert ctl(daemon, "load").returncode == 2
    assert ctl(daemon, "unload").returncode == 2
    forced = ctl(daemon, "unload", "--force", "m")
    assert forced.returncode == 2 and "mode" not in forced.stderr
    assert "--force: nothing takes memory" in forced.stderr and "--recall 5s" in forced.stderr
    assert ctl(daemon, "ps", "-o", "yaml").returncode == 2
    assert ctl(daemon, "load", "--priority", "101", "x").returncode == 2
    assert ctl(daemon, "load", "--for", "10", "x").returncode == 2, "a duration needs a unit"


def test_load_ps_show_unload_speak_the_promised_json(daemon, make_model):
    path = make_model("flux.safetensors")
    loaded = ctl_json(daemon, "load", path)["models"][0]
    assert loaded["source"] == "disk" and loaded["state"] == "resident"
    model = ctl_json(daemon, "ps")["models"][0]
    assert set("id name bytes state where stays keep pinned leases last_used_s".split()) <= set(model)
    assert model["name"] == "flux.safetensors" and model["bytes"] == os.stat(path).st_size
    assert model["where"][0]["device"] == "cpu" and model["where"][0]["backing"] == "image"
    shown = ctl_json(daemon, "show", model["id"][:6], "--tensors")
    assert set("tensors generation path page_size backing loaded_from clients".split()) <= set(shown)
    assert shown["loaded_from"] == "file" and shown["page_size"] in (4096, 2 << 20)
    assert len(shown["tensor_table"]) == shown["tensors"]
    status = ctl_json(daemon, "status")
    assert set("version epoch uptime_s restarts devices models clients".split()) <= set(status)
    assert set("name budget used held reserved free".split()) <= set(status["devices"][0])
    assert status["devices"][0]["name"] == "cpu"
    report = ctl_json(daemon, "unload", "flux")
    assert report["total_bytes"] > 0 and not report["kept"] and not report["held"]
    assert set(report["unloaded"][0]) >= {"name", "reason", "bytes"}
    wait_until(lambda: ctl_json(daemon, "ps")["models"] == [], what="the copy to go")
    error = ctl_json(daemon, "show", "nosuch", status=4)["error"]
    assert set(error) == {"code", "message", "hint", "detail", "retryable"}
    assert error["code"] == "not-found"


def test_unload_reports_kept_and_held_with_reasons(daemon, make_model, connect):
    kept, held, free = (make_model(f"{n}.safetensors", seed=i)
                        for i, n in enumerate(("kept", "held", "free")))
    assert ctl(daemon, "load", "--keep", kept).returncode == 0
    assert ctl(daemon, "load", free).returncode == 0
    with connect() as d, d.open(held):
        report = ctl_json(daemon, "unload", "--not-kept")
        assert [m["name"] for m in report["kept"]] == ["kept.safetensors"]
        assert [m["name"] for m in report["unloaded"]] == ["free.safetensors"]
        assert [m["name"] for m in report["held"]] == ["held.safetensors"]
        assert str(os.getpid()) in report["held"][0]["reason"]
    names = {m["name"] for m in ctl_json(daemon, "ps")["models"]}
    wait_until(lambda: {m["name"] for m in ctl_json(daemon, "ps")["models"]} ==
               {"kept.safetensors"}, what=f"the held one to go: {names}")


def test_exit_codes_follow_the_error(daemon, tmp_path, make_model):
    huge = make_sparse_model(tmp_path / "huge.safetensors", 3 << 30)
    done = ctl(daemon, "load", huge)
    assert done.returncode == 6
    assert "needs 3.0G" in done.stderr and "budget" in done.stderr and "hint:" in done.stderr
    broken = make_model("broken.safetensors")
    os.truncate(broken, os.stat(broken).st_size - 1000)
    done = ctl(daemon, "load", broken)
    assert done.returncode == 7
    assert f"{os.stat(broken).st_size}" in done.stderr.replace(",", "")
    pickle = tmp_path / "old.ckpt"
    pickle.write_bytes(b"\x80\x02}q\x00.")
    done = ctl(daemon, "load", pickle)
    assert done.returncode == 7 and "pickle" in done.stderr.lower()
    assert ctl(daemon, "load", tmp_path / "none").returncode == 4
    assert ctl(daemon, "load", "--to", "ram", broken).returncode == 7


@pytest.mark.fault("U03")
def test_it_behaves_in_pipes_and_narrow_places(daemon, make_model):
    for i in range(30):
        assert ctl(daemon, "load", make_model(f"a-rather-long-name-{i:02}.safetensors", seed=i,
                                              size=4096)).returncode == 0
    piped = subprocess.run(f"'{CTL}' ps | head -n 1", shell=True, capture_output=True, text=True,
                           env={**os.environ, "DISTORCH_SOCKET": str(daemon.socket)})
    assert piped.returncode == 0 and piped.stdout.startswith("NAME") and not piped.stderr
    for environment in ({"LANG": "C"}, {"NO_COLOR": "1"}, {"TERM": "dumb"}):
        done = ctl(daemon, "ps", environment=environment)
        assert done.returncode == 0 and "\033" not in done.stdout + done.stderr
    assert ctl(daemon, "ps", stdin=subprocess.DEVNULL).returncode == 0
    for columns in (20, 80, 200):
        lines = on_terminal(daemon, ["ps"], columns).splitlines()
        assert len([line for line in lines if line.strip()]) == 31, "a line a model: cut, not wrapped"


def on_terminal(daemon, words, columns, status=0, **environment):
    """Run it on a terminal of so many columns; what it printed."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [CTL, *words], stdin=slave, stdout=slave, stderr=slave,
        env={**os.environ, "DISTORCH_SOCKET": str(daemon.socket), "COLUMNS": str(columns),
             "TERM": "xterm", "LANG": "C.UTF-8", **environment})
    os.close(slave)
    output = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        output += piece
    os.close(master)
    assert process.wait(20) == status, output
    return output.decode(errors="replace").replace("\r\n", "\n")


def test_a_table_ends_where_the_terminal_does_and_its_names_stay_readable(start_daemon, tmp_path):
    daemon = start_daemon("memory.ram=64M", "sim.count=2", "sim.memory=64M", "gpu.budget=100%")
    names = ["flux1-dev-fp8.safetensors", "flux1-schnell-fp8.safetensors"]
    for seed, name in enumerate(names):
        path = tmp_path / name
        make_blocks(path, [1 << 20] * 4, seed=100 * seed)
        assert ctl(daemon, "load", path, "--to", "sim:0,50%;sim:1,25%;cpu,25%", "--pin",
                   "--keep").returncode == 0
    ctl(daemon, "drain", "--device", "sim:1", "--timeout", "5s")
    whole = {words: ctl(daemon, *words.split()).stdout.splitlines()
             for words in ("ps", "devices", "clients", "ps -o wide")}
    for columns in (20, 40, 59, 60, 72, 80, 90, 300):
        for words in ("ps", "devices", "clients"):
            lines = on_terminal(daemon, words.split(), columns).splitlines()
            assert len(lines) == len(whole[words])
            assert max(map(len, lines)) <= columns, (words, columns, lines)
            if columns == 300:
                assert words == "clients" or lines == whole[words]
        if 72 <= columns < 300:
            lines = on_terminal(daemon, ["ps"], columns).splitlines()
            for name, line in zip(names, sorted(lines[1:])):
                told = line.split()[0]
                assert told == name or (told[-1] == "…" and name.startswith(told[:-1]) and
                                        len(told) >= 16), line
            assert "sim:0 50% +" in lines[1]
    for words in ("ps", "devices", "clients"):
        # As "watch distorchctl ps" has it: a pipe, and how wide that is to be.
        lines = ctl(daemon, words, environment={"COLUMNS": "60"}).stdout.splitlines()
        assert max(map(len, lines)) <= 60
    assert ctl(daemon, "ps", "-o", "wide", environment={"COLUMNS": "60"}).stdout.splitlines() == \
        whole["ps -o wide"]


@pytest.mark.fault("U04")
def test_hostile_names_are_shown_escaped(daemon, make_model):
    for name in ("esc\033[31m.safetensors", "line\nbreak.safetensors", 'quo"te,comma.safetensors',
                 "rtl\u202egnp.safetensors"):
        assert ctl(daemon, "load", make_model(name, size=4096)).returncode == 0
        done = ctl(daemon, "ps")
        body = done.stdout
        assert "\033" not in body and "\u202e" not in body
        assert len(body.splitlines()) == 2
        assert ctl_json(daemon, "ps")["models"][0]["name"] == name
        assert '"' not in name or '""' in ctl(daemon, "ps", "-o", "csv").stdout
        assert "\033" not in ctl(daemon, "status").stdout
        assert ctl(daemon, "unload", "--all").returncode == 0
        wait_until(lambda: daemon.models() == [], what="the copy to go")
        assert "\033" not in daemon.log()


@pytest.mark.fault("U05")
def test_watch_lives_over_a_restart_of_the_daemon(start_daemon, tmp_path):
    daemon = start_daemon("memory.ram=64M", check=False)
    said = tmp_path / "said"
    with open(said, "w") as file:
        watch = subprocess.Popen([CTL, "ps", "--watch=100ms"], stdout=file,
                                 env={**os.environ, "DISTORCH_SOCKET": str(daemon.socket)})

    def ends_with_the_listing():
        return said.read_text().rstrip().endswith("distorchctl load FILE")

    wait_until(ends_with_the_listing, 10 * slowness(), "the first listing")
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.wait(10)
    wait_until(lambda: "reconnecting" in said.read_text(), 10 * slowness(), "it to notice")
    daemon.start()
    wait_until(ends_with_the_listing, 10 * slowness(), "it to come back")
    watch.send_signal(signal.SIGINT)
    assert watch.wait(20) == 0
    daemon.stop()


@pytest.mark.fault("U07")
def test_ctrl_c_cancels_the_load_at_the_daemon(start_daemon, tmp_path):
    daemon = start_daemon("memory.ram=4G", "memory.reserve=0",
                          environment={"DISTORCHD_FAULT": "pread:3:delay=200:ever"})
    path = make_sparse_model(tmp_path / "slow.safetensors", 1 << 30)
    load = subprocess.Popen([CTL, "load", str(path)], stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "DISTORCH_SOCKET": str(daemon.socket)})
    wait_until(lambda: any(m["state"] == "loading" for m in daemon.models()))
    load.send_signal(signal.SIGINT)
    error = load.communicate(timeout=20)[1]
    assert load.returncode == 130, error
    wait_until(lambda: daemon.status()["devices"][0]["used"] == 0, 20)


@pytest.mark.fault("U08")
def test_two_loads_of_one_file_are_one_load(daemon, tmp_path):
    path = make_sparse_model(tmp_path / "shared.safetensors", 256 << 20)
    both = [subprocess.Popen([CTL, "load", str(path)], stdout=subprocess.DEVNULL,
                             env={**os.environ, "DISTORCH_SOCKET": str(daemon.socket)})
            for _ in range(2)]
    assert [p.wait(60) for p in both] == [0, 0]
    assert daemon.status()["misses"] == 1


def test_wishes_can_be_said_and_withdrawn(daemon, make_model):
    path = make_model("wish.safetensors")
    assert ctl(daemon, "load", path, "--priority", "-5").returncode == 0
    for verb, key, value in (("pin", "pinned", True), ("unpin", "pinned", False),
                             ("keep", "keep", True), ("unkeep", "keep", False)):
        assert ctl_json(daemon, verb, "wish")["models"][0][key] is value
    assert ctl_json(daemon, "show", "wish")["priority"] == -5
    assert ctl(daemon, "pin", "--for", "200ms", "wish").returncode == 0
    wait_until(lambda: not ctl_json(daemon, "show", "wish")["pinned"])
    assert "pinned" in ctl(daemon, "why", "wish").stdout


def test_a_wish_that_cannot_be_said_of_one_is_said_of_the_others(daemon, make_model):
    ctl(daemon, "load", make_model("one.safetensors"), make_model("two.safetensors"))
    done = ctl(daemon, "pin", "one", "none", "two")
    assert done.returncode == 4 and "none" in done.stderr
    assert [line.split(" (")[0] for line in done.stdout.splitlines()] == [
        "Pinned one.safetensors", "Pinned two.safetensors"]
    answer = ctl_json(daemon, "unpin", "one", "none", "two", "nothing", status=4)
    assert [model["pinned"] for model in answer["models"]] == [False, False]
    assert [error["model"] for error in answer["errors"]] == ["none", "nothing"]
    assert answer["error"]["code"] == "not-found" and "none" in answer["error"]["message"]


def test_what_was_not_wished_is_not_said_to_be_withdrawn(daemon, make_model):
    ctl(daemon, "load", "--pin", make_model("vae.safetensors"))
    assert ctl(daemon, "unkeep", "vae").stdout.startswith("There was no keep of yours for vae")
    assert ctl(daemon, "unpin", "vae").stdout.startswith("Unpinned vae.safetensors")
    assert ctl(daemon, "unpin", "vae").stdout.startswith("There was no pin of yours for vae")


def test_nothing_to_tell_is_told(daemon, raw):
    assert "Nothing is loaded at the start" in ctl(daemon, "warm").stdout
    done = ctl(daemon, "events", "--since", "1ms")
    assert (done.returncode, done.stdout) == (0, "")
    assert "Nothing is recorded of that time." in done.stderr
    done = ctl(daemon, "config", "get", "gpu.budget.sim:1")
    assert done.returncode == 4 and "gpu.budget counts" in done.stderr
    done = ctl(daemon, "reload", "this")
    assert done.returncode == 2
    assert "usage: distorchctl reload\n" in done.stderr and "this is one too many" in done.stderr


def test_why_and_events_tell_what_happened(daemon, make_model):
    path = make_model("story.safetensors")
    follow = subprocess.Popen([CTL, "events", "-o", "jsonl", "--type", "load,unload"],
                              stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "DISTORCH_SOCKET": str(daemon.socket)})
    with daemon.raw() as raw:
        asked = 'distorchd_requests_total{verb="subscribe",code="ok"} 1'
        wait_until(lambda: asked in raw.call("metrics")["text"], what="its asking for events")
    ctl(daemon, "load", path)
    ctl(daemon, "unload", "story")
    types = [r["type"] for r in ctl_json(daemon, "why", "story")["records"]]
    assert types == ["load.begun", "load.done", "unloaded"]
    assert [r["type"] for r in ctl_json(daemon, "events", "--since", "1h", "--type",
                                        "unload")["records"]] == ["unloaded"]
    lines = [follow.stdout.readline() for _ in types]
    follow.send_signal(signal.SIGINT)
    lines += follow.communicate(timeout=20)[0].splitlines()
    assert follow.returncode == 0
    assert [json.loads(line)["type"] for line in lines] == types


def test_names_ids_and_paths_name_a_model(daemon, tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "model.safetensors")
        make_safetensors(paths[-1], {"w": ("F32", [16])}, seed=ord(folder))
        assert ctl(daemon, "load", paths[-1]).returncode == 0
    done = ctl(daemon, "show", "model")
    assert done.returncode == 2 and "2 models" in done.stderr and str(tmp_path / "a") in done.stderr
    names = {m["name"]: m["id"] for m in ctl_json(daemon, "ps")["models"]}
    assert set(names) == {"a/model.safetensors", "b/model.safetensors"}
    for word in (str(paths[0]), "a/model.safetensors", names["a/model.safetensors"],
                 names["a/model.safetensors"][:8]):
        assert ctl_json(daemon, "show", word)["id"] == names["a/model.safetensors"]


def test_budget_verify_config_and_doctor(daemon, make_model):
    ctl(daemon, "load", make_model("checked.safetensors"))
    assert ctl_json(daemon, "verify")["checks"][0]["ok"] is True
    assert ctl_json(daemon, "budget", "ram", "512M")["devices"][0]["budget"] == 512 << 20
    assert ctl(daemon, "budget", "cuda:9", "1G").returncode == 4
    assert ctl(daemon, "budget", "ram", "lots").returncode == 2
    settings = {s["key"]: s for s in ctl_json(daemon, "config", "show")["settings"]}
    assert settings["memory.ram"]["source"] == "command line"
    assert settings["memory.hugepages"]["source"] == "default"
    assert ctl(daemon, "config", "get", "memory.ram").returncode == 0
    assert ctl(daemon, "config", "get", "memory.rum").returncode == 2
    assert ctl(None, "config", "check").returncode == 0
    done = ctl(daemon, "doctor")
    assert done.returncode in (0, 9) and "daemon answers" in done.stdout
    assert ctl(daemon, "ping").returncode == 0
    assert ctl_json(daemon, "version")["daemon"].startswith("distorchd/")


# ---- refusals, suggestions and versions ------------------------------------------------


def test_every_place_for_version_prints_it(daemon):
    for words in (["-V"], ["--version"], ["ps", "-V"], ["load", "--version"]):
        done = ctl(None, *words)
        assert done.returncode == 0 and done.stdout.startswith("distorchctl "), words
    for flag in ("-V", "--version"):
        done = subprocess.run([BUILD / "bin" / "distorchd", flag], capture_output=True, text=True,
                              timeout=20)
        assert done.returncode == 0 and done.stdout.startswith("distorchd "), done.stderr


@pytest.mark.parametrize("words", [
    ["ps", "--pinn"], ["ps", "-x"], ["load", "--to"], ["-o", "json", "load"], ["lod", "x"],
    ["load", "--pin=yes", "x"], ["load", "--priority", "101", "x"], ["load", "--for", "10", "x"],
    ["ps", "--timeout", "0"], ["unload"], ["-H"], ["ps", "--", "a", "b"]])
def test_a_wrong_usage_is_json_too(words):
    at = words.index("--") if "--" in words else len(words)
    done = ctl(None, *words[:at], "--json", *words[at:])
    if words[-1] in ("--to", "-H"):  # the last word would take --json for its value
        done = ctl(None, "--json", *words)
    assert done.returncode == 2 and not done.stderr, done.stderr
    answer = json.loads(done.stdout)
    assert answer["schema"] == 1 and answer["error"]["code"] == "bad-argument"
    assert ctl(None, *words).stderr.startswith("error: ") or "json" in words


def test_every_verb_speaks_json(daemon):
    for words in (["help"], ["help", "load"], ["help", "exit-codes"], ["config", "check"],
                  ["version"], ["ping"], ["doctor"], ["devices"], ["budget"], ["clients"],
                  ["config"], ["status"], ["ps"], ["verify"], ["events", "--since", "1h"],
                  ["store"], ["metrics"], ["completion", "zsh"], ["completion", "models"],
                  ["logs"], ["drain"], ["drain", "--off"]):
        done = ctl(daemon, *words, "--json")
        assert done.returncode in (0, 9), done.stderr
        assert json.loads(done.stdout)["schema"] == 1, words
        assert "\t" not in done.stdout
    assert "\n" not in ctl(daemon, "ps", "-o", "jsonl").stdout.rstrip("\n")


def test_shutdown_says_what_it_did(start_daemon):
    for words, said in ((["shutdown"], "The daemon ends"), (["shutdown", "--json"], '"ending": true')):
        daemon = start_daemon("memory.ram=64M", check=False)
        done = ctl(daemon, *words)
        assert done.returncode == 0 and said in done.stdout
        assert daemon.process.wait(10 * slowness()) == 0


def test_hints_never_lead_to_what_frees_by_surprise():
    for word, hint in (("watch", "ps --watch"), ("rm", "unload"), ("stat", "status"),
                       ("log", "logs"), ("unlod", "unload")):
        assert hint in ctl(None, word).stderr, word
    for word in ("watch", "stp", "shutdow", "evic"):
        said = ctl(None, word).stderr
        assert not any(verb in said for verb in ("mean stop", "mean evict", "mean shutdown",
                                                 "mean unload")), said
    assert "--not-kept" in ctl(None, "unload", "--keep").stderr
    assert "ps --watch" in ctl(None, "help", "watch").stderr


def test_output_formats_that_a_verb_has_not_are_refused(daemon):
    for words in (["status", "-o", "csv"], ["clients", "-o", "id"], ["show", "x", "-o", "csv"]):
        done = ctl(daemon, *words)
        assert done.returncode == 2 and "-o json" in done.stderr, words


# ---- a daemon that does not answer, and Ctrl-C -----------------------------------------


@pytest.fixture
def stopped(start_daemon):
    """A daemon that has been stopped: it accepts nothing and answers nothing."""
    daemon = start_daemon("memory.ram=64M")
    daemon.process.send_signal(signal.SIGSTOP)
    yield daemon
    daemon.process.send_signal(signal.SIGCONT)


def test_every_verb_keeps_to_its_timeout(stopped):
    for words, status in ((["ps"], 8), (["doctor"], 9), (["version"], 0), (["status"], 8)):
        begun = time.monotonic()
        done = ctl(stopped, *words, "--timeout", "300ms")
        assert done.returncode == status, done.stderr
        assert time.monotonic() - begun < 5 * slowness(), words
        assert "300 ms" in done.stdout + done.stderr, words


def heeds_ctrl_c(process):
    with open(f"/proc/{process.pid}/status") as lines:
        caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return caught >> signal.SIGINT - 1 & 1


def interrupted(daemon, words):
    """Start it, press Ctrl-C; its exit status and how long it took to end."""
    process = subprocess.Popen([CTL, *map(str, words)], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "DISTORCH_SOCKET": str(daemon.socket)})
    wait_until(lambda: heeds_ctrl_c(process), what="its start")
    time.sleep(0.5 * slowness())
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    process.communicate(timeout=20)
    return process.returncode, time.monotonic() - begun


def test_ctrl_c_ends_a_call_that_waits(stopped, make_model):
    for words in (["ps", "--timeout", "20s"], ["load", make_model("waits.safetensors")],
                  ["unload", "--all"]):
        status, seconds = interrupted(stopped, words)
        assert status == 130 and seconds < 8, words


def test_ctrl_c_is_the_good_end_of_what_follows(daemon):
    for words in (["events"], ["ps", "-w"], ["ps", "--watch=20s"]):
        status, seconds = interrupted(daemon, words)
        assert status == 0 and seconds < 8, words


# ---- what is printed -------------------------------------------------------------------


def test_a_load_in_the_background_is_named_by_its_file(daemon, make_model):
    done = ctl(daemon, "load", "--no-wait", make_model("fresh.safetensors"))
    assert done.returncode == 0 and done.stdout.startswith("Loading fresh.safetensors (id ")
    wait_until(lambda: all(m["state"] == "resident" for m in daemon.models()))


def test_tensors_of_what_is_not_in_memory_ask_for_a_load(daemon, tmp_path):
    path = tmp_path / "gone.safetensors"
    make_safetensors(path, {"w": ("F32", [16])})
    assert ctl(daemon, "load", path).returncode == 0
    assert "1 tensor in 1 block," in ctl(daemon, "show", "gone").stdout
    assert ctl(daemon, "unload", "gone").returncode == 0
    done = ctl(daemon, "show", path, "--tensors")
    assert done.returncode == 4 and "distorchctl load" in done.stderr
    assert ctl_json(daemon, "show", path, "--tensors", status=4)["error"]["code"] == "not-resident"


def test_names_in_tables_are_escaped_once(daemon, make_model):
    ctl(daemon, "load", make_model("esc\033[1m.safetensors"))
    for environment in ({}, {"LANG": "C"}):
        table = ctl(daemon, "ps", environment=environment).stdout
        assert "esc\\x1b[1m.safetensors" in table


def test_no_color_counts_where_it_is_not_empty(daemon):
    for no_color, has_color in (("", True), ("1", False)):
        said = on_terminal(daemon, ["show", "nosuch"], 80, 4, NO_COLOR=no_color)
        assert ("\033[" in said) == has_color, said


def test_csv_has_plain_numbers(daemon, make_model):
    path = make_model("plain.safetensors")
    ctl(daemon, "load", path)
    head, row = (line.split(",") for line in ctl(daemon, "ps", "-o", "csv").stdout.splitlines())
    cells = dict(zip(head, row))
    assert int(cells["SIZE"]) == os.stat(path).st_size
    assert int(cells["LAST USED"]) < 60
    assert len(cells["ID"]) == 32
    head, row = (line.split(",") for line in ctl(daemon, "clients", "-o", "csv").stdout.splitlines())
    assert dict(zip(head, row))["HOLDS"] == "0"


def test_csv_names_devices_as_json_does(start_daemon, make_model):
    daemon = start_daemon("memory.ram=64M", "sim.count=1", "sim.memory=64M")
    paths = [make_model(f"{i}.safetensors", seed=i, size=1 << 20) for i in range(2)]
    assert ctl(daemon, "load", paths[0]).returncode == 0
    assert ctl(daemon, "load", "--to", "sim:0", paths[1]).returncode == 0
    head, *rows = (line.split(",") for line in ctl(daemon, "ps", "-o", "csv").stdout.splitlines())
    named = {row[0]: dict(zip(head, row))["WHERE"] for row in rows}
    assert named == {"0.safetensors": "cpu", "1.safetensors": "sim:0"}
    assert " ram " in ctl(daemon, "ps").stdout, "people's word"


def test_json_is_utf8_whatever_was_typed(daemon, tmp_path):
    path = os.fsencode(tmp_path) + b"/n\xff\xc3\xa9\xed\xa0\x80\xc3.safetensors"
    with open(path, "wb") as file:
        file.write(b"x" * 100)
    env = {**os.environ, "DISTORCH_SOCKET": str(daemon.socket)}

    def said(*words):
        return json.loads(subprocess.run([CTL, *words, "--json"], capture_output=True, env=env,
                                         timeout=60).stdout.decode())

    failed = said("load", path)["errors"][0]
    assert failed["path"] == f"{tmp_path}/n?é????.safetensors"
    assert "n?é????.safetensors" in failed["message"], "the daemon writes it alike"
    assert said(b"l\xffd")["error"]["message"] == 'there is no verb "l?d"'
    assert '"?é"' in said("devices", b"\xff\xc3\xa9")["error"]["message"]


def test_a_path_of_bytes_that_cannot_be_asked_for_is_refused(daemon, make_model, tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff")
    os.mkdir(folder)
    path = os.path.join(folder, "m.safetensors")
    os.rename(make_model(), path)
    assert ctl(daemon, "load", path).returncode == 0
    model = ctl_json(daemon, "ps")["models"][0]
    for words in (["show", path], ["unload", path], ["unload", "--under", folder], ["why", path],
                  ["pin", path], ["place", path, "ram"]):
        done = ctl(daemon, *words)
        assert done.returncode == 2, (words, done)
        assert "/d\\xff" in done.stderr and "not UTF-8" in done.stderr, done.stderr
        assert "distorchctl ps" in done.stderr
    assert ctl(daemon, "plan", path, "ram").returncode == 0, "by the file"
    assert "unloaded" in ctl(daemon, "unload", model["id"]).stdout


@pytest.mark.parametrize("words", [
    ["load", "--help"], ["--help"], ["--version"], ["help", "load"], ["ps"], ["ps", "-w"],
    ["version", "--json"], ["make-room", "1M", "--device", "ram"], ["lod", "--json"],
    ["load", "--priority", "999", "--json", "x"]], ids=" ".join)
def test_what_cannot_be_written_is_told(daemon, words):
    env = {**os.environ, "DISTORCH_SOCKET": str(daemon.socket)}
    with open("/dev/full", "w") as full:
        done = subprocess.run([CTL, *words], stdout=full, stderr=subprocess.PIPE, text=True,
                              env=env, timeout=60)
    assert done.returncode == (2 if words[-1] == "x" or words[0] == "lod" else 1)
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def test_events_end_where_they_cannot_be_written(daemon, make_model):
    ctl(daemon, "load", make_model("m.safetensors"))
    with open("/dev/full", "w") as full:
        follow = subprocess.Popen([CTL, "events"], stdout=full, stderr=subprocess.DEVNULL,
                                  env={**os.environ, "DISTORCH_SOCKET": str(daemon.socket)})
    wait_until(lambda: [ctl(daemon, verb, "m") for verb in ("pin", "unpin")] and
               follow.poll() is not None, 20 * slowness())
    assert follow.returncode == 1


def test_narrow_terminals_show_less_and_cut_names(daemon, make_model):
    ctl(daemon, "load", make_model("a-rather-long-name-of-a-model.safetensors"))
    narrow = on_terminal(daemon, ["ps"], 50).splitlines()
    assert "ID" not in narrow[0].split() and "LAST" not in narrow[0]
    assert "…" in narrow[1] and max(map(len, narrow)) <= 50
    wide = on_terminal(daemon, ["ps"], 120)
    assert "LAST USED" in wide and "…" not in wide


def test_ps_tells_a_pattern_from_nothing_and_from_a_time(daemon, make_model):
    ctl(daemon, "load", make_model("there.safetensors"))
    assert ctl(daemon, "ps", "nothing*").stdout == "No model matches 'nothing*'.\n"
    for words in (["-w", "1s"], ["--watch", "500ms"], ["-w", "0"]):
        done = ctl(daemon, "ps", *words)
        assert done.returncode == 2 and "ps --watch=" in done.stderr, words
    assert ctl(daemon, "ps", "--watch=0").returncode == 2
    assert ctl(daemon, "ps", "--watch=often").returncode == 2


def test_old_events_carry_their_date(daemon, make_model):
    ctl(daemon, "load", make_model("dated.safetensors"))
    today = time.strftime("%Y-")
    assert not ctl(daemon, "events", "--since", "1h").stdout.startswith(today)
    assert ctl(daemon, "events", "--since", "25h").stdout.startswith(today)


def test_doctor_reports_an_absent_socket_once():
    answer = json.loads(ctl(None, "doctor", "--json").stdout)
    assert [check["ok"] for check in answer["checks"]].count(False) == answer["findings"] == 1


def test_a_held_model_is_said_to_go_later(daemon, make_model, connect):
    path = make_model("held.safetensors")
    with connect() as d, d.open(path):
        line = ctl(daemon, "unload", "held").stdout.splitlines()[0]
    assert line.startswith("held ") and "will be freed when its last user closes it" in line


# ---- load ------------------------------------------------------------------------------


def test_a_file_that_fails_does_not_stop_the_others(daemon, tmp_path, make_model):
    good = [make_model(f"good-{i}.safetensors", seed=i) for i in range(2)]
    pickle = tmp_path / "old.ckpt"
    pickle.write_bytes(b"\x80\x02}q\x00.")
    files = [good[0], tmp_path / "absent", pickle, good[1]]
    done = ctl(daemon, "load", *files)
    assert done.returncode == 4, "the first failure's"
    assert done.stderr.count("error:") == 2
    assert {m["name"] for m in daemon.models()} >= {"good-0.safetensors", "good-1.safetensors"}
    answer = ctl_json(daemon, "load", *files, status=4)
    assert [m["name"] for m in answer["models"]] == ["good-0.safetensors", "good-1.safetensors"]
    assert [e["path"] for e in answer["errors"]] == [str(files[1]), str(files[2])]
    assert answer["error"]["code"] == answer["errors"][0]["code"] == "not-found"


def test_what_was_wished_is_said_back(daemon, make_model):
    path = make_model("wish.safetensors")
    assert ctl(daemon, "load", "--keep", path).stdout.endswith("ms. Kept.\n")
    said = ctl(daemon, "load", "--pin", "--keep", "--for", "2h", path).stdout
    assert said.endswith("is in ram already. Pinned and kept for 2h.\n")
    assert ctl(daemon, "load", path).stdout.endswith("is in ram already.\n")
    assert ctl(daemon, "pin", "--for", "90m", "wish").stdout.endswith(") for 1h 30m\n")
    assert ctl(daemon, "keep", "wish").stdout.endswith(")\n")
    lines = ctl(daemon, "show", "wish").stdout.splitlines()
    assert any(line.startswith(f"wish       uid {os.getuid()}: pinned for 1h ") and
               line.endswith(" more, kept") for line in lines), lines
    assert ctl(daemon, "load", "--priority", "3", path).returncode == 0
    assert " more, kept, priority 3" in ctl(daemon, "show", "wish").stdout


def test_what_a_load_that_fails_says_is_not_said(daemon, make_model, tmp_path):
    path = make_model("wish.safetensors")
    no_model = tmp_path / "no_model.safetensors"
    no_model.write_text("print()")
    said = "--pin", "--keep", "--priority", "3"
    assert ctl(daemon, "load", *said, "--to", "simm:0", path).returncode == 2
    assert ctl(daemon, "load", *said, no_model).returncode != 0
    assert ctl(daemon, "show", "wish").returncode == 4, "nothing was asked of it"
    shown = ctl_json(daemon, "show", "no_model")
    assert not shown["pinned"] and not shown["keep"], shown
    assert "priority" not in ctl(daemon, "show", "no_model").stdout
    assert ctl(daemon, "load", path).returncode == 0
    assert not ctl_json(daemon, "show", "wish")["pinned"]
    assert ctl(daemon, "load", "--pin", "--to", "simm:0", path).returncode == 2
    assert not ctl_json(daemon, "show", "wish")["pinned"], "nor of what is resident"
    assert ctl(daemon, "pin", "wish").returncode == 0
    assert ctl(daemon, "load", "--keep", "--to", "simm:0", path).returncode == 2
    assert ctl_json(daemon, "show", "wish")["pinned"], "that was said before"


def test_an_unload_of_a_wish_alone_says_that_it_is_withdrawn(daemon, make_model):
    path = make_model("wish.safetensors")
    assert ctl(daemon, "load", path).returncode == 0
    assert ctl(daemon, "unload", "wish").returncode == 0
    assert ctl(daemon, "pin", "wish").returncode == 0
    done = ctl(daemon, "unload", "--device", "ram", "wish")
    assert done.stdout == "Nothing there to unload.\n", done
    assert ctl_json(daemon, "show", "wish")["pinned"]
    done = ctl(daemon, "unload", "wish")
    assert done.stdout == "Nothing there to unload; nothing of it is pinned or kept now.\n", done
    assert not ctl_json(daemon, "show", "wish")["pinned"]


def test_for_bounds_the_pin_that_is_said_with_it(daemon, make_model):
    path = make_model("short.safetensors")
    assert ctl(daemon, "load", "--pin", "--for", f"{2 * slowness()}s", path).returncode == 0
    assert ctl_json(daemon, "show", "short")["pinned"]
    wait_until(lambda: not ctl_json(daemon, "show", "short")["pinned"])
    assert ctl_json(daemon, "show", "short")["state"] == "resident", "only the pin lapses"
    assert ctl(daemon, "load", "--for", "300ms", make_model("brief.safetensors", seed=1)).returncode == 0
    wait_until(lambda: ctl_json(daemon, "show", "brief")["state"] == "registered")


class OtherDaemon:
    """Answers hello and then one load, with an error of the test's making."""

    def __init__(self, folder, error):
        self.socket = folder / "other.sock"
        self.error = error
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(self.socket))
        self.listener.listen(1)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        limits = {"packet_bytes": 65536, "fds_per_packet": 8, "requests_in_flight": 32,
                  "output_bytes": 1 << 20, "connections": 8, "connections_per_user": 8}
        hello = {"protocol": 1, "server": "other/1", "epoch": 1, "limits": limits, "role": "user",
                 "client": 1}
        with self.listener, self.listener.accept()[0] as connection:
            for error, result in ((None, hello), (self.error, None)):
                number = msgpack.unpackb(connection.recv(65536))[1]
                connection.send(msgpack.packb([1, number, error, result]))
            connection.recv(1)


def test_a_refusal_names_who_holds_the_memory(tmp_path, make_model):
    holder = {"client": 3, "pid": 4711, "uid": 1000, "comm": "tra\033iner", "held_bytes": 3 << 30}
    other = OtherDaemon(tmp_path, {
        "code": "no-memory", "message": "not enough memory", "retryable": True,
        "detail": {"need": 1, "holders": [holder]}})
    done = ctl(other, "load", make_model("refused.safetensors"))
    other.thread.join(10)
    assert done.returncode == 6
    assert "held:  3.0G by PID 4711 (tra\\x1biner), uid 1000" in done.stderr


@pytest.mark.daemon("memory.ram=48M")
def test_a_refusal_as_json_says_what_is_in_the_way(daemon, make_model, raw):
    size = 16 << 20
    used = make_model("used.safetensors", size=size, seed=2)
    raw.load(make_model("pinned.safetensors", size=size), policy={"pin": True})
    raw.load(used)
    lease, fds = raw.attach(used)
    close_all(fds)
    error = ctl_json(daemon, "load", make_model("more.safetensors", size=2 * size), status=6)
    detail = error["error"]["detail"]
    assert size <= detail["pinned"] < 2 * size and size <= detail["in_use"] < 2 * size, detail
    assert detail["uids"] == [os.getuid()]
    assert [holder["pid"] for holder in detail["holders"]] == [os.getpid()]
    raw.call("detach", {"lease": lease["lease"]})


# ---- what users of the library compile -------------------------------------------------


def test_an_installed_tree_can_be_moved_and_compiled_against(daemon, tmp_path):
    if not shutil.which("pkg-config") or not (BUILD / "cmake_install.cmake").exists():
        pytest.skip("needs pkg-config and a build folder")
    if "asan" in BUILD.name or "tsan" in BUILD.name:
        pytest.skip("an example without the sanitizer cannot load the library")
    subprocess.run(["cmake", "--install", BUILD, "--prefix", tmp_path / "first"], check=True,
                   capture_output=True, timeout=60)
    root = (tmp_path / "first").rename(tmp_path / "moved")
    for shell, place in (("bash", "bash-completion/completions/distorchctl"),
                         ("zsh", "zsh/site-functions/_distorchctl"),
                         ("fish", "fish/vendor_completions.d/distorchctl.fish")):
        assert (root / "share" / place).read_text() == ctl(None, "completion", shell).stdout
    pc = next(root.rglob("distorch.pc"))
    environment = {**os.environ, "PKG_CONFIG_PATH": str(pc.parent),
                   "DISTORCH_SOCKET": str(daemon.socket)}
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "distorch"], env=environment,
                           check=True, capture_output=True, text=True).stdout.split()
    make_safetensors(tmp_path / "one.safetensors", {"bad\033name": ("U8", [16])})
    for source, said in (("load.c", b" 1 tensor, from disk"), ("tensors.cpp", b"bad\\x1bname U8"),
                         ("placed.c", b"\t16\tcpu\t"),
                         ("unload_not_kept.c", b"unloaded ")):
        program = tmp_path / source.split(".")[0]
        compiler = ["c++", "-std=c++17"] if source.endswith("cpp") else ["cc", "-std=c99"]
        subprocess.run([*compiler, ROOT / "docs" / "examples" / source, *flags,
                        f"-Wl,-rpath,{pc.parent.parent}", "-o", program], check=True, timeout=60)
        words = [] if source == "unload_not_kept.c" else [tmp_path / "one.safetensors"]
        done = subprocess.run([program, *words], env=environment, capture_output=True, timeout=20)
        assert done.returncode == 0 and said in done.stdout, done
        assert b"\033" not in done.stdout
        environment["DISTORCH_SOCKET"] = "/nonexistent/d.sock"
        done = subprocess.run([program, *words], env=environment, capture_output=True, timeout=20)
        assert done.returncode == 3 and b"hint: " in done.stderr, done
        environment["DISTORCH_SOCKET"] = str(daemon.socket)
