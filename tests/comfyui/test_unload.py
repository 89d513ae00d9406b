# SPDX-License-Identifier: Apache-2.0
"""What becomes of models in the daemon when ComfyUI unloads them, and how they make room for it when
memory runs short, on a real ComfyUI."""
import base64
import contextlib
import json
import os
import socket
import time

import models as models_of
import pytest
from conftest import END_TO_END, PromptFailed
from graphs import KINDS, node, sample
from test_quantised import files  # noqa: F401
from test_workflows import lines, models, tier

wait_until = END_TO_END.wait_until

FIRST, SECOND = KINDS["sd3_1"][0], KINDS["sd3_2"][0]


class Page:
    """What the server pushes to a page, by its websocket."""

    def __init__(self, server):
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(f"GET /ws?clientId=page HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
                             "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                             f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
                             .encode())
        self._come = b""
        while b"\r\n\r\n" not in self._come:
            self._receive()
        head, self._come = self._come.split(b"\r\n\r\n", 1)
        assert b" 101 " in head.split(b"\r\n")[0]

    def _receive(self):
        come = self._socket.recv(1 << 16)
        assert come, "the server closed it"
        self._come += come

    def _first(self):
        """From where to where the first packet's text is; None: not all of it has come."""
        if len(self._come) < 2:
            return None
        length = self._come[1] & 127
        start = {126: 4, 127: 10}.get(length, 2)
        if start > 2:
            length = int.from_bytes(self._come[2:start], "big")
        return (start, start + length) if len(self._come) >= start + length else None

    def _packet(self):
        """What has come stays where the time runs out."""
        while (place := self._first()) is None:
            self._receive()
        kind, text = self._come[0] & 15, self._come[slice(*place)]
        self._come = self._come[place[1]:]
        return kind, text

    def wait(self, event, model, word, seconds=30):
        """What the next event of this type says that has the model under this word."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._socket.settimeout(max(0.01, end - time.monotonic()))
            with contextlib.suppress(TimeoutError):
                kind, text = self._packet()
                found = json.loads(text) if kind == 1 else {}
                if found.get("type") == event and model in names(found["data"], word):
                    return found["data"]
        raise AssertionError(f"no {event} of {model}, {word}, in {seconds} s")

    def close(self):
        self._socket.close()


@pytest.fixture
def listen():
    pages = []

    def start(server):
        pages.append(Page(server))
        return pages[-1]

    yield start
    for page in pages:
        page.close()


def free(server, page, model, word, **what):
    """What became of models by a /free, once the model is among those that are `word`."""
    for is_last in (False, False, True):
        server.post("/free", what or {"unload_models": True, "free_memory": True})
        try:
            return page.wait("distorch.unloaded", model, word, 10)
        except AssertionError:  # ComfyUI misses one that comes while it is not waiting yet
            if is_last:
                raise


def names(found, word):
    return {one["name"]: one["reason"] for one in found[word]}


def idle(daemon, base, nbytes, name="idle"):
    """A model of the daemon that nobody uses."""
    path = models_of.write(base / f"{name}.safetensors",
                           {"weight": models_of.numpy.zeros(nbytes // 4, "float32")})
    with END_TO_END.opened(path) as fd, daemon.raw() as raw:
        raw.call("load", {}, [fd])
    return path.name


def history(daemon, name):
    """[(what happened to the model, why)]"""
    with daemon.raw() as raw:
        return [(one["type"], one.get("why")) for one in raw.call("events.history")["records"]
                if one.get("name") == name]


# ---- unload ----

def test_free_leaves_what_is_kept_and_the_rest_in_ram(server, daemon, listen):
    page = listen(server)
    server.run(sample("sd3_1", keep_loaded=True))
    server.run(sample("sd3_2"))
    found = free(server, page, SECOND, "kept")
    assert found["mode"] == "ram" and names(found, "kept")[SECOND] == "in RAM", found
    assert found["unloaded"] == [] and found["held"] == [], "nothing lay elsewhere"
    wait_until(lambda: models(daemon)[SECOND]["leases"] == 0, 10, "the lease to end")
    assert found["text"] in server.log()
    assert server.latent(server.run(sample("sd3_2"))) == \
        server.latent(server.run(sample("sd3_2", own=False)))


def test_free_drops_what_is_not_kept_where_the_user_wants_that(start_server, daemon, listen):
    server = start_server(daemon)
    page = listen(server)
    server.post("/settings/distorch.onUnload", "all")
    try:
        server.run(sample("sd3_1", keep_loaded=True))
        server.run(sample("sd3_2"))
        found = free(server, page, SECOND, "unloaded")
        assert found["mode"] == "all", found
        assert found["total_bytes"] >= os.path.getsize(
            server.base / "models/diffusion_models" / SECOND)
        wait_until(lambda: SECOND not in models(daemon), 10, "its memory to be given back")
        assert models(daemon)[FIRST]["keep"]
        server.post("/settings/distorch.onUnload", "keep")
        server.run(sample("sd3_2"))
        found = free(server, page, SECOND, "kept")
        assert found["mode"] == "keep" and names(found, "kept")[SECOND] == "cpu", found
        server.stop()
        server = start_server(daemon, DISTORCH_ON_UNLOAD="all")
        page = listen(server)
        server.run(sample("sd3_2"))
        free(server, page, SECOND, "unloaded")  # the environment's word goes first
    finally:
        server.post("/settings/distorch.onUnload", "ram")


def test_what_comfyui_still_has_is_held_and_goes_on_working(start_server, daemon, listen):
    """*Unload models* alone leaves models in ComfyUI's cache, and memory under them stays."""
    server = start_server(daemon, DISTORCH_ON_UNLOAD="all")
    page = listen(server)
    expected = server.latent(server.run(sample("sd3_2", own=False, seed=6)))
    server.run(sample("sd3_2"))
    free(server, page, SECOND, "held", unload_models=True)
    assert models(daemon)[SECOND]["leases"] == 1
    assert server.latent(server.run(sample("sd3_2", seed=6))) == expected
    server.post("/free", {"unload_models": True, "free_memory": True})
    wait_until(lambda: SECOND not in models(daemon), 20, "it to go with its last user")


