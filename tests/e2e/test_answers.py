# SPDX-License-Identifier: Apache-2.0
"""What people are told: names, reasons, numbers, and what there is instead of what they asked."""

import os
import re

import pytest
from conftest import RawError, close_all, let_others_in, make_safetensors, opened, wait_until
from test_ctl import ctl, ctl_json
from test_wire_hostile import as_nobody, needs_root

MIB = 1 << 20


def refusal(raw, method, params, fds=()):
    with pytest.raises(RawError) as caught:
        raw.call(method, params, fds)
    return caught.value.error


def make_same(tmp_path, n=2, name="same.safetensors"):
    """n different models of one base name, in the folders d0, d1, ..."""
    paths = []
    for number in range(n):
        (tmp_path / f"d{number}").mkdir()
        paths.append(tmp_path / f"d{number}" / name)
        make_safetensors(paths[-1], {"t": ("U8", [1 << 16])}, seed=number + 1)
    return paths


def cut_short(path):
    os.truncate(path, path.stat().st_size - 512)
    return path


# ---- names -----------------------------------------------------------------------------


@pytest.mark.daemon("limits.loads-per-user=1", "load.direct-io=off")
def test_a_load_not_waited_for_is_answered_with_name_and_path(daemon, make_model):
    paths = [make_model(f"{i}.safetensors", size=8 * MIB, seed=i) for i in range(3)]
    daemon.tell("fault pread:1:delay=50:ever")
    with daemon.raw() as raw, opened(paths[2]) as fd:
        for path in paths[:2]:  # the second has to wait its turn
            model = raw.load(path, no_wait=True)["model"]
            assert (model.get("name"), model.get("path")) == (path.name, str(path))
        number = raw.request("load", {}, [fd])
        wait_until(lambda: len(daemon.models()) == 3, what="the third load")
        assert {m["name"] for m in daemon.models()} == {p.name for p in paths}
        daemon.tell("clear")
        assert raw.wait(number)[1]["model"]["name"] == paths[2].name


def test_what_the_listing_calls_a_model_is_its_name_everywhere(daemon, raw, tmp_path):
    paths = make_same(tmp_path)
    for path in paths:
        raw.load(path)
    names = [f"d{i}/same.safetensors" for i in range(2)]
    assert sorted(m["name"] for m in daemon.models()) == names
    for word, name in (("d0/same", names[0]), ("d1/same", names[1]), (names[1], names[1])):
        assert raw.call("show", {"model": word})["model"]["name"] == name
    assert [c["name"] for c in raw.call("verify", {"models": ["d0/same"]})["checks"]] == names[:1]
    result = raw.call("unload", {"select": {"names": ["d1/*"]}})
    assert [o["name"] for o in result["unloaded"]] == names[1:]
    history = raw.call("events.history", {"types": ["unloaded"]})["records"]
    assert [r["name"] for r in history] == names[1:]
    assert daemon.status()["last"][-1]["name"] == names[1]
    assert "unloaded d1/same.safetensors" in daemon.log()


@pytest.mark.parametrize("n, told", [(2, ""), (3, " and 1 more"), (6, " and 4 more")])
def test_an_ambiguous_name_says_how_many_it_means(raw, tmp_path, n, told):
    for path in make_same(tmp_path, n):
        raw.load(path)
    error = refusal(raw, "show", {"model": "same"})
    assert error["code"] == "bad-argument" and f"means {n} models" in error["message"]
    assert error["hint"].endswith(told or "d1/same.safetensors"), error["hint"]
    assert len(error["detail"]["models"]) == min(n, 4)


def test_a_path_means_what_lies_there_and_not_what_was_replaced(raw, make_model):
    path = make_model("one.safetensors", seed=1)
    old = raw.load(path)["model"]["id"]
    fresh = make_model("fresh.safetensors", seed=2)
    os.rename(fresh, path)
    new = raw.load(path)["model"]["id"]
    for text in (str(path), "one.safetensors", "one"):
        assert raw.call("show", {"model": text})["model"]["id"] == new != old, text
    assert raw.call("show", {"model": old})["notice"].startswith("its file is gone")
    raw.call("unload", {"select": {"models": ["one"]}})
    assert raw.call("show", {"model": "one"})["model"]["id"] == new, "also when it is not loaded"
    raw.call("unload", {"select": {"all": True}})
    assert raw.call("show", {"model": "one"})["model"]["id"] == new
    os.rename(make_model("last.safetensors", seed=3), path)
    last = raw.load(path)["model"]["id"]
    assert raw.call("show", {"model": "one"})["model"]["id"] == last


