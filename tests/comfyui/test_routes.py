# SPDX-License-Identifier: Apache-2.0
"""The routes that the page asks, on a real ComfyUI."""
import contextlib
import http.client
import json
import signal
import socket
import threading
import time

import pytest
from conftest import END_TO_END, Server, daemon_with
from graphs import KINDS, sample
from page import server, server_alone  # noqa: F401
from test_workflows import models

wait_until = END_TO_END.wait_until
daemon = daemon_with("sim.count=1", "sim.memory=64M")


def ask(server, method, path, body=None, **headers):
    """(status, what it answered)"""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None
    finally:
        connection.close()


def test_routes_say_and_do(server, daemon):
    name = KINDS["sd3_1"][0]
    server.run(sample("sd3_1"))
    status, found = ask(server, "GET", "/distorch/status")
    assert status == 200 and found["available"] and len(found["models"]) > 0 and found["version"]
    assert [device["name"] for device in found["devices"]] == ["cpu", "sim:0"]
    assert 0 < found["devices"][0]["used"] <= found["devices"][0]["budget"]
    _status, found = ask(server, "GET", "/api/distorch/models")
    (model,) = [one for one in found["models"] if one["name"] == name]
    assert model["leases"] == 1 and model["where"][0]["device"] == "cpu"
    body = {"model": model["id"]}
    for deed, member, value in (("pin", "pinned", True), ("unpin", "pinned", False),
                                ("keep", "keep", True), ("unkeep", "keep", False)):
        status, found = ask(server, "POST", f"/distorch/{deed}", body)
        assert status == 200 and found["model"][member] is value, found
        assert models(daemon)[name][member] is value
    status, found = ask(server, "POST", "/distorch/unload", body)
    assert status == 200 and "in use" in found["held"][0]["reason"], found


def test_routes_refuse_other_sites_and_what_is_no_id(server, daemon):
    server.run(sample("sd3_1"))
    body = {"model": models(daemon)[KINDS["sd3_1"][0]]["id"]}
    own = f"http://127.0.0.1:{server.port}"
    for headers in ({"Origin": "http://example.org"}, {"Origin": "null"},
                    {"Origin": "http://127.0.0.1:1"}, {"Sec_Fetch_Site": "cross-site"},
                    {"Sec_Fetch_Site": "same-site", "Origin": own},
                    {"Origin": "http://example.org", "Host": "comfy.example.net"}):
        for deed in ("pin", "unpin", "keep", "unkeep", "unload", "place", "load", "told"):
            status, _found = ask(server, "POST", f"/distorch/{deed}", body, **headers)
            assert status == 403, (deed, headers)
    status, _found = ask(server, "POST", "/distorch/pin", body, Content_Type="text/plain")
    assert status == 415
    for wrong in (b"", b"{", b"[]", {}, {"model": 1}, {"model": ""}, {"model": "x" * 32},
                  {"model": KINDS["sd3_1"][0]}, {"model": [body["model"]]}):
        status, found = ask(server, "POST", "/distorch/pin", wrong)
        assert status == 400 and found["error"], wrong
    status, _found = ask(server, "POST", "/distorch/pin", {**body, "more": "x" * 5000})
    assert status == 413
    status, found = ask(server, "POST", "/distorch/pin", {"model": "0" * 32})
    assert status == 404 and found["code"] == "not-found" and found["error"]
    assert not any(model["pinned"] or model["keep"] for model in models(daemon).values())
    for headers in ({"Origin": own}, {"Sec_Fetch_Site": "same-origin"}):
        assert ask(server, "POST", "/distorch/unpin", body, **headers)[0] == 200


def left_by(server):
    return {one["name"]: one["id"] for one in ask(server, "GET", "/distorch/status")[1]["left"]}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_comfyui_left_is_told_until_a_page_has_shown_it(base, daemon, server, how):
    gone = Server(base, daemon.socket).start()
    let_go, left = KINDS["sd3_2"][0], KINDS["sd15"][0]
    gone.run(sample("sd3_2"))
    gone.post("/free", {"unload_models": True, "free_memory": True})  # once: it may wait its turn
    wait_until(lambda: models(daemon)[let_go]["leases"] == 0, 30, "the lease to end")
    gone.run(sample("sd15"))
    gone.stop(how)
    wait_until(lambda: models(daemon)[left]["leases"] == 0, 20, "the lease of who is gone")
    for _ in range(2):  # whoever asks
        assert left_by(server).keys() == {left}
    body = {"models": [left_by(server)[left]]}
    status, _found = ask(server, "POST", "/distorch/told", body, Sec_Fetch_Site="cross-site")
    assert status == 403 and left_by(server).keys() == {left}
    for wrong in ({}, {"models": "x"}, {"models": ["x"]}):
        assert ask(server, "POST", "/distorch/told", wrong)[0] == 400
    assert ask(server, "POST", "/distorch/told", body) == (200, {})
    assert left_by(server) == {}


def test_a_file_is_loaded_and_placed_by_whoever_is_no_page(server, daemon):
    name = KINDS["sd3_1"][0]
    with daemon.raw() as raw:
        raw.call("unload", {"select": {"names": [name]}})
    status, found = ask(server, "POST", "/distorch/load", {"file": f"diffusion_models/{name}"})
    assert status == 200 and found["model"]["name"] == name, found
    assert models(daemon)[name]["state"] == "resident"
    body = {"model": found["model"]["id"], "allocation": "sim:0"}
    status, found = ask(server, "POST", "/distorch/place", body)
    assert status == 200 and found["moved_bytes"] > 0, found
    where = {one["device"] for one in models(daemon)[name]["where"] if one["bytes"]}
    assert "sim:0" in where
    status, found = ask(server, "POST", "/distorch/place", {**body, "allocation": "gpu9"})
    assert status == 400 and "gpu9" in found["error"]
    for wrong in ("", None, 7, ["cpu"], "x" * 1025):
        assert ask(server, "POST", "/distorch/place", {**body, "allocation": wrong})[0] == 400
    assert ask(server, "POST", "/distorch/load", {"file": f"diffusion_models/{name}",
                                                  "allocation": 7})[0] == 400


