# SPDX-License-Identifier: Apache-2.0
"""The Python surface against a real daemon: bytes, copy-on-write, lifetimes, errors."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import pytest
from conftest import (
    DTYPE_BITS, ROOT, list_fds, make_safetensors, make_sparse_model, pattern, run_python,
    tensor_bytes, wait_until,
)

GONE = "/no/such/file.safetensors"


def leases(daemon):
    return sum(model["leases"] for model in daemon.models())


def test_every_dtype_and_odd_shape_has_the_bytes_of_the_file(connect, tmp_path):
    tensors = {f"{dtype}.even": (dtype, [4, 6]) for dtype in DTYPE_BITS}
    tensors.update({
        "scalar": ("F32", []), "empty": ("F16", [0, 7]), "odd": ("U8", [13]),
        "empty and long": ("BF16", [1 << 53, 1 << 8, 0]),
        "naïve/ключ 名": ("I16", [3]), "": ("U8", [1]), "a b\tc": ("U8", [2]),
        "deep": ("F32", [1, 1, 1, 1, 1, 1, 1, 2]),
    })
    path = tmp_path / "all.safetensors"
    parts = make_safetensors(path, tensors, seed=5, metadata={"format": "pt"})
    with connect().open(path) as weights:
        assert set(weights.keys()) == set(tensors)
        assert len(weights) == len(tensors)
        for name, (dtype, shape) in tensors.items():
            tensor = weights[name]
            assert (tensor.name, tensor.dtype, tensor.shape) == (name, dtype, tuple(shape))
            assert (tensor.nbytes, tensor.device) == (len(parts[name]), "cpu")
            assert tensor.nbytes == tensor_bytes(dtype, shape)
            assert bytes(tensor.buffer) == parts[name]
        with pytest.raises(KeyError):
            weights["absent"]


def test_numpy_and_torch_see_the_same_memory(connect, tmp_path):
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "m.safetensors"
    data = numpy.arange(12, dtype="float32")
    make_safetensors(path, {"x": ("F32", [3, 4], data.tobytes()), "e": ("F32", [0, 2]),
                            "b": ("BF16", [2]), "s": ("I64", [])})
    with connect().open(path) as weights:
        array = weights["x"].numpy()
        assert (array == data.reshape(3, 4)).all() and array.flags.writeable
        assert weights["e"].numpy().shape == (0, 2)
        assert weights["s"].numpy().shape == ()
        array[0, 0] = 77
        assert weights["x"].numpy()[0, 0] == 77


def test_what_numpy_has_no_type_for_says_what_helps(connect, tmp_path, monkeypatch):
    pytest.importorskip("numpy")
    path = tmp_path / "m.safetensors"
    names = ["BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"]
    make_safetensors(path, {name: (name, [4]) for name in names})

    def advice(tensor):
        try:
            tensor.numpy()
        except TypeError as failure:
            return str(failure)

    with connect().open(path) as weights:
        for module, verb in ((None, "install"), (types.ModuleType("ml_dtypes"), "update")):
            monkeypatch.setitem(sys.modules, "ml_dtypes", module)
            for name in names[:4]:
                text = advice(weights[name])
                assert f"type for {name} " in text
                assert f"{verb} ml_dtypes, use .torch() or read the bytes in .buffer" in text
        assert advice(weights["F4"]).endswith("; use .torch() or read the bytes in .buffer")
        for name in ("F6_E2M3", "F6_E3M2"):
            assert advice(weights[name]).endswith("; read the bytes in .buffer")


def test_ml_dtypes_gives_numpy_what_it_lacks(connect, tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    path = tmp_path / "m.safetensors"
    parts = make_safetensors(path, {"b": ("BF16", [3, 2]), "f": ("F8_E4M3", [5])})
    with connect().open(path) as weights:
        assert weights["b"].numpy().dtype == ml_dtypes.bfloat16
        assert weights["f"].numpy().dtype == ml_dtypes.float8_e4m3fn
        for name, array in weights.state_dict("numpy").items():
            assert array.tobytes() == parts[name]


def test_what_torch_has_no_type_for_says_what_helps(connect, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    path = tmp_path / "m.safetensors"
    make_safetensors(path, {name: (name, [4]) for name in ("F8_E4M3", "F6_E2M3")})
    said = {}
    with connect().open(path) as weights:
        for tensor in weights.values():
            try:
                tensor.torch()
            except TypeError as failure:
                said[tensor.name] = str(failure)
        del tensor
    assert said["F8_E4M3"].endswith("; update torch or read the bytes in .buffer")
    assert said["F6_E2M3"].endswith("; read the bytes in .buffer")


def test_safetensors_reads_the_same_bytes(connect, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "m.safetensors"
    make_safetensors(path, {f"t{i}": ("F32", [i + 1, 3]) for i in range(20)}, seed=9)
    theirs = safetensors.load_file(path)
    with connect().open(path) as weights:
        assert set(theirs) == set(weights)
        for name, array in theirs.items():
            assert bytes(weights[name].buffer) == array.tobytes()
        copy = os.readlink(f"/proc/self/fd/{(fd := weights.fd())}")
        try:
            assert "memfd" in copy
            assert os.pread(fd, 1 << 20, 0) == path.read_bytes()
        finally:
            os.close(fd)


def test_writing_changes_nobody_elses_weights(connect, make_model):
    path = make_model()
    d = connect()
    first, second = d.open(path), d.open(path)
    view = first["t.0"].buffer
    before = bytes(view[:16])
    view[:16] = b"x" * 16
    assert bytes(first["t.0"].buffer[:16]) == b"x" * 16
    assert bytes(second["t.0"].buffer[:16]) == before
    with connect().attach(path) as third:
        assert bytes(third["t.0"].buffer[:16]) == before
    del view
    first.close()
    second.close()


OUTLIVES = """
import gc, sys, distorch
def count():
    with open('/proc/self/maps') as maps:
        return maps.read().count('memfd:')
