# SPDX-License-Identifier: Apache-2.0
"""Models whose blocks lie where a loader's widgets say, over two simulated cards: this process maps
their memory and computes with it on the CPU, so all of it runs without a card."""
import os
import pathlib
import signal
import time

import models
import pytest
from conftest import COMFYUI, END_TO_END, PromptFailed, Server, daemon_with
from graphs import KINDS, node, paused, sample
from test_patches import encoded

HALF = "sim:0,50%;cpu,50%"


shared_cards = daemon_with("sim.count=2", "sim.memory=256M", "gpu.budget=100%")


@pytest.fixture(scope="module")
def shared_server(base, shared_cards):
    server = Server(base, shared_cards.socket).start()
    yield server
    server.stop()


@pytest.fixture
def cards(shared_cards):
    return shared_cards


@pytest.fixture
def placing(shared_server, cards):
    """The server of this file, which a start takes ten seconds of, with nothing loaded."""
    def is_free():  # ComfyUI misses a /free that comes while it is not waiting yet
        free(shared_server)
        with cards.raw() as raw:
            return not any(one["leases"] for one in raw.call("list")["models"])

    END_TO_END.wait_until(is_free, 30, "the leases to end")
    with cards.raw() as raw:
        raw.call("unload", {"select": {"all": True}})
    return shared_server


def free(server):
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(0.6)  # ComfyUI looks for it between two prompts


def refusal(server, **widgets):
    with pytest.raises(PromptFailed) as failure:
        server.begin(sample(widgets.pop("kind", "sd3_2"), **widgets))
    return str(failure.value)


def test_what_the_planner_refuses_is_refused_with_the_prompt(placing, cards, start_server,
                                                            tmp_path):
    def loads():
        with cards.raw() as raw:
            return raw.call("events.history", {"types": ["load"]})["records"][-1:]

    before = loads()
    said = refusal(placing, expert_mode_allocations="sim:0,1mb;sim:7,*")
    assert "item 2 (column 11)" in said and "there are ram, sim:0, sim:1" in said
    assert "two commas" in refusal(placing, expert_mode_allocations="sim:0,2,5gb;cpu,*")
    assert "sim:9" in refusal(placing, compute_device="sim:9")
    assert "own donor" in refusal(placing, compute_device="sim:0", virtual_vram_gb=1.5,
                                  donor_device="sim:0")
    assert "128" in refusal(placing, virtual_vram_gb=500.0)
    assert "sim:8" in refusal(placing, kind="sd15", vae_device="sim:8")
    assert "much" in refusal(placing, kind="sd15", expert_mode_allocations="unet=cpu,much")
    with cards.raw() as raw:
        assert raw.call("list")["models"] == [], "nothing is left of a check"
    assert [record["seq"] for record in loads()] == [record["seq"] for record in before]
    names = placing.get("/object_info/DistorchDiffusionModelLoader")
    widgets = names["DistorchDiffusionModelLoader"]["input"]["optional"]
    assert list(widgets) == ["keep_loaded", "priority", "compute_device", "virtual_vram_gb",
                             "donor_device", "expert_mode_allocations", "eject_models"]
    assert widgets["compute_device"][0] == ["auto", "cpu", "sim:0", "sim:1"]
    assert widgets["donor_device"][0] == ["cpu", "sim:0", "sim:1"]
    assert not any("GGUF" in name and name.startswith("Distorch")
                   for name in placing.get("/object_info")), "ComfyUI-GGUF is not there"
    alone = start_server(tmp_path / "nobody.sock")  # without a daemon the prompt goes on
    outputs = alone.run(sample("sd3_2", expert_mode_allocations="sim:7,*", compute_device="sim:9"))
    assert outputs["load"]["distorch"][0]["tier"] == "stock"


def loaded(outputs):
    return outputs["load"]["distorch"][0]


def model_of(cards, kind="sd3_2"):
    name = KINDS[kind][0]
    with cards.raw() as raw:
        return next(one for one in raw.call("list")["models"] if one["name"] == name)


def planned(cards, kind, **words):
    """{device: how many tensors}, as the daemon's planner has it."""
    with cards.raw() as raw:
        answer = raw.call("plan", {"model": model_of(cards, kind)["id"], **words})
    found = {}
    for block in answer["blocks"]:
        found[block["device"]] = found.get(block["device"], 0) + block["tensors"]
    return found


def allow(kind, failure):
    """0.3.64 has no eye for this one, by its own loader."""
    assert kind == "flux" and "detect" in str(failure)