def test_files_that_change_places_are_told_apart_by_who_came_last(raw, make_model, tmp_path):
    path, aside = make_model("one.safetensors", seed=1), tmp_path / "aside"
    first = raw.load(path)["model"]["id"]
    os.rename(path, aside)
    second = raw.load(make_model("one.safetensors", seed=2))["model"]["id"]
    os.rename(path, tmp_path / "other")
    os.rename(aside, path)
    assert raw.load(path)["model"]["id"] == first
    assert "means 2 models" in refusal(raw, "show", {"model": "one"})["message"], "both are there"
    raw.call("unload", {"select": {"all": True}})
    assert raw.call("show", {"model": str(path)})["model"]["id"] == first != second


def test_two_files_of_one_path_are_two_models_where_both_are_there(raw, make_model, tmp_path):
    """As seen from two containers, or after a mount: nobody knows which is meant."""
    path = make_model("one.safetensors", seed=1)
    raw.load(path)
    elsewhere = tmp_path / "elsewhere.safetensors"
    os.rename(path, elsewhere)
    raw.load(make_model("one.safetensors", seed=2))
    os.rename(elsewhere, tmp_path / "other.safetensors")
    error = refusal(raw, "show", {"model": "one"})
    assert error["code"] == "bad-argument" and "means 2 models" in error["message"]
    assert error["hint"].startswith("use an id or more of the path: ")


def test_a_file_and_its_bytes_are_told_apart(daemon, raw, make_model):
    path = make_model("one.safetensors")
    raw.load(path)
    bytes_of_it = raw.load(path, format="raw")["model"]["id"]
    hint = refusal(raw, "show", {"model": str(path)})["hint"]
    assert hint.startswith("use an id: ") and f"{bytes_of_it[:12]} (raw)" in hint, hint
    assert hint.count("(raw)") == 1
    rows = ctl(daemon, "ps", "-o", "csv").stdout.splitlines()
    column = rows[0].split(",").index("FORMAT")
    assert sorted(row.split(",")[column] for row in rows[1:]) == ["raw", "safetensors"]


# ---- what is not there -----------------------------------------------------------------


def test_the_table_of_a_model_that_is_not_resident_is_refused(raw, make_model):
    path = make_model()
    raw.load(path)
    raw.call("unload", {"select": {"models": [path.name]}})
    error = refusal(raw, "show", {"model": path.name, "table": True})
    assert error["code"] == "not-resident" and error["retryable"] and "load" in error["hint"]
    assert path.name in error["message"]
    assert raw.call("show", {"model": path.name})["model"]["state"] != "resident"
    raw.load(path)
    result, fds = raw.call_fds("show", {"model": path.name, "table": True})
    assert len(fds) == 1 and result["model"]["state"] == "resident"
    close_all(fds)


def test_verify_of_what_is_not_resident_is_refused(raw, make_model):
    paths = [make_model(f"{i}.safetensors", seed=i) for i in range(2)]
    for path in paths:
        raw.load(path)
    raw.call("unload", {"select": {"models": [paths[1].name]}})
    error = refusal(raw, "verify", {"models": [p.name for p in paths]})
    assert error["code"] == "not-resident" and paths[1].name in error["message"]
    assert [c["name"] for c in raw.call("verify")["checks"]] == [paths[0].name]


@pytest.mark.parametrize("method, params, field", [
    ("list", {"device": "foo"}, "device"), ("budget", {"device": "foo"}, "device"),
    ("unload", {"select": {"device": "foo"}}, "select.device")])
def test_a_device_that_is_not_there_is_named_with_those_that_are(raw, method, params, field):
    error = refusal(raw, method, params)
    assert error["code"] == "not-found" and error["detail"]["field"] == field
    assert error["message"] == 'there is no device "foo"; there is ram'
    assert raw.call("list", {"device": "ram"}) == {"models": []}


def test_unknown_types_of_records_and_events_are_refused_with_the_known_ones(raw):
    error = refusal(raw, "events.history", {"types": ["load", "explosion"]})
    assert error["code"] == "bad-argument" and "explosion" in error["message"]
    assert "load.done" in error["hint"] and "freed" in error["hint"]
    assert raw.call("events.history", {"types": ["load", "load.done", "evicted"]}) == {"records": []}
    error = refusal(raw, "subscribe", {"events": ["record", "explosion"]})
    assert error["code"] == "bad-argument" and "explosion" in error["message"]
    assert "load.done" in error["hint"] and "goodbye" in error["hint"]
    assert raw.call("subscribe", {"events": ["record", "goodbye"]})["subscription"] == 1