with distorch.connect(sys.argv[1]) as d:
    with d.open(sys.argv[2]) as weights:
        view = weights['t.1'].buffer
        expected = bytes(view)
    try:
        weights['t.1']
        print('no ValueError')
    except ValueError:
        pass
gc.collect()
print(bytes(view) == expected, count())
del view
print(count())  # no collector is needed
"""


def test_arrays_outlive_the_weights_and_the_connection(daemon, make_model):
    # In a process of its own: what it maps after its connection stays held until it ends.
    out = run_python(OUTLIVES, daemon.socket, make_model(seed=3))
    assert out.split() == ["True", "1", "0"]


def test_the_lease_ends_with_the_last_array(connect, daemon, make_model):
    d = connect()
    weights = d.open(make_model())
    view = weights["t.0"].buffer
    weights.close()
    assert leases(daemon) == 1
    del view
    wait_until(lambda: leases(daemon) == 0, what="the lease's end")


def test_an_exception_after_dlpack_is_raised_and_the_lease_ends(connect, daemon, make_model):
    np = pytest.importorskip("numpy")
    with connect().open(make_model()) as weights:
        with pytest.raises(ValueError, match="cannot reshape"):
            np.from_dlpack(weights["t.0"]).reshape(7)
    wait_until(lambda: leases(daemon) == 0, what="the lease's end")


def test_open_of_a_missing_file_takes_a_name(connect, make_model, distorch):
    path = make_model("named.safetensors")
    d = connect()
    d.load(path)
    with d.open("named.safetensors") as weights:
        assert "t.0" in weights
    with pytest.raises(distorch.Error, match=f"no file {GONE}, and no resident model") as caught:
        d.open(GONE)
    assert caught.value.code == "not-found" and "list()" in caught.value.hint
    d.unload(path)
    with pytest.raises(distorch.Error, match="no file named.*the model .* is not res") as caught:
        d.open("named.safetensors")
    assert caught.value.code == "not-resident" and caught.value.retryable


def test_a_folder_here_does_not_hide_a_name(connect, make_model, distorch, tmp_path, monkeypatch):
    d = connect()
    d.load(make_model(), name="flux")
    (tmp_path / "here" / "flux").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with d.open("flux") as weights:
        assert "t.0" in weights
    with pytest.raises(distorch.Error, match="is a folder"):
        d.open("./flux")


def test_attach_by_name_id_prefix_and_path(connect, make_model):
    path = make_model("n.safetensors")
    d = connect()
    model = d.load(path)
    for text in ("n.safetensors", model.id, model.id[:6], str(path)):
        with d.attach(text) as weights:
            assert weights.id == model.id


def test_attach_of_what_is_not_resident_says_so(connect, make_model, distorch):
    path = make_model()
    with pytest.raises(distorch.Error, match="nobody has loaded this file") as caught:
        connect().attach(path)
    assert caught.value.code == "not-resident" and "load it first" in caught.value.hint
    d = connect()
    d.load(path)
    d.unload(str(path))
    with pytest.raises(distorch.Error) as caught:
        d.attach(path)
    assert caught.value.code == "not-resident"
    assert caught.value.retryable and caught.value.hint


def test_load_returns_a_model_and_joins_what_is_there(connect, make_model):
    path = make_model(size=1 << 20)
    d = connect()
    model = d.load(path)
    assert model.state == "resident" and model.source == "disk"
    assert model.name == "model.safetensors" and model.bytes == os.path.getsize(path)
    assert [place.device for place in model.where] == ["cpu"]
    assert model.bytes <= model.where[0].bytes < model.bytes + (2 << 20)  # in whole pages
    assert model.tensors == 4
    assert d.load(path).source == "ram"
    with d.open(path) as weights, d.attach(weights.id) as attached:
        assert (weights.source, attached.source) == ("ram", None)
    assert d.load(path).id == model.id


def test_progress_is_called_and_what_it_raises_cancels(connect, daemon, make_model, distorch):
    seen = []
    path = make_model("big.safetensors", size=64 << 20)
    connect().load(path, progress=seen.append)
    assert all(isinstance(progress, distorch.Progress) for progress in seen)

    class Stop(Exception):
        pass

    def stop(progress):
        raise Stop

    slow = make_model("slow.safetensors", size=256 << 20, seed=2)
    with pytest.raises(Stop):
        connect().load(slow, progress=stop)
    wait_until(lambda: all(m["state"] != "loading" for m in daemon.models(True)),
               what="the end of the load")


def test_the_last_progress_of_a_load_is_at_the_end(connect, make_model, distorch):
    d = connect()
    small = make_model("small.safetensors")
    size = os.path.getsize(small)
    seen = []
    model = d.load(small, progress=seen.append)
    done = distorch.Progress(model.id, "done", size, size)
    assert seen[-1] == done
    for call in (
            lambda: d.load(small, progress=seen.append),
            lambda: d.load(small, progress=seen.append, wait=False),
            lambda: d.open(small, progress=seen.append).close(),
            lambda: d.open("small.safetensors", progress=seen.append).close()):
        seen.clear()
        call()
        assert seen == [done]
    seen.clear()
    d.load(make_model("big.safetensors", size=128 << 20, seed=2), progress=seen.append)
    assert [p.phase for p in seen].count("done") == 1
    assert seen[-1].phase == "done" and {p.total for p in seen} <= {0, seen[-1].bytes}


def test_what_the_last_progress_raises_leaves_no_lease(connect, daemon, make_model):
    def stop(progress):
        if progress.phase == "done":
            raise KeyError(progress.model)

    d = connect()
    path = make_model()
    for what in (path, path.name):
        with pytest.raises(KeyError):
            d.open(what, progress=stop)
    assert [m.state for m in d.list()] == ["resident"]
    wait_until(lambda: leases(daemon) == 0, what="the lease's end")


INTERRUPTED = """
import sys, time, distorch
progress = {"none": None, "list": [].append, "slow": lambda _: time.sleep(30)}[sys.argv[4]]
with distorch.connect(sys.argv[1]) as d:
    print("READY")
    try:
        getattr(d, sys.argv[3])(sys.argv[2], progress=progress)
        print("loaded")
    except KeyboardInterrupt:
        print("interrupted")
    sys.stdin.readline()
    print(d.status().models)