def test_the_same_latents_wherever_the_blocks_lie(placing, cards):
    for kind in ("sd3_1", "sd3_2", "flux", "sd15"):
        try:
            stock = placing.latent(placing.run(sample(kind, own=False)))
        except PromptFailed as failure:
            allow(kind, failure)
            continue
        for string in (HALF, "sim:0", "sim:1,30%;sim:0,30%;cpu,40%", "cpu,*", "auto"):
            outputs = placing.run(sample(kind, look=True, expert_mode_allocations=string))
            said, (look,) = loaded(outputs), outputs["look"]["look"]
            assert said["tier"] == "placed", (kind, string, said)
            assert placing.latent(outputs) == stock, (kind, string)
            assert look["own"] == 0 and look["Anonymous"] == 0, (kind, string, look)
            if kind != "sd15":  # which has a VAE too
                assert said["places"] == look["devices"] == planned(cards, kind, allocation=string)
            assert model_of(cards, kind).get("allocation",
                                             "cpu,*").removeprefix("unet=") == string
            first, n_first = next(iter(said["places"].items()))
            where = "in RAM" if first == "cpu" else f"on {first}"
            assert said["lines"][0].startswith(
                f"served by distorchd, placed: {n_first} of {sum(said['places'].values())}"), said
            assert where in said["lines"][0], said
            if string == HALF:  # what is on the device that computes is there without being loaded
                assert 0 < look["loaded_size"] == look["model_size"]
                assert look["model_size"] < model_of(cards, kind)["bytes"]


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_narrow_weights_lie_where_they_are_told(placing, base, monkeypatch, kind):
    """Core makes F32 of them here, as it computes with them."""
    narrow = {"F16": lambda value: value.astype("float16"), "BF16": models.bf16}[kind]
    path = models.write(base / f"models/diffusion_models/narrow_{kind}.safetensors", {
        name: narrow(value) for name, value in models.tensors_of("tiny_sd3_2").items()})
    monkeypatch.setitem(KINDS, kind, (path.name, *KINDS["sd3_2"][1:]))
    for lora in (None, 1.0):
        stock = placing.latent(placing.run(sample(kind, own=False, lora=lora)))
        for string in (HALF, "sim:1"):
            outputs = placing.run(sample(kind, lora=lora, look=True,
                                         expert_mode_allocations=string))
            said, (look,) = loaded(outputs), outputs["look"]["look"]
            assert said["tier"] == "placed" and placing.latent(outputs) == stock, (string, said)
            assert set(said["places"]) == set(string.replace("50%", "").replace(",", "").split(";"))
            assert lora or look["mapped"] > 5 * look["own"], look
    path.unlink()


def test_virtual_vram_and_a_device_alone(placing, cards):
    stock = placing.latent(placing.run(sample("sd3_2", own=False)))
    size = 4 << 20  # the model is a little more
    for widgets, on in (({"compute_device": "sim:1"}, {"sim:1"}),
                        ({"virtual_vram_gb": 0.1, "compute_device": "sim:0",
                          "donor_device": "sim:1"}, {"sim:0", "sim:1"}),
                        ({"compute_device": "cpu"}, {"cpu"})):
        outputs = placing.run(sample("sd3_2", **widgets))
        assert set(loaded(outputs)["places"]) == on, loaded(outputs)
        assert placing.latent(outputs) == stock
    assert model_of(cards)["bytes"] > size


def test_the_parts_of_a_checkpoint_lie_apart(placing, cards):
    stock = placing.latent(placing.run(sample("sd15", own=False)))
    for widgets in ({"expert_mode_allocations": HALF, "vae_device": "sim:1"},
                    {"compute_device": "sim:0", "vae_allocations": "sim:1"},
                    {"virtual_vram_gb": 0.01, "compute_device": "sim:0", "vae_device": "sim:1"},
                    {"expert_mode_allocations": "unet=sim:0,50%;cpu,*|vae=sim:1"}):
        outputs = placing.run(sample("sd15", look=True, **widgets))
        said, (look,) = loaded(outputs), outputs["look"]["look"]
        assert said["tier"] == "placed", (widgets, said)
        assert placing.latent(outputs) == stock, widgets
        assert "sim:0" in look["devices"] and "sim:1" not in look["devices"], look
        allocation = model_of(cards, "sd15")["allocation"]
        assert "unet=" in allocation and "vae=sim:1" in allocation


