# SPDX-License-Identifier: Apache-2.0
"""Loaders of other packs on a real ComfyUI: each of them by the call that it makes, served only where
the user has asked for that."""
import os
import shutil

import pytest
from conftest import END_TO_END
from graphs import KINDS, node, sample
from test_workflows import models

wait_until = END_TO_END.wait_until

FILE = KINDS["sd3_2"][0]
PACKS = ("WanVideoWrapper", "HunyuanVideoWrapper", "MMAudio", "Florence2", "PuLID", "metadata")


@pytest.fixture(scope="module", autouse=True)
def files(base):
    """One where each of them looks for its own."""
    source = base / "models/diffusion_models" / FILE
    for place in ("models/pulid", "models/mmaudio", "output"):
        (base / place).mkdir(exist_ok=True)
        shutil.copy(source, base / place / FILE)
    (base / "models/LLM/Florence-2-base").mkdir(parents=True)
    shutil.copy(source, base / "models/LLM/Florence-2-base/model.safetensors")


def read(server, kind, keep=False, **more):
    return server.run({"read": node("TestThirdParty", kind=kind, keep=keep),
                       **more})["read"]["read"][0]


def test_each_of_them_reads_the_daemons_memory_where_that_is_asked_for(start_server, daemon):
    plain = start_server(daemon)
    server = start_server(daemon, DISTORCH_WRAP_LOADERS="1")
    stock = {kind: read(plain, kind) for kind in PACKS}
    assert not any(one["mapped"] for one in stock.values()), stock
    assert "is read from" not in plain.log() and models(daemon) == {}, "nothing was asked for"
    for kind in PACKS:
        assert read(server, kind) == {**stock[kind], "mapped": stock[kind]["n"]}, kind
    assert read(server, "outside")["mapped"] == 0, "not in a folder of models"
    assert len(models(daemon)) == 4, "of diffusion_models, mmaudio, LLM and pulid"
    server.post("/free", {"unload_models": True, "free_memory": True})
    wait_until(lambda: not any(model["leases"] for model in models(daemon).values()), 30,
               "the leases to end with the tensors")
    stock = server.latent(plain.run(sample("sd3_2", own=False)))
    assert server.latent(server.run(sample("sd3_2", own=False))) == stock, "core's own too"
    assert server.latent(server.run(sample("sd3_2", seed=5, steps=2))) == stock, "and ours"


def test_a_loader_that_opens_files_by_itself_reads_a_resident_file(server, daemon):
    """As LTXVideo does, which no wrapper of ours sees."""
    stock = server.run({"read": node("TestSafeOpen", path=str(
        server.base / "models/diffusion_models" / FILE))})["read"]["read"][0]
    assert stock["mapped"] == 0 and stock["n"] > 30
    graph = {"file": node("DistorchResidentFile", kind="diffusion_models", file=FILE),
             "read": node("TestSafeOpen", path=["file", 0], keep=True)}
    outputs = server.run(graph)
    assert outputs["file"]["distorch"][0]["tier"] == "path", outputs
    assert outputs["read"]["read"][0] == {**stock, "mapped": stock["n"]}
    assert models(daemon)[FILE]["leases"] == 1
    assert "file" in server.run(graph).cached
    shutil.rmtree(server.base / f"run/distorch-comfyui-{os.getuid()}")  # as a login's goes
    outputs = server.run(graph)
    assert "file" not in outputs.cached
    assert outputs["read"]["read"][0] == {**stock, "mapped": stock["n"]}

    server.free(lambda: models(daemon)[FILE]["leases"] == 0)


def test_the_lease_lives_as_long_as_any_view_of_the_tensors(start_server, daemon):
    server = start_server(daemon, DISTORCH_WRAP_LOADERS="1")
    found = read(server, "PuLID", keep=True)  # the views are in ComfyUI's cache now
    assert found["mapped"] == found["n"]
    (model,) = models(daemon).values()
    assert model["name"] == FILE and model["leases"] == 1

    server.free(lambda: not any(model["leases"] for model in models(daemon).values()))


def test_whatever_the_daemon_does_not_serve_is_read_from_the_file(start_server, daemon, base,
                                                                  tmp_path):
    alone = start_server(tmp_path / "nobody.sock", DISTORCH_WRAP_LOADERS="1")
    assert read(alone, "PuLID")["mapped"] == 0
    assert f"{FILE} is read from its file: " in alone.log() and "nobody.sock" in alone.log()
    server = start_server(daemon, DISTORCH_WRAP_LOADERS="1")
    good = read(server, "PuLID")
    assert good["mapped"] == good["n"]
    daemon.process.kill()
    daemon.process.wait()
    assert read(server, "MMAudio") == {**good, "mapped": 0}
    daemon.start()
