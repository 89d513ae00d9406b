# SPDX-License-Identifier: Apache-2.0
"""A real ComfyUI of $COMFYUI_DIR, on the CPU, with this pack, tiny models and a private daemon.
With DISTORCH_TEST_CARD=1 it computes on the card of this machine (test_card.py alone is made for
that).

Nothing is written into ComfyUI's tree: its base folder, database and temporary files lie in a
folder of the test. $COMFYUI_PYTHON is its Python (default: that of its venv, or python3).
"""
import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def _end_to_end():
    """The private daemon of the end-to-end tests, whose conftest has this one's name."""
    spec = importlib.util.spec_from_file_location("end_to_end", ROOT / "tests/e2e/conftest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["end_to_end"] = module
    spec.loader.exec_module(module)
    return module


END_TO_END = _end_to_end()
COMFYUI = os.environ.get("COMFYUI_DIR")
ON_CARD = os.environ.get("DISTORCH_TEST_CARD") == "1"
START_SECONDS, PROMPT_SECONDS = 120, 120


def comfyui_python():
    if "COMFYUI_PYTHON" in os.environ:
        return os.environ["COMFYUI_PYTHON"]
    for folder in ("venv", ".venv"):
        found = pathlib.Path(COMFYUI) / folder / "bin" / "python"
        if found.exists():
            return str(found)
    return "python3"


def pytest_configure(config):
    END_TO_END.pytest_configure(config)


def pytest_collection_modifyitems(items):
    if COMFYUI is None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="COMFYUI_DIR is not set"))


class PromptFailed(Exception):
    """A node raised; the message is its."""


class Outputs(dict):
    """{node: what it showed}. `cached`: the nodes that did not run, for ComfyUI had what they give;
    `is_ours`: the graph has nodes of this pack."""

    def __init__(self, found):
        super().__init__(found["outputs"])
        self.cached = {name for kind, message in found["status"]["messages"]
                       if kind == "execution_cached" for name in message["nodes"]}
        kinds = [node["class_type"] for node in found["prompt"][2].values()]
        self.is_ours = any(kind.startswith("Distorch") or kind.endswith("MultiGPU")
                           for kind in kinds)


def _heed_ctrl_c():
    """Which it does not where the tests were begun in the background of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Server:
    """One ComfyUI over a base folder."""

    def __init__(self, base, daemon_socket, arguments=(), environment=None):
        self.base = base
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log_path = base / f"server-{self.port}.log"
        runtime = base / "run"
        runtime.mkdir(exist_ok=True)
        self.command = [
            comfyui_python(), "-B", "main.py", *([] if ON_CARD else ["--cpu"]), "--listen",
            "127.0.0.1", "--port", str(self.port), "--base-directory", str(base), "--database-url",
            f"sqlite:///{base}/db-{self.port}.sqlite", "--disable-auto-launch",
            "--disable-api-nodes", "--disable-all-custom-nodes", "--whitelist-custom-nodes",
            "distorch", "distorch_tests", *arguments]
        self.environment = {**os.environ, "DISTORCH_SOCKET": str(daemon_socket),
                            "DISTORCH_LIBRARY": os.environ["DISTORCH_LIBRARY"],
                            "XDG_RUNTIME_DIR": str(runtime), "PYTHONDONTWRITEBYTECODE": "1",
                            **(environment or {})}
        self.process = None

    def start(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command, cwd=COMFYUI, env=self.environment,
                                            stdout=log, stderr=log, start_new_session=True,
                                            preexec_fn=_heed_ctrl_c)
        end = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, self.log()[-4000:]
            with contextlib.suppress(OSError):
                self.get("/system_stats")
                return self
            assert time.monotonic() < end, self.log()[-4000:]
            time.sleep(0.1)

    def log(self):
        return self.log_path.read_text(errors="replace")

    def stop(self, how=signal.SIGTERM):
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(how)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def free(self, is_done, seconds=40):
        """Have it let go of all, until that is so. It misses a /free that comes when it does not
        wait yet, and heeds it after the next prompt instead: so never two at once."""
        end = time.monotonic() + seconds
        while not is_done():
            assert time.monotonic() < end, f"not free in {seconds} s"
            self.post("/free", {"unload_models": True, "free_memory": True})
            again = time.monotonic() + 5
            while time.monotonic() < again and not is_done():
                time.sleep(0.2)

    def _open(self, path, data=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}",
                                         None if data is None else json.dumps(data).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def get(self, path):
        return self._open(path)

    def post(self, path, data):
        try:
            return self._open(path, data)
        except urllib.error.HTTPError as failure:
            raise PromptFailed(failure.read().decode()) from failure

    def begin(self, graph):
        return self.post("/prompt", {"prompt": graph, "client_id": "tests"})["prompt_id"]

    def wait(self, prompt):
        end = time.monotonic() + PROMPT_SECONDS
        while time.monotonic() < end:
            found = self.get(f"/history/{prompt}").get(prompt)
            if found is not None:
                for kind, message in found["status"]["messages"]:
                    if kind == "execution_error":
                        raise PromptFailed(message["exception_message"])
                return {**found, "outputs": Outputs(found)}
            time.sleep(0.02)
        raise AssertionError(f"no end of the prompt\n{self.log()[-4000:]}")

    def run(self, graph):
        """Its Outputs."""
        return self.wait(self.begin(graph))["outputs"]

    def latent(self, outputs, node="save"):
        """The bytes of a latent that the graph saved. One of ours has to be of this prompt: for an
        equal graph ComfyUI gives the file of an earlier one. Stock's is as good later."""
        stale = outputs.cached & {node, "sample"}
        assert not (outputs.is_ours and stale), f"ComfyUI did not run {stale} again"
        (saved,) = outputs[node]["latents"]
        data = (self.base / "output" / saved["subfolder"] / saved["filename"]).read_bytes()
        return data[8 + struct.unpack("<Q", data[:8])[0]:]