"""


@pytest.mark.parametrize("progress", ["none", "list", "slow"])
@pytest.mark.parametrize("method", ["load", "open"])
def test_ctrl_c_ends_a_load_and_is_raised(daemon, child, tmp_path, method, progress):
    path = make_sparse_model(tmp_path / "slow.safetensors", 512 << 20)
    daemon.tell("fault pread:2:delay=100:ever")
    victim = child(INTERRUPTED, daemon.socket, path, method, progress)
    wait_until(lambda: [m for m in daemon.models() if m["state"] == "loading"
                        and m.get("progress_bytes")], what="a load on its way")
    victim.signal(signal.SIGINT)
    assert victim.process.stdout.readline() == "interrupted\n"
    wait_until(lambda: daemon.models() == [], what="the cancelled load's end")
    assert victim.ask() == "0"  # the connection is as good as before
    daemon.tell("clear")


def test_wishes_and_selective_unload(connect, make_model):
    d = connect()
    kept = d.load(make_model("kept.safetensors", seed=1), keep=True)
    pinned = d.load(make_model("pinned.safetensors", seed=2), pin=True)
    plain = d.load(make_model("plain.safetensors", seed=3))
    report = d.unload(not_kept=True)
    assert {o.id for o in report.kept} >= {kept.id, pinned.id}
    assert [o.id for o in report.unloaded] == [plain.id]
    assert report.held == [] and report.total_bytes == plain.where[0].bytes
    assert all(o.reason for o in report.kept)
    assert d.unkeep(kept.id).keep is False
    assert d.unpin(pinned.id).pinned is False
    assert {o.id for o in d.unload(not_kept=True).unloaded} == {kept.id, pinned.id}


def test_a_leased_model_is_reported_held_with_its_holder(connect, daemon, make_model):
    d = connect(label="sampler")
    path = make_model()
    weights = d.open(path)
    report = connect().unload(str(path))
    assert [o.id for o in report.held] == [weights.id]
    assert report.held[0].holders[0].pid == os.getpid()
    assert report.total_bytes == 0
    weights.close()
    wait_until(lambda: not any(m["where"] for m in daemon.models()), what="the bytes' release")


def test_listings_are_dataclasses_with_numbers(connect, make_model, distorch):
    d = connect(label="lister")
    model = d.load(make_model(), keep=True)
    assert [type(m) for m in d.list()] == [distorch.Model]
    detail = d.show(model.id[:8])
    assert isinstance(detail, distorch.Detail) and detail.model.id == model.id
    assert detail.backing == "image" and detail.loaded_from == "file"
    assert detail.page_size in (4096, 2 << 20)
    assert [wish.keep for wish in detail.wishes] == [True]
    status = d.status()
    assert status.models == 1 and status.devices[0].name == "cpu"
    assert status.devices[0].used >= model.bytes
    assert any(c.label == "lister" and c.connected for c in d.clients())
    assert {s.key for s in d.config()} >= {"memory.ram", "log.level"}
    assert "load.done" in [r.type for r in d.why(model.id)]
    assert d.events(types=["load.done"])[-1].model == model.id
    assert d.devices()[0].budget == 1 << 30
    assert d.server().role == "admin"
    assert all(check.ok for check in d.verify())


def test_objects_say_what_they_are(daemon, connect, distorch, make_model, monkeypatch):
    monkeypatch.setenv("DISTORCH_SOCKET", str(daemon.socket))
    for d in (connect(), distorch.connect()):
        assert repr(d) == f"<distorch.Connection to '{daemon.socket}', open>"
    weights = d.open(make_model())
    assert repr(weights) == f"<distorch.Weights {weights.id[:8]}, 4 tensors, open>"
    assert repr(weights["t.1"]) == "<distorch.Tensor 't.1', F32 (65536,), 262144 bytes, on cpu>"
    assert "described only" in repr(d.table(weights.id)["t.1"])
    weights.close()
    assert repr(weights) == f"<distorch.Weights {weights.id[:8]}, closed>"
    d.close()
    assert repr(d) == f"<distorch.Connection to '{daemon.socket}', closed>"


def test_the_version_is_the_librarys(distorch):
    assert distorch.__version__ == distorch._library.library().version().decode()


def test_the_table_of_a_model_describes_without_mapping(connect, make_model):
    d = connect()
    model = d.load(make_model())
    table = d.table(model.id)
    assert list(table) == ["t.0", "t.1", "t.2", "t.3"]
    with pytest.raises(ValueError):
        table["t.0"].buffer


def test_events_arrive_as_they_happen(connect, make_model):
    watcher = connect()
    subscription = watcher.subscribe(events=["model.state"])
    model = connect().load(make_model())
    for event in subscription:
        if event.type == "model.state" and event.state == "resident":
            assert event.model == model.id
            break
    assert watcher.next_event(timeout=0.3) is None  # each came once


def test_closing_while_another_thread_waits_ends_its_call(daemon, distorch):
    d = distorch.connect(str(daemon.socket))
    d.subscribe()
    caught = []

    def wait():
        try:
            while True:
                d.next_event()
        except distorch.Error as failure:
            caught.append(failure.code)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    d.close()
    thread.join(30)
    assert not thread.is_alive() and caught == ["no-connection"]


def sockets():
    return sum("socket:" in link for link in list_fds("self"))


def test_close_has_ended_the_connection_when_it_returns(daemon, distorch, make_model):
    path, before = make_model(), sockets()
    d = distorch.connect(str(daemon.socket))
    w = d.open(path)
    w.on_recall(print)
    time.sleep(0.05)  # its thread waits
    assert sockets() == before + 1
    d.close()
    assert sockets() == before


def test_a_callback_closes_its_connection(daemon, connect, distorch, make_model):
    d, other = distorch.connect(str(daemon.socket)), connect()
    w = d.open(make_model())
    w.on_recall(lambda event: (w.close(), d.close()))
    report = other.unload("model", recall=20)
    assert [outcome.name for outcome in report.unloaded] == ["model.safetensors"]
    wait_until(lambda: "closed" in repr(d), what="the end of the connection")


def test_what_a_callback_raises_goes_to_the_hook_and_others_are_heard(
        connect, make_model, monkeypatch):
    heard, raised = [], []
    monkeypatch.setattr(threading, "excepthook", lambda what: raised.append(what.exc_type))
    w = connect().open(make_model())

    def leave(event):
        heard.append(event)
        raise SystemExit(1)

    w.on_recall(leave)
    del leave
    gc.collect()  # who asked holds it as long as he lives
    for count in (1, 2):
        connect().unload("model", recall=0.1)
        wait_until(lambda: len(heard) == count, what="the recall")
        wait_until(lambda: raised == [SystemExit] * count, what="the hook")


def test_weights_that_their_own_callback_names_go_with_the_last_reference(
        connect, daemon, make_model):
    d = connect()

    def use(path):
        w = d.open(path)
        w.on_recall(lambda event: w.close())
        assert leases(daemon) == 1

    use(make_model())
    gc.collect()
    wait_until(lambda: leases(daemon) == 0, what="the lease's end")


FORKED = """
import os, sys, distorch
d = distorch.connect(sys.argv[1])
w = d.open(sys.argv[2])
w.on_recall(print)
pid = os.fork()
if pid:
    os.waitpid(pid, 0)
    sys.exit()