def test_only_files_of_model_folders_are_loaded(server, daemon, base):
    """What the daemon is made to read is what ComfyUI offers as a model."""
    name = KINDS["sd3_2"][0]
    (base / "models/configs").mkdir(exist_ok=True)
    for folder in ("models/configs", "custom_nodes", "output"):
        (base / folder / "hidden.safetensors").write_bytes(
            (base / "models/diffusion_models" / name).read_bytes())
    before = set(models(daemon))
    try:
        for file in ("custom_nodes/hidden.safetensors", "configs/hidden.safetensors",
                     "custom_nodes/distorch_tests/__init__.py",
                     "diffusion_models/../../output/hidden.safetensors",
                     f"diffusion_models/{base}/output/hidden.safetensors",
                     f"{base}/output/hidden.safetensors", "../output/hidden.safetensors",
                     f"diffusion_models/./{name}", f"../diffusion_models/{name}",
                     "diffusion_models/", "output/hidden.safetensors", "/etc/passwd", name, "", None,
                     7, ["diffusion_models", name]):
            status, found = ask(server, "POST", "/distorch/load", {"file": file})
            assert status == 404 and found["error"], file
    finally:
        for folder in ("models/configs", "custom_nodes", "output"):
            (base / folder / "hidden.safetensors").unlink()
    assert set(models(daemon)) == before
    info = server.get("/object_info/DistorchResidentFile")["DistorchResidentFile"]
    kinds = info["input"]["required"]["kind"][0]
    assert "checkpoints" in kinds and not {"custom_nodes", "configs"} & set(kinds)


class Events:
    """What ComfyUI's server sends to a page of an id, by its websocket."""

    def __init__(self, server, page):
        self._socket = socket.create_connection(("127.0.0.1", server.port), 30)
        self._socket.sendall(f"GET /ws?clientId={page} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
                             "Upgrade: websocket\r\nConnection: Upgrade\r\n"
                             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                             "Sec-WebSocket-Version: 13\r\n\r\n".encode())
        self._file = self._socket.makefile("rb")
        assert b" 101 " in self._file.readline()
        while self._file.readline().strip():
            pass
        self.heard = []  # (when, type, data)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        with contextlib.suppress(OSError, ValueError, IndexError):
            while True:
                kind, size = self._file.read(2)
                if size >= 126:
                    size = int.from_bytes(self._file.read(2 if size == 126 else 8), "big")
                data = self._file.read(size)
                if kind & 0xF == 1:  # text
                    message = json.loads(data)
                    self.heard.append((time.monotonic(), message["type"], message["data"]))

    def close(self):
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def test_pages_are_told_of_changes_at_most_twice_a_second(server, daemon):
    kinds = ("sd3_1", "sd3_2", "sd15")
    for kind in kinds:
        server.run(sample(kind))
    ids = [models(daemon)[KINDS[kind][0]]["id"] for kind in kinds]
    state = {(model, wish): False for model in ids for wish in ("pin", "keep")}

    def turn(one):
        state[one] = not state[one]
        deed = one[1] if state[one] else "un" + one[1]
        assert ask(server, "POST", f"/distorch/{deed}", {"model": one[0]})[0] == 200

    events = Events(server, "listener")
    try:
        assert ask(server, "GET", "/distorch/status?client=listener")[1]["available"]

        def told():
            return [(when, data) for when, kind, data in events.heard if kind == "distorch.status"]

        wait_until(told, 20, "the first")
        time.sleep(2)  # all that comes with the first
        before, begun, n = len(told()), time.monotonic(), 0
        while time.monotonic() - begun < 3:
            n += 1  # by Gray's code: no state comes twice in 64 steps
            turn(list(state)[((n & -n).bit_length() - 1) % len(state)])
            time.sleep(0.04)
        took = time.monotonic() - begun
        assert n >= 20, "a change more often than pages are told"

        def last():
            found = {one["id"]: one for one in told()[-1][1]["models"]}
            return {(model, wish): found[model]["pinned" if wish == "pin" else "keep"]
                    for model, wish in state}

        wait_until(lambda: last() == state, 10, "what it ended with")
        found = told()[before:]
        assert 3 <= len(found) <= 2 * took + 2, (len(found), took)
        gaps = [after[0] - one[0] for one, after in zip(found, found[1:])]
        assert min(gaps) > 0.4, gaps
    finally:
        events.close()
        for model, wish in state:
            ask(server, "POST", f"/distorch/un{wish}", {"model": model})


def test_a_daemon_that_does_not_answer_holds_up_no_other_request(server, daemon):
    assert ask(server, "GET", "/distorch/status")[1]["available"]
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(server, "GET",
                                                                  "/distorch/status")))
               for _ in range(4)]
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        start = time.monotonic()
        server.get("/system_stats")
        assert time.monotonic() - start < 5 and answers == []
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    for thread in threads:
        thread.join(30)
    assert len(answers) == 4 and all(found["available"] for _status, found in answers), answers


def test_routes_without_a_daemon_say_why(server_alone):
    status, found = ask(server_alone, "GET", "/distorch/status")
    assert status == 200 and not found["available"] and "nobody.sock" in found["reason"]
    for method, name, body in (("GET", "models", None), ("POST", "unload", {"model": "0" * 32})):
        status, found = ask(server_alone, method, f"/distorch/{name}", body)
        assert status == 503 and "nobody.sock" in found["error"]