@pytest.mark.parametrize("method, params, field", [
    ("unload", {"select": {"models": [], "not_kept": True}}, "select.models"),
    ("unload", {"select": {"names": [], "all": True}}, "select.names"),
    ("unload", {"select": {"under": "", "mine": True}}, "select.under"),
    ("verify", {"models": []}, "models"), ("subscribe", {"models": []}, "models"),
    ("events.history", {"types": []}, "types")])
def test_what_is_there_and_empty_does_not_mean_all(raw, make_model, method, params, field):
    raw.load(make_model())
    error = refusal(raw, method, params)
    assert error["code"] == "bad-argument" and error["detail"]["field"] == field
    assert error["message"].startswith(f"{field} is empty: leave it out")
    assert [m["state"] for m in raw.call("list")["models"]] == ["resident"]


def test_a_name_and_a_folder_must_both_hold(raw, tmp_path):
    paths = make_same(tmp_path)
    for path in paths:
        raw.load(path)
    both = {"models": [str(path) for path in paths], "under": str(paths[0].parent)}
    result = raw.call("unload", {"select": both})
    assert [o["name"] for o in result["unloaded"]] == ["d0/same.safetensors"]
    assert [m["path"] for m in raw.call("list")["models"]] == [str(paths[1])]


# ---- what failed -----------------------------------------------------------------------


def test_a_failed_load_leaves_the_listing_when_its_model_is_unloaded_by_name(daemon, raw,
                                                                            make_model):
    path = cut_short(make_model("trunc.safetensors"))
    assert refusal_of_load(raw, path)["code"] == "bad-file"
    assert [(m["name"], m["state"]) for m in daemon.models()] == [(path.name, "failed")]
    assert raw.call("show", {"model": "trunc"})["notice"]
    result = raw.call("unload", {"select": {"models": ["trunc"]}})
    assert [(o["name"], o["reason"]) for o in result["unloaded"]] == [
        (path.name, "its failed load is forgotten")]
    assert daemon.models() == [] and result["total_bytes"] == 0
    assert [m["state"] for m in daemon.models(everything=True)] == ["registered"]
    assert raw.call("unload", {"select": {"models": ["trunc"]}})["unloaded"] == []
    assert refusal_of_load(raw, path)["code"] == "bad-file"
    assert [m["state"] for m in daemon.models()] == ["failed"], "a new failure is news again"


def test_a_failure_is_forgotten_only_where_all_conditions_hold(raw, make_model):
    path = cut_short(make_model("trunc.safetensors"))
    assert refusal_of_load(raw, path)["code"] == "bad-file"
    for more in ({"idle_ms": 3_600_000}, {"device": "ram"}, {"under": "/elsewhere"},
                 {"names": ["vae.*"]}):
        result = raw.call("unload", {"select": {"models": ["trunc"], **more}})
        assert [result[key] for key in ("kept", "unloaded", "held")] == [[], [], []], more
        assert [m["state"] for m in raw.call("list")["models"]] == ["failed"], more
    result = raw.call("unload", {"select": {"models": ["trunc"], "mine": True, "not_kept": True,
                                            "under": f"{path.parent}/", "names": ["t*"]}})
    assert [o["reason"] for o in result["unloaded"]] == ["its failed load is forgotten"]
    assert raw.call("list") == {"models": []}


@needs_root
def test_who_may_not_withdraw_a_keep_does_not_forget_its_failure(daemon, raw, make_model):
    path = cut_short(make_model("trunc.safetensors"))
    with opened(path) as fd:
        refusal(raw, "load", {}, [fd])
    raw.call("set", {"model": "trunc", "policy": {"keep": True}})

    def forget():
        with daemon.raw() as nobody, opened(path) as fd:
            refusal(nobody, "load", {}, [fd])
            result = nobody.call("unload", {"select": {"models": ["trunc"]}})
            return [len(result[key]) for key in ("kept", "unloaded", "held")]

    let_others_in(path)
    assert as_nobody(daemon, forget) == "[1, 0, 0]"
    assert [m["state"] for m in daemon.models()] == ["failed"]


def refusal_of_load(raw, path, **params):
    with opened(path) as fd:
        return refusal(raw, "load", params, [fd])


# ---- why there is no memory ------------------------------------------------------------


