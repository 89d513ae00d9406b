# SPDX-License-Identifier: Apache-2.0
"""Models of several files packet by packet: descriptors that come late, twice or never."""
import contextlib
import os
import resource
import socket
import time

import pytest
from conftest import RawError, close_all, need_hooks, opened, slowness, wait_until
from sharded import Sharded, open_all, raw_load, raw_part, raw_request
from test_wire_hostile import long_plan, n_answered


@pytest.fixture
def sharded(tmp_path):
    return Sharded(tmp_path / "m", n=5)


def refused(answer):
    error, _result, fds = answer
    close_all(fds)
    assert error is not None, "it was not refused"
    return error


def done(answer):
    error, result, fds = answer
    close_all(fds)
    assert error is None, error
    return result


def open_fds(daemon):
    return daemon.status()["open_fds"]


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("first", [0, 1, 4, 5])
def test_descriptors_come_in_any_number_of_packets(raw, sharded, first, direct):
    paths = [sharded.index] + sharded.paths[:first]
    fds = open_all(paths)
    if direct:
        fds = fds[:1] + [fd for pair in zip(fds[1:], open_all(
            sharded.paths[:first], os.O_RDONLY | os.O_DIRECT)) for fd in pair]
    load = raw.request("load", {"shards": sharded.names, "direct": direct}, fds)
    close_all(fds)
    for name in reversed(sharded.names[first:]):  # in any order
        assert raw_part(raw, load, sharded, [name]) == {}
    assert done(raw.wait(load))["model"]["bytes"] == sharded.bytes
    lease = done(raw.wait(raw_request(raw, "attach", sharded, map=True)))["lease"]
    raw.call("detach", {"lease": lease})


def test_an_attach_gathers_too(raw, sharded):
    assert refused(raw.wait(raw_request(raw, "attach", sharded)))["code"] == "not-resident"
    done(raw_load(raw, sharded))
    attach = raw_request(raw, "attach", sharded, first=2, map=True)
    raw_part(raw, attach, sharded, sharded.names[2:])
    result = done(raw.wait(attach))
    assert result["images"] == 5 and result["model"]["name"] == "model.safetensors"
    raw.call("detach", {"lease": result["lease"]})


def test_what_others_plan_meanwhile_is_not_in_its_way(start_daemon, tmp_path):
    """Placements that nothing has use for are forgotten; one waits for its files."""
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "gpu.budget=100%")
    sharded = Sharded(tmp_path / "m", n=3)
    blocks = [{"name": "a.0", "bytes": 1 << 20}]
    with daemon.raw() as raw, daemon.raw() as other:
        load = raw_request(raw, "load", sharded, first=1, allocation="sim:0,1M;cpu,*")
        for i in range(2200):
            other.call("plan", {"blocks": blocks, "allocation": f"sim:0,{i + 1}k;cpu,*"})
            if i % 500 == 499:  # it is not late
                raw.call("ping")
        raw_part(raw, load, sharded, sharded.names[1:])
        assert done(raw.wait(load))["model"]["name"] == "model.safetensors"


def test_map_gives_ranges(raw, tmp_path):
    sharded = Sharded(tmp_path / "m", n=70)
    load = raw_request(raw, "load", sharded, first=31, attach=True, map=True)
    raw_part(raw, load, sharded, sharded.names[31:63])
    raw_part(raw, load, sharded, sharded.names[63:])
    error, result, fds = raw.wait(load)
    assert error is None and 1 <= result["images"] <= 31 and len(fds) == 1 + result["images"]
    close_all(fds)
    lease = result["lease"]
    sizes = []
    while len(sizes) < 70:
        found, fds = raw.call_fds("map", {"lease": lease, "segments": [len(sizes), 70]})
        assert len(fds) == len(found["segments"]) > 0
        sizes += [os.fstat(fd).st_size for fd in fds]
        close_all(fds)
    assert sizes == [path.stat().st_size for path in sharded.paths]
    for segments in ([70, 1], [1 << 40, 1], [0, 0], [(1 << 64) - 1, 2]):
        with pytest.raises(RawError) as caught:
            raw.call("map", {"lease": lease, "segments": segments})
        assert caught.value.code in ("bad-argument", "not-found"), segments
    raw.call("detach", {"lease": lease})


