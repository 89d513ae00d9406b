# SPDX-License-Identifier: Apache-2.0
"""distorchctl metrics, store and completion: what whoever runs the daemon looks at."""
import os
import re
import shutil
import subprocess

import metrics
import pytest
from conftest import BUILD, ROOT, RawError, close_all, wait_until
from placed import make_blocks
from store import StoredDaemon
from test_ctl import CTL, ctl, ctl_json
from test_wire_hostile import as_nobody, needs_root

MIB = 1 << 20


def scrape(daemon):
    done = ctl(daemon, "metrics")
    assert done.returncode == 0, done.stderr
    return metrics.read(done.stdout)


def all_values(families):
    return {value for family in families.values() for key in family.samples for _, value in key}


# ---- metrics -----------------------------------------------------------------------------


def test_metrics_count_what_happens(daemon, tmp_path, make_model):
    path = make_model("counted.safetensors")
    size = os.stat(path).st_size
    broken = make_model("broken.safetensors")
    os.truncate(broken, os.stat(broken).st_size - 1000)
    before = scrape(daemon)
    assert before["distorchd_models"][{"tier": "ram", "state": "resident"}] == 0
    with daemon.raw() as raw:
        raw.load(path)
        raw.load(path)
        result, fds = raw.attach(path)
        close_all(fds)
        with pytest.raises(RawError):
            raw.load(broken)
        for method, params in (("show", {"model": "nosuch"}), ("nosuch", {})):
            with pytest.raises(RawError):
                raw.call(method, params)
        raw.call("set", {"model": "counted", "policy": {"pin": True}})
        now = scrape(daemon)
        raw.call("unmapped", {"lease": result["lease"]})
        raw.call("detach", {"lease": result["lease"]})
        raw.call("unload", {"select": {"models": ["counted"]}})
    loads = now["distorchd_loads"]
    assert loads[{"result": "done", "source": "disk"}] == 1
    assert loads[{"result": "done", "source": "ram"}] == 1
    assert loads[{"result": "failed", "source": "disk"}] == 1
    assert now["distorchd_load_bytes"][{}] == size
    took = now["distorchd_load_seconds"]
    assert took[{"": "_count"}] == 1 and took[{"": "_sum"}] > 0
    assert now["distorchd_seconds_saved"][{}] <= 2 * took[{"": "_sum"}] + 0.001
    assert now["distorchd_load_inflight"][{}] == 0
    turns = now["distorchd_loop_lag_seconds"]
    assert turns[{"": "_count"}] > before["distorchd_loop_lag_seconds"][{"": "_count"}] > 0
    assert turns[{"": "_sum"}] < now["process_cpu_seconds"][{}] + 60, "time that it waited is not in it"
    assert now["distorchd_verify_failures"][{"tier": "ram"}] == 0
    assert now["distorchd_hits"][{"tier": "ram"}] == 2 and now["distorchd_misses"][{}] == 1
    assert now["distorchd_leases"][{}] == 1 and now["distorchd_clients"][{}] == 2
    models = now["distorchd_models"]
    assert models[{"tier": "ram", "state": "resident"}] == 1
    assert models[{"tier": "none", "state": "failed"}] == 1
    memory = {name: now[f"distorchd_{name}_bytes"][{"tier": "ram"}]
              for name in ("budget", "free", "model", "pinned", "held")}
    assert memory["budget"] == 1 << 30 and memory["pinned"] == memory["model"] >= size
    assert memory["free"] == memory["budget"] - memory["model"] and memory["held"] == 0
    requests = now["distorchd_requests"]
    assert requests[{"verb": "load", "code": "ok"}] == 2
    assert requests[{"verb": "show", "code": "not-found"}] == 1
    assert requests[{"verb": "unknown", "code": "unknown-method"}] == 1
    after = scrape(daemon)
    assert after["distorchd_evictions"][{"reason": "user"}] == 1
    assert after["distorchd_connections"][{"result": "served"}] > \
        before["distorchd_connections"][{"result": "served"}]
    for older, newer in ((before, now), (now, after)):
        assert set(older) == set(newer)
        for name, family in older.items():
            for key, value in family.samples.items():
                assert family.kind != "counter" or newer[name].samples[key] >= value, name
    assert after["distorchd_start_time_seconds"].samples == \
        before["distorchd_start_time_seconds"].samples