@pytest.fixture
def full(daemon, make_model):
    """A device of 64 MiB with 24 leased and 24 pinned; yields the models' paths."""
    leased = make_model("leased.safetensors", size=24 * MIB, seed=1)
    pinned = make_model("pinned.safetensors", size=24 * MIB, seed=2)
    with daemon.raw() as holder:
        holder.load(leased)
        leases = []
        for _ in range(2):  # two leases of one client hold the bytes once
            result, fds = holder.attach(leased)
            close_all(fds)
            leases.append(result["lease"])
        holder.load(pinned, policy={"pin": True})
        yield leased, pinned
        for lease in leases:
            holder.call("detach", {"lease": lease})


@pytest.mark.fault("M03")
@pytest.mark.daemon("memory.ram=64M")
def test_a_refusal_says_who_is_in_the_way_there_and_in_the_history(daemon, raw, full,
                                                                   make_model):
    third = make_model("third.safetensors", size=24 * MIB, seed=3)
    error = refusal_of_load(raw, third)
    detail, message, uid = error["detail"], error["message"], os.getuid()
    assert error["code"] == "no-memory" and detail["evictable"] == 0
    assert 24 * MIB <= detail["in_use"] < 25 * MIB and 24 * MIB <= detail["pinned"] < 25 * MIB
    assert [(h["pid"], h["held_bytes"]) for h in detail["holders"]] == [
        (os.getpid(), detail["in_use"])]
    assert detail["uids"] == [uid]
    assert f"/{os.getpid()} 24.0M" in message and "in use: " in message, message
    assert f"pinned by uid {uid}: pinned.safetensors 24.0M" in message, message
    record = daemon.status()["last"][-1]
    assert record["type"] == "refused" and record["name"] == third.name
    for text in (record["why"], raw.call("show", {"model": "third"})["notice"], daemon.log()):
        assert "needs 24.0M, budget 64.0M, free " in text and f"/{os.getpid()} " in text, text
        assert f"pinned by uid {uid}: 24.0M" in text, text
        assert full[1].name not in record["why"], "others see the record too"


@pytest.mark.daemon("memory.ram=64M")
def test_a_refusal_nobody_waited_for_says_the_same(raw, full, make_model):
    raw.load(make_model("third.safetensors", size=24 * MIB, seed=3), no_wait=True)
    wait_until(lambda: raw.call("ping") == {} and raw.events, what="the event")
    name, event = raw.events[0]
    assert name == "load.done" and event["error"]["code"] == "no-memory"
    assert f"/{os.getpid()} 24.0M" in event["error"]["message"]
    detail = event["error"]["detail"]
    assert detail["need"] >= 24 * MIB and detail["budget"] == 64 * MIB and detail["holders"]


@pytest.mark.daemon("memory.ram=64M")
def test_a_model_larger_than_the_budget_is_nobodys_fault(raw, full, make_model):
    error = refusal_of_load(raw, make_model("huge.safetensors", size=80 * MIB, seed=3))
    assert "in use" not in error["message"] and "raise the budget" in error["hint"]
    assert error["detail"]["in_use"] > 0 and error["detail"]["holders"]


@needs_root
@pytest.mark.daemon("memory.ram=64M")
def test_other_users_learn_no_name_from_a_refusal(daemon, full, make_model):
    third = make_model("third.safetensors", size=24 * MIB, seed=3)

    def load():
        with daemon.raw() as raw, opened(third) as fd:
            raw.call("ping")
            error = refusal(raw, "load", {}, [fd])
            records = raw.call("events.history")["records"]
            return error["message"] + str(error["detail"]) + str(records)

    os.chmod(third, 0o644)
    let_others_in(third)
    text = as_nobody(daemon, load)
    assert "pinned by uid 0: 24.0M" in text and f"/{os.getpid()} of uid 0 24.0M" in text, text
    assert "pinned.safetensors" not in text and "leased.safetensors" not in text


# ---- budgets and the log ---------------------------------------------------------------


