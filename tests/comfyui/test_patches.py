# SPDX-License-Identifier: Apache-2.0
"""What a real ComfyUI does to a model's weights besides a LoRA: hooks, merges, clones of clones,
patches in place and forced. The latents are stock's, and the daemon's memory stays as it is."""
import json
import struct

import models as models_of
import pytest
from conftest import END_TO_END
from graphs import KINDS, loader, node, sample

wait_until = END_TO_END.wait_until


def said(outputs):
    return outputs["load"]["distorch"][0]


def is_intact(daemon):
    with daemon.raw() as raw:
        checks = raw.call("verify")["checks"]
    return bool(checks) and all(check["ok"] for check in checks)


def same(server, daemon, make, differs_from=None, tier="assign"):
    """The graph make(own) gives what stock's gives; its latent."""
    stock = server.latent(server.run(make(False)))
    outputs = server.run(make(True))
    assert said(outputs)["tier"] == tier, said(outputs)
    assert server.latent(outputs) == stock
    assert stock != differs_from, "the graph has an effect"
    assert is_intact(daemon)
    return stock


def is_all_mapped(server, kind, **widgets):
    """Once nothing is patched any more, no parameter is this process's own."""
    (look,) = server.run(sample(kind, look=True, seed=77, **widgets))["look"]["look"]
    return look["own"] == 0 and look["Anonymous"] == 0


WIDGETS = {"path": {}, "assign": {}, "placed": {"expert_mode_allocations": "sim:0,50%;cpu,50%"}}


@pytest.fixture(params=WIDGETS)
def by(request, start_daemon, start_server):
    """(server, daemon, a tier, what its loader is told for that)"""
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "gpu.budget=100%")
    environment = {"DISTORCH_TIER": "path"} if request.param == "path" else {}
    return start_server(daemon, **environment), daemon, request.param, WIDGETS[request.param]


# ---- hooks ----

def hooked(kind, own, hook, keyframes=(), negative=False, seed=5, lora=None):
    graph = sample(kind, own=own, seed=seed, steps=4, lora=lora)
    graph["hook"] = hook
    hooks = ["hook", 0]
    for at, strength in keyframes:
        graph[f"kf{at}"] = node("CreateHookKeyframe", strength_mult=strength, start_percent=at,
                                **({"prev_hook_kf": [last, 0]} if at != keyframes[0][0] else {}))
        last = f"kf{at}"
    if keyframes:
        graph["hooks"] = node("SetHookKeyframes", hooks=hooks, hook_kf=[last, 0])
        hooks = ["hooks", 0]
    graph["props"] = node("ConditioningSetProperties", cond_NEW=["conditioning", 0], strength=1.0,
                          set_cond_area="default", hooks=hooks)
    graph["sample"]["inputs"]["positive"] = ["props", 0]
    if negative:
        graph["sample"]["inputs"]["negative"] = ["props", 0]
    return graph


def lora_hook(strength=1.0):
    return node("CreateHookLoraModelOnly", lora_name="sd3_2.safetensors", strength_model=strength)


def test_a_lora_by_a_hook(server, daemon):
    plain = server.latent(server.run(sample("sd3_2", own=False, steps=4)))
    one = same(server, daemon, lambda own: hooked("sd3_2", own, lora_hook()), plain)
    both = same(server, daemon, lambda own: hooked("sd3_2", own, lora_hook(), negative=True), one)
    same(server, daemon, lambda own: hooked("sd3_2", own, lora_hook(0.5)), both)
    same(server, daemon, lambda own: hooked("sd3_2", own, lora_hook(), ((0.0, 0.2), (0.5, 1.5))),
         one)
    same(server, daemon, lambda own: hooked("sd3_2", own, lora_hook(), lora=0.7), one)
    assert server.latent(server.run(sample("sd3_2", steps=4))) == plain, "and without it again"
    wait_until(lambda: is_all_mapped(server, "sd3_2"), 20, "the mapping in its place")


def test_a_whole_model_by_a_hook(server, daemon, base):
    models_of.write(base / "models/checkpoints/other_sd15.safetensors",
                    models_of.tensors_of("tiny_sd15", seed=8))
    plain = server.latent(server.run(sample("sd15", own=False, steps=4)))
    hook = node("CreateHookModelAsLoraModelOnly", ckpt_name="other_sd15.safetensors",
                strength_model=0.5)
    same(server, daemon, lambda own: hooked("sd15", own, hook), plain)
    same(server, daemon, lambda own: hooked("sd15", own, hook, ((0.0, 0.0), (0.3, 1.0))), plain)
    assert server.latent(server.run(sample("sd15", steps=4))) == plain


def test_hooks_of_a_model_that_is_narrower_than_core_computes(server, daemon, base, monkeypatch):
    narrow = {name: value.astype("float16")
              for name, value in models_of.tensors_of("tiny_sd3_2").items()}
    models_of.write(base / "models/diffusion_models/narrow_hooks.safetensors", narrow)
    monkeypatch.setitem(KINDS, "narrow", ("narrow_hooks.safetensors", *KINDS["sd3_2"][1:]))
    plain = server.latent(server.run(sample("narrow", own=False, steps=4)))
    same(server, daemon, lambda own: hooked("narrow", own, lora_hook()), plain)
    assert server.latent(server.run(sample("narrow", steps=4))) == plain