def test_evictions_and_refusals_are_counted_by_their_reason(start_daemon, make_model):
    daemon = start_daemon("memory.ram=8M", "memory.reserve=0")
    with daemon.raw() as raw:
        for seed in range(2):
            raw.load(make_model(f"m{seed}.safetensors", size=5 * MIB, seed=seed))
        with pytest.raises(RawError):
            raw.load(make_model("large.safetensors", size=9 * MIB, seed=9))
        raw.call("set", {"model": "m1", "policy": {"ttl_ms": 1}})
        wait_until(lambda: scrape(daemon)["distorchd_evictions"][{"reason": "idle"}] == 1)
    now = scrape(daemon)
    assert now["distorchd_evictions"][{"reason": "budget"}] == 1
    assert now["distorchd_evictions"][{"reason": "user"}] == 0
    assert now["distorchd_loads"][{"result": "refused", "source": "disk"}] == 1


def test_what_leaves_a_device_is_counted_by_its_reason_too(start_daemon, tmp_path):
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "gpu.budget=100%", "gpu.linger=1s",
                          "memory.ram=256M", "memory.reserve=0")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [2 * MIB] * 4)

    def counted():
        return {key[0][1]: value for key, value in
                scrape(daemon)["distorchd_evictions"].samples.items()}

    assert ctl(daemon, "load", path, "--to", "sim:0", "--pin").returncode == 0
    assert ctl(daemon, "place", path.name, "ram").returncode == 0
    assert not any(counted().values()), "a move that was asked for"
    assert ctl(daemon, "place", path.name, "sim:0").returncode == 0
    assert ctl(daemon, "unpin", path.name).returncode == 0
    wait_until(lambda: counted()["idle"] == 1)
    assert sum(counted().values()) == 1, "it went to RAM, and once"
    assert ctl(daemon, "place", path.name, "sim:0").returncode == 0
    assert ctl(daemon, "make-room", "60M", "--device", "sim:0", "--", "true").returncode == 0
    assert counted()["budget"] == 1


def test_a_tier_counts_the_models_that_have_tensors_there(start_daemon, tmp_path):
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "gpu.budget=100%", "memory.ram=256M",
                          "memory.reserve=0")
    path = tmp_path / "m.safetensors"
    make_blocks(path, [2 * MIB] * 4)

    def counted():
        models = scrape(daemon)["distorchd_models"]
        return {tier: models[{"tier": tier, "state": "resident"}]
                for tier in ("ram", "sim:0", "none")}

    for allocation, told in (("sim:0", {"ram": 0, "sim:0": 1, "none": 0}),
                             ("sim:0,4M;cpu,*", {"ram": 1, "sim:0": 1, "none": 0}),
                             ("cpu", {"ram": 1, "sim:0": 0, "none": 0})):
        assert ctl(daemon, "load", path, "--to", allocation).returncode == 0
        wait_until(lambda: counted() == told, what=allocation)
        devices = ctl_json(daemon, "devices")["devices"]
        assert [one["models"] for one in devices] == [told["ram"], told["sim:0"]]


def test_no_label_says_what_a_client_said(daemon, make_model):
    before = all_values(scrape(daemon))
    for number, name in enumerate(('quo"te.safetensors', "line\nbreak.safetensors", "plain.safetensors")):
        assert ctl(daemon, "load", make_model(name, seed=number)).returncode == 0
    with daemon.raw() as raw:
        for method in ('x"} 1\n', "distorchd_evil"):
            with pytest.raises(RawError):
                raw.call(method)
    fresh = all_values(scrape(daemon)) - before
    assert fresh == {"load", "unknown", "unknown-method", "metrics"}, fresh


@pytest.mark.fault("U09")
@pytest.mark.daemon("limits.connections=1100", "limits.connections-per-user=1100")
def test_a_scrape_among_500_clients_has_as_many_series_as_ever(daemon, make_model):
    path = make_model()

    def use(raw):
        raw.load(path)
        raw.call("metrics")

    with daemon.raw() as first:
        use(first)
        alone = metrics.read(first.call("metrics")["text"])
    clients = [daemon.raw() for _ in range(500)]
    try:
        for raw in clients:
            use(raw)
        scrapes = [(raw, raw.request("metrics")) for raw in clients]
        texts = [raw.wait(number)[1]["text"] for raw, number in scrapes]
        crowded = [metrics.read(text) for text in (texts[0], texts[-1])]
    finally:
        for raw in clients:
            raw.close()
    assert max(map(len, texts)) < 16384
    for one in crowded:
        assert one["distorchd_clients"][{}] == 500
        assert {name: set(family.samples) for name, family in one.items()} == \
            {name: set(family.samples) for name, family in alone.items()}


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool, of the package prometheus")
def test_promtool_finds_nothing(daemon, make_model):
    ctl(daemon, "load", make_model())
    text = ctl(daemon, "metrics").stdout
    done = subprocess.run(["promtool", "check", "metrics"], input=metrics.older(text), text=True,
                          capture_output=True, timeout=20)
    assert done.returncode == 0 and not done.stdout + done.stderr, done
    # As it is: no fault of form (1), only what that reader misses (3).
    done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True,
                          capture_output=True, timeout=20)
    assert done.returncode in (0, 3), done


