# SPDX-License-Identifier: Apache-2.0
"""What a model of some 120 MB costs in a real ComfyUI: nothing twice."""
import pathlib

import models as models_of
import pytest
from conftest import END_TO_END
from graphs import KINDS, sample
from test_workflows import lines, models, tier

wait_until = END_TO_END.wait_until


@pytest.fixture
def large(base, monkeypatch):
    """The size of a file that counts beside what a process needs anyway."""
    path = base / "models/diffusion_models/large.safetensors"
    models_of.write(path, models_of.tensors_of(models_of.sd3_recipe(6)))
    monkeypatch.setitem(KINDS, "large", (path.name, *KINDS["sd3_1"][1:]))
    yield path.stat().st_size
    path.unlink()


def anonymous(server):
    """Bytes of the whole process that are its own alone."""
    rollup = pathlib.Path(f"/proc/{server.process.pid}/smaps_rollup").read_text()
    (line,) = [line for line in rollup.splitlines() if line.startswith("Anonymous:")]
    return int(line.split()[1]) * 1024


def grown(server, own):
    """By how much using the model grows the process; and what its node said."""
    server.run(sample("sd3_1", own=own))  # what a first prompt needs is there
    before = anonymous(server)
    outputs = server.run(sample("large", own=own, look=True))
    return anonymous(server) - before, outputs


def test_a_model_is_in_memory_once(start_server, daemon, large):
    assert large > 100e6
    stock = start_server(daemon)
    by_stock, outputs = grown(stock, own=False)
    expected = stock.latent(outputs)
    assert by_stock > 0.8 * large, "else this measures nothing"
    stock.stop()
    first, second = start_server(daemon), start_server(daemon)
    alone = None
    for server in (first, second):
        by_ours, outputs = grown(server, own=True)
        assert tier(outputs) == "assign", lines(outputs)
        assert server.latent(outputs) == expected
        (look,) = outputs["look"]["look"]
        assert look["Anonymous"] == 0 and look["own"] == 0, look
        assert by_ours < 0.3 * large, (by_ours, by_stock)
        if alone is None:
            alone = look["Pss"]
    (look,) = first.run(sample("large", look=True, seed=6))["look"]["look"]
    assert alone > 0.4 * large, "the daemon may have it mapped too"
    assert look["Pss"] < 0.7 * alone, "half of it is the other's"
    assert sum(model["name"] == "large.safetensors" for model in models(daemon).values()) == 1
