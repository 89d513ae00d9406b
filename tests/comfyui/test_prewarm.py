# SPDX-License-Identifier: Apache-2.0
"""Models of a prompt are loaded while earlier nodes run, and never at anybody's cost, on a real
ComfyUI."""
import time

import models as models_of
import pytest
from conftest import END_TO_END, PromptFailed, daemon_with
from graphs import KINDS, node, sample
from page import server  # noqa: F401
from test_page_status import free
from test_unload import history, idle
from test_workflows import models

wait_until = END_TO_END.wait_until
daemon = daemon_with("sim.count=1", "sim.memory=256M")
NAME, BIG = KINDS["sd3_2"][0], KINDS["sd15"][0]
SLOW_S = 4


@pytest.fixture(autouse=True)
def cold(server, daemon):  # noqa: F811
    for name in (NAME, BIG):
        free(server, daemon, name)
    yield
    daemon.tell("clear x")


def after_slow(kind="sd3_2", seconds=SLOW_S, **more):
    """A graph whose loader waits for a node that takes its time."""
    return {"slow": node("TestSlow", seconds=seconds, value=1),
            **sample(kind, priority=["slow", 0], **more)}


def state(daemon, name=NAME):
    found = models(daemon).get(name)
    return found and found["state"]


def is_running(server):
    return len(server.get("/queue")["queue_running"]) > 0


def is_loaded_ahead(server, daemon, name=NAME):
    """The model is there while the prompt still is in its first node."""
    wait_until(lambda: state(daemon, name) == "resident", SLOW_S - 1, "it to be loaded ahead")
    return is_running(server) and models(daemon)[name]["leases"] == 0


def none_came(server, daemon, name=NAME):
    """All the time that the first node works."""
    end = time.monotonic() + SLOW_S - 1.5
    while time.monotonic() < end:
        assert state(daemon, name) is None
        time.sleep(0.1)
    return is_running(server)


def test_a_model_of_a_later_node_loads_while_the_first_one_works(server, daemon):
    n_done = [what for what, _why in history(daemon, NAME)].count("load.done")
    prompt = server.begin(after_slow())
    assert is_loaded_ahead(server, daemon)
    outputs = server.wait(prompt)["outputs"]
    said = outputs["load"]["distorch"][0]
    assert said["lines"][0].startswith("served by distorchd") and said["warm"]["bytes"] > 0
    assert server.latent(outputs) == server.latent(server.run(sample("sd3_2", own=False)))
    assert [what for what, _why in history(daemon, NAME)].count("load.done") == n_done + 1, "read once"


def test_one_that_is_still_read_is_joined(server, daemon):
    END_TO_END.need_hooks()
    daemon.tell("fault pread:1:delay=100:ever")
    n_begun = [what for what, _why in history(daemon, BIG)].count("load.begun")
    prompt = server.begin(after_slow("sd15", seconds=2))
    wait_until(lambda: state(daemon, BIG) == "loading", 2, "it to begin")
    assert is_running(server)
    outputs = server.wait(prompt)["outputs"]
    assert "warm" not in outputs["load"]["distorch"][0], "it had to be waited for"
    assert [what for what, _why in history(daemon, BIG)].count("load.begun") == n_begun + 1


def test_a_placed_model_comes_into_ram_and_is_placed_in_its_turn(server, daemon):
    prompt = server.begin(after_slow(compute_device="sim:0"))
    assert is_loaded_ahead(server, daemon)
    assert {place["device"] for place in models(daemon)[NAME]["where"]} == {"cpu"}
    outputs = server.wait(prompt)["outputs"]
    assert outputs["load"]["distorch"][0]["tier"] == "placed"


def test_a_full_daemon_evicts_nothing_for_it(server, daemon, base):
    name = idle(daemon, base, 20 << 20, "filler")
    with daemon.raw() as raw:
        left = next(one["free"] for one in raw.call("devices")["devices"] if one["name"] == "cpu")
        raw.call("reserve", {"device": "cpu", "bytes": left})
        prompt = server.begin(after_slow())
        assert none_came(server, daemon)
        assert state(daemon, name) == "resident"
        assert not any(what == "evicted" for what, _why in history(daemon, name))
        outputs = server.wait(prompt)["outputs"]  # its turn: now it may make room
        assert outputs["load"]["distorch"][0]["tier"] == "assign"
        assert state(daemon, name) != "resident"