def test_the_documentation_has_every_metric(start_daemon):
    daemon = start_daemon("sim.count=1")  # some are of devices other than the host
    found = {family.name + ("_total" if family.kind == "counter" else "")
             for family in scrape(daemon).values()}
    rows = [line.split("|") for line in (ROOT / "docs" / "metrics.md").read_text().splitlines()
            if line.startswith(("| `distorchd_", "| `process_"))]
    documented = {name for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    # What is swapped out is only known to the kernel of some machines.
    assert documented - {"distorchd_swapped_bytes"} <= found <= documented


def test_metrics_and_store_are_there_from_python(connect):
    with connect() as d:
        assert metrics.read(d.metrics())["distorchd_clients"][{}] >= 1
        store = d.store()
    assert not store.survives_restart and store.parked == [] and store.descriptors == 0


@needs_root
def test_metrics_and_store_need_an_administrator(daemon):
    def ask():
        codes = []
        with daemon.raw() as raw:
            for method in ("metrics", "store"):
                try:
                    raw.call(method)
                except RawError as failure:
                    codes.append(failure.code)
        return " ".join(codes)

    assert as_nobody(daemon, ask) == "not-allowed not-allowed"


@pytest.mark.parametrize("verb", ["metrics", "store"])
def test_without_a_daemon_they_fail_in_words(verb):
    done = ctl(None, verb)
    assert done.returncode == 3 and not done.stdout and done.stderr.startswith("error: ")


def test_the_reader_of_these_tests_refuses_what_is_wrong():
    good = "# TYPE a counter\n# HELP a h\na_total 1\n# EOF\n"
    assert metrics.read(good)["a"][{}] == 1
    for old, new in (("# EOF\n", ""), ("a_total 1", "a 1"), ("a_total 1", "a_total 1\na_total 2"),
                     ("counter", "info"), ("# HELP a h\n", ""), ("a_total 1", "a_total -1"),
                     ("a_total 1", 'a_total{x="1} 1'), ("a_total 1", 'a_total{x="1",x="2"} 1'),
                     ("# TYPE a", "# TYPE a_bytes"), ("a_total 1", "a_total one"),
                     ("counter", "histogram"), ("# EOF", "# TYPE a_total gauge\n# HELP a_total h\na_total 1\n# EOF")):
        with pytest.raises(AssertionError):
            metrics.read(good.replace(old, new))


# ---- store -------------------------------------------------------------------------------


def stored_daemon(start_daemon, limit=1000):
    def kind(*arguments):
        daemon = StoredDaemon(*arguments)
        daemon.limit = limit
        return daemon

    return start_daemon("memory.ram=1G", "memory.reserve=0", kind=kind)


def names_kept(daemon):
    daemon.drain()
    return sorted(name for name, _fd in daemon.kept)


def test_store_lists_what_is_parked_and_no_more(start_daemon, make_model):
    daemon = stored_daemon(start_daemon)
    paths = [make_model(f"m{number}.safetensors", seed=number) for number in range(2)]
    for path in paths:
        assert ctl(daemon, "load", path).returncode == 0
    answer = ctl_json(daemon, "store")
    assert answer["survives_restart"] is True and answer["max_descriptors"] == 1000
    parked = answer["parked"]
    wait_until(lambda: names_kept(daemon) == sorted(one["name"] for one in parked))
    assert answer["descriptors"] == len(parked) == 8
    sizes = {name: os.fstat(fd).st_size for name, fd in daemon.kept}
    for one in parked:
        assert one["bytes"] == (None if one["kind"] == "socket" else sizes[one["name"]])
        assert one["state"] == ("sent" if one["kind"] == "socket" else "kept")
    ids = {model["name"]: model["id"] for model in daemon.models()}
    assert sorted((one["kind"], one["model_name"]) for one in parked if one["model"]) == \
        sorted((kind, path.name) for path in paths for kind in ("image", "source", "table"))
    assert all(one["model"] == ids[one["model_name"]] and one["generation"] == 1
               for one in parked if one["model"])
    assert answer["bytes"] == sum(os.stat(path).st_size for path in paths)
    assert scrape(daemon)["distorchd_store_fds"][{}] == 8

    daemon.die()
    daemon.start()
    again = {one["name"]: one for one in ctl_json(daemon, "store")["parked"]}
    assert {one["name"] for one in parked if one["kind"] != "ledger"} < set(again)
    assert len(again) == 8 and all(one["state"] == "kept" for one in again.values())
    now = scrape(daemon)
    assert now["distorchd_adopted"][{"result": "done"}] == 2
    assert now["distorchd_restarts"][{}] == 1
    assert ctl(daemon, "unload", "m0").returncode == 0
    wait_until(lambda: ctl_json(daemon, "store")["descriptors"] == 5)
    assert "m0.safetensors" not in ctl(daemon, "store").stdout


def test_store_shows_a_changed_file_as_two_generations_while_one_is_used(start_daemon, make_model):
    daemon = stored_daemon(start_daemon)
    path = make_model("twice.safetensors", seed=1)
    with daemon.raw() as raw:
        raw.load(path)
        result, fds = raw.attach(path)
        close_all(fds)
        content = make_model("other.safetensors", seed=2).read_bytes()
        path.write_bytes(content)
        raw.load(path)
        lines = [one for one in ctl_json(daemon, "store")["parked"] if one["model"]]
        assert sorted((one["kind"], one["generation"]) for one in lines) == \
            [("image", 1), ("image", 2), ("source", 1), ("table", 1), ("table", 2)], \
            "the file once, for both"
        raw.call("unmapped", {"lease": result["lease"]})
        raw.call("detach", {"lease": result["lease"]})
        wait_until(lambda: ctl_json(daemon, "store")["descriptors"] == 5)


def test_store_says_what_found_no_place(start_daemon, make_model):
    daemon = stored_daemon(start_daemon, limit=6)
    for number in range(2):
        assert ctl(daemon, "load", make_model(f"m{number}.safetensors", seed=number)).returncode == 0
    answer = ctl_json(daemon, "store")
    assert answer["descriptors"] == len(answer["parked"]) == 5 and answer["max_descriptors"] == 6
    assert {one["model_name"] for one in answer["parked"]} == {None, "m0.safetensors"}


def test_store_tells_what_nobody_has_confirmed(start_daemon, make_model):
    daemon = stored_daemon(start_daemon)
    daemon.is_deaf = True
    try:
        for number in range(2):  # the first may still be heard
            ctl(daemon, "load", make_model(f"m{number}.safetensors", seed=number))
        parked = ctl_json(daemon, "store")["parked"]
    finally:
        daemon.is_deaf = False
    assert [one["state"] for one in parked if one["model_name"] == "m1.safetensors"] == ["sent"] * 3


def test_store_says_that_nobody_keeps_anything(daemon, make_model):
    assert ctl(daemon, "load", make_model()).returncode == 0
    done = ctl(daemon, "store")
    assert done.returncode == 0 and "do not survive a restart" in done.stdout
    assert "distorchd-hold" in done.stdout
    answer = ctl_json(daemon, "store")
    assert (answer["survives_restart"], answer["descriptors"], answer["max_descriptors"],
            answer["parked"]) == (False, 0, 0, [])
    assert scrape(daemon)["distorchd_store_fds"][{}] == 0


def test_store_is_a_table_for_people_and_csv_for_scripts(held, make_model):
    assert ctl(held, "load", make_model("esc\033[1m.safetensors")).returncode == 0
    done = ctl(held, "store", "-o", "wide")
    assert "\033" not in done.stdout and "esc\\x1b[1m.safetensors" in done.stdout
    first, head, *lines = done.stdout.splitlines()
    assert first.startswith("survives a restart: yes") and head.split()[0] == "KIND"
    assert sorted(line.split()[0] for line in lines) == \
        ["image", "ledger", "socket", "source", "table"]
    head, *lines = ctl(held, "store", "-o", "csv").stdout.splitlines()
    assert head.startswith("KIND,MODEL,ID,GENERATION,SIZE,STATE") and len(lines) == 5


# ---- completion --------------------------------------------------------------------------

SHELLS = ("bash", "zsh", "fish")


def script(shell):
    done = ctl(None, "completion", shell)
    assert done.returncode == 0 and not done.stderr
    return done.stdout


def environment(daemon):
    return {**os.environ, "PATH": f"{BUILD / 'bin'}:{os.environ['PATH']}", "LANG": "C.UTF-8",
            "DISTORCH_SOCKET": str(daemon.socket) if daemon else "/nonexistent/d.sock"}


def bash(daemon, *words, folder=None):
    """What TAB behind these words, the last of them begun, would put in its place."""
    code = ("source <(distorchctl completion bash)\n"
            'COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))\n'
            '_distorchctl\n((${#COMPREPLY[@]})) && printf "%s\\n" "${COMPREPLY[@]}"\ntrue')
    done = subprocess.run(["bash", "--norc", "-c", code, "bash", "distorchctl", *words], text=True,
                          env=environment(daemon), capture_output=True, timeout=60, cwd=folder)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.splitlines()


def verbs():
    """{name: every name it has} of the verbs of the help."""
    return {verb["name"]: [verb["name"], *verb["aliases"]]
            for verb in ctl_json(None, "help")["verbs"]}


def options(verb):
    """The long options that its help lists."""
    return set(re.findall(r"^ {2,6}(?:-\S, )?(--[a-z-]+)", ctl(None, verb, "--help").stdout, re.M))


def test_every_verb_and_option_can_be_completed():
    assert set(bash(None, "")) == {name for names in verbs().values() for name in names}
    for verb, names in verbs().items():
        wanted = options(verb)
        assert {"--socket", "--help"} <= wanted
        for name in names:
            assert {word for word in bash(None, name, "--")} == wanted, name
    for shell in ("zsh", "fish"):
        text = script(shell)
        for verb, names in verbs().items():
            for option in options(verb):
                pattern = {"zsh": rf"'{option}[=\[]", "fish": rf"-l {option[2:]} "}[shell]
                assert re.search(pattern, text), (shell, option)
            for name in names:
                assert re.search({"zsh": rf"'{name}:", "fish": rf"-a '(\S+ )*{name}[ ']"}[shell],
                                 text), (shell, name)


def test_values_and_words_are_offered_where_they_belong(daemon, tmp_path):
    (tmp_path / "a model.safetensors").touch()
    (tmp_path / "folder").mkdir()
    assert bash(daemon, "ps", "-o", "js") == ["json", "jsonl"]
    assert bash(daemon, "ps", "--output", "=", "js") == ["json", "jsonl"], "three words in bash"
    assert bash(daemon, "--output", "csv", "un") == ["unload", "unpin", "unkeep"]
    assert bash(daemon, "load", "a", folder=tmp_path) == ["a model.safetensors"], "readline quotes"
    assert bash(daemon, "unload", "--under", "", folder=tmp_path) == ["folder"]
    assert bash(daemon, "config", "") == ["show", "get", "set", "unset", "check", "path"]
    assert bash(daemon, "completion", "") == list(SHELLS)
    assert {"load", "exit-codes"} < set(bash(daemon, "help", ""))
    assert bash(daemon, "ping", "") == []


def test_values_that_are_offered_are_those_of_the_help():
    text = ctl(None, "load", "--help").stdout
    for option, count in (("--format", 4), ("--output", 6)):
        offered = bash(None, "load", option, "")
        described = re.search(rf"{option}=\w+ (.*?)\n {{2,6}}-", text, re.S)[1]
        assert len(offered) == count and all(word in described for word in offered), option


def test_models_are_completed_by_name_else_by_id(daemon, make_model):
    names = ["flux dev.safetensors", "flex.safetensors", "line\nbreak.safetensors"]
    for number, name in enumerate(names):
        assert ctl(daemon, "load", make_model(name, seed=number)).returncode == 0
    ids = {model["name"]: model["id"] for model in daemon.models()}
    assert bash(daemon, "show", "fl") == ["flux\\ dev.safetensors", "flex.safetensors"]
    assert bash(daemon, "show", "flux\\ d") == ["flux\\ dev.safetensors"]
    assert bash(daemon, "show", "'flux d") == ["flux dev.safetensors"]
    assert bash(daemon, "show", ids[names[0]][:8]) == [ids[names[0]]]
    assert ids[names[2]] in bash(daemon, "show", ""), "a name that no line holds is given by id"
    assert bash(daemon, "show", "nothing") == []
    assert bash(None, "show", "fl") == [], "without a daemon there is nothing, and no noise"
    assert bash(None, "--socket", str(daemon.socket), "show", "flex") == ["flex.safetensors"]
    answer = ctl_json(daemon, "completion", "models", "flex")
    assert answer["models"] == ["flex.safetensors"]


def test_names_are_never_evaluated(daemon, make_model, tmp_path):
    names = ["$(touch pwned).safetensors", "`touch pwned`.safetensors", "'; touch pwned; '.safetensors",
             "{a,b}*.safetensors", "~root.safetensors"]
    for number, name in enumerate(names):
        assert ctl(daemon, "load", make_model(f"m/{name}", seed=number)).returncode == 0
    offered = bash(daemon, "show", "", folder=tmp_path)
    assert not (tmp_path / "pwned").exists()
    done = subprocess.run(["bash", "-c", "printf '%s\\n' " + " ".join(offered)], text=True,
                          capture_output=True, cwd=tmp_path, timeout=20)
    assert sorted(done.stdout.splitlines()) == sorted(names), "as words of a line they are the names"
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts_are_what_the_shells_read(shell, tmp_path):
    path = tmp_path / "script"
    path.write_text(script(shell))
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    done = subprocess.run([shell, "-n", path], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert ctl_json(None, "completion", shell)["script"] == path.read_text()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_finds_nothing_in_the_script_for_bash():
    done = subprocess.run(["shellcheck", "-s", "bash", "-e", "SC2034,SC2086", "-"], text=True,
                          input=script("bash"), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_fish_completes(daemon, make_model, tmp_path):
    assert ctl(daemon, "load", make_model("$(touch pwned) x.safetensors")).returncode == 0

    def fish(line):
        done = subprocess.run(
            ["fish", "--no-config", "-c", "distorchctl completion fish | source; complete -C $argv[1]",
             line], text=True, capture_output=True, timeout=60, cwd=tmp_path,
            env={**environment(daemon), "HOME": str(tmp_path)})
        assert not done.stderr, done.stderr
        return [word.split("\t")[0] for word in done.stdout.splitlines()]

    assert set(fish("distorchctl ")) >= {name for names in verbs().values() for name in names}
    assert fish("distorchctl -o json un") == ["unkeep", "unload", "unpin"]
    assert set(fish("distorchctl unload --")) >= options("unload") - {"--usage"}
    assert fish("distorchctl ps -o js") == ["json", "jsonl"]
    assert "$(touch pwned) x.safetensors" in "".join(fish("distorchctl show ")).replace("\\", "")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_has_all_types_of_events_and_auto(daemon, shell):
    script = ctl(None, "completion", shell).stdout
    listed = re.search(r"(load load\.begun [a-z. ]+)", script)[1].split()
    told = re.search(r"\| `type` \| str \| ≤ 32 bytes \| required \| ([a-z., ]+) \|",
                     (ROOT / "docs" / "protocol.md").read_text())[1].split(", ")
    assert set(listed) == {"load", *told}
    assert "ram auto" in script
    assert ctl(daemon, "events", "--since", "1s", "--type", ",".join(listed)).returncode == 0


def test_events_refuse_a_type_that_there_is_not_however_they_are_asked_for(daemon):
    so_far = ctl(daemon, "events", "--since", "1h", "--type", "load,foo")
    assert so_far.returncode == 2 and "nothing is recorded as foo" in so_far.stderr
    from_now = ctl(daemon, "events", "--type", "load,foo")
    assert (from_now.returncode, from_now.stdout, from_now.stderr) == (2, "", so_far.stderr)
    assert ctl_json(daemon, "events", "--type", "foo", status=2) == \
        ctl_json(daemon, "events", "--type", "foo", "--since", "1h", status=2)


def test_completion_refuses_in_words():
    for words, said in ((["tcsh"], "bash, zsh or fish"), (["bash", "x"], "takes no"),
                        ([], "usage: distorchctl completion")):
        done = ctl(None, "completion", *words)
        assert done.returncode == 2 and said in done.stderr and not done.stdout
    done = ctl(None, "completion", "models")
    assert done.returncode == 3 and not done.stdout
    full = subprocess.run(f"'{CTL}' completion bash > /dev/full", shell=True, text=True,
                          capture_output=True, timeout=20)
    assert full.returncode == 1 and "cannot write the output" in full.stderr