def make_base(folder):
    """ComfyUI's base folder: models, this pack and the tests'."""
    import models

    folder.mkdir(exist_ok=True)
    for name in ("input", "output", "temp", "user", "custom_nodes"):
        (folder / name).mkdir()
    for name in ("checkpoints", "diffusion_models", "text_encoders", "vae", "clip_vision",
                 "controlnet", "loras"):
        (folder / "models" / name).mkdir(parents=True)
    (folder / "custom_nodes" / "distorch").symlink_to(ROOT / "comfyui_plugin")
    shutil.copytree(HERE / "pack", folder / "custom_nodes" / "distorch_tests",
                    ignore=shutil.ignore_patterns("__pycache__"))
    models.write(folder / "models/checkpoints/tiny_sd15.safetensors",
                 models.tensors_of("tiny_sd15"))
    for recipe in ("tiny_sd3_1", "tiny_sd3_2", "tiny_flux"):
        models.write(folder / f"models/diffusion_models/{recipe}.safetensors",
                     models.tensors_of(recipe))
    models.write(folder / "models/loras/sd3_2.safetensors", models.lora_for("tiny_sd3_2"))
    vae = {name.removeprefix("first_stage_model."): array
           for name, array in models.tensors_of("tiny_sd15").items()
           if name.startswith("first_stage_model.")}
    models.write(folder / "models/vae/tiny_vae.safetensors", vae)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture
def start_daemon():
    daemons = []

    def start(*settings):
        daemon = END_TO_END.Daemon(("memory.ram=1G", *settings)).start()
        daemons.append(daemon)
        return daemon

    yield start
    for daemon in daemons:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.process.terminate()
            daemon.process.wait(20)
        shutil.rmtree(daemon.folder, ignore_errors=True)


def daemon_with(*settings):
    """A fixture: one daemon for a module."""
    @pytest.fixture(scope="module")
    def daemon():
        one = END_TO_END.Daemon(("memory.ram=1G", *settings)).start()
        yield one
        if one.process.poll() is None:
            one.process.terminate()
            one.process.wait(20)
        shutil.rmtree(one.folder, ignore_errors=True)

    return daemon


@pytest.fixture
def daemon(start_daemon):
    return start_daemon()


@pytest.fixture
def start_server(base, request):
    servers = []

    def start(daemon, *arguments, **environment):
        at = daemon if isinstance(daemon, (str, pathlib.Path)) else daemon.socket
        servers.append(Server(base, at, arguments, environment))
        return servers[-1].start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def server(start_server, daemon):
    return start_server(daemon)