def test_a_part_that_is_unmapped_is_not_taken_for_all(daemon, sharded):
    with daemon.raw() as other:
        def is_mapped():
            return bool(other.call("show", {"model": "model.safetensors"}).get("clients"))

        with daemon.raw() as raw:
            load = raw_request(raw, "load", sharded, attach=True, map=True)
            _, result, fds = raw.wait(load)
            for segments in ([0, 1], [1, 4], [7, 1], [0, 0], [0], []):
                with pytest.raises(RawError, match="segments") as caught:
                    raw.call("unmapped", {"lease": result["lease"], "segments": segments})
                assert caught.value.code == "unsupported", segments
        known = {"lease": result["lease"], "epoch": raw.server["epoch"]}
        wait_until(lambda: other.call("list")["models"][0]["leases"] == 0, what="its end")
        with pytest.raises(RawError, match="segments"):
            other.call("unmapped", {**known, "segments": [0, 4]})
        assert is_mapped(), "by who closed its connection"
        other.call("unmapped", {**known, "segments": [0, 5]})
        assert not is_mapped()
        close_all(fds)


@pytest.mark.parametrize("names,code,words", [
    ([], "bad-argument", ""),
    (["b", "a"], "bad-argument", "does not come after"),
    (["a", "a"], "bad-argument", "does not come after"),
    (["a", "../b"], "bad-argument", "is no name of a file"),
    (["."], "bad-argument", "is no name of a file"),
    ([""], "bad-argument", "is no name of a file"),
    (["a" * 256], "bad-argument", "is no name of a file"),
    (["a" * 513], "bad-argument", ""),
    ([f"{i:03d}" for i in range(257)], "too-large", "1 to 256 files, not 257"),
])
def test_names_are_judged_before_anything_is_kept(daemon, raw, sharded, names, code, words):
    before = open_fds(daemon)
    with opened(sharded.index) as fd:
        error = refused(raw.wait(raw.request("load", {"shards": names}, [fd])))
    assert error["code"] in (code, "bad-frame") and words in error["message"], error
    wait_until(lambda: open_fds(daemon) == before, 5 * slowness())


@pytest.mark.parametrize("how,words", [
    ("odd", "descriptors fit no number of the 5 files"),
    ("too many", "descriptors fit no number of the 5 files"),
    ("a pipe", "model-00002-of-00005.safetensors: "),
    ("an index that is a pipe", "index: "),
    ("a second one of another file", "model-00001-of-00005.safetensors: "),
    ("a memfd that can be written", "model-00002-of-00005.safetensors: "),
])
def test_descriptors_are_judged_as_they_come(daemon, raw, sharded, how, words):
    before = open_fds(daemon)
    fds = open_all([sharded.index, *sharded.paths])
    params = {"shards": sharded.names}
    pipe = os.pipe()
    memfd = os.memfd_create("x")
    if how == "odd":
        params["direct"] = True
        sent = fds[:2]
    elif how == "too many":
        sent = fds + fds[1:2]
    elif how == "a pipe":
        sent = fds[:2] + [pipe[0]]
    elif how == "an index that is a pipe":
        sent = [pipe[0]] + fds[1:]
    elif how == "a second one of another file":
        params["direct"] = True
        sent = [fds[0], fds[1], fds[2]]
    else:
        sent = fds[:2] + [memfd]
    error = refused(raw.wait(raw.request("load", params, sent)))
    close_all(fds + list(pipe) + [memfd])
    assert error["code"] in ("bad-argument", "bad-fd") and words in error["message"], error
    wait_until(lambda: open_fds(daemon) == before, 5 * slowness())


@pytest.mark.parametrize("how,words", [
    ("unknown", '"x" is none of the files'),
    ("again", '"model-00001-of-00005.safetensors" has come already'),
    ("twice in one", "has come already"),
    ("too few", "1 descriptors came for 2 files"),
    ("a pipe", "model-00003-of-00005.safetensors: "),
])
def test_a_part_that_is_wrong_ends_the_load(daemon, raw, sharded, how, words):
    before = open_fds(daemon)
    load = raw_request(raw, "load", sharded, first=2)
    names = {"unknown": ["x"], "again": sharded.names[:1], "twice in one": sharded.names[2:3] * 2,
             "too few": sharded.names[2:4], "a pipe": sharded.names[2:3]}[how]
    pipe = os.pipe()
    fds = open_all([sharded.paths[2]] * (len(names) if how == "twice in one" else 1))
    part = raw.request("load.part", {"load": load, "shards": names},
                       [pipe[0]] if how == "a pipe" else fds)
    close_all([*fds, *pipe])
    for answer in (raw.wait(part), raw.wait(load)):
        error = refused(answer)
        assert error["code"] in ("bad-argument", "bad-fd") and words in error["message"], error
    wait_until(lambda: open_fds(daemon) == before, 5 * slowness())