mine = d.open(sys.argv[3])
mine.on_recall(lambda event: mine.close())
print("READY")
sys.stdin.readline()
d.close()
print("closed")
"""


def test_a_forked_child_hears_its_own_recalls(connect, daemon, child, make_model):
    parents, childs = make_model("parents.safetensors"), make_model("childs.safetensors", seed=2)
    forked = child(FORKED, daemon.socket, parents, childs)
    report = connect().unload("childs", recall=20)
    assert [outcome.name for outcome in report.unloaded] == ["childs.safetensors"]
    assert forked.ask() == "closed"


@pytest.mark.fault("C07")
def test_sixty_four_threads_share_one_connection(connect, make_model):
    d = connect()
    path = make_model(seed=8)
    expected = pattern(8, 64)
    failures = []

    def work():
        try:
            for _ in range(5):
                with d.open(path) as weights:
                    assert bytes(weights["t.0"].buffer[:64]) == expected
                d.list()
        except Exception as failure:  # reported below
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_another_interpreter_sees_the_same_bytes_and_sums(daemon, make_model):
    path = make_model(seed=4)
    code = """
import sys, zlib, distorch
with distorch.connect(sys.argv[1]) as d, d.open(sys.argv[2]) as w:
    print(zlib.crc32(b"".join(bytes(t.buffer) for t in w.values())))