def test_a_lora_is_applied_changed_and_removed(placing):
    for strength in (1.0, 0.5, None, -1.0):
        stock = placing.latent(placing.run(sample("sd3_2", own=False, lora=strength)))
        outputs = placing.run(sample("sd3_2", lora=strength, look=True,
                                     expert_mode_allocations=HALF))
        assert placing.latent(outputs) == stock, strength
    free(placing)
    outputs = placing.run(sample("sd3_2", look=True, expert_mode_allocations=HALF))
    (look,) = outputs["look"]["look"]
    assert look["own"] == 0 and look["Anonymous"] == 0, look


def test_a_text_encoder_lies_over_devices(placing, base):
    file = "clip_l.safetensors"
    models.write(base / "models/text_encoders" / file, models.tensors_of(models.clip_l_recipe()))
    stock = placing.latent(placing.run(encoded(False, file)))
    for string in ("sim:0,50%;cpu,50%", "sim:1"):
        graph = encoded(True, file)
        graph["clip"]["inputs"]["expert_mode_allocations"] = string
        outputs = placing.run(graph)
        (said,) = outputs["clip"]["distorch"]
        assert said["tier"] == "placed" and "sim" in said["lines"][0], said
        assert sum(said["places"].values()) >= 196, said
        assert placing.latent(outputs) == stock, string
    (base / "models/text_encoders" / file).unlink()


def test_a_vae_lies_where_it_is_told_unless_core_converts_it(placing, base):
    narrow = {name.removeprefix("first_stage_model."): array
              for name, array in models.tensors_of("tiny_sd15").items()
              if name.startswith("first_stage_model.")}
    wide = {name: array.astype("float32") for name, array in narrow.items()}
    for name, tensors in (("narrow_vae", narrow), ("wide_vae", wide)):
        models.write(base / f"models/vae/{name}.safetensors", tensors)

    def decode(name, own, **more):
        graph = sample("sd15", own=False)
        graph["vae"] = node("DistorchVAELoader" if own else "VAELoader",
                            vae_name=f"{name}.safetensors", **more)
        graph["decode"] = node("VAEDecode", samples=["sample", 0], vae=["vae", 0])
        graph["save"] = node("SaveImage", images=["decode", 0], filename_prefix=name)
        outputs = placing.run(graph)
        (image,) = outputs["save"]["images"]
        png = (placing.base / "output" / image["filename"]).read_bytes()
        return outputs, b"".join(part for part in png.split(b"IDAT")[1:])

    stock = decode("wide_vae", False)[1]
    for string in ("sim:1", HALF):
        outputs, image = decode("wide_vae", True, expert_mode_allocations=string)
        (said,) = outputs["vae"]["distorch"]
        assert said["tier"] == "placed" and image == stock, said
        assert "sim" in said["lines"][0] and "converted" not in said["lines"][0], said
    outputs, image = decode("narrow_vae", True, compute_device="sim:0")
    (said,) = outputs["vae"]["distorch"]
    assert said["tier"] == "path" and image == decode("narrow_vae", False)[1]
    assert said["lines"][1] == "not placed: ComfyUI converts its weights", said


def hooked(own, **more):
    """Two LoRAs as weight hooks, of which the second begins half way."""
    graph = sample("sd3_2", own=own, steps=4, **more)
    for name, start, strength in (("first", 0.0, 1.0), ("second", 0.5, -0.7)):
        graph[name] = node("CreateHookLoraModelOnly", lora_name="sd3_2.safetensors",
                           strength_model=strength)
        graph[f"{name}_times"] = node("CreateHookKeyframe", strength_mult=1.0, start_percent=start)
        graph[f"{name}_set"] = node("SetHookKeyframes", hooks=[name, 0],
                                    hook_kf=[f"{name}_times", 0])
    graph["hooks"] = node("CombineHooks2", hooks_A=["first_set", 0], hooks_B=["second_set", 0])
    graph["hooked"] = node("ConditioningSetProperties", cond_NEW=["conditioning", 0],
                           strength=1.0, set_cond_area="default", hooks=["hooks", 0])
    graph["sample"]["inputs"]["positive"] = ["hooked", 0]
    return graph


def test_weight_hooks_harm_nothing_that_is_shared(placing, cards):
    stock = placing.latent(placing.run(hooked(False)))
    assert stock != placing.latent(placing.run(sample("sd3_2", own=False, steps=4)))
    for _ in range(2):
        outputs = placing.run(hooked(True, expert_mode_allocations=HALF))
        assert placing.latent(outputs) == stock
        free(placing)
    outputs = placing.run(sample("sd3_2", look=True, expert_mode_allocations=HALF))
    assert outputs["look"]["look"][0]["own"] == 0
    with cards.raw() as raw:
        assert all(check["ok"] for check in raw.call("verify")["checks"])