@pytest.mark.parametrize("why", ["setting", "switch", "unload", "eject", "lazy", "other end"])
def test_what_is_not_wanted_is_not_loaded_ahead(server, daemon, why):
    graph = after_slow()
    settings = {"setting": "distorch.prewarm", "switch": "distorch.enable"}
    body = {"prompt": graph, "client_id": "tests"}
    if why == "unload":
        graph["free"] = node("DistorchUnload", names="", device="", idle_minutes=0, not_kept=True)
    elif why == "eject":
        graph["load"]["inputs"]["eject_models"] = True
    elif why == "lazy":
        graph["slow"]["inputs"]["value"] = 0
        graph["other"] = node("DistorchDiffusionModelLoader", unet_name=KINDS["sd3_1"][0],
                              weight_dtype="default", priority=["slow", 0])
        graph["choose"] = node("TestChoose", first=True, one=["other", 0], two=["load", 0])
        graph["sample"]["inputs"]["model"] = ["choose", 0]
    elif why == "other end":
        graph["show"] = node("DistorchStatus", after=["slow", 0])
        body["partial_execution_targets"] = ["show"]
    try:
        if why in settings:
            server.post(f"/settings/{settings[why]}", False)
        prompt = server.post("/prompt", body)["prompt_id"]
        assert none_came(server, daemon)
        server.wait(prompt)
    finally:
        if why in settings:
            server.post(f"/settings/{settings[why]}", True)


def test_a_prompt_that_is_cancelled_ends_it(server, daemon):
    END_TO_END.need_hooks()
    daemon.tell("fault pread:1:delay=300:ever")
    server.begin(after_slow("sd15", seconds=60))
    wait_until(lambda: state(daemon, BIG) == "loading", 5, "it to begin")
    server.post("/interrupt", {})
    wait_until(lambda: not is_running(server), 10, "the prompt to end")
    wait_until(lambda: state(daemon, BIG) != "loading", 20, "the load to end")
    assert history(daemon, BIG)[-1][0] == "load.cancelled"


def test_a_prompt_that_waits_has_its_models_when_its_turn_comes(server, daemon):
    first = server.begin({"slow": node("TestSlow", seconds=SLOW_S, value=1),
                          "show": node("DistorchStatus", after=["slow", 0])})
    second = server.begin(sample("sd3_2"))
    assert is_loaded_ahead(server, daemon)
    server.wait(first)
    server.wait(second)


def test_what_cannot_run_or_has_no_file_is_left_alone(server, daemon):
    wrong = after_slow()
    wrong["sample"]["inputs"]["steps"] = "many"
    with pytest.raises(PromptFailed):
        server.begin(wrong)
    with pytest.raises(PromptFailed):
        server.begin({"load": 7, "save": None})
    time.sleep(2)
    assert state(daemon) is None


def test_what_comfyui_has_loaded_by_itself_is_not_brought_besides(server, daemon):
    """A loader that ComfyUI has cached runs no more; a second copy would be of no use."""
    graph = sample("sd3_2", priority=3)
    daemon.process.kill()
    daemon.process.wait()
    try:
        assert server.run(graph)["load"]["distorch"][0]["tier"] == "stock"
    finally:
        daemon.start()
    wait_until(lambda: server.get("/distorch/status")["available"], 20, "the daemon")
    graph["slow"] = node("TestSlow", seconds=SLOW_S, value=6)
    graph["sample"]["inputs"]["seed"] = ["slow", 0]
    prompt = server.begin(graph)
    assert none_came(server, daemon)
    server.wait(prompt)


def test_a_link_is_loaded_ahead_by_its_own_name(server, daemon, base, tmp_path):
    path = models_of.write(tmp_path / ("a" * 64), models_of.tensors_of("tiny_sd3_2", seed=8))
    link = base / "models/diffusion_models/linked.safetensors"
    link.symlink_to(path)
    try:
        graph = after_slow()
        graph["load"]["inputs"]["unet_name"] = link.name
        prompt = server.begin(graph)
        assert is_loaded_ahead(server, daemon, link.name)
        server.wait(prompt)
    finally:
        link.unlink()