"""
    sums = {run_python(code, daemon.socket, path) for _ in range(2)}
    assert len(sums) == 1
    assert [m["leases"] for m in daemon.models()] == [0]


def test_lazy_attach_makes_no_tensors(connect, tmp_path):
    path = tmp_path / "many.safetensors"
    make_safetensors(path, {f"block.{i}.weight": ("F32", [16]) for i in range(800)})
    d = connect()
    d.load(path)
    begun = time.perf_counter()
    with d.attach(path) as weights:
        first = bytes(weights["block.0.weight"].buffer)
        names = list(weights.keys())
        took = time.perf_counter() - begun
    print(f"attach, 800 names and one tensor: {took * 1000:.2f} ms")
    assert len(names) == 800 and len(first) == 64


# ---- arguments: what no C function may see ----

NO_STRING = """
path: d.load(None)
path: d.open(None)
model: d.attach(None)
model: d.set(None, keep=True)
model: d.pin(None)
model: d.unpin(None)
model: d.keep(None)
model: d.unkeep(None)
model: d.show(None)
model: d.table(None)
model: d.why(None)
models: d.unload(None)
names: d.unload(names=[None])
models: d.verify(None)
types: d.events(types=[None])
events: d.subscribe(events=[None])
models: d.subscribe(models=[None])
"""


def test_what_is_no_string_is_a_type_error_that_names_it(daemon):
    # In a process of its own: where this fails, the interpreter dies.
    out = run_python("""
