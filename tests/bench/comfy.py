# SPDX-License-Identifier: Apache-2.0
"""What the ComfyUI pack brings and costs, beside ComfyUI alone, on its CPU path: the model after a
restart, the memory of two processes, the pack's import, memory in the page's top bar at rest.

Usage: COMFYUI_DIR=… [COMFYUI_PYTHON=…] scripts/bench comfyui [--rounds N] [--card] [FOLDER]
Generates a model of Stable Diffusion XL's kind (2.7 GB, F16) in FOLDER (a temporary one), starts
private daemons and servers, and takes 12 GB of RAM. --card: instead of all that, on the card of this
machine: the model after a restart, and steps with its blocks on the card, in RAM, and on both.
Nothing here fails: it prints.
"""
import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
if "--card" in sys.argv:
    os.environ["DISTORCH_TEST_CARD"] = "1"
if "COMFYUI_DIR" not in os.environ:
    sys.exit("error: COMFYUI_DIR names no ComfyUI\nhint:  COMFYUI_DIR=~/ComfyUI scripts/bench comfyui")
sys.path.insert(0, str(ROOT / "tests" / "comfyui"))

import browser  # noqa: E402
import conftest as comfyui  # noqa: E402
import graphs  # noqa: E402
import numpy  # noqa: E402
import page as pages  # noqa: E402

#: Its widths and depths; ComfyUI takes it for one with fewer blocks, which some people use.
XL = {"image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
      "num_classes": "sequential", "adm_in_channels": 2816, "in_channels": 4,
      "model_channels": 320, "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 4, 4],
      "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4], "channel_mult": [1, 2, 4],
      "transformer_depth_middle": -1, "use_linear_in_transformer": True, "context_dim": 2048,
      "num_head_channels": 64}
SHAPES = """
import json, os, sys
sys.path.insert(0, os.getcwd())
config, sys.argv = json.loads(sys.argv[1]), sys.argv[:1]
from comfy.cli_args import args
args.cpu = True
import comfy.ops
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
model = UNetModel(**config, device="meta", operations=comfy.ops.disable_weight_init)
print(json.dumps({name: list(value.shape) for name, value in model.state_dict().items()}))
"""
IMPORT = """
import importlib.util, sys, time
import aiohttp, torch  # as in ComfyUI
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location("pack", folder + "/__init__.py",
                                              submodule_search_locations=[folder])
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
begun, cpu = time.perf_counter(), time.process_time()
spec.loader.exec_module(module)
print((time.perf_counter() - begun) * 1e3, (time.process_time() - cpu) * 1e3)
"""
GIB = 1 << 30
REST_S = 30


# ---- the model ----