def test_a_prompt_that_pushes_a_model_out_lets_it_go_at_its_end(start_server, daemon, listen):
    server = start_server(daemon, "--cache-classic", DISTORCH_ON_UNLOAD="all")
    page = listen(server)
    server.run(sample("sd3_1"))
    server.run(sample("sd3_2", keep_loaded=True))
    page.wait("distorch.unloaded", FIRST, "unloaded")
    wait_until(lambda: FIRST not in models(daemon), 10, "its memory to be given back")
    server.run(sample("sd3_1"))
    found = page.wait("distorch.unloaded", SECOND, "kept")
    assert names(found, "kept") == {SECOND: "kept"} and SECOND in models(daemon), found
    assert server.log().count("distorch: unloaded") == 1
    for seed in (6, 7):
        server.run(sample("sd3_1", seed=seed))
    time.sleep(3)
    assert server.log().count("distorch: kept") == 1, "what goes on is not told of"


def test_what_another_process_uses_is_held(start_server, daemon, listen):
    server = start_server(daemon, DISTORCH_ON_UNLOAD="all")
    other = start_server(daemon)
    page = listen(server)
    for one in (server, other):
        one.run(sample("sd3_2"))
    found = free(server, page, SECOND, "held")
    assert f"{other.process.pid}" in names(found, "held")[SECOND], found
    assert models(daemon)[SECOND]["leases"] == 1
    other.post("/free", {"unload_models": True, "free_memory": True})
    wait_until(lambda: models(daemon)[SECOND]["leases"] == 0, 20, "the other lease to end")
    assert SECOND in models(daemon), "what the other wants is for it to say"


def test_without_a_daemon_nothing_is_told(start_server, daemon):
    """It is killed while nothing runs: what is loaded goes on, and what comes next is core's own."""
    server = start_server(daemon)
    expected = [server.latent(server.run(sample("sd3_2", own=False, seed=seed)))
                for seed in (5, 6, 7)]
    assert tier(server.run(sample("sd3_2"))) == "assign"
    daemon.process.kill()
    daemon.process.wait()
    outputs = server.run(sample("sd3_2", seed=6))
    assert "load" in outputs.cached and server.latent(outputs) == expected[1]
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(3)
    outputs = server.run(sample("sd3_2", seed=7, priority=1))  # loaded again in any case
    assert tier(outputs) == "stock" and server.latent(outputs) == expected[2]
    assert any(str(daemon.socket) in line for line in lines(outputs)), lines(outputs)
    assert "Traceback" not in server.log() and "was not told on" not in server.log()
    daemon.start()


# ---- placed models that ComfyUI still has ----

def used(daemon, device="sim:0"):
    with daemon.raw() as raw:
        return next(one["used"] for one in raw.call("devices")["devices"]
                    if one["name"] == device)


@pytest.fixture
def cards(start_daemon):
    return start_daemon("sim.count=1", "sim.memory=256M")


def at(outputs):
    return outputs["load"]["distorch"][0]


@pytest.mark.parametrize("kind, lora, widgets", [
    ("sd3_2", None, {"expert_mode_allocations": "sim:0,2mb;cpu,*"}),
    ("sd3_2", 0.7, {"compute_device": "sim:0"}),
    ("sd15", None, {"compute_device": "sim:0", "clip_device": "sim:0", "vae_device": "sim:0"}),
    ("scaled_once", None, {"compute_device": "sim:0"}),
    ("quantised_nvfp4", None, {"compute_device": "sim:0"})])
