# SPDX-License-Identifier: Apache-2.0
"""Whole workflows over the tiny models, as the page would send them."""

#: kind: (folder's loader, file, width of its conditioning, of its pooled output, latent node)
KINDS = {
    "sd15": ("tiny_sd15.safetensors", 768, 768, "EmptyLatentImage"),
    "sd3_1": ("tiny_sd3_1.safetensors", 64, 32, "EmptySD3LatentImage"),
    "sd3_2": ("tiny_sd3_2.safetensors", 64, 32, "EmptySD3LatentImage"),
    "flux": ("tiny_flux.safetensors", 64, 32, "EmptySD3LatentImage"),
}


def node(class_type, /, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def loader(kind, own=True, **more):
    file = KINDS[kind][0]
    if kind == "sd15":
        return node("DistorchCheckpointLoader" if own else "CheckpointLoaderSimple",
                    ckpt_name=file, **more)
    return node("DistorchDiffusionModelLoader" if own else "UNETLoader",
                **{"unet_name": file, "weight_dtype": "default", **more})


def paused(graph, gate):
    """The graph, whose sampler waits in the middle until there is a file `gate`."""
    graph["pause"] = node("TestPause", model=graph["sample"]["inputs"]["model"], gate=str(gate))
    graph["sample"]["inputs"]["model"] = ["pause", 0]
    return graph


def sample(kind, own=True, seed=5, steps=2, lora=None, look=False, via=None, size=64, **more):
    """A graph that samples and saves the latent. `via`: a node between loader and sampler."""
    _file, width, pooled, latent = KINDS[kind]
    graph = {"load": loader(kind, own, **more),
             "conditioning": node("TestZeroConditioning", width=width, pooled=pooled),
             "latent": node(latent, width=size, height=size, batch_size=1)}
    model = ["load", 0]
    if via is not None:
        graph["via"] = node(via, model=model)
        model = ["via", 0]
    if lora is not None:
        graph["lora"] = node("LoraLoaderModelOnly", model=model, lora_name="sd3_2.safetensors",
                             strength_model=lora)
        model = ["lora", 0]
    graph["sample"] = node("KSampler", model=model, positive=["conditioning", 0],
                           negative=["conditioning", 0], latent_image=["latent", 0], seed=seed,
                           steps=steps, cfg=2.0, sampler_name="euler", scheduler="normal",
                           denoise=1.0)
    graph["save"] = node("SaveLatent", samples=["sample", 0], filename_prefix=kind)
    if look:
        graph["look"] = node("TestLook", model=["load", 0], trigger=["sample", 0])
    return graph
