# SPDX-License-Identifier: Apache-2.0
"""Each way in which a real ComfyUI keeps outputs of nodes: with the model that it lets go, the lease
goes; and its end is a quiet one."""
import itertools
import os
import pathlib
import signal

import pytest
from conftest import COMFYUI, END_TO_END
from graphs import KINDS, node, sample
from test_workflows import lines, models, tier

wait_until = END_TO_END.wait_until
FIRST, SECOND = KINDS["sd3_1"][0], KINDS["sd3_2"][0]
MODES = {"classic": ["--cache-classic"], "lru": ["--cache-lru", "1"], "none": ["--cache-none"],
         "ram": ["--cache-ram", "0.001", "1000"]}  # what no prompt needs never has enough room


def links(server):
    """Those of this process; of killed ones there may be more."""
    found = (server.base / "run").glob("distorch-comfyui-*/links-*/*/*")
    return [link for link in found
            if os.readlink(link).startswith(f"/proc/{server.process.pid}/")]


def has(option):
    text = (pathlib.Path(COMFYUI) / "comfy" / "cli_args.py").read_text()
    return f'"{option}"' in text


@pytest.mark.parametrize("mode", MODES)
def test_what_a_cache_lets_go_is_not_leased_any_more(start_server, daemon, mode):
    if not has(MODES[mode][0]):
        pytest.skip(f"this ComfyUI has no {MODES[mode][0]}")
    server = start_server(daemon, *MODES[mode])
    expected = server.latent(server.run(sample("sd3_1", own=False)))
    outputs = server.run(sample("sd3_1"))
    assert tier(outputs) == "assign" and server.latent(outputs) == expected
    seeds = itertools.count(100)

    def is_pushed_out():  # by another workflow
        server.run(sample("sd3_2", seed=next(seeds)))
        return models(daemon)[FIRST]["leases"] == 0

    wait_until(is_pushed_out, 60, "the lease to go")
    assert models(daemon)[SECOND]["leases"] <= 1, "one model, however often it is loaded"
    outputs = server.run(sample("sd3_1"))
    assert tier(outputs) == "assign", lines(outputs)
    assert server.latent(outputs) == expected, "and it is had again"
    assert len(links(server)) <= 2, "of what is let go, no link is left"

    server.run({"file": node("DistorchResidentFile", kind="diffusion_models", file=FIRST),
                "show": node("PreviewAny", source=["file", 0])})
    assert links(server) or mode == "none"
    process, before = server.process, {link.parents[1] for link in links(server)}
    server.stop(signal.SIGINT)
    assert process.returncode == 0, server.log()[-2000:]
    for word in ("Traceback", "Exception ignored", "Segmentation", "resource_tracker"):
        assert word not in server.log(), server.log()[-3000:]
    wait_until(lambda: all(one["leases"] == 0 for one in models(daemon).values()), 20,
               "the leases of who is gone")
    assert not any(folder.exists() for folder in before)


def test_an_end_in_the_middle_is_a_quiet_one(start_server, daemon):
    """Of a process whose model is patched and in use."""
    server = start_server(daemon)
    server.run(sample("sd3_2", lora=1.0))
    server.begin(sample("sd3_2", lora=0.5, steps=2000))
    wait_until(lambda: server.get("/queue")["queue_running"], 20, "the prompt to run")
    process = server.process
    server.stop(signal.SIGTERM)
    assert process.returncode == -signal.SIGTERM, "at once, by the signal alone"
    assert "Traceback" not in server.log(), server.log()[-3000:]
    wait_until(lambda: models(daemon)[SECOND]["leases"] == 0, 20, "the lease of who is gone")
