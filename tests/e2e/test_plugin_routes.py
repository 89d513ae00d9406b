# SPDX-License-Identifier: Apache-2.0
"""The routes of the ComfyUI pack without a ComfyUI, and how its page asks them."""
import asyncio
import json
import shutil
import subprocess
import sys
import types

import pytest
from conftest import slowness
from test_plugin import PACK, pack, path  # noqa: F401


@pytest.fixture
def ask(pack, monkeypatch):
    """ask(method, name, body, **headers) of the routes: (status, answer)"""
    web = types.SimpleNamespace(json_response=lambda body, status, headers: (status, body))
    monkeypatch.setitem(sys.modules, "aiohttp", types.SimpleNamespace(web=web))
    handlers = {}

    def add(method):
        return lambda path: lambda handler: handlers.update({(method, path): handler})

    pack.routes.register(types.SimpleNamespace(sockets={}, routes=types.SimpleNamespace(
        get=add("GET"), post=add("POST"))))

    def ask(method, name, body=None, query=(), **headers):
        text = body if isinstance(body, str) else json.dumps(body)

        async def parse():
            return json.loads(text)

        request = types.SimpleNamespace(
            rel_url=types.SimpleNamespace(query=types.SimpleNamespace(
                getall=lambda key, default: query)),
            headers={key.replace("_", "-"): value for key, value in headers.items()}, json=parse,
            content_type=headers.get("Content_Type", "application/json"),
            content_length=None if body is None else len(text))
        return asyncio.run(handlers[method, f"/distorch/{name}"](request))

    return ask


def test_texts_that_cannot_be_told_to_the_daemon_are_refused(pack, daemon, path, ask, capfd):
    """What json makes of an escape may be a NUL, or no character at all."""
    with daemon.raw() as raw:
        model = raw.load(path)["model"]["id"]
    for wrong in ("a\0b", "\ud800", "\udc80"):
        status, found = ask("POST", "place", {"model": model, "allocation": wrong})
        assert status == 400 and found["error"], (wrong, found)
        placement = pack.nodes.placement
        assert placement.check(placement.of(expert_mode_allocations=wrong)), wrong
    assert ask("POST", "pin", 2000 * "[") == (400, {"error": "the body is no JSON"})
    assert capfd.readouterr().err == "", "no thread's traceback"


def test_no_other_site_has_the_doctor_look(daemon, ask):
    """By plain http browsers say of a request without a body not where it comes from."""
    with pytest.raises(KeyError):
        ask("GET", "doctor")
    assert ask("POST", "doctor", {}, Content_Type="text/plain")[0] == 415
    assert ask("POST", "doctor", {}, Origin="http://example.org")[0] == 403
    status, found = ask("POST", "doctor", {})
    assert status == 200 and all(one["text"] for one in found["checks"])


ASK_FILES = """
import { askFiles } from "./extensions/distorch/news.js";
const wanted = Array.from({ length: 600 }, (_, i) =>
  `${i % 2 ? "vae" : "diffusion_models"}/${i % 3 ? "" : "Wan/a ü model & of some length "}${i}`);
const found = await askFiles(wanted);
if (Object.keys(found).join() !== wanted.join()) throw new Error(JSON.stringify(found));
const asked = globalThis.asked.map((path) => [path.length, path.split("file=").length - 1]);
if (JSON.stringify(await askFiles([])) !== "{}" || globalThis.asked.length !== asked.length)
  throw new Error("nothing is asked of no files");
console.log(JSON.stringify(asked));
"""

API = """
globalThis.asked = [];
export const api = { async fetchApi(path) {
  globalThis.asked.push(path);
  const files = new URL(path, "http://x").searchParams.getAll("file");
  return { ok: true, json: async () => ({ files: Object.fromEntries(
    files.map((file) => [file, { bytes: 1, model: null }])) }) };
} };
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node is installed")
def test_the_page_asks_for_many_files_in_questions_that_a_server_takes(tmp_path):
    for folder in ("scripts", "extensions/distorch"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "scripts/api.js").write_text(API)
    shutil.copy(PACK / "web/news.js", tmp_path / "extensions/distorch")
    (tmp_path / "test.js").write_text(ASK_FILES)
    done = subprocess.run(["node", "test.js"], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    asked = json.loads(done.stdout)
    assert max(length for length, _n in asked) < 4096 and max(n for _length, n in asked) <= 256


def test_a_question_for_more_files_than_are_looked_at_is_refused(daemon, ask):
    files = ["vae/a"] * 257
    assert ask("GET", "models", query=files[1:])[0] == 200
    status, found = ask("GET", "models", query=files)
    assert status == 400 and "256" in found["error"]


REGISTER = """
import asyncio, importlib.util, sys, threading, types
web = types.SimpleNamespace(json_response=lambda *_found, **_options: None)
sys.modules["aiohttp"] = types.SimpleNamespace(web=web)
spec = importlib.util.spec_from_file_location("p", sys.argv[1] + "/__init__.py",
                                              submodule_search_locations=[sys.argv[1]])
module = importlib.util.module_from_spec(spec)
sys.modules["p"] = module
spec.loader.exec_module(module)
begun = threading.Event()

def hang(_self):
    begun.set()
    threading.Event().wait()

module.routes.Asked.devices = hang
handlers = {}
table = types.SimpleNamespace(get=lambda path: lambda one: handlers.update({path: one}),
                              post=lambda path: lambda one: None)
module.routes.register(types.SimpleNamespace(routes=table, sockets={}))

async def serve():
    asking = [asyncio.ensure_future(handlers["/distorch/devices"](None)) for _ in range(5)]
    while not begun.is_set():
        await asyncio.sleep(0.01)
    print("it ends", *(one.done() for one in asking))

asyncio.run(serve())
"""


def test_comfyui_ends_while_a_call_of_the_page_goes_on():
    done = subprocess.run([sys.executable, "-B", "-c", REGISTER, str(PACK)], text=True,
                          capture_output=True, timeout=20 * slowness())
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout == "it ends" + 5 * " False" + "\n"