def test_a_part_of_no_load_is_refused(daemon, raw, sharded):
    with pytest.raises(RawError) as caught:
        raw_part(raw, 77, sharded, sharded.names[:1])
    assert caught.value.code == "not-found"
    done(raw_load(raw, sharded))
    with pytest.raises(RawError) as caught:
        raw_part(raw, raw.next_id - 1, sharded, sharded.names[:1])
    assert caught.value.code == "not-found"
    load = raw_request(raw, "load", sharded, first=2)
    with daemon.raw() as other:  # of another connection
        with pytest.raises(RawError) as caught:
            raw_part(other, load, sharded, sharded.names[2:])
    assert caught.value.code == "not-found"
    raw_part(raw, load, sharded, sharded.names[2:])
    assert done(raw.wait(load))["source"] == "ram"


def test_who_waits_can_cancel(daemon, raw, sharded):
    before = open_fds(daemon)
    load = raw_request(raw, "load", sharded, first=3)
    attach = raw_request(raw, "attach", sharded, first=3)
    for number in (load, attach):
        assert raw.call("cancel", {"id": number})["found"]
        assert refused(raw.wait(number))["code"] == "cancelled"
    wait_until(lambda: open_fds(daemon) == before, 5 * slowness())
    assert raw.call("list")["models"] == []


def test_the_end_of_the_connection_ends_it(daemon, sharded):
    before = open_fds(daemon)
    for _ in range(3):
        with daemon.raw() as raw:
            raw_request(raw, "load", sharded, first=1)
            raw_request(raw, "attach", sharded, first=4)
            raw.call("ping")
    wait_until(lambda: open_fds(daemon) == before, 5 * slowness())
    assert daemon.models() == []


def test_a_connection_has_four_at_most(daemon, raw, sharded):
    loads = [raw_request(raw, "load", sharded, first=1) for _ in range(4)]
    assert "wait for descriptors already" in refused(
        raw.wait(raw_request(raw, "load", sharded, first=1)))["message"]
    done(raw_load(raw, sharded))  # one that is complete at once is none of them
    for load in loads:
        raw_part(raw, load, sharded, sharded.names[1:])
        assert done(raw.wait(load))["source"] == "ram"


def test_what_never_comes_is_not_waited_for(start_daemon, sharded):
    need_hooks()
    daemon = start_daemon(environment={"DISTORCHD_TEST_GATHER_MS": "2000"})
    before = open_fds(daemon)
    with daemon.raw() as raw:
        load = raw_request(raw, "load", sharded, first=2)
        for name in sharded.names[2:4]:  # each gives it more time
            time.sleep(1.2)
            raw_part(raw, load, sharded, [name])
        error = refused(raw.wait(load))
        assert error["code"] == "timeout" and "of 5 files 4 came" in error["message"], error
        raw.call("ping")
        assert raw_request(raw, "load", sharded, first=2)
        raw.wait(raw.next_id - 1)
    wait_until(lambda: open_fds(daemon) == before, 5 * slowness())


def test_sleep_is_no_wait_of_ours(daemon, raw, sharded):
    """A daemon that stood still looks for what came meanwhile before it gives up."""
    need_hooks()
    load = raw_request(raw, "load", sharded, first=2)
    raw.call("ping")
    daemon.tell("stall 500", wait=False)
    fds = open_all(sharded.paths[2:])
    part = raw.request("load.part", {"load": load, "shards": sharded.names[2:]}, fds)
    close_all(fds)
    done(raw.wait(part))
    done(raw.wait(load))


def test_one_user_may_not_take_all_descriptors(daemon, sharded):
    """With a small limit the rest of the daemon's work goes on."""
    before = open_fds(daemon)
    _soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (400, hard))
    fds = open_all(sharded.paths * 6)
    names = [f"{i:03d}" for i in range(100)]
    codes = []
    with contextlib.ExitStack() as stack:
        for client in [stack.enter_context(daemon.raw()) for _ in range(5)]:
            for _ in range(4):
                number = client.request("load", {"shards": names, "index": False}, fds)
                client.call("ping")
                codes += [refused(client.wait(number))] if number in client.answers else []
                # What was refused is closed beside the loop, and the limit is a small one.
                wait_until(lambda: open_fds(daemon) < before + 6 * 30 + 40, 10 * slowness(),
                           "the refused descriptors' end")
        assert len(codes) == 14, codes  # 6 times 30 are no more than half
        assert {error["code"] for error in codes} == {"too-many"}
        assert "of 200" in codes[0]["message"], codes
        with daemon.raw() as raw:  # who brings one is served
            raw.load(sharded.paths[0])
    close_all(fds)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))
    daemon.unload_all()
    wait_until(lambda: open_fds(daemon) == before, 5 * slowness())


