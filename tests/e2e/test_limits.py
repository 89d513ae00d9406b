# SPDX-License-Identifier: Apache-2.0
"""What one user can take from the others, and requests that contradict themselves."""
import contextlib
import os

import pytest

from conftest import (RawError, close_all, let_others_in, make_safetensors, make_sparse_model,
                      opened)


def as_user(uid, work):
    """Run work() in a process of that user; what it returns as text."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            text = str(work())
        except BaseException as error:
            text = repr(error)
        os.write(into, text.encode())
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


def open_to_all(daemon):
    os.chmod(daemon.folder, 0o755)
    os.chmod(daemon.socket, 0o666)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_connections_that_close_and_still_map_are_counted(start_daemon):
    daemon = start_daemon("limits.connections=64", "limits.connections-per-user=4")
    open_to_all(daemon)
    path = daemon.folder / "m.safetensors"
    make_safetensors(path, {"a": ("F32", [16])})
    os.chmod(path, 0o644)

    def take_all():
        for n in range(100):
            try:
                with daemon.raw() as raw, opened(path) as file:
                    close_all(raw.call_fds("load", {"attach": True, "map": True}, [file])[1])
            except RawError as error:
                return f"{n} {error.code} {error.error['message']}"
        return "no end"

    first = as_user(1000, take_all)
    assert first.startswith("8 too-many uid 1000 has 8 clients already"), first
    assert as_user(1001, lambda: daemon.raw().call("ping")) == "{}"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
def test_what_is_refused_again_and_again_is_logged_once(daemon):
    open_to_all(daemon)

    def ask():
        codes = set()
        with daemon.raw() as raw:
            for method, params in [("shutdown", {}),
                                   ("reserve", {"device": "cpu", "bytes": 1 << 50})] * 20:
                with pytest.raises(RawError) as caught:
                    raw.call(method, params)
                codes.add(caught.value.code)
        return sorted(codes)

    assert as_user(1000, ask) == "['no-memory', 'not-allowed']"
    for line in "uid 1000) may not use shutdown", "refused room for":
        assert daemon.log().count(line) == 1, "the others of a minute are counted in the next"


def test_a_cancelled_verify_says_so(daemon, raw, tmp_path):
    for name in ("a", "b"):
        raw.load(make_sparse_model(tmp_path / f"{name}.safetensors", 256 << 20))
    number = raw.request("verify", {})
    cancel = raw.request("cancel", {"id": number})
    error, result, _ = raw.wait(number)
    if raw.wait(cancel)[1]["found"]:
        assert error["code"] == "cancelled"
    else:
        assert all(check["ok"] for check in result["checks"])
    raw.call("ping")


def test_who_does_not_wait_cannot_ask_for_a_lease(raw, make_model):
    with opened(make_model()) as file:
        with pytest.raises(RawError) as caught:
            raw.call("load", {"no_wait": True, "attach": True}, [file])
    assert caught.value.code == "bad-argument"
    assert raw.call("list", {"all": True})["models"] == []


def test_32_unloads_of_one_user_may_wait_for_leases(daemon, raw, make_model):
    path = make_model()
    asking = {"select": {"models": [path.name]}, "mode": "recall", "recall_ms": 3600000}
    lease = raw.load(path, attach=True)["lease"]
    with daemon.raw() as one, daemon.raw() as another:
        waiting = [(client, client.request("unload", asking))
                   for client in (one, another) for _ in range(16)]
        assert one.call("ping") == another.call("ping") == {}, "those before it were taken in"
        with pytest.raises(RawError) as caught:
            raw.call("unload", asking)
        assert caught.value.code == "too-many" and "32 unloads" in str(caught.value)
        client, number = waiting.pop()
        assert client.call("cancel", {"id": number})["found"]
        waiting += [(client, number), (client, client.request("unload", asking))]
        assert client.call("ping") == {}
        raw.call("detach", {"lease": lease})
        for client, number in waiting:
            assert client.wait(number)[0] is None


def test_bytes_are_held_once_however_many_leases(raw, make_model):
    path = make_model(size=1 << 20)
    leases = []
    for _ in range(3):
        with opened(path) as file:
            result, fds = raw.call_fds("load", {"attach": True, "map": True}, [file])
        close_all(fds)
        leases.append(result["lease"])
    place = raw.call("list")["models"][0]["where"][0]["bytes"]
    client, = raw.call("clients")["clients"]
    assert (client["leases"], client["held_bytes"]) == (3, place)
    user, = raw.call("show", {"model": raw.call("list")["models"][0]["id"]})["clients"]
    assert user["held_bytes"] == place
    for lease in leases:
        raw.call("detach", {"lease": lease})


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")
@pytest.mark.daemon("limits.connections-per-user=400")
def test_show_names_as_many_as_it_says(daemon, make_model):
    path = make_model()
    let_others_in(path)
    open_to_all(daemon)
    wishers = range(3000, 3020)

    def wish():
        with daemon.raw() as raw:
            raw.load(path, policy={"keep": True})

    for uid in wishers:
        assert as_user(uid, wish) == "None"
    with contextlib.ExitStack() as stack:
        for _ in range(260):
            stack.enter_context(daemon.raw()).call("attach", {"model": path.name})
        with daemon.raw() as raw:
            shown = raw.call("show", {"model": path.name})
    assert len(shown["clients"]) == 260
    assert {wish["uid"] for wish in shown["wishes"]} == set(wishers)