def encoded(own, file, hook=None, is_scheduled=False, words="a cat"):
    """A prompt in words, through a text encoder with hooks."""
    graph = sample("sd15", own=own, steps=4)
    graph["clip"] = node("DistorchCLIPLoader" if own else "CLIPLoader", clip_name=file,
                         type="stable_diffusion")
    clip = ["clip", 0]
    if hook is not None:
        graph["hook"] = hook
        graph["kf0"] = node("CreateHookKeyframe", strength_mult=0.3, start_percent=0.0)
        graph["kf1"] = node("CreateHookKeyframe", strength_mult=1.0, start_percent=0.5,
                            prev_hook_kf=["kf0", 0])
        graph["hooks"] = node("SetHookKeyframes", hooks=["hook", 0], hook_kf=["kf1", 0])
        graph["hooked"] = node("SetClipHooks", clip=clip, apply_to_conds=True,
                               schedule_clip=is_scheduled, hooks=["hooks", 0])
        clip = ["hooked", 0]
    for name, text in (("positive", words), ("negative", "")):
        graph[name] = node("CLIPTextEncode", clip=clip, text=text)
        graph["sample"]["inputs"][name] = [name, 0]
    return graph


def test_a_text_encoder_with_hooks(server, daemon, base):
    models_of.write(base / "models/text_encoders/clip_l.safetensors",
                    models_of.tensors_of(models_of.clip_l_recipe()))
    models_of.write(base / "models/loras/clip_l.safetensors", models_of.lora_for_clip_l())
    hook = node("CreateHookLora", lora_name="clip_l.safetensors", strength_model=0.0,
                strength_clip=1.0)
    file = "clip_l.safetensors"
    (clip,) = server.run(encoded(True, file))["clip"]["distorch"]
    assert clip["tier"] == "assign", clip
    plain = same(server, daemon, lambda own: encoded(own, file))
    once = same(server, daemon, lambda own: encoded(own, file, hook), plain)
    same(server, daemon, lambda own: encoded(own, file, hook, is_scheduled=True), once)
    same(server, daemon, lambda own: encoded(own, file, words="a dog"), plain)  # without it again
    (base / "models/text_encoders" / file).unlink()


# ---- clones, merges, patches in place and forced ----

def rarer(own, via, side, strength, widgets):
    graph = sample("sd3_2", own=own, lora=strength, via=via, **(widgets if own else {}))
    if side == "after":  # of the LoRA
        graph["lora"]["inputs"]["model"] = ["load", 0]
        graph["via"]["inputs"]["model"] = ["lora", 0]
        graph["sample"]["inputs"]["model"] = ["via", 0]
    return graph


def test_rarer_ways_to_patch(by):
    server, daemon, tier, widgets = by
    plain = server.latent(server.run(sample("sd3_2", own=False)))
    for seed, via in enumerate(("TestCloneOfClones", "TestInplace", "TestForcePatch"), 100):
        for side, strength in (("before", 1.0), ("after", 1.0), ("after", -0.5)):
            how = via, side, strength, widgets
            same(server, daemon, lambda own, how=how: rarer(own, *how), plain, tier)
        unpatched = server.latent(server.run(sample("sd3_2", seed=seed, **widgets)))
        assert unpatched == server.latent(server.run(sample("sd3_2", own=False, seed=seed)))
        if tier != "path":  # whose parameters are core's copies
            wait_until(lambda: is_all_mapped(server, "sd3_2", **widgets), 20,
                       f"the mapping in place after {via}")


def merged(own, kind, **inputs):
    graph = sample("sd3_2", own=own)
    graph["other"] = loader("other", own)
    graph["merge"] = node(kind, model1=["load", 0], model2=["other", 0], **inputs)
    graph["sample"]["inputs"]["model"] = ["merge", 0]
    return graph


def test_models_are_merged(server, daemon, base, monkeypatch):
    models_of.write(base / "models/diffusion_models/other_sd3_2.safetensors",
                    models_of.tensors_of("tiny_sd3_2", seed=8))
    monkeypatch.setitem(KINDS, "other", ("other_sd3_2.safetensors", *KINDS["sd3_2"][1:]))
    plain = server.latent(server.run(sample("sd3_2", own=False)))
    seen = {plain}
    for kind, inputs in (("ModelMergeSimple", {"ratio": 0.3}),
                         ("ModelMergeSimple", {"ratio": 0.8}),
                         ("ModelMergeSubtract", {"multiplier": 0.5}), ("ModelMergeAdd", {})):
        seen.add(same(server, daemon, lambda own, k=kind, i=inputs: merged(own, k, **i)))
    assert len(seen) == 5, "each merge has an effect"
    assert server.latent(server.run(sample("sd3_2"))) == plain
    for kind in ("sd3_2", "other"):
        wait_until(lambda k=kind: is_all_mapped(server, k), 20, "the mapping in its place")


def read(path):
    """{name: (type, shape, bytes)} of a safetensors file."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: (one["dtype"], one["shape"],
                   data[8 + size + one["data_offsets"][0]:8 + size + one["data_offsets"][1]])
            for name, one in header.items()}


def test_a_model_is_saved_as_stock_saves_it(by):
    server, daemon, tier, widgets = by

    def save(own, lora, name):
        graph = {"load": loader("sd3_2", own, **(widgets if own else {})), "lora": node(
            "LoraLoaderModelOnly", model=["load", 0], lora_name="sd3_2.safetensors",
            strength_model=lora), "out": node("ModelSave", model=["lora", 0],
                                              filename_prefix=f"saved/{tier}/{name}")}
        outputs = server.run(graph)
        assert not own or "load" in outputs.cached or said(outputs)["tier"] == tier, outputs
        (path,) = (server.base / "output" / "saved" / tier).glob(f"{name}_*.safetensors")
        return read(path)

    assert save(False, 1.0, "stock") == save(True, 1.0, "ours")
    assert save(True, -1.0, "less") != save(False, 1.0, "again")
    assert is_intact(daemon)