def test_a_lowered_budget_says_what_went_and_what_is_still_going(daemon, raw, make_model):
    paths = [make_model(f"{i}.safetensors", size=8 * MIB, seed=i) for i in range(2)]
    for path in paths:
        raw.load(path)
    assert "evicted" not in raw.call("budget")
    used = daemon.status()["devices"][0]["used"]
    result = raw.call("budget", {"device": "cpu", "bytes": used // 2})
    device = result["devices"][0]
    assert [o["reason"] for o in result["evicted"]] == ["the budget was lowered"]
    assert result["evicted"][0]["name"] in [path.name for path in paths]
    assert device["used"] - device.get("dropping", 0) == used // 2, device
    assert raw.call("budget", {"device": "cpu", "bytes": used})["evicted"] == []
    error = refusal(raw, "budget", {"device": "cpu", "bytes": 1900 << 30})
    assert error["code"] == "bad-argument"
    assert error["message"].startswith("1.9T is more than this machine has ("), error


def test_log_lines_are_whole_sentences(daemon, raw, make_model):
    path = make_model("vae.safetensors")
    uid = os.getuid()
    raw.load(path, policy={"pin": True, "keep": True})
    raw.call("set", {"model": "vae", "policy": {"pin": False, "keep": False}})
    raw.call("unload", {"select": {"models": ["vae"]}})
    lines = [line.split(": ", 1)[-1] for line in daemon.log().splitlines()]
    for line in (f"pinned vae.safetensors for uid {uid}", f"kept vae.safetensors for uid {uid}",
                 f"unpinned vae.safetensors for uid {uid}",
                 f"no longer kept vae.safetensors for uid {uid}"):
        assert any(seen.endswith(line) for seen in lines), (line, lines)
    assert any("loaded vae.safetensors (1.0M) in " in line for line in lines), lines
    assert "unloaded vae.safetensors (1.0M): as asked" in daemon.log()
    whys = {r["type"]: r.get("why") for r in raw.call("events.history")["records"]}
    assert whys["pinned"] == f"for uid {uid}"


def test_show_says_when_a_pin_or_a_keep_lapses(raw, make_model):
    path = make_model("vae.safetensors")
    raw.load(path, policy={"pin": True, "for_ms": 60000})
    raw.call("set", {"model": "vae", "policy": {"keep": True}})
    wish = raw.call("show", {"model": "vae"})["wishes"][0]
    assert 0 < wish["pin_left_ms"] <= 60000 and "keep_left_ms" not in wish
    raw.call("set", {"model": "vae", "policy": {"keep": True, "for_ms": 30000}})
    raw.call("set", {"model": "vae", "policy": {"pin": True}})
    wish = raw.call("show", {"model": "vae"})["wishes"][0]
    assert 0 < wish["keep_left_ms"] <= 30000 and "pin_left_ms" not in wish


def test_no_time_at_all_is_not_for_ever(raw, make_model):
    path = make_model("vae.safetensors")
    briefly = {"pin": True, "for_ms": 0}
    assert refusal_of_load(raw, path, policy=briefly)["detail"]["field"] == "policy.for_ms"
    assert raw.call("list", {"all": True}) == {"models": []}, "it was not looked at"
    raw.load(path)
    error = refusal(raw, "set", {"model": "vae", "policy": briefly})
    assert error["code"] == "bad-argument" and error["detail"]["field"] == "policy.for_ms"
    assert not raw.call("list")["models"][0]["pinned"]
    error = refusal(raw, "reserve", {"device": "cpu", "bytes": MIB, "ttl_ms": 0})
    assert error["code"] == "bad-argument" and error["detail"]["field"] == "ttl_ms"
    assert raw.call("devices")["devices"][0]["reserved"] == 0


def test_how_long_a_wish_still_holds_is_shown(daemon, raw, connect, make_model):
    raw.load(make_model("vae.safetensors"), policy={"ttl_ms": 172_800_000, "priority": -5})
    assert ctl(daemon, "pin", "--for", "2h", "vae").returncode == 0
    assert ctl(daemon, "keep", "vae").returncode == 0
    said = ctl(daemon, "show", "vae").stdout
    assert re.search(r"wish +uid \d+: pinned for (2h|1h 59m) more, kept, "
                     r"stays 2d without use, priority -5\n", said), said
    wish = ctl_json(daemon, "show", "vae")["wishes"][0]
    assert 7_000_000 < wish["pin_left_ms"] <= 7_200_000 and wish["keep_left_ms"] is None
    with connect() as d:
        told = d.show("vae").wishes[0]
        assert 7_000_000 < told.pin_left_ms <= 7_200_000 and told.keep_left_ms is None


def test_a_ttl_that_has_run_out_under_a_pin_says_nothing(daemon, raw, make_model):
    raw.load(make_model("vae.safetensors"), policy={"pin": True, "ttl_ms": 1})
    wait_until(lambda: raw.call("list")["models"][0]["ttl_left_ms"] == 0)
    assert raw.call("list")["models"][0]["stays"] == ["pinned"]
    assert ctl(daemon, "ps").stdout.rstrip().endswith("  pinned")