def test_a_placed_model_leaves_the_cards_and_comes_back(start_server, cards, listen, kind, lora,
                                                        widgets, monkeypatch, files):  # noqa: F811
    if kind not in KINDS:
        if not (files / f"{kind}.safetensors").exists():
            pytest.skip("this ComfyUI has no such weights")
        monkeypatch.setitem(KINDS, kind, (f"{kind}.safetensors", *KINDS["sd3_2"][1:]))
    server = start_server(cards)
    page = listen(server)
    expected = [server.latent(server.run(sample(kind, own=False, lora=lora, seed=seed)))
                for seed in (5, 6, 7)]
    outputs = server.run(sample(kind, lora=lora, **widgets))
    assert at(outputs)["tier"] == "placed" and server.latent(outputs) == expected[0], outputs
    there = used(cards)
    assert there > 0
    name = KINDS[kind][0]
    for seed in (6, 7):
        found = free(server, page, name, "unloaded", unload_models=True)
        assert names(found, "unloaded")[name] == "moved to RAM", found
        wait_until(lambda: used(cards) == 0, 10, "the card to be free")
        assert models(cards)[name]["leases"] == 1, "ComfyUI still has it"
        outputs = server.run(sample(kind, lora=lora, seed=seed, **widgets))
        assert "load" not in outputs or at(outputs)["tier"] == "placed"
        assert server.latent(outputs) == expected[seed - 5]
        assert used(cards) == there, "it is placed again"
    with cards.raw() as raw:
        assert all(check["ok"] for check in raw.call("verify")["checks"])


def test_a_placed_model_that_is_kept_stays_on_its_cards(start_server, cards, listen):
    server = start_server(cards)
    page = listen(server)
    server.run(sample("sd3_2", compute_device="sim:0", keep_loaded=True))
    there = used(cards)
    found = free(server, page, SECOND, "kept", unload_models=True)
    assert names(found, "kept")[SECOND] == "kept" and used(cards) == there > 0
    server.run(sample("sd3_1", compute_device="sim:0"))
    server.post("/settings/distorch.onUnload", "keep")
    try:
        there = used(cards)
        found = free(server, page, FIRST, "kept", unload_models=True)
        assert "sim:0" in names(found, "kept")[FIRST] and used(cards) == there
    finally:
        server.post("/settings/distorch.onUnload", "ram")


def test_where_a_model_cannot_be_placed_again_it_computes_from_ram(start_server, cards, listen,
                                                                   base):
    server = start_server(cards)
    page = listen(server)
    expected = server.latent(server.run(sample("sd3_2", own=False, seed=6)))
    server.run(sample("sd3_2", compute_device="sim:0"))
    free(server, page, SECOND, "unloaded", unload_models=True)
    wait_until(lambda: used(cards) == 0, 10, "the card to be free")
    with cards.raw() as raw:
        raw.call("reserve", {"device": "sim:0", "bytes": 255 << 20})
        outputs = server.run(sample("sd3_2", compute_device="sim:0", seed=6))
        assert server.latent(outputs) == expected and used(cards) == 0
        assert "not placed again" in server.log()


# ---- out of memory ----

def starving(times, **more):
    graph = sample("sd3_2", **more)
    graph["starve"] = node("TestOutOfMemory", model=["load", 0], times=times)
    graph["sample"]["inputs"]["model"] = ["starve", 0]
    return graph


def test_idle_models_make_room_when_a_sampler_runs_out(server, daemon, base):
    expected = server.latent(server.run(sample("sd3_2", own=False)))
    name = idle(daemon, base, 20 << 20)
    assert server.latent(server.run(starving(1))) == expected
    assert any(kind == "evicted" for kind, _why in history(daemon, name)), history(daemon, name)
    assert "sampling once more" in server.log()


def test_where_nothing_is_idle_it_fails_as_it_does_without_us(server, daemon):
    for own in (True, False):
        with pytest.raises(PromptFailed, match="pretended"):
            server.run(starving(2, own=own))
    assert server.latent(server.run(sample("sd3_2"))) == \
        server.latent(server.run(sample("sd3_2", own=False)))


def test_idle_models_make_room_before_a_sampler_runs_short(server, daemon, base):
    expected = server.latent(server.run(sample("sd3_2", own=False, via="TestHungry")))
    name = idle(daemon, base, 20 << 20)
    server.run(sample("sd3_2"))
    assert not any(kind == "evicted" for kind, _why in history(daemon, name)), "it is not short"
    outputs = server.run(sample("sd3_2", via="TestHungry", seed=5))
    assert server.latent(outputs) == expected
    assert any(kind == "evicted" for kind, _why in history(daemon, name)), history(daemon, name)
    assert "made room for a sampler on cpu" in server.log()
