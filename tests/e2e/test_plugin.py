# SPDX-License-Identifier: Apache-2.0
"""The ComfyUI pack without a ComfyUI: its session with a real daemon, and what its loaders do, over
small stand-ins of what they call. tests/comfyui has the same over the real one."""
import fcntl
import gc
import importlib
import json
import logging
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import types

import pytest
from conftest import ROOT, HeldDaemon, make_safetensors, slowness, wait_until
from sharded import Sharded
from test_shards import write_parts

PACK = ROOT / "comfyui_plugin"


@pytest.fixture
def pack(monkeypatch, tmp_path, daemon):
    """The pack as ComfyUI imports it, connected to the test's daemon when it wants to be."""
    monkeypatch.setenv("DISTORCH_SOCKET", str(daemon.socket))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("DISTORCH_DISABLE", raising=False)
    monkeypatch.delenv("DISTORCH_TIER", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("pack", PACK / "__init__.py",
                                                  submodule_search_locations=[str(PACK)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = module
    spec.loader.exec_module(module)
    yield module
    for thread in threading.enumerate():
        if thread.name == "distorch-soon":  # it may be about to connect
            thread.join(20 * slowness())
    session = sys.modules["pack.session"].session
    if session._connection is not None:
        session._connection.close()
        session._connection = None  # what still runs does not connect again
    for name in [name for name in sys.modules if name == "pack" or name.startswith("pack.")]:
        del sys.modules[name]


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "m.safetensors"
    make_safetensors(made, {"a.weight": ("F16", [64, 64]), "b.weight": ("F32", [16])})
    return made


class Interrupted(Exception):
    pass


@pytest.fixture
def comfy(monkeypatch):
    """What the loaders look for in ComfyUI, and no more."""
    def stand_in(name, **members):
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    package = stand_in("comfy")
    package.__path__ = []
    stand_in("comfy.utils")
    stand_in("comfy.memory_management", aimdo_enabled=True)
    stand_in("comfy.model_management", InterruptProcessingException=Interrupted)
    return stand_in


class Model:
    pass


def leases(daemon):
    with daemon.raw() as raw:
        return sum(model["leases"] for model in raw.call("list")["models"])


def test_the_import_loads_nothing_heavy_and_is_quick(tmp_path):
    """Once it is compiled, in a Python that has what ComfyUI has imported by then."""
    code = ("import asyncio, importlib.util, inspect, logging, sys, tempfile, time, urllib.parse\n"
            "begun = time.process_time()\n"
            f"spec = importlib.util.spec_from_file_location('pack', {str(PACK / '__init__.py')!r},"
            f" submodule_search_locations=[{str(PACK)!r}])\n"
            "module = importlib.util.module_from_spec(spec)\n"
            "sys.modules['pack'] = module\n"
            "spec.loader.exec_module(module)\n"
            "print(time.process_time() - begun)\n"
            "assert len(module.NODE_CLASS_MAPPINGS) == len(module.NODE_DISPLAY_NAME_MAPPINGS) > 10\n"
            "print(sorted({'torch', 'numpy', 'distorch', 'ctypes', 'comfy', 'aiohttp'}"
            " & set(sys.modules)))\n")
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    took = []
    for _ in range(6):
        done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True,
                              check=True, env=environment)
        seconds, heavy = done.stdout.splitlines()
        assert heavy == "[]"
        took.append(float(seconds))
    assert statistics.median(took[1:]) < 0.05 * slowness(), took


def test_a_loader_reads_the_daemons_memory_by_the_files_name(pack, comfy, daemon, path):
    loaders = pack.nodes.loaders
    seen = []

    def by_path(paths):
        seen.append(pathlib.Path(paths[0]))
        assert seen[0].name == path.name and seen[0].read_bytes() == path.read_bytes()
        child = subprocess.run(["cat", paths[0]], capture_output=True, check=True)
        assert child.stdout == path.read_bytes(), "a child sees it too"
        return (Model(),)

    loaded = loaders.load(loaders.Job([str(path)], by_path), keep=True)
    assert loaded.tier == "path" and loaded.reasons == []
    assert leases(daemon) == 1
    with daemon.raw() as raw:
        assert raw.call("list")["models"][0]["keep"]
    del loaded
    gc.collect()
    wait_until(lambda: leases(daemon) == 0, 10 * slowness(), "the lease to go with its object")
    assert not seen[0].exists() and not seen[0].is_symlink()


def test_what_core_refuses_by_a_link_it_gets_by_the_file(pack, comfy, daemon, path):
    """A release that wants something else of paths; and a cancelled prompt is not retried."""
    loaders = pack.nodes.loaders

    def picky(paths):
        if paths[0] != str(path):
            raise ValueError("no links here")
        return (Model(),)

    loaded = loaders.load(loaders.Job([str(path)], picky))
    assert loaded.tier == "stock"
    assert any("no links here" in line for line in loaded.text()), loaded.text()

    def cancelled(_paths):
        raise Interrupted

    with pytest.raises(Interrupted):
        loaders.load(loaders.Job([str(path)], cancelled))

    def broken(_paths):
        raise ValueError("the file is broken")

    with pytest.raises(ValueError, match="the file is broken"):
        loaders.load(loaders.Job([str(path)], broken))
    gc.collect()
    wait_until(lambda: leases(daemon) == 0, 10 * slowness(), "no lease of what failed")


def test_a_file_that_a_link_names_has_the_links_name(pack, comfy, daemon, path):
    """As Hugging Face's cache has them: loaders look at how a name ends."""
    loaders = pack.nodes.loaders
    blob = path.with_name("0a1b2c3d")
    path.rename(blob)
    path.symlink_to(blob)

    def by_path(paths):
        assert pathlib.Path(paths[0]).name == path.name
        return (Model(),)

    loaded = loaders.load(loaders.Job([str(path)], by_path))
    assert loaded.tier == "path" and loaded.reasons == []
    with daemon.raw() as raw:
        assert raw.call("list")["models"][0]["name"] == path.name


@pytest.mark.parametrize("kind", ["an index", "gguf"])
def test_one_file_of_several_is_that_file_alone(pack, comfy, daemon, tmp_path, kind):
    """By its path the library takes the whole model; a loader wants what its file has."""
    if kind == "gguf":
        paths = write_parts(tmp_path, 4, {f"blk.{i}.w": bytes(128) for i in range(4)})
    else:
        paths = Sharded(tmp_path, n=4).paths
    loaders, session = pack.nodes.loaders, pack.nodes.session

    def by_path(links):
        for path, link in zip(paths[:2], links, strict=True):
            assert pathlib.Path(link).name == path.name
            assert pathlib.Path(link).read_bytes() == path.read_bytes()
        return (Model(),)

    loaded = loaders.load(loaders.Job([str(path) for path in paths[:2]], by_path))
    assert loaded.tier == "path" and loaded.reasons == [], loaded.text()
    resident = session.open(str(paths[1]))
    assert [name.split(".")[-2] for name in resident.devices()] == ["1"] * len(resident.devices())
    resident.release()
    asked = pack.routes.Asked(types.SimpleNamespace(sockets={}))
    assert asked.load(str(paths[2]), "")["model"]["name"] == paths[2].name
    importlib.import_module("pack.prewarm")._load(str(paths[3]), lambda: True)
    assert {one["name"] for one in daemon.models()} == {path.name for path in paths}
    with pytest.raises(sys.modules["pack.session"].Unavailable, match="cannot be opened"):
        session.open(str(tmp_path / "gone.safetensors"))


def test_a_link_is_good_as_long_as_somebody_has_its_path(pack, comfy, daemon, path):
    """Core makes a model once more of the path that it keeps, also when the first one is gone."""
    loaders = pack.nodes.loaders
    kept = []
    loaders.load(loaders.Job([str(path)], lambda paths: kept.extend(paths) or (Model(),)))
    gc.collect()
    assert pathlib.Path(kept[0]).read_bytes() == path.read_bytes() and leases(daemon) == 1
    link = pathlib.Path(kept.pop())
    gc.collect()
    wait_until(lambda: leases(daemon) == 0, 10 * slowness(), "the lease to go with the path")
    assert not link.is_symlink()


def test_a_runtime_folder_that_is_gone_is_no_reason_not_to_serve(pack, comfy, path, tmp_path,
                                                                monkeypatch):
    loaders = pack.nodes.loaders
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    loaded = loaders.load(loaders.Job([str(path)], lambda _paths: (Model(),)))
    assert loaded.tier == "path", loaded.text()


def test_inputs_that_nobody_has_thought_of_fail_no_prompt(pack, comfy, path):
    """A linked input is not checked by ComfyUI, and a later release has more of them."""
    loaders, nodes = pack.nodes.loaders, pack.nodes
    job = loaders.Job([str(path)], lambda paths: (paths[0],))
    loaded = loaders.load(job, priority=1000)
    assert loaded.tier == "stock" and "1000" in loaded.reasons[0]
    report = nodes.UnloadNode().manage(idle_minutes=-1)["result"][1]
    assert report.startswith("not done")

    class Later:
        @staticmethod
        def INPUT_TYPES():
            return {"required": {"unet_name": (["m"],), "weight_dtype": (["default"],),
                                 "shape_of_the_moon": ("INT",)}}

    comfy("nodes", NODE_CLASS_MAPPINGS={"UNETLoader": Later})
    required = nodes.DiffusionModelLoader.INPUT_TYPES()["required"]
    assert list(required) == ["unet_name", "weight_dtype"]


def test_a_daemon_that_hangs_is_waited_for_once(pack, comfy, daemon, path, monkeypatch):
    loaders = pack.nodes.loaders
    call_s = 2 * slowness()
    connect = sys.modules["pack.session"].Session.connect
    monkeypatch.setattr(connect, "__defaults__", ("ComfyUI", call_s))
    job = loaders.Job([str(path)], lambda paths: (Model(),))
    assert loaders.load(job).tier == "path"
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        loaded = loaders.load(job)
        assert loaded.tier == "stock" and "timeout" in loaded.reasons[0], loaded.text()
        begun = time.monotonic()
        assert loaders.load(job).tier == "stock"
        assert time.monotonic() - begun < 0.9 * call_s
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    monkeypatch.setattr(sys.modules["pack.session"], "RETRY_S", 0)
    assert loaders.load(job).tier == "path"


@pytest.mark.fault("U11")
@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_another_system_is_said_to_be_no_place_for_it(pack, comfy, path, system, monkeypatch):
    monkeypatch.setattr(sys.modules["pack.session"].sys, "platform", system)
    loaders = pack.nodes.loaders
    loaded = loaders.load(loaders.Job([str(path)], lambda paths: (paths[0],)))
    assert loaded.tier == "stock" and loaded.objects == (str(path),)
    assert f"runs on Linux, not on {system}" in loaded.reasons[0]


def test_a_library_that_is_older_than_its_package_fails_no_prompt(pack, comfy, path):
    code = ("import importlib.util, sys, types\n"
            f"spec = importlib.util.spec_from_file_location('pack', {str(PACK / '__init__.py')!r},"
            f" submodule_search_locations=[{str(PACK)!r}])\n"
            "module = importlib.util.module_from_spec(spec)\n"
            "sys.modules['pack'] = module\n"
            "spec.loader.exec_module(module)\n"
            "loaders = module.nodes.loaders\n"
            "loaded = loaders.load(loaders.Job([sys.argv[1]], lambda paths: (paths[0],)))\n"
            "print(loaded.tier, *loaded.reasons)\n")
    done = subprocess.run([sys.executable, "-B", "-c", code, str(path)], text=True,
                          capture_output=True, env={**os.environ, "DISTORCH_LIBRARY": "libm.so.6"})
    assert done.returncode == 0 and done.stdout.startswith("stock "), done.stderr[-2000:]
    assert "undefined symbol" in done.stdout


@pytest.mark.fault("U10")
def test_whatever_the_daemon_does_not_serve_core_loads(pack, comfy, daemon, path, monkeypatch,
                                                       caplog):
    loaders, session = pack.nodes.loaders, pack.nodes.session
    job = loaders.Job([str(path)], lambda paths: (paths[0],))
    broken = path.with_name("broken.safetensors")
    broken.write_bytes(b"\xff" * 64)
    loaded = loaders.load(loaders.Job([str(broken)], lambda paths: (paths[0],)))
    assert loaded.objects == (str(broken),) and "bad-file" in loaded.reasons[0]
    monkeypatch.setenv("DISTORCH_DISABLE", "1")
    loaded = loaders.load(job)
    assert loaded.tier == "stock" and "DISTORCH_DISABLE" in loaded.reasons[0]
    monkeypatch.delenv("DISTORCH_DISABLE")
    monkeypatch.setenv("DISTORCH_TIER", "fastest")
    assert "fastest" in loaders.load(job).reasons[0]
    monkeypatch.delenv("DISTORCH_TIER")
    session._connection.close()
    session._connection = None
    monkeypatch.setenv("DISTORCH_SOCKET", str(path))
    for _ in range(3):
        loaded = loaders.load(job)
        assert loaded.objects == (str(path),) and str(path) in loaded.reasons[0]
    said = [record for record in caplog.records if "ComfyUI loads by itself" in record.message]
    assert len(said) == 1, "once, until it is something else"


def test_a_policy_is_asked_about_the_file_itself(pack, comfy, path):
    """Of models that may be used, where this ComfyUI has one: not about a link, and by no tier."""
    loaders, asked = pack.nodes.loaders, []
    comfy("app").__path__ = []
    governance = comfy("app.governance", model_allowed=lambda one: asked.append(one) or False)
    job = loaders.Job([str(path)], lambda paths: (paths[0],))
    with pytest.raises(RuntimeError, match="policy"):
        loaders.load(job)
    assert asked == [str(path)]
    governance.model_allowed = lambda one: asked.append(one) or True
    assert loaders.load(job).tier == "path" and asked == [str(path)] * 2


@pytest.mark.daemon("memory.ram=64M")
def test_before_core_loads_by_itself_what_is_idle_makes_room_in_ram(pack, comfy, daemon, tmp_path):
    loaders = pack.nodes.loaders
    idle, other = tmp_path / "idle.safetensors", tmp_path / "other.safetensors"
    make_safetensors(idle, {"a": ("U8", [40 << 20])})
    with open(other, "wb") as file:  # no model, so the daemon does not serve it
        file.truncate(40 << 20)
    with daemon.raw() as raw:
        raw.load(idle)

        def evicted():
            return [one["name"] for one in raw.call("events.history")["records"]
                    if one["type"] == "evicted"]

        def by_path(paths):
            assert paths == [str(other)] and evicted() == [idle.name], "before, not after"
            return (Model(),)

        assert evicted() == []
        loaded = loaders.load(loaders.Job([str(other)], by_path))
        assert loaded.tier == "stock" and "bad-file" in loaded.reasons[0], loaded.text()


def test_a_daemon_that_was_restarted_is_found_again(pack, comfy, daemon, path):
    loaders = pack.nodes.loaders
    def by_path(paths):
        assert pathlib.Path(paths[0]).read_bytes() == path.read_bytes()
        return (Model(),)

    job = loaders.Job([str(path)], by_path)
    assert loaders.load(job).tier == "path"
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()
    assert loaders.load(job).tier == "path"


def test_what_comfyui_uses_stays_leased_over_the_death_of_the_daemon(pack, comfy, path, start_daemon,
                                                                     monkeypatch):
    daemon = start_daemon("sim.count=1", "sim.memory=64M", kind=HeldDaemon)
    monkeypatch.setenv("DISTORCH_SOCKET", str(daemon.socket))
    session = pack.nodes.session
    resident = session.open(str(path))
    group = sys.modules["pack.parking"].Group([resident], None, None, None)

    def act(connection):
        return sys.modules["pack.unload"].act(connection, set(), {resident.id}, {}, "ram")

    def is_ours():
        return (leases(daemon) == 1 and group._may_leave() and
                [one["reason"] for one in session.call(act).held] == ["ComfyUI still has it"])

    assert is_ours()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(session.call(
        lambda connection: connection.ping())))
    os.kill(daemon.daemon_pid(), signal.SIGSTOP)
    asking.start()
    time.sleep(0.2)  # it waits for an answer that does not come
    daemon.kill_daemon()
    asking.join(20 * slowness())
    assert not asking.is_alive()
    wait_until(is_ours, 10 * slowness(), "the lease to be asserted again")

    calls = []

    def cut_off_once(connection):
        calls.append(connection)
        if len(calls) == 1:
            raise sys.modules["distorch"].Error("no-connection", "cut off", None, True, {})
        return connection.ping()

    session.call(cut_off_once)
    assert len(calls) == 2 and is_ours()
    resident.release()


def test_only_what_the_binding_refuses_is_a_bad_argument(pack, comfy, daemon, path):
    session, unavailable = pack.nodes.session, sys.modules["pack.session"].Unavailable

    def fail(*_progress):
        raise ValueError("ours")

    for call in (lambda connection: connection.show("\0"),
                 lambda connection: connection.show("\ud800")):
        with pytest.raises(unavailable) as caught:
            session.call(call)
        assert caught.value.code == "bad-argument"
    for call in (fail, lambda connection: connection.load(str(path), progress=fail)):
        with pytest.raises(ValueError, match="ours"):
            session.call(call)


def test_a_daemon_that_stays_away_is_told_of_once(pack, comfy, daemon, path, monkeypatch, caplog):
    monkeypatch.setattr(sys.modules["pack.session"], "RETRY_S", 0)
    session = pack.nodes.session
    session.open(str(path)).release()
    daemon.process.kill()
    daemon.process.wait()
    for _ in range(3):
        with pytest.raises(sys.modules["pack.session"].Unavailable):
            session.call(lambda connection: connection.ping())
    said = [record for record in caplog.records if "ComfyUI loads by itself" in record.message]
    assert len(said) == 1, [record.message for record in said]
    daemon.start()
    session.open(str(path)).release()


def run_folder(tmp_path):
    return tmp_path / f"distorch-comfyui-{os.getuid()}"


def test_links_of_processes_that_are_gone_are_removed(pack, comfy, path, tmp_path):
    loaders = pack.nodes.loaders
    folders = {word: run_folder(tmp_path) / f"links-{word}" for word in ("gone", "here")}
    for folder in folders.values():
        (folder / "1").mkdir(parents=True)
    fd = os.open(folders["here"], os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # as a process does that lives
        loaders.load(loaders.Job([str(path)], lambda _paths: (Model(),)))
    finally:
        os.close(fd)
    assert not folders["gone"].exists() and (folders["here"] / "1").exists()


LINK = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("p", sys.argv[1] + "/__init__.py",
                                              submodule_search_locations=[sys.argv[1]])
module = importlib.util.module_from_spec(spec)
sys.modules["p"] = module
spec.loader.exec_module(module)
link = module.nodes.session.open(sys.argv[2]).link()
print(os.getpid(), link, flush=True)
sys.stdin.readline()
"""


def test_two_containers_that_share_a_runtime_folder_leave_each_others_links(daemon, path, tmp_path):
    """All their processes have the same numbers, and none of them is in the other's /proc."""
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child",
               "--mount-proc"]
    if subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("no namespaces of processes here")
    runtime = tmp_path / "run"
    runtime.mkdir()
    environment = {**os.environ, "DISTORCH_SOCKET": str(daemon.socket),
                   "XDG_RUNTIME_DIR": str(runtime)}
    started = []

    def start():
        started.append(subprocess.Popen([*command, sys.executable, "-B", "-c", LINK, str(PACK),
                                         str(path)], env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        pid, link = started[-1].stdout.readline().split()
        assert pid == "1"
        return pathlib.Path(link)

    try:
        first, second = start(), start()
        assert first.is_symlink() and second.is_symlink() and first != second
        started[0].kill()
        started[0].wait()
        wait_until(lambda: leases(daemon) == 1, 10 * slowness(), "the first to be gone")
        third = start()
        assert not first.is_symlink() and second.is_symlink() and third.is_symlink()
        assert len(list(runtime.glob("*/*.held"))) == 2, "the first one's model is wanted again"
    finally:
        for one in started:
            one.kill()
            one.communicate()


def test_a_runtime_folder_that_goes_meanwhile_is_made_anew(pack, comfy, path, tmp_path):
    """A login's goes with its last session, also under what runs on."""
    loaders = pack.nodes.loaders

    def by_path(paths):
        assert pathlib.Path(paths[0]).read_bytes() == path.read_bytes()
        return (Model(),)

    job = loaders.Job([str(path)], by_path)
    resident = pack.nodes.session.open(str(path))
    kept = [loaders.load(job), resident.link()]
    shutil.rmtree(run_folder(tmp_path))
    loaded = loaders.load(job)
    assert loaded.tier == "path" and loaded.reasons == [], loaded.text()
    assert pathlib.Path(resident.link()).read_bytes() == path.read_bytes()
    assert len(list(run_folder(tmp_path).glob("*.held"))) == 1
    del kept
    resident.release()


def test_a_path_that_leads_nowhere_any_more_is_made_anew(pack, comfy, daemon, path, tmp_path):
    """ComfyUI runs the node again when this differs from what it was; else it gives what it has."""
    comfy("folder_paths", folder_names_and_paths={"vae": ([str(path.parent)], set())},
          get_full_path_or_raise=lambda _kind, name: str(path.parent / name))
    kind = pack.nodes.ResidentFileNode
    inputs = {"kind": "vae", "file": path.name}

    def run():
        (found,) = kind().path(**inputs)["result"]
        assert found != str(path) and pathlib.Path(found).read_bytes() == path.read_bytes()
        return found

    first = kind.IS_CHANGED(**inputs)
    kept = [run(), run()]
    assert kind.IS_CHANGED(**inputs) == first
    del kept[0]  # in the cache of a workflow that is gone
    gc.collect()
    assert kind.IS_CHANGED(**inputs) == first
    shutil.rmtree(run_folder(tmp_path))
    second = kind.IS_CHANGED(**inputs)
    assert second != first
    kept.append(run())
    assert kind.IS_CHANGED(**inputs) == second
    kept.clear()
    gc.collect()
    wait_until(lambda: leases(daemon) == 0, 10 * slowness(), "the leases to go with the paths")


def test_what_a_process_that_is_gone_held_is_told_until_a_page_says_that_it_has(pack, comfy, daemon,
                                                                               path, tmp_path):
    news, crash, loaders = pack.routes.news, pack.routes.crash, pack.nodes.loaders
    other = path.with_name("other.safetensors")
    make_safetensors(other, {"a.weight": ("F16", [64, 64])}, seed=3)
    code = LINK.replace("sys.stdin.readline()", f"""
twice = [module.nodes.session.open({str(other)!r}) for _ in range(2)]
twice[0].release()
module.nodes.session.open(sys.argv[2]).release()
os.kill(os.getpid(), 9)
""")
    subprocess.run([sys.executable, "-B", "-c", code, str(PACK), str(path)], capture_output=True,
                   env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})
    wait_until(lambda: leases(daemon) == 0, 10 * slowness(), "its leases to end")
    for _ in range(2):
        assert {one["name"] for one in news.left_warm()} == {path.name, other.name}
    loaded = loaders.load(loaders.Job([str(path)], lambda _paths: (Model(),)))
    del loaded
    gc.collect()
    wait_until(lambda: leases(daemon) == 0, 10 * slowness(), "its leases to end")
    (left,) = news.left_warm()
    assert left["name"] == other.name, "the other was wanted again"
    crash.forget({left["id"]})
    assert news.left_warm() == []


def test_the_binding_is_found_beside_the_pack(pack, tmp_path):
    """Copied, as `scripts/install --plugin` does: the library too."""
    comfyui = tmp_path / "ComfyUI"
    (comfyui / "custom_nodes").mkdir(parents=True)
    command = [str(ROOT / "scripts/install"), "--plugin", str(comfyui), "-y"]
    subprocess.run(command, check=True, capture_output=True)
    folder = comfyui / "custom_nodes" / "distorch"
    assert not any(one.is_symlink() for one in folder.rglob("*"))
    assert not list(folder.rglob("*.pyc"))
    code = ("import sys, importlib.util\n"
            f"spec = importlib.util.spec_from_file_location('p', {str(folder / '__init__.py')!r},"
            f" submodule_search_locations=[{str(folder)!r}])\n"
            "module = importlib.util.module_from_spec(spec)\n"
            "sys.modules['p'] = module\n"
            "spec.loader.exec_module(module)\n"
            "print(module.nodes.session.call(lambda connection: connection.ping()))\n"
            "import distorch\n"
            "print(distorch.__file__)\n")
    clean = {name: value for name, value in os.environ.items()
             if name not in ("DISTORCH_LIBRARY", "PYTHONPATH")}
    done = subprocess.run([sys.executable, "-B", "-c", code], text=True, capture_output=True,
                          cwd=tmp_path, env=clean)
    assert done.returncode == 0, done.stderr
    assert str(folder) in done.stdout
    subprocess.run([*command, "--uninstall"], check=True, capture_output=True)
    assert list((comfyui / "custom_nodes").iterdir()) == []


def test_the_plugin_is_put_only_where_a_comfyui_is(tmp_path):
    command = [str(ROOT / "scripts/install"), "--plugin", str(tmp_path), "-y"]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode != 0 and "custom_nodes" in done.stderr
    (tmp_path / "custom_nodes" / "distorch").mkdir(parents=True)
    (tmp_path / "custom_nodes" / "distorch" / "mine").write_text("x")
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode != 0 and (tmp_path / "custom_nodes" / "distorch" / "mine").exists()


# ---- when memory runs short, and what is unloaded ----

def test_what_finds_no_memory_is_tried_again_once_idle_models_made_room(pack, comfy, daemon, path):
    loaders = pack.nodes.loaders
    with daemon.raw() as raw, open(path, "rb") as file:
        raw.call("load", {}, [file.fileno()])

        def evictions():
            return [one for one in raw.call("events.history")["records"] if one["type"] == "evicted"]

        other = path.with_name("other.safetensors")
        other.write_bytes(b"no model: the daemon does not serve it")
        for failure in (MemoryError("none left"),
                        RuntimeError("DefaultCPUAllocator: can't allocate memory")):
            before, calls = len(evictions()), []

            def by_path(paths):
                calls.append(paths)
                if len(calls) == 1:
                    raise failure
                assert len(evictions()) > before, "now there is room"
                return (Model(),)

            loaded = loaders.load(loaders.Job([str(other)], by_path))
            assert loaded.tier == "stock" and len(calls) == 2
            wait_until(lambda: any(one["state"] == "resident" for one in raw.call("list")["models"]),
                       10 * slowness(), "what was displaced to come back")

    def starved(_paths):
        raise MemoryError("for ever")

    with pytest.raises(MemoryError):
        loaders.load(loaders.Job([str(other)], starved))

    def broken(paths):
        calls.append(paths)
        raise RuntimeError("something else")

    calls = []
    with pytest.raises(RuntimeError):
        loaders.load(loaders.Job([str(other)], broken))
    assert len(calls) == 1


def test_the_caches_of_every_card_in_use_are_emptied(pack, monkeypatch):
    """Core empties that of the current card alone. To ask a card that is not in use uses it."""
    done, current = [], [0]

    class On:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            self.before, current[0] = current[0], self.index

        def __exit__(self, *_failure):
            current[0] = self.before

    def note(what):
        return lambda: done.append((what, current[0]))

    is_used = [True]
    cuda = types.SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: is_used[0], device_count=lambda: 3,
        memory_reserved=lambda index: (1 << 20, 0, 5)[index], device=On,
        **{name: note(name) for name in ("synchronize", "empty_cache", "ipc_collect")})
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    empty = sys.modules["pack.memory"].empty_caches
    empty()
    assert done == [(what, index) for index in (0, 2)
                    for what in ("synchronize", "empty_cache", "ipc_collect")]
    assert current == [0]
    is_used[0] = False
    empty()
    monkeypatch.delitem(sys.modules, "torch")
    empty()
    assert len(done) == 6


@pytest.fixture
def pages(monkeypatch, tmp_path):
    """What is sent to them; the settings and the prompts that run are the test's."""
    sent = types.SimpleNamespace(events=[], running=[], settings=tmp_path / "settings.json")
    instance = types.SimpleNamespace(
        send_sync=lambda event, body: sent.events.append((event, body)),
        prompt_queue=types.SimpleNamespace(get_current_queue_volatile=lambda: (
            [(0, one) for one in sent.running], [])),
        user_manager=types.SimpleNamespace(
            get_request_user_filepath=lambda request, file, create_dir: str(sent.settings)))
    server = types.ModuleType("server")
    server.PromptServer = types.SimpleNamespace(instance=instance)
    monkeypatch.setitem(sys.modules, "server", server)
    monkeypatch.delenv("DISTORCH_ON_UNLOAD", raising=False)
    return sent


def test_what_the_user_wants_of_unloads(pack, pages, monkeypatch):
    mode = sys.modules["pack.unload"].mode
    assert mode() == "ram"
    for text, wanted in (('{"distorch.onUnload": "all"}', "all"), ("{}", "ram"), ("{", "ram"),
                         ('{"distorch.onUnload": "everything"}', "ram"), ("[]", "ram"),
                         ('{"distorch.onUnload": "keep"}', "keep")):
        pages.settings.write_text(text)
        assert mode() == wanted, text
    monkeypatch.setenv("DISTORCH_ON_UNLOAD", "all")
    assert mode() == "all"
    del sys.modules["server"].PromptServer.instance.user_manager
    monkeypatch.setenv("DISTORCH_ON_UNLOAD", "nothing of that")
    assert mode() == "ram"


def test_settings_of_the_page_say_which_daemon_how_much_is_logged_and_what_is_pinned(
        pack, comfy, daemon, start_daemon, path, pages, monkeypatch, caplog):
    loaders, session = pack.nodes.loaders, sys.modules["pack.session"]
    log = logging.getLogger("distorch")
    job = loaders.Job([str(path)], lambda _paths: (Model(),))
    loaded = []

    def pinned(one):
        with one.raw() as raw:
            return [model["pinned"] for model in raw.call("list")["models"]]

    def settle(**values):
        pages.settings.write_text(json.dumps({f"distorch.{name}": value
                                              for name, value in values.items()}))

    def let_go():
        loaded.clear()
        gc.collect()
        session.session._connection.close()
        session.session._connection = None

    other = start_daemon("memory.ram=1G", "memory.reserve=0")
    settle(socket=str(other.socket), logLevel="warning", pinUsed="true")
    loaded.append(loaders.load(job))
    assert pinned(daemon) == [False] and pinned(other) == [], "the environment's word counts"
    assert log.getEffectiveLevel() == logging.WARNING
    let_go()
    monkeypatch.delenv("DISTORCH_SOCKET")
    settle(socket=f"  {other.socket} ", logLevel="debug", pinUsed=True)
    loaded.append(loaders.load(job))
    assert loaded[0].reasons == [] and pinned(daemon) == [False] and pinned(other) == [True]
    assert log.getEffectiveLevel() == logging.DEBUG

    settle(socket="/nowhere", pinUsed=True, logLevel=7)
    with session.session.connect() as another:  # one daemon, until it is gone
        assert another.server().socket_path == str(other.socket)
    assert log.getEffectiveLevel() == logging.getLogger().getEffectiveLevel()
    let_go()
    with pytest.raises(session.Unavailable, match="/nowhere"):
        session.session.connection()
    settle(socket=str(other.socket), pinUsed=True)
    session.session._failed_at = None
    monkeypatch.setattr(sys.modules["distorch"].Connection, "pin", refuse_pins)
    loaded.append(loaders.load(job))
    assert loaded[0].tier == "path" and loaded[0].reasons == []
    assert "m.safetensors is not pinned: no-memory: too much is pinned" in caplog.text
    let_go()


def test_the_doctor_looks_at_the_daemon_that_the_page_has_set(pack, daemon, pages, tmp_path,
                                                              monkeypatch):
    monkeypatch.delenv("DISTORCH_SOCKET")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nobody's"))
    doctor, session = sys.modules["pack.doctor"], pack.nodes.session

    def findings(socket):
        pages.settings.write_text(json.dumps({"distorch.socket": str(socket)}))
        return [one["text"] for one in doctor.look()["checks"]]

    assert any(text.startswith(f"socket {daemon.socket},") for text in findings(daemon.socket))
    assert session.is_connected()
    found = findings("/nowhere")
    assert any(text.startswith(f"socket {daemon.socket},") for text in found), "the open connection's"
    session._connection.close()
    session._connection = None
    assert any("no socket at /nowhere" in text for text in findings("/nowhere"))


def refuse_pins(_connection, _model):
    raise sys.modules["distorch"].Error("no-memory", "too much is pinned", None, True, {})


def test_the_end_of_a_prompt_is_waited_for(pack, comfy, daemon, path, pages, caplog):
    loaders = pack.nodes.loaders
    pages.settings.write_text('{"distorch.onUnload": "all"}')
    pages.running.append("first")
    first = loaders.load(loaders.Job([str(path)], lambda _paths: (Model(),)))
    again = loaders.load(loaders.Job([str(path)], lambda _paths: (Model(),)))
    del again
    gc.collect()
    time.sleep(2.5)  # longer than what comes together
    del first
    gc.collect()
    time.sleep(1)
    wait_until(lambda: leases(daemon) == 0, 10 * slowness(), "the lease to go with the model")
    assert pages.events == []
    with caplog.at_level("INFO"):
        pages.running[:] = ["second"]
        wait_until(lambda: pages.events, 20 * slowness(), "the event")
    ((event, body),) = pages.events
    assert event == "distorch.unloaded" and body["mode"] == "all", body
    assert [one["name"] for one in body["unloaded"]] == [path.name] and body["total_bytes"] > 0
    assert body["text"].startswith(f"unloaded: {path.name} ")
    assert sum("distorch: unloaded" in record.message for record in caplog.records) == 1
    with daemon.raw() as raw:  # its memory may go a moment later
        wait_until(lambda: raw.call("list")["models"] == [], 10 * slowness(), "the model to go")


def test_a_clone_that_takes_over_is_no_unload(pack, comfy, monkeypatch):
    """Core detaches a model for that too; it says so."""
    unload, ended = sys.modules["pack.unload"], sys.modules["pack.session"].ended
    monkeypatch.setattr(unload, "_start", lambda: None)  # nobody takes what is put there
    moved = []
    monkeypatch.setattr(unload.parking, "end", moved.append)
    comfy("comfy.patcher_extension",
          CallbacksMP=types.SimpleNamespace(ON_DETACH="on_detach"))
    calls = {}
    patcher = types.SimpleNamespace(
        model="model", add_callback_with_key=lambda kind, _key, call: calls.update({kind: call}))
    unload.watch(patcher, ["id"])
    for unpatch_all in (False, True):
        for arguments, options in (((unpatch_all,), {}), ((), {"unpatch_all": unpatch_all})):
            calls["on_detach"](patcher, *arguments, **options)
            found = [ended.get() for _ in range(ended.qsize())]
            assert found == ([("detached", "id")] if unpatch_all else [])
            assert moved == (["model"] if unpatch_all else [])
            moved.clear()
    calls["on_detach"](patcher)
    assert ended.get() == ("detached", "id") and moved == ["model"]


def test_models_on_devices_move_to_ram_but_for_what_is_kept(pack, path, start_daemon, monkeypatch):
    daemon = start_daemon("sim.count=1", "sim.memory=64M")
    monkeypatch.setenv("DISTORCH_SOCKET", str(daemon.socket))
    act, session = sys.modules["pack.unload"].act, pack.nodes.session
    other = path.with_name("other.safetensors")
    make_safetensors(other, {"a": ("F16", [64, 64])})
    connection = session.connection()
    ids = [connection.load(str(one), to="sim:0", keep=keep).id
           for one, keep in ((path, False), (other, True))]

    def places():
        return [max(connection.show(one).model.where, key=lambda place: place.bytes).device
                for one in ids]

    report = act(connection, set(ids), set(), {}, "keep")
    assert places() == ["sim:0", "sim:0"] and len(report.kept) == 2
    report = act(connection, set(ids), set(), {}, "ram")
    assert places() == ["cpu", "sim:0"]
    assert [one["reason"] for one in report.unloaded] == ["moved to RAM"]
    assert [one["reason"] for one in report.kept] == ["kept"]
    report = act(connection, set(ids), set(), {}, "all")
    wait_until(lambda: [one.id for one in connection.list()] == ids[1:], 10, "it is gone")
    connection.unkeep(ids[1])
    connection.pin(ids[1])
    report = act(connection, set(ids), set(), {}, "all")
    assert [one["reason"] for one in report.kept] == ["pinned"] and not report.unloaded


@pytest.mark.daemon("memory.ram=1G", "sim.count=1", "sim.memory=64M")
def test_room_that_is_made_again_takes_the_place_of_the_last_one(pack, daemon):
    """The node runs with every prompt, and every time the whole device is asked for."""
    session, node = pack.nodes.session, pack.nodes.MakeRoomNode

    def reserved():
        return [one.reserved for one in session.call(lambda connection: connection.devices())]

    gib = 0.75
    for device in ("cpu", " CPU ", "cpu"):
        said = node().manage(device=device, gigabytes=gib)["result"][1]
        assert said == f"room for 768.0M on {device.strip()}"
        assert reserved() == [gib * (1 << 30), 0]
    assert node().manage(device="sim:0", gigabytes=0.05)["result"][1].endswith("on sim:0")
    assert reserved()[0] == gib * (1 << 30) and reserved()[1] > 0, "each device has its own"
    assert node().manage(device="cpu", gigabytes=99)["result"][1].startswith("not done: no-memory")
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()  # with it ends the room on sim:0, and nobody minds
    assert node().manage(device="sim:0", gigabytes=0.03)["result"][1].endswith("on sim:0")


def test_old_ids_are_registered_where_nobody_else_has_them(pack, comfy, tmp_path):
    ids = pack.legacy_ids.ids
    every = set(ids())
    assert len(every) == 26 and every <= set(pack.NODE_CLASS_MAPPINGS)
    comfy("folder_paths", get_folder_paths=lambda _kind: [str(tmp_path), str(tmp_path / "gone")])
    comfy("nodes", NODE_CLASS_MAPPINGS={"UNETLoaderMultiGPU": object})
    assert set(ids()) == every - {"UNETLoaderMultiGPU"}, "it is somebody else's"
    (tmp_path / "ComfyUI-MultiGPU.disabled").mkdir()
    (tmp_path / "comfyui_gguf").mkdir()
    assert len(ids()) == 25 + 18
    assert "comfyuigguf" in pack.nodes.probe.packs(), "in whatever way its folder is written"
    (tmp_path / "ComfyUI-WanVideoWrapper-main").mkdir()
    assert len(ids()) == 25 + 18 + 20
    (tmp_path / "comfyui-multigpu").mkdir()
    assert ids() == {}


def test_loaders_of_other_packs_are_served_where_the_user_asked_for_it(pack, comfy, daemon, path,
                                                                       monkeypatch):
    wrap = sys.modules["pack.wrap"]
    for value in ("", "0"):
        monkeypatch.setenv("DISTORCH_WRAP_LOADERS", value)
        assert not wrap.is_wanted()
    monkeypatch.setenv("DISTORCH_WRAP_LOADERS", "1")
    assert wrap.is_wanted()
    seen = []

    class Storage:
        pass

    class Tensor:
        device = types.SimpleNamespace(type="cpu")

        def __init__(self):
            self.storage = Storage()

        def untyped_storage(self):
            return self.storage

    def read(ckpt, safe_load=False, device=None):
        seen.append(str(ckpt))  # not the path itself, which keeps the lease
        if device == "picky" and ckpt != str(path):
            raise ValueError("no links here")
        if device == "broken":
            raise ValueError("broken")
        return {"a": Tensor()}

    comfy("folder_paths", models_dir=str(path.parent), folder_names_and_paths={
        "custom_nodes": ([str(path.parent.parent)], set())})
    utils = comfy("comfy.utils", load_torch_file=read)
    early = comfy("early_pack", load_torch_file=read)
    wrap.wrap()
    wrap.wrap()  # of a pack that is imported twice
    assert early.load_torch_file is utils.load_torch_file is not read
    found = early.load_torch_file(str(path), safe_load=True)
    assert seen[-1] != str(path) and seen[-1].endswith("/" + path.name) and leases(daemon) == 1
    kept = found["a"].untyped_storage()
    link = seen.pop()
    assert pathlib.Path(link).read_bytes() == path.read_bytes()
    del found
    gc.collect()
    assert leases(daemon) == 1, "a view of it lives"
    del kept
    gc.collect()
    wait_until(lambda: leases(daemon) == 0, 10 * slowness(), "the lease to end with it")
    other = path.parent.parent / "elsewhere.safetensors"
    utils.load_torch_file(ckpt=str(other))
    utils.load_torch_file(str(path.with_suffix(".ckpt")))
    assert seen == [str(other), str(path.with_suffix(".ckpt"))]
    utils.load_torch_file(str(path), device="picky")
    assert seen[-1] == str(path)
    with pytest.raises(ValueError, match="broken"):
        utils.load_torch_file(str(path), device="broken")
    assert seen[-1] == str(path), "its own error, of its own file"


def test_only_the_page_itself_changes_something(pack):
    routes = pack.routes
    ours = "http://127.0.0.1:8188"
    for headers in ({}, {"Origin": ours}, {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
                    {"Sec-Fetch-Site": "none"}):
        routes.check_origin({"Host": "127.0.0.1:8188", **headers})
    routes.check_origin({"Host": "Comfy.Example", "Origin": "https://comfy.example:443"})
    for headers in ({"Origin": "null"}, {"Origin": ""}, {"Origin": "http://127.0.0.1:8189"},
                    {"Origin": "http://127.0.0.1:8188.example.org"}, {"Origin": "http://[::1"},
                    {"Origin": "http://127.0.0.1:x"}, {"Sec-Fetch-Site": "same-site"},
                    {"Sec-Fetch-Site": "cross-site", "Origin": ours}):
        with pytest.raises(routes.Refused) as failure:
            routes.check_origin({"Host": "127.0.0.1:8188", **headers})
        assert failure.value.status == 403
    with pytest.raises(routes.Refused):
        routes.check_origin({"Origin": ours})  # to whom, is not said


def test_a_daemon_of_another_version_is_told_from_ours(pack, daemon):
    doctor = sys.modules["pack.doctor"]
    project = (ROOT / "CMakeLists.txt").read_text()
    assert f"VERSION {doctor.pack_version()} " in project, "they are released together"
    assert doctor.mismatch(f"distorchd/{doctor.pack_version()}") is None
    assert "9.9" in doctor.mismatch("9.9")
    assert sys.modules["pack.news"].overview()["mismatch"] is None


def test_what_the_page_asks_is_answered(pack, comfy, daemon, path):
    routes, loaders = pack.routes, pack.nodes.loaders
    loaded = loaders.load(loaders.Job([str(path)], lambda _paths: (Model(),)))
    assert loaded.tier == "path"
    asked = routes.Asked(types.SimpleNamespace(sockets={}))
    found = asked.status()
    assert found["available"] and found["devices"][0]["name"] == "cpu"
    assert found["models"] == asked.models()["models"]
    (model,) = found["models"]
    assert model["name"] == path.name and model["leases"] == 1
    for deed, member, value in (("pin", "pinned", True), ("unpin", "pinned", False),
                                ("keep", "keep", True), ("unkeep", "keep", False)):
        assert asked.wish(**{deed.removeprefix("un"): value})(model["id"])["model"][member] is value
    assert asked.unload(model["id"])["held"][0]["name"] == path.name
    daemon.process.kill()
    daemon.process.wait()
    found = asked.status()
    assert not found["available"] and found["reason"]
    with pytest.raises(routes.Unavailable):
        asked.wish(pin=True)(model["id"])
    daemon.start()


def test_a_server_that_takes_no_routes_has_the_nodes_all_the_same(pack, monkeypatch, caplog):
    class Table:
        def get(self, _path):
            raise RuntimeError("frozen")

    server = types.ModuleType("server")
    monkeypatch.setitem(sys.modules, "server", server)
    pack.routes.register_on_server()  # something else of that name
    server.PromptServer = types.SimpleNamespace(instance=types.SimpleNamespace(routes=Table()))
    pack.routes.register_on_server()
    assert [record for record in caplog.records if "no routes" in record.message]


# ---- where a model is asked to lie ----

@pytest.mark.daemon("sim.count=2", "sim.memory=64M")
def test_the_widgets_of_a_loader_become_the_daemons_words(pack, daemon):
    placement = pack.nodes.placement
    assert not placement.of() and placement.of().options() == {}
    assert placement.of("sim:1").options() == {"allocation": "sim:1"}
    assert placement.of("sim:1", 1.5, "sim:0").options() == {
        "virtual_vram": 3 << 29, "donors": ["sim:0"], "compute": "sim:1"}
    assert placement.of("sim:1", 1.5, ("sim:0", "cpu")).options()["donors"] == ["sim:0", "cpu"]
    old = pack.legacy_ids.FirstDistributed()
    assert old.given("sim:0", 2.0, True) == {"compute_device": "sim:0", "virtual_vram_gb": 2.0,
                                             "donor_device": ("sim:1", "cpu")}
    assert old.given("sim:0", 2.0, False)["donor_device"] == "cpu"
    assert placement.of("auto", 4.0, "cpu", " sim:0,50%;cpu,* ").options() == {
        "allocation": "sim:0,50%;cpu,*", "compute": None}, "a string wins"
    both = ("unet", "vae")
    checkpoint = placement.of_checkpoint
    assert not checkpoint() and checkpoint().options(both) == {}
    assert checkpoint("sim:0", vae_device="sim:1", clip_device="sim:1").options(both) == {
        "compute": "sim:0", "allocation": "unet=sim:0|vae=sim:1"}, "what the file does not have"
    assert checkpoint(virtual_vram_gb=2.0).options(both) == {
        "compute": None, "allocation": "unet=cpu,2147483648b;sim:0,*", "strategy": "spread"}
    assert checkpoint("sim:0", vae_device="sim:1").options(("unet",)) == {"allocation": "sim:0"}
    assert checkpoint(vae_device="sim:1").options(("unet",)) == {}
    whole = checkpoint(expert_mode_allocations="vae=sim:1", vae_device="sim:0")
    assert whole.options(both) == {"allocation": "vae=sim:1", "compute": None}


@pytest.mark.daemon("sim.count=2", "sim.memory=64M")
def test_a_device_that_this_process_does_not_see_is_called_as_none_that_it_sees(
        pack, daemon, tmp_path, monkeypatch):
    """As with CUDA_VISIBLE_DEVICES=1: its first device is the daemon's second."""
    session, nodes = pack.nodes.session, pack.nodes
    path = tmp_path / "big.safetensors"
    make_safetensors(path, {f"blocks.{i}.w": ("U8", [1 << 20]) for i in range(16)})
    with daemon.raw() as raw:
        uuid = {one["name"]: one["uuid"] for one in raw.call("devices")["devices"]}["sim:1"]
        raw.load(path, allocation="sim:0,*")
    monkeypatch.setattr(sys.modules["pack.cards"], "uuids", lambda: [uuid])
    hidden = "sim:0 (not visible here)"
    found = sys.modules["pack.news"].overview()
    assert [(one["name"], one["is_visible"]) for one in found["devices"]] == [
        ("cpu", True), (hidden, False), ("sim:0", True)]
    assert [one["used"] > 0 for one in found["devices"]][1:] == [True, False]
    places = {place["device"] for place in found["models"][0]["where"] if place["bytes"] > 1 << 20}
    assert places == {hidden}
    assert session.devices() == ("cpu", "sim:0")
    assert hidden in nodes.StatusNode().manage()["result"][1]
    free = {one["name"]: one["free"] for one in found["devices"]}
    assert free[hidden] < free["sim:0"]
    # What is free on the one that is meant counts, and nothing is idle there.
    with pytest.raises(sys.modules["pack.session"].Unavailable, match="no-memory"), \
            session.displace("sim:0", 1 << 20):
        pass


@pytest.mark.daemon("sim.count=2", "sim.memory=64M")
def test_an_allocation_is_checked_by_the_planner_before_a_prompt_runs(pack, daemon, monkeypatch):
    placement, session = pack.nodes.placement, pack.nodes.session
    soon_s = sys.modules["pack.session"].SOON_S
    monkeypatch.setattr(sys.modules["pack.session"], "SOON_S", 20 * slowness())
    for good in ("sim:0,50%;cpu,*", "auto", "cpu", "SIM:0 , 2.5gb ;", "unet=sim:0|clip=cpu"):
        assert placement.check(placement.of(expert_mode_allocations=good)) is None, good
    for bad, word in (("sim:2", "sim:2"), ("sim:0,2,5gb", "two commas"), ("sim:0,1", "unit"),
                      ("cpu,*;sim:0,*", "column 7"), ("tea=sim:0", "tea")):
        assert word in placement.check(placement.of(expert_mode_allocations=bad)), bad
    checkpoint, parts = placement.of_checkpoint, tuple(placement.PARTS)
    assert placement.check(checkpoint("sim:0", 1.0, clip_device="sim:1", vae_allocations="cpu"),
                           parts) is None
    assert "sim:7" in placement.check(checkpoint("sim:0", vae_device="sim:7"), parts)
    assert "128" in placement.check(placement.of(virtual_vram_gb=-1))
    with daemon.raw() as raw:
        assert raw.call("list", {"all": True})["models"] == []
        assert raw.call("events.history")["records"] == [], "nobody is told of a model"
        assert raw.call("status")["misses"] == 0
    assert session.devices() == ("cpu", "sim:0", "sim:1")
    monkeypatch.setattr(sys.modules["pack.session"], "SOON_S", soon_s)
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        assert placement.check(placement.of("sim:7")) is None, "nobody answers: not checked"
        assert time.monotonic() - begun < 5
        assert session.devices() == ("cpu", "sim:0", "sim:1")
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def test_idle_models_are_ejected_but_for_what_is_kept_used_or_loaded_next(pack, comfy, daemon,
                                                                          tmp_path):
    loaders, session = pack.nodes.loaders, pack.nodes.session
    paths = [tmp_path / f"{name}.safetensors" for name in ("idle", "kept", "used", "next")]
    for path in paths:
        make_safetensors(path, {"a.weight": ("F16", [64, 64])}, seed=len(path.name))

    def load(path, **options):
        return loaders.load(loaders.Job([str(path)], lambda _paths: (Model(),)), **options)

    load(paths[0]), load(paths[1], keep=True), load(paths[3])
    used = load(paths[2])
    gc.collect()
    wait_until(lambda: leases(daemon) == 1, 10 * slowness(), "three to be idle")
    session.unload_idle([os.path.realpath(paths[3])])

    def resident():
        with daemon.raw() as raw:
            return {one["name"] for one in raw.call("list")["models"] if one["where"]}

    wait_until(lambda: resident() == {path.name for path in paths[1:]}, 10 * slowness(), "one to go")
    assert used.tier == "path"