def write_model(path):
    """As wide as the real one, of small numbers that repeat."""
    done = subprocess.run([comfyui.comfyui_python(), "-B", "-c", SHAPES, json.dumps(XL)],
                          cwd=os.environ["COMFYUI_DIR"], capture_output=True, text=True, check=True)
    shapes = json.loads(done.stdout.splitlines()[-1])
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(numpy.prod(shape))
        header["model.diffusion_model." + name] = {
            "dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)
    rng = numpy.random.default_rng(1)
    block = (rng.standard_normal(1 << 22, dtype=numpy.float32) * 0.02).astype("float16").tobytes()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while offset > 0:
            file.write(block[:min(offset, len(block))])
            offset -= len(block)
        file.flush()
        os.fsync(file.fileno())
    return path.stat().st_size


def drop_cache(path):
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill_cache(path):
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


# ---- daemons, servers, prompts ----

class Daemon(comfyui.END_TO_END.Daemon):
    """As people have it: a file that is warm in the page cache serves as it is."""

    def __init__(self, *settings):
        super().__init__(("memory.ram=6G", "memory.reserve=0", "memory.backing=auto", *settings))

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


def load_only(own):
    return {"load": graphs.loader("xl", own),
            "look": graphs.node("TestLook", model=["load", 0])}


@contextlib.contextmanager
def restarted(base, at, arguments=(), **environment):
    """A ComfyUI that has just started and has seen a prompt."""
    server = comfyui.Server(base, at, arguments, environment).start()
    try:
        server.run(graphs.sample("sd3_1", own=False))
        yield server
    finally:
        server.stop()


def ready(server, own):
    """(seconds until the model is there, until a step is done with it too)"""
    begun = time.monotonic()
    server.run(load_only(own))
    loaded = time.monotonic() - begun
    server.run(graphs.sample("xl", own=own, steps=1))
    return loaded, time.monotonic() - begun


def measure_restart(base, path, rounds):
    daemon = Daemon().start()

    def unload():
        with daemon.raw() as raw:
            raw.call("unload", {"select": {"all": True}})

    def load():
        with comfyui.END_TO_END.opened(path) as fd, daemon.raw(timeout=120) as raw:
            raw.call("load", {}, [fd])

    def cold():
        unload()
        drop_cache(path)

    def warm_cache():
        unload()
        fill_cache(path)

    def warm_daemon():  # and nothing else: the file's pages are not needed
        cold()
        load()

    cases = {"ComfyUI alone, file cold": (False, cold, {}),
             "ComfyUI alone, file in the page cache": (False, warm_cache, {}),
             "distorch, cold": (True, cold, {}),
             "distorch, held by the daemon": (True, warm_daemon, {}),
             "distorch, held, by its path tier": (True, warm_daemon, {"DISTORCH_TIER": "path"})}
    times = {name: [] for name in cases}
    try:
        for _ in range(rounds):
            for name, (own, prepare, environment) in cases.items():
                prepare()
                with restarted(base, daemon.socket, **environment) as server:
                    if name.endswith("cold"):
                        drop_cache(path)  # the start took a while
                    times[name].append(ready(server, own))
    finally:
        daemon.end()
    print(f"after a restart of ComfyUI, s: median (least to most) of {rounds}; with one step at 64 "
          "x 64 as well")
    for name, found in times.items():
        texts = []
        for one in zip(*found):
            texts.append(f"{statistics.median(one):6.1f} ({min(one):.1f} to {max(one):.1f})")
        print(f"  {name:<40} {texts[0]:<24} {texts[1]}")


def pss(pid):
    rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    (line,) = [line for line in rollup.splitlines() if line.startswith("Pss:")]
    return int(line.split()[1]) * 1024


def measure_memory(base, path):
    daemon = Daemon().start()
    print("memory of two ComfyUI processes after a step with the model, GiB (Pss)")
    try:
        for name, own in (("ComfyUI alone", False), ("distorch, and the daemon", True)):
            fill_cache(path)
            with contextlib.ExitStack() as stack:
                servers = [stack.enter_context(restarted(base, daemon.socket)) for _ in range(2)]
                before = sum(pss(server.process.pid) for server in servers)
                for server in servers:
                    ready(server, own)
                after = [pss(server.process.pid) for server in servers]
                if own:
                    after.append(pss(daemon.process.pid))
                print(f"  {name:<40} {sum(after) / GIB:6.1f}   of that for the model "
                      f"{(sum(after) - before) / GIB:.1f}")
    finally:
        daemon.end()


def measure_import(folder):
    """In a process that has what ComfyUI has; Python keeps byte code from the first one on."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "code")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    found = [subprocess.run([comfyui.comfyui_python(), "-c", IMPORT, str(ROOT / "comfyui_plugin")],
                            capture_output=True, text=True, check=True, env=environment).stdout
             for _ in range(12)]
    times, cpu = zip(*([float(word) for word in line.split()] for line in found))
    print(f"import of the pack, ms: median {statistics.median(times[1:]):.1f} ({min(times[1:]):.1f} "
          f"to {max(times[1:]):.1f}; aim: 50), of that for the processor "
          f"{statistics.median(cpu[1:]):.1f}; the first after an install {times[0]:.1f}")


def measure_rest(base, folder):
    """The server's part of what the page shows, while nothing changes."""
    if browser.CHROMIUM is None or browser.DRIVER is None:
        print("memory in the top bar, at rest: not measured, chromium and chromedriver are missing")
        return
    daemon = Daemon().start()
    with contextlib.ExitStack() as stack:
        stack.callback(daemon.end)
        server = stack.enter_context(restarted(base, daemon.socket))
        server.get("/distorch/status")  # its threads are there
        time.sleep(REST_S / 10)
        before = pages.threads(server)
        page = browser.Page(folder)
        stack.callback(page.close)
        pages.show_first(page, server)
        time.sleep(REST_S / 10)
        used = pages.cpu_used(server, pages.threads(server) - before, REST_S)
    print(f"memory in the top bar, at rest: {100 * used / REST_S:.3f} % of a core (limit 0.1)")


#: (arguments of ComfyUI, allocation of the pack's loader; None: ComfyUI's own loader)
CARD = [((), None), (("--novram",), None), ((), ""), ((), "cuda:0"), ((), "cuda:0,50%;cpu,50%"),
        ((), "cpu,*")]
N_STEPS = 20


def measure_card(base, path):
    """In a ComfyUI that has just started; the file is in the page cache and held by the daemon, which
    has its blocks where the run before wanted them."""
    daemon = Daemon("gpu.devices=all").start()
    print(f"on the card, s: the model ready; {N_STEPS} steps at 512 x 512 with that; {N_STEPS} again")
    try:
        with daemon.raw(timeout=120) as raw:
            comfyui.END_TO_END.wait_until(
                lambda: any(one["name"] == "cuda:0" and one["state"] == "ok"
                            for one in raw.call("devices")["devices"]), 30, "the card")
            with comfyui.END_TO_END.opened(path) as fd:
                raw.call("load", {}, [fd])
        for arguments, allocation in CARD:
            fill_cache(path)
            with restarted(base, daemon.socket, arguments) as server:
                measure_steps(server, allocation, *arguments)
    finally:
        daemon.end()


def measure_steps(server, allocation, *arguments):
    own = allocation is not None
    more = {"expert_mode_allocations": allocation} if allocation else {}
    what = "distorch" if own else "ComfyUI alone"
    begun = time.monotonic()
    server.run({"load": graphs.loader("xl", own, **more),
                "look": graphs.node("TestLook", model=["load", 0])})
    ready_s, times = time.monotonic() - begun, []
    for seed in (1, 2):
        begun = time.monotonic()
        server.run(graphs.sample("xl", own=own, seed=seed, steps=N_STEPS, size=512, **more))
        times.append(time.monotonic() - begun)
    name = ", ".join([what, *arguments, *more.values()])
    print(f"  {name:<40} {ready_s:6.2f} {ready_s + times[0]:6.2f} {times[1]:6.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--card", action="store_true")
    parser.add_argument("folder", nargs="?")
    options = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="distorch-bench-", dir=options.folder))
    version = (pathlib.Path(os.environ["COMFYUI_DIR"]) / "comfyui_version.py").read_text()
    print(f"{os.uname().sysname} {os.uname().release}, {os.cpu_count()} cores, ComfyUI "
          f"{version.split('=')[-1].strip()} with {'a card' if options.card else '--cpu'}")
    try:
        if not options.card:
            measure_import(folder)
        base = comfyui.make_base(folder / "base")
        path = base / "models/diffusion_models/xl.safetensors"
        if not options.card:
            measure_rest(base, folder)
        size = write_model(path)
        print(f"a model of Stable Diffusion XL's kind: {size / 1e9:.2f} GB in F16")
        graphs.KINDS["xl"] = (path.name, 2048, 1280, "EmptyLatentImage")
        if options.card:
            measure_card(base, path)
            return
        measure_restart(base, path, options.rounds)
        measure_memory(base, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