def test_only_what_is_this_process_s_own_is_freed(placing):
    def unload(lora):
        graph = sample("sd3_2", lora=lora, expert_mode_allocations=HALF)
        graph["unload"] = node("TestPartiallyUnload", model=["lora" if lora else "load", 0],
                               trigger=["sample", 0])
        (freed,) = placing.run(graph)["unload"]["freed"]
        return freed

    freed = unload(None)
    assert freed["said"] == 0 and freed["before"] == freed["after"] > 0, freed
    freed = unload(1.0)  # its copies of what it changes
    assert freed["said"] > 0, freed
    stock = placing.latent(placing.run(sample("sd3_2", own=False, seed=9, lora=1.0)))
    outputs = placing.run(sample("sd3_2", seed=9, lora=1.0, expert_mode_allocations=HALF))
    assert placing.latent(outputs) == stock, "and made again"


def test_clones_of_clones_and_a_hostile_node(placing, cards):
    def chained(own, **more):
        graph = sample("sd3_2", own=own, lora=0.8, **more)
        graph["again"] = node("LoraLoaderModelOnly", model=["lora", 0],
                              lora_name="sd3_2.safetensors", strength_model=-0.3)
        graph["other"] = node("LoraLoaderModelOnly", model=["load", 0],
                              lora_name="sd3_2.safetensors", strength_model=0.5)
        graph["merge"] = node("ModelMergeSimple", model1=["again", 0], model2=["other", 0],
                              ratio=0.25)
        graph["sample"]["inputs"]["model"] = ["merge", 0]
        return graph

    stock = placing.latent(placing.run(chained(False)))
    assert placing.latent(placing.run(chained(True, expert_mode_allocations=HALF))) == stock
    plain = placing.latent(placing.run(sample("sd3_2", own=False)))
    outputs = placing.run(sample("sd3_2", expert_mode_allocations=HALF))
    assert placing.latent(outputs) == plain
    harmed = placing.run(sample("sd3_2", via="TestHostile", expert_mode_allocations=HALF))
    assert placing.latent(harmed) != plain
    with cards.raw() as raw:
        assert all(check["ok"] for check in raw.call("verify")["checks"])


def test_what_another_process_has_placed_is_used_as_it_lies(placing, cards, base):
    path = base / "models/diffusion_models" / KINDS["sd3_2"][0]
    with END_TO_END.opened(path) as fd, cards.raw() as raw:
        # kept: what ComfyUI has just unloaded of the same file is on its way to RAM
        raw.call("load", {"allocation": "sim:1,50%;cpu,*", "policy": {"keep": True}}, [fd])
    stock = placing.latent(placing.run(sample("sd3_2", own=False)))
    outputs = placing.run(sample("sd3_2"))
    assert placing.latent(outputs) == stock
    assert set(loaded(outputs).get("places", ())) == {"sim:1", "cpu"}, loaded(outputs)
    assert model_of(cards)["allocation"] == "sim:1,50%;cpu,*"
    with cards.raw() as raw:
        raw.call("set", {"model": model_of(cards)["id"], "policy": {"keep": False}})


def test_a_card_that_dies_while_it_samples(placing, cards, tmp_path):
    stock = {seed: placing.latent(placing.run(sample("sd3_2", own=False, steps=20, seed=seed)))
             for seed in (5, 6, 7)}
    again = {"expert_mode_allocations": HALF, "steps": 20}
    outputs = placing.run(sample("sd3_2", **again))
    assert placing.latent(outputs) == stock[5]

    def worker():
        with cards.raw() as raw:
            (device,) = (one for one in raw.call("devices")["devices"] if one["name"] == "sim:0")
        return device

    gate = tmp_path / "gate"
    prompt = placing.begin(paused(sample("sd3_2", seed=6, **again), gate))
    END_TO_END.wait_until(lambda: os.path.exists(f"{gate}.waits"), 30, "it to sample")
    dead = worker()["pid"]
    os.kill(dead, signal.SIGKILL)
    END_TO_END.wait_until(lambda: worker().get("pid") != dead, 30,
                          "the daemon to see it")
    assert placing.get(f"/history/{prompt}") == {}, "it samples still"
    gate.touch()
    assert placing.latent(placing.wait(prompt)["outputs"]) == stock[6]
    END_TO_END.wait_until(lambda: worker()["state"] == "ok" and worker().get("pid") != dead, 30,
                          "the card to be back")
    free(placing)
    outputs = placing.run(sample("sd3_2", seed=7, **again))
    assert loaded(outputs)["tier"] == "placed", loaded(outputs)
    assert placing.latent(outputs) == stock[7]