def test_nor_may_he_by_parts(daemon, sharded):
    before = open_fds(daemon)
    _soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (400, hard))
    fds = (open_all(sharded.paths) * 30)[:30]
    names = [f"{i:03d}" for i in range(240)]
    with daemon.raw() as raw:
        number = raw.request("load", {"shards": names, "index": False}, fds)
        for at in range(30, 200 - 29, 30):
            raw.call("load.part", {"load": number, "shards": names[at:at + 30]}, fds)
        with pytest.raises(RawError) as part:
            raw.call("load.part", {"load": number, "shards": names[180:210]}, fds)
        assert part.value.code == "too-many" and "of 200" in str(part.value)
        assert refused(raw.wait(number))["code"] == "too-many"
        raw.load(sharded.paths[0])
    close_all(set(fds))
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))
    daemon.unload_all()
    wait_until(lambda: open_fds(daemon) == before, 5 * slowness())


def test_what_a_large_model_leaves_behind_is_in_nobodys_way(daemon, tmp_path, connect):
    sharded = Sharded(tmp_path / "m", n=256)
    d = connect()
    for _ in range(3):
        d.load(sharded.index)
        d.unload(sharded.index)
        connect().load(sharded.paths[0])
        d.unload(sharded.paths[0])


def test_other_words_for_it_are_refused(raw, sharded):
    error = refused(raw_load(raw, sharded, format="raw"))
    assert error["code"] == "bad-argument" and error["detail"]["field"] == "format", error
    error = refused(raw_load(raw, sharded, format="gguf"))
    assert error["code"] == "unsupported", error


def test_without_an_index_safetensors_are_no_model(raw, sharded):
    error = refused(raw_load(raw, sharded, index=False))
    assert error["code"] == "unsupported" and "came without an index" in error["message"], error


def test_a_client_that_ends_between_its_packets(daemon, sharded):
    """The socket's end comes right behind the part."""
    for _ in range(20):
        raw = daemon.raw()
        load = raw_request(raw, "load", sharded, first=2)
        fds = open_all(sharded.paths[2:])
        raw.request("load.part", {"load": load, "shards": sharded.names[2:]}, fds)
        close_all(fds)
        raw.sock.shutdown(socket.SHUT_RDWR)
        raw.close()
    wait_until(lambda: daemon.status()["devices"][0]["used"] in (
        0, sum(place["bytes"] for model in daemon.models() for place in model["where"])),
        5 * slowness())


def test_long_answers_that_bring_a_table_are_few_as_well(daemon, tmp_path):
    limit = 64 << 20
    many = Sharded(tmp_path / "many", n=250, each=1, bytes=4, stem="s" * 220)
    with contextlib.ExitStack() as stack, daemon.raw(timeout=60.0) as raw:
        plan = long_plan(raw, tmp_path)
        load = raw_request(raw, "load", many, first=30)
        for first in range(30, 250, 32):
            raw_part(raw, load, many, many.names[first:first + 32])
        show = "show", {"model": done(raw.wait(load))["model"]["name"], "table": True}
        deaf = [stack.enter_context(daemon.raw(timeout=60.0)) for _ in range(19)]
        waiting = [(one, one.request(*plan)) for one in deaf[:13]]
        wait_until(lambda: n_answered(raw, "plan") == 13, what="the plans")
        waiting += [(one, one.request(*show)) for one in deaf[13:] for _ in range(31)]
        with pytest.raises(RawError) as caught:
            wait_until(lambda: close_all(raw.call_fds(*show)[1]), what="the limit")
        assert caught.value.code == "too-many" and f"{limit} may wait" in str(caught.value)
        for one, number in waiting:
            error, _result, fds = one.wait(number)
            close_all(fds)
            assert error is None or error["code"] == "too-many" and error["retryable"], error
        result, fds = raw.call_fds(*show)
        close_all(fds)
        assert len(result["shards"]) == 250 and len(fds) == 1, "what was taken counts no longer"