import sys, distorch
with distorch.connect(sys.argv[1]) as d:
    for line in sys.argv[2].split("\\n"):
        name, _, call = line.partition(": ")
        try:
            eval(call or "None")
            assert not call, call
        except TypeError as failure:
            assert name in str(failure) and "NoneType" in str(failure), failure
print("lived")
""", daemon.socket, NO_STRING)
    assert out == "lived\n"


def test_a_nul_in_a_string_is_a_value_error(connect, make_model):
    d = connect()
    path = make_model()
    for name, call in (
            ("path", lambda: d.load(f"{path}\0x")), ("path", lambda: d.open(f"{path}\0x")),
            ("model", lambda: d.show("a\0b")), ("models", lambda: d.unload("a\0b")),
            ("under", lambda: d.unload(under="/\0")), ("names", lambda: d.unload(names=["\0"])),
            ("label", lambda: d.set("m", label="a\0")), ("name", lambda: d.load(path, name="\0")),
            ("client", lambda: connect(client="a\0b"))):
        with pytest.raises(ValueError, match=f"{name}.*NUL"):
            call()
    assert d.list() == []


def test_a_single_string_is_a_list_of_that_one(connect, make_model, distorch):
    d = connect()
    path = make_model("vae.safetensors")
    model = d.load(path)
    assert {r.type for r in d.events(types="load.done")} == {"load.done"}
    assert [o.id for o in d.unload(names="vae.safetensors").unloaded] == [model.id]
    array, count = distorch._arguments.texts("names", "vae*")
    assert list(array) == [b"vae*"] and count == 1
    with pytest.raises(TypeError, match=r"one by one.*\*"):
        d.unload([model.id])
    with pytest.raises(TypeError, match="names must be a list of strings, not int"):
        d.unload(names=3)


def test_flags_and_numbers_are_judged(connect, make_model):
    d = connect()
    path = make_model()
    for error, name, said in (
            (TypeError, "keep", {"keep": "no"}), (TypeError, "pin", {"pin": "false"}),
            (TypeError, "pin", {"pin": ""}), (TypeError, "keep", {"keep": 2}),
            (TypeError, "priority", {"priority": "high"}), (TypeError, "ttl", {"ttl": "1h"}),
            (TypeError, "priority", {"priority": 0.5}),
            (ValueError, "priority", {"priority": 101}), (ValueError, "ttl", {"ttl": -1}),
            (ValueError, "priority", {"priority": -101}), (ValueError, "ttl", {"ttl": 1e30}),
            (ValueError, "ttl", {"ttl": float("nan")}), (ValueError, "duration", {"duration": -1})):
        for call in (d.load, d.open, d.set):
            with pytest.raises(error, match=f"^{name} must be"):
                call(path, **said)
    for name, call in (
            ("not_kept", lambda: d.unload(not_kept="no")), ("all", lambda: d.list(all="no")),
            ("mine", lambda: d.unload(mine=None)), ("wait", lambda: d.load(path, wait="no"))):
        with pytest.raises(TypeError, match=f"^{name} must be True or False"):
            call()
    for name, call in (
            ("idle", lambda: d.unload(idle=-1)), ("timeout", lambda: connect(timeout=-1)),
            ("timeout", lambda: connect(timeout=5e6)), ("bytes", lambda: d.budget("cpu", -1))):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            call()
    for said in {"device": "cpu"}, {"bytes": 1}:
        with pytest.raises(ValueError, match="belong together"):
            d.budget(**said)
    assert d.list() == []


def test_flags_and_numbers_reach_the_daemon(connect, make_model):
    numpy = pytest.importorskip("numpy")
    d = connect(timeout=20.5)
    model = d.load(make_model(), keep=numpy.bool_(True), pin=0, priority=numpy.int64(-100),
                   ttl=numpy.float32(0.0001))
    wish = d.show(model.id).wishes[0]
    assert (wish.keep, wish.pin, wish.priority, wish.ttl_ms) == (True, False, -100, 1)
    d.load(model.path, keep=False, priority=0, pin=None)  # not said: the wishes stay
    wish = d.show(model.id).wishes[0]
    assert (wish.keep, wish.priority) == (True, -100)
    wish = d.set(model.id, keep=1, priority=100, ttl=2.5) and d.show(model.id).wishes[0]
    assert (wish.keep, wish.priority, wish.ttl_ms) == (True, 100, 2500)
    assert d.subscribe(events="record") and d.next_event(timeout=-1) is None


# ---- around the package ----


def test_what_calls_return_can_be_imported(distorch):
    made = {name for name, thing in vars(distorch.results).items()
            if isinstance(thing, type) and thing.__module__ == distorch.results.__name__}
    assert made <= set(distorch.__all__) and all(hasattr(distorch, name) for name in made)


def test_after_the_daemons_end_a_new_connection_goes_on(start_daemon, distorch, make_model):
    daemon = start_daemon("memory.ram=1G", "memory.reserve=0")
    path = make_model(seed=6)
    d = distorch.connect(str(daemon.socket))
    view = d.open(path)["t.0"].buffer
    daemon.kill()
    with pytest.raises(distorch.Error) as caught:
        d.list()
    assert caught.value.code == "no-connection" and caught.value.retryable
    daemon.start()
    with distorch.connect(str(daemon.socket)) as again, again.open(path) as weights:
        assert bytes(view[:64]) == bytes(weights["t.0"].buffer[:64]) == pattern(6, 64)
    del view
    d.close()


@pytest.fixture
def package(tmp_path):
    """The package as setuptools installs it, from a copy of the tree's."""
    pytest.importorskip("setuptools", minversion="61")
    copy = tmp_path / "python"
    shutil.copytree(ROOT / "client" / "python", copy,
                    ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build",
                    "--build-lib", str(tmp_path / "site"), "egg_info"], cwd=copy, check=True)
    return tmp_path / "site" / "distorch"


