# SPDX-License-Identifier: Apache-2.0
"""What people are told: names, reasons, numbers, and what there is instead of what they asked."""

import os

import pytest
from conftest import RawError, close_all, make_safetensors, opened, wait_until
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


@pytest.mark.parametrize("n, told", [(2, ""), (3, " and 1 more"), (6, " and 4 more")])
def test_an_ambiguous_name_says_how_many_it_means(raw, tmp_path, n, told):
    for path in make_same(tmp_path, n):
        raw.load(path)
    error = refusal(raw, "show", {"model": "same"})
    assert error["code"] == "bad-argument" and f"means {n} models" in error["message"]
    assert error["hint"].endswith(told or "d1/same.safetensors"), error["hint"]
    assert len(error["detail"]["models"]) == min(n, 4)


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


def test_unknown_types_of_records_and_events_are_refused_with_the_known_ones(raw):
    error = refusal(raw, "events.history", {"types": ["load", "explosion"]})
    assert error["code"] == "bad-argument" and "explosion" in error["message"]
    assert "load.done" in error["hint"] and "freed" in error["hint"]
    assert raw.call("events.history", {"types": ["load", "load.done", "evicted"]}) == {"records": []}
    error = refusal(raw, "subscribe", {"events": ["record", "explosion"]})
    assert error["code"] == "bad-argument" and "explosion" in error["message"]
    assert "load.done" in error["hint"] and "goodbye" in error["hint"]
    assert raw.call("subscribe", {"events": ["record", "goodbye"]})["subscription"] == 1
