# SPDX-License-Identifier: Apache-2.0
"""Whatever the daemon or a file does while a real ComfyUI runs: prompts give what stock gives."""
import os
import time

import models as models_of
import pytest
from between import Between
from conftest import END_TO_END
from graphs import KINDS, sample
from test_workflows import lines, models, tier

wait_until = END_TO_END.wait_until
RETRY_S = 5.5  # session.RETRY_S, and a little


@pytest.fixture
def between(daemon):
    found = Between(daemon)
    yield found
    found.close()


def test_a_daemon_that_is_slow_or_of_another_version(start_server, between):
    server = start_server(between)
    expected = {kind: server.latent(server.run(sample(kind, own=False)))
                for kind in ("sd3_1", "sd3_2", "sd15")}
    between.delay = 3
    begun = time.monotonic()
    outputs = server.run(sample("sd3_1"))
    assert time.monotonic() - begun > 3, "it was slow"
    assert server.latent(outputs) == expected["sd3_1"]
    assert tier(outputs) == "assign", lines(outputs)
    between.delay = 0
    between.versions = [99, 100]
    between.cut()
    outputs = server.run(sample("sd3_2"))
    assert server.latent(outputs) == expected["sd3_2"] and tier(outputs) == "stock"
    assert any("version" in line for line in lines(outputs)), lines(outputs)
    between.versions = None
    time.sleep(RETRY_S)
    outputs = server.run(sample("sd15"))
    assert server.latent(outputs) == expected["sd15"] and tier(outputs) == "assign"


def test_a_daemon_that_is_restarted_between_prompts(server, daemon):
    expected = {kind: server.latent(server.run(sample(kind, own=False, seed=6)))
                for kind in ("sd3_1", "sd3_2")}
    server.run(sample("sd3_1"))
    daemon.process.terminate()
    daemon.process.wait(20)
    daemon.start()
    outputs = server.run(sample("sd3_2", seed=6))
    assert tier(outputs) == "assign", "nothing is waited for"
    assert server.latent(outputs) == expected["sd3_2"]
    assert KINDS["sd3_2"][0] in models(daemon)
    outputs = server.run(sample("sd3_1", seed=6))
    assert server.latent(outputs) == expected["sd3_1"], "what came from the one before goes on"


@pytest.mark.parametrize("how", ["replaced", "written"])
def test_a_file_that_changes_between_prompts(server, daemon, base, monkeypatch, how):
    """What is loaded after that is of the new file, by every tier; what is there goes on."""
    path = base / "models/diffusion_models/changes.safetensors"
    monkeypatch.setitem(KINDS, "changes", (path.name, *KINDS["sd3_1"][1:]))

    def write(seed):
        new = path.with_suffix(".new")
        models_of.write(new, models_of.tensors_of("tiny_sd3_1", seed=seed))
        if how == "written" and path.exists():
            path.write_bytes(new.read_bytes())
            new.unlink()
        else:
            os.replace(new, path)

    seen = set()
    for seed in (1, 2):
        write(seed)
        server.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(1)
        stock = server.latent(server.run(sample("changes", own=False)))
        # Another value of an input: ComfyUI does not look whether a file has changed.
        outputs = server.run(sample("changes", priority=seed))
        assert tier(outputs) == "assign", lines(outputs)
        assert server.latent(outputs) == stock
        seen.add(stock)
    assert len(seen) == 2
    path.unlink()