def test_what_cannot_be_placed_says_so(start_server, start_daemon):
    cards = start_daemon("sim.count=1", "sim.memory=8M", "gpu.budget=100%")
    server = start_server(cards)
    stock = server.latent(server.run(sample("sd15", own=False)))
    outputs = server.run(sample("sd15", expert_mode_allocations="sim:0"))
    said = loaded(outputs)
    assert said["tier"] == "assign" and server.latent(outputs) == stock
    assert said["lines"][1].startswith("not placed: no-memory"), said
    assert "not placed" in server.log()
    outputs = server.run(sample("sd3_2", expert_mode_allocations="sim:0", weight_dtype=
                                "fp8_e4m3fn"))
    said = loaded(outputs)
    assert said["tier"] == "path" and said["lines"][1].startswith("not placed: "), said
    assert [place["device"] for place in model_of(cards)["where"]] == ["cpu"], "back in RAM"
    by_path = start_server(cards, DISTORCH_TIER="path")
    said = loaded(by_path.run(sample("sd3_1", expert_mode_allocations="cpu,*")))
    assert said["tier"] == "path" and "not placed: DISTORCH_TIER" in said["lines"][1], said
    cards.process.kill()
    cards.process.wait()
    said = loaded(server.run(sample("sd3_1", expert_mode_allocations="sim:0")))
    assert said["tier"] == "stock" and said["lines"][1].startswith("not placed: "), said
    cards.start()


def test_models_are_ejected_first(placing, cards):
    def resident():
        with cards.raw() as raw:
            return {one["name"] for one in raw.call("list")["models"] if one["where"]}

    placing.run(sample("sd3_1"))
    placing.run(sample("sd15", keep_loaded=True))
    free(placing)
    END_TO_END.wait_until(lambda: model_of(cards, "sd15")["leases"] == 0 and
                          model_of(cards, "sd3_1")["leases"] == 0, 20, "nobody to use them")
    placing.run(sample("sd3_2"))
    assert KINDS["sd3_1"][0] in resident()
    placing.run(sample("sd3_2", seed=3, eject_models=True))
    assert resident() == {KINDS["sd3_2"][0], KINDS["sd15"][0]}


def test_core_makes_another_of_it_for_another_card(placing, base):
    """With weights of its own, and while the first one has a LoRA on."""
    if "deepclone_multigpu" not in (pathlib.Path(COMFYUI) / "comfy/model_patcher.py").read_text():
        pytest.skip("this ComfyUI computes on one card only")

    def deep(own, lora=None, **more):
        graph = sample("sd3_2", own=own, lora=lora, **more)
        graph["deep"] = node("TestDeepClone", what=["lora" if lora else "load", 0])
        graph["sample"]["inputs"]["model"] = ["deep", 0]
        graph["inside"] = node("TestLookInside", what=["deep", 0], trigger=["sample", 0])
        return graph

    for where in ({}, {"expert_mode_allocations": HALF}):
        for lora in (None, 0.7):
            stock = placing.latent(placing.run(deep(False, lora)))
            outputs = placing.run(deep(True, lora, **where))
            assert loaded(outputs)["tier"] == ("placed" if where else "assign"), loaded(outputs)
            assert placing.latent(outputs) == stock
            (look,) = outputs["inside"]["look"]
            assert look["devices"] == {} and look["patcher"] == "ModelPatcher", look
    file = "clip_l.safetensors"
    models.write(base / "models/text_encoders" / file, models.tensors_of(models.clip_l_recipe()))

    def encoder(own, **more):
        graph = encoded(own, file)
        graph["clip"]["inputs"] |= more
        graph["deep"] = node("TestDeepClone", what=["clip", 0])
        for name in ("positive", "negative"):
            graph[name]["inputs"]["clip"] = ["deep", 0]
        return graph

    stock = placing.latent(placing.run(encoder(False)))
    outputs = placing.run(encoder(True, expert_mode_allocations=HALF))
    assert outputs["clip"]["distorch"][0]["tier"] == "placed"
    assert placing.latent(outputs) == stock
    (base / "models/text_encoders" / file).unlink()