def library_of(package, **environment):
    """What a program with the package says about its library."""
    kept = {key: value for key, value in os.environ.items()
            if key not in ("DISTORCH_LIBRARY", "LD_LIBRARY_PATH")}
    code = "import distorch._library as l; print(l.library().path)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**kept, "PYTHONPATH": str(package.parent), **environment})
    return done.stdout.strip() or done.stderr


def test_the_package_holds_its_modules_and_its_version(package, distorch):
    sources = ROOT / "client" / "python" / "distorch"
    assert {p.name for p in package.iterdir()} == {p.name for p in sources.glob("*.py")}
    metadata = (package.parents[1] / "python" / "distorch.egg-info" / "PKG-INFO").read_text()
    assert f"\nVersion: {distorch.__version__}\n" in metadata
    project = (package.parents[1] / "python" / "pyproject.toml").read_text()
    assert ".so" not in project  # it would name a file that no build puts there


def test_the_library_is_found_where_the_package_says(package):
    library = os.environ["DISTORCH_LIBRARY"]
    beside = package / "libdistorch.so.1"
    assert "DISTORCH_LIBRARY" in library_of(package, DISTORCH_LIBRARY="/no/such.so")
    assert library_of(package, DISTORCH_LIBRARY=library) == library
    folder = os.path.dirname(library)
    assert library_of(package, LD_LIBRARY_PATH=folder) == "libdistorch.so.1"
    shutil.copy(library, beside)
    assert library_of(package) == str(beside)
