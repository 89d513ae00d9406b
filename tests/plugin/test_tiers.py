# SPDX-License-Identifier: Apache-2.0
"""The pack's tiers over ComfyUI's calls as three generations have them: what they serve, that it
computes the same, that the daemon's memory stays as it is, and what they fall back to."""
import gc
import pathlib
import sys
import types

import pytest
from conftest import MODELS, wait_until

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")

MODEL = "m.safetensors"


@pytest.fixture
def nodes(pack, comfy):
    return pack.nodes


@pytest.fixture
def path(tmp_path):
    """Of a model that is wide, narrow and made outside of layers."""
    rng = numpy.random.default_rng(3)

    def some(*shape, kind=numpy.float32):
        return rng.standard_normal(shape).astype(kind)

    inside = {"blocks.0.weight": some(8, 4), "blocks.0.bias": some(8),
              "blocks.1.weight": some(4, 8, kind=numpy.float16), "blocks.1.bias": some(4),
              "pos_embed": some(1, 3, 5), "norm.weight": some(6)}
    return MODELS.write(tmp_path / MODEL, {f"model.diffusion_model.{name}": value
                                           for name, value in inside.items()})


@pytest.fixture
def load(nodes, path):
    """load() -> (patcher, tier, what the node shows)"""
    def load(kind=None, **inputs):
        inputs = inputs or {"unet_name": MODEL, "weight_dtype": "default"}
        shown = (kind or nodes.DiffusionModelLoader)().load(**inputs)
        (said,) = shown["ui"]["distorch"]
        return shown["result"][0], said["tier"], said["lines"]

    return load


@pytest.fixture
def stock(comfy, path):
    return comfy.sd.load_diffusion_model(str(path))


def compute(patcher):
    with torch.inference_mode():
        return patcher.model.apply_model(torch.linspace(-1, 1, 7), None)


def leases(daemon):
    return sum(model["leases"] for model in daemon.models())


def is_intact(daemon):
    with daemon.raw() as raw:
        return all(check["ok"] for check in raw.call("verify")["checks"])


def addresses(patcher):
    return {name: value.data_ptr() for name, value in patcher.model.named_parameters()}


def mapped_names(patcher):
    """The parameters whose bytes lie in a mapping of the daemon's."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        spans = [[int(part, 16) for part in line.split(maxsplit=1)[0].split("-")]
                 for line in lines if "memfd:distorch" in line]
    return {name for name, address in addresses(patcher).items()
            if any(begin <= address < end for begin, end in spans)}


# ---- assign ----

def test_assign_makes_a_model_of_the_daemons_memory(load, stock, daemon, comfy):
    patcher, tier, lines = load()
    assert tier == "assign", lines
    assert lines == ["served by distorchd, no copy (6 of 6 in place)"]
    assert len(mapped_names(patcher)) == 6
    assert patcher.model.diffusion_model.blocks.get_submodule("1").weight.dtype == torch.float16
    assert torch.equal(compute(patcher), compute(stock))
    assert not any(parameter.requires_grad for parameter in patcher.model.parameters())
    assert leases(daemon) == 1
    del patcher
    gc.collect()
    wait_until(lambda: leases(daemon) == 0, what="the lease to go with the model")


def test_what_is_loaded_into_a_layer_later_is_copied(load, daemon):
    """As core does with what a ControlNet has of the model that it is for."""
    patcher, tier, lines = load()
    assert tier == "assign", lines
    (layer,) = (one for name, one in patcher.model.diffusion_model.named_modules()
                if name == "blocks.0")
    theirs = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.load_state_dict(theirs)
    assert layer.weight.data_ptr() != theirs["weight"].data_ptr()
    theirs["weight"].zero_()
    assert layer.weight.any() and is_intact(daemon)


def test_a_checkpoint_is_assigned_with_what_its_header_says(load, nodes, comfy, stock):
    patcher, tier, lines = load(nodes.CheckpointLoader, ckpt_name=MODEL)
    assert tier == "assign", lines
    assert torch.equal(compute(patcher), compute(stock))
    assert [value for what, value in comfy.seen if what == "checkpoint"] == (
        [] if "metadata" not in comfy.sd.load_state_dict_guess_config.__code__.co_varnames
        else [None])


def test_a_text_encoder_is_assigned(load, nodes, tmp_path, comfy):
    MODELS.write(tmp_path / "encoder.safetensors",
                 {"h.0.weight": numpy.ones((4, 4), numpy.float32),
                  "h.0.bias": numpy.ones(4, numpy.float32)})
    clip, tier, lines = load(nodes.ClipLoader, clip_name="encoder.safetensors", type="stable_diffusion")
    assert tier == "assign", lines
    assert mapped_names(clip.patcher) == {"h.0.weight", "h.0.bias"}
    assert clip.cond_stage_model.get_submodule("h.0").weight.sum() == 16


def test_what_writes_into_the_model_writes_into_a_copy(load, stock, daemon):
    patcher, _tier, _lines = load()
    with torch.no_grad():
        for parameter in patcher.model.parameters():
            parameter.data.mul_(0)
    assert is_intact(daemon)
    del patcher
    gc.collect()
    again, tier, _lines = load()
    assert tier == "assign" and torch.equal(compute(again), compute(stock))


# ---- the guard ----

KEYS = ("diffusion_model.blocks.0.weight", "diffusion_model.blocks.1.weight")


def patches_of(patcher, scale=1.0):
    shapes = {name: value.shape for name, value in patcher.model.named_parameters()}
    return {key: (scale * torch.linspace(-1, 1, shapes[key].numel()).reshape(shapes[key]),)
            for key in KEYS}


@pytest.mark.parametrize("is_inplace", [False, True])
def test_a_patch_is_applied_changed_and_taken_away(load, stock, daemon, is_inplace):
    patcher, _tier, _lines = load()
    before = addresses(patcher)
    for one in (patcher, stock):
        one.weight_inplace_update = is_inplace
    for strength in (1.0, -0.5):
        ours, theirs = patcher.clone(), stock.clone()
        assert type(ours) is type(patcher), "a clone is guarded too"
        for one in (ours, theirs):
            one.add_patches(patches_of(one), strength)
            one.patch_model(device_to=one.load_device)
        assert torch.equal(compute(ours), compute(theirs)), strength
        assert addresses(ours) != before and len(mapped_names(ours)) == 4
        for one in (ours, theirs):
            one.unpatch_model(device_to=one.offload_device)
        assert addresses(patcher) == before, "the mapping is in its place again"
        assert torch.equal(compute(patcher), compute(stock))
    assert is_intact(daemon)


def test_a_clone_of_a_clone_shares_the_backup(load, stock):
    patcher, _tier, _lines = load()
    before = addresses(patcher)
    first, their_first = patcher.clone(), stock.clone()
    for one in (first, their_first):
        one.add_patches(patches_of(one))
        one.patch_model(device_to=one.load_device)
    second, their_second = first.clone(), their_first.clone()
    for one in (second, their_second):
        one.unpatch_model(device_to=one.offload_device)
        one.add_patches(patches_of(one, 3.0))
        one.patch_model(device_to=one.load_device)
    assert torch.equal(compute(second), compute(their_second))
    for one in (second, their_second):
        one.unpatch_model(device_to=one.offload_device)
    assert addresses(patcher) == before and torch.equal(compute(first), compute(stock))


def test_hooks_write_in_place_and_are_undone(load, stock, daemon):
    patcher, _tier, _lines = load()
    before = addresses(patcher)
    for one in (patcher, stock):
        one.hook_patches = {name: {key: scale * value[0].float()
                                   for key, value in patches_of(one).items()}
                            for name, scale in (("a", 1.0), ("b", -2.0))}
    for name in ("a", "b", "a", "a", None):  # anew, another, from what was kept, and none
        for one in (patcher, stock):
            one.patch_hooks(name)
        assert torch.equal(compute(patcher), compute(stock)), name
        assert len(mapped_names(patcher)) == (6 if name is None else 4)
    assert addresses(patcher) == before and is_intact(daemon)


def test_hooks_over_a_patch_give_the_patch_back(load, stock):
    patcher, _tier, _lines = load()
    before = addresses(patcher)
    for one in (patcher, stock):
        one.add_patches(patches_of(one))
        one.patch_model(device_to=one.load_device)
        one.hook_patches = {"a": {KEYS[0]: patches_of(one)[KEYS[0]][0]}}
        one.patch_hooks("a")
    assert torch.equal(compute(patcher), compute(stock))
    for one in (patcher, stock):
        one.patch_hooks(None)
    assert torch.equal(compute(patcher), compute(stock)), "the patch is still on"
    for one in (patcher, stock):
        one.unpatch_model(device_to=one.offload_device)
    assert torch.equal(compute(patcher), compute(stock)) and addresses(patcher) == before


def test_what_the_guard_does_not_know_it_passes_on(load, comfy):
    if "return_weight" not in comfy.patcher.patch_weight_to_device.__code__.co_varnames:
        pytest.skip("this generation returns no weights")
    patcher, _tier, _lines = load()
    before = addresses(patcher)
    plain = patcher.patch_weight_to_device(KEYS[0])
    assert plain.data_ptr() == before[KEYS[0]]
    patcher.add_patches(patches_of(patcher))
    found = patcher.patch_weight_to_device(KEYS[0], return_weight=True)
    assert torch.equal(found, plain + patches_of(patcher)[KEYS[0]][0])
    assert addresses(patcher) == before, "nothing was patched"


# ---- placed ----

def harm_layers(comfy, monkeypatch):
    """A release whose layers that cast forget the bias."""
    monkeypatch.setattr(comfy.ops.manual_cast.Linear, "forward",
                        lambda layer, given: torch.nn.functional.linear(
                            given, layer.weight.to(given.dtype)))


def places(daemon):
    return {place["device"] for model in daemon.models() for place in model["where"]
            if place["bytes"] > 0}


PLACED = {"unet_name": MODEL, "weight_dtype": "default",
          "expert_mode_allocations": "sim:0,50%;cpu,50%"}
cards = pytest.mark.daemon("sim.count=1", "sim.memory=64M", "gpu.budget=100%")


@cards
def test_a_model_lies_where_the_allocation_says(load, stock, daemon):
    patcher, tier, lines = load(**PLACED)
    assert tier == "placed", lines
    assert "on sim:0" in lines[0] and "in RAM" in lines[0], lines
    before = addresses(patcher)
    assert torch.equal(compute(patcher), compute(stock))
    patcher.patch_model(device_to=patcher.load_device)
    assert 0 < len(patcher.offloaded) < 5, "layers on the donor cast, others do not"
    patcher.unpatch_model(device_to=patcher.offload_device)
    assert addresses(patcher) == before


@cards
@pytest.mark.parametrize("is_inplace", [False, True])
def test_a_placed_model_is_patched_and_is_as_before(load, stock, daemon, is_inplace):
    patcher, tier, lines = load(**PLACED)
    assert tier == "placed", lines
    before = addresses(patcher)
    ours, theirs = patcher.clone(), stock.clone()
    for one in (ours, theirs):
        one.weight_inplace_update = is_inplace
        one.add_patches(patches_of(one))
        one.patch_model(device_to=one.load_device)
    assert torch.equal(compute(ours), compute(theirs)) and addresses(ours) != before
    for one in (ours, theirs):
        one.unpatch_model(device_to=one.offload_device)
        one.hook_patches = {"a": {key: value[0] for key, value in patches_of(one).items()}}
        one.patch_hooks("a")
    assert torch.equal(compute(ours), compute(theirs))
    for one in (ours, theirs):
        one.patch_hooks(None)
    assert addresses(patcher) == before and torch.equal(compute(patcher), compute(stock))
    assert is_intact(daemon)


@pytest.mark.daemon("sim.count=2", "sim.memory=64M", "gpu.budget=100%")
def test_a_card_has_the_name_that_this_process_has_for_it(load, daemon, pack, monkeypatch,
                                                          caplog):
    """As where torch, or CUDA_VISIBLE_DEVICES, has another order than the bus."""
    second = "SIM-00000000-0000-4000-8000-000000000001"
    monkeypatch.setattr(sys.modules["pack.cards"], "uuids", lambda: [second])
    patcher, tier, lines = load(**PLACED)
    assert tier == "placed" and "on sim:0" in lines[0], lines
    (model,) = daemon.models()
    assert {place["device"] for place in model["where"]} == {"sim:1", "cpu"}
    session = pack.nodes.session
    assert session.devices() == ("cpu", "sim:0"), "nor is the other one offered"
    told = [line for line in caplog.messages if "sim:0 of ComfyUI is sim:1 in" in line]
    assert len(told) == 1, caplog.messages
    assert set(patcher.model.distorch_places.values()) == {"sim:0", "cpu"}
    (shown,) = sys.modules["pack.news"].overview()["models"]
    assert [place["device"] for place in shown["where"]] == ["cpu", "sim:0"]
    with session.room("sim:0", 1 << 20):
        assert {one["name"]: one["reserved"] > 0 for one in daemon.status()["devices"]} == {
            "cpu": False, "sim:0": False, "sim:1": True}


def test_cards_are_asked_of_torch(pack, monkeypatch):
    cards = sys.modules["pack.cards"]
    assert cards.uuids() == [], "torch uses none"
    seen = [types.SimpleNamespace(uuid="2b"), types.SimpleNamespace(uuid="1a")]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: seen[index])
    assert cards.uuids() == ["GPU-2b", "GPU-1a"]
    devices = [types.SimpleNamespace(name=name, uuid=uuid) for name, uuid in (
        ("cpu", "host"), ("cuda:0", "GPU-1a"), ("cuda:1", "GPU-2b"), ("cuda:2", "GPU-3c"),
        ("cuda:3", "MIG-1"), ("sim:0", "SIM-0"))]
    assert cards.names(devices) == {"cpu": "cpu", "cuda:0": "cuda:1", "cuda:1": "cuda:0",
                                    "cuda:2": None, "cuda:3": None, "sim:0": "sim:0"}
    seen.append(types.SimpleNamespace())  # a torch that knows none
    assert cards.uuids() == []


@cards
def test_a_placed_model_leaves_the_cards_uncompared_and_uncancelled(load, stock, daemon, comfy,
                                                                    pack, monkeypatch):
    patcher, tier, lines = load(**PLACED)
    assert tier == "placed", lines
    parking = pack.nodes.loaders.parking

    def places():
        (model,) = daemon.models()
        return {place["device"] for place in model["where"]}

    def fails(*_arguments):
        raise comfy.management.InterruptProcessingException

    before = addresses(patcher)
    with monkeypatch.context() as inside:
        inside.setattr(comfy.management, "throw_exception_if_processing_interrupted", fails)
        inside.setattr(torch, "equal", fails)
        parking.end(patcher.model)
    wait_until(lambda: places() == {"cpu"}, 10, "it to be in RAM")
    assert addresses(patcher).keys() == before.keys() and addresses(patcher) != before
    assert torch.equal(compute(patcher), compute(stock))
    parking.begin(patcher.model)
    assert places() == {"sim:0", "cpu"} and torch.equal(compute(patcher), compute(stock))


@cards
@pytest.mark.parametrize("harm", ["layers", "patches", "binding", "places"])
def test_a_placed_tier_that_computes_something_else_is_switched_off(load, comfy, stock, daemon,
                                                                    harm, pack, monkeypatch):
    """Its own self-test sees that: the one of assign is not asked for the reason."""
    kinds = pack.nodes.loaders.placed
    if harm == "layers":
        harm_layers(comfy, monkeypatch)
    elif harm == "patches":
        monkeypatch.setattr(kinds.Placed, "patch_weight_to_device", lambda *_args, **_kwargs: None)
    elif harm == "binding":
        inner, key = kinds.bind, "diffusion_model.t_embedder.mlp.0.bias"

        def bind(one, *arguments):
            found, table = inner(one, *arguments), one.model.distorch_mapped
            if key in table:  # another one than that of its name
                table[key] = torch.nn.Parameter(table[key].detach() * 2, False)
                comfy.utils.set_attr(one.model, key, table[key])
            return found

        monkeypatch.setattr(kinds, "bind", bind)
    else:  # what is undone is not bound again
        monkeypatch.setattr(kinds.Placed, "_bind", lambda guard: None)
        monkeypatch.setattr(kinds.Placed, "unpatch_model", lambda *_args, **_kwargs: None)
    for _ in range(2):
        patcher, tier, lines = load(**PLACED)
        assert tier in ("assign", "path") and torch.equal(compute(patcher), compute(stock)), lines
        assert lines[1].startswith("not placed: placed is switched off: its self-test computes "
                                   "something else"), lines
    said = selftest()._reasons["placed"]
    assert said.startswith("its self-test computes something else"), said
    wait_until(lambda: places(daemon) == {"cpu"}, what="it to be back in RAM")


@cards
def test_what_cannot_be_placed_says_so(load, stock, pack, monkeypatch):
    monkeypatch.setattr(pack.nodes.loaders.placed.Placed, "_donors", lambda patcher: patcher.no)
    patcher, tier, lines = load(**PLACED)
    assert tier == "assign", lines
    assert lines[1].startswith("not placed: placed is switched off: its self-test failed"), lines
    assert torch.equal(compute(patcher), compute(stock))


# ---- what it falls back to ----

def test_by_the_path_core_reads_the_same_bytes(load, stock, monkeypatch, comfy, path):
    monkeypatch.setenv("DISTORCH_TIER", "path")
    patcher, tier, lines = load()
    assert (tier, lines) == ("path", ["served by distorchd"])
    (what, link) = comfy.seen[-1]
    assert what == "path" and link != str(path) and pathlib.Path(link).name == path.name
    assert torch.equal(compute(patcher), compute(stock)) and mapped_names(patcher) == set()


def test_a_link_lives_as_long_as_its_model(load, monkeypatch, comfy, daemon):
    monkeypatch.setenv("DISTORCH_TIER", "path")
    patcher, _tier, _lines = load()
    link = pathlib.Path(comfy.seen[-1][1])
    assert link.exists()
    comfy.seen.clear()
    clone = patcher.clone()
    del patcher
    gc.collect()
    assert leases(daemon) == 1, "the clone has the model"
    del clone
    gc.collect()
    wait_until(lambda: leases(daemon) == 0, what="the lease to go")
    assert not link.is_symlink() and not link.parent.exists()


def test_where_core_pages_by_itself_it_gets_the_path(load, comfy):
    if not hasattr(comfy, "memory"):
        pytest.skip("this generation does not page")
    comfy.memory.aimdo_enabled = True
    assert load()[1] == "path"


def test_what_core_pages_out_of_the_daemons_memory_it_pins_no_copy_of(load, comfy):
    if not hasattr(comfy, "memory"):
        pytest.skip("this generation does not page")
    import stand_in

    comfy.memory.aimdo_enabled = True
    comfy.patcher = stand_in.PagingPatcher
    patcher, tier, _lines = load()
    assert tier == "path" and patcher.is_dynamic() and patcher.fast_disk
    assert patcher.model.dynamic_pins == {patcher.load_device: {"fast_disk": True,
                                                                "active": False}}


def test_where_core_computes_on_a_card_it_gets_the_path(load, comfy):
    comfy.management.get_torch_device = lambda: torch.device("meta")
    _patcher, tier, lines = load()
    assert (tier, lines) == ("path", ["served by distorchd"])


def test_layers_of_another_kind_are_no_reason_to_fail(load, comfy, stock):
    del comfy.ops.manual_cast
    patcher, tier, _lines = load()
    assert tier == "path" and torch.equal(compute(patcher), compute(stock))


def test_a_loader_of_another_shape_is_no_reason_to_fail(load, comfy, stock):
    def renamed(state_dict, *, options):
        raise AssertionError("nobody calls it so")

    assert load()[1] == "assign"  # the self-test has not seen it
    comfy.sd.load_diffusion_model_state_dict = renamed
    patcher, tier, lines = load()
    assert tier == "path" and lines[1].startswith("assign did not serve: TypeError"), lines
    assert torch.equal(compute(patcher), compute(stock))


def test_what_no_tier_serves_core_loads_from_the_file(load, comfy, stock, path, daemon):
    inner = comfy.sd.load_diffusion_model

    def picky(unet_path, model_options={}):
        if unet_path != str(path):
            raise ValueError("no links here")
        return inner(unet_path, model_options)

    comfy.sd.load_diffusion_model = picky
    del comfy.sd.load_diffusion_model_state_dict
    patcher, tier, lines = load()
    assert tier == "stock" and "no links here" in lines[-1], lines
    assert torch.equal(compute(patcher), compute(stock))
    wait_until(lambda: leases(daemon) == 0, what="no lease of what failed")


def test_a_cancelled_prompt_is_not_tried_again(load, comfy, daemon):
    tries = []

    def cancelled(*_arguments, **_options):
        tries.append(1)
        raise comfy.management.InterruptProcessingException

    comfy.sd.load_diffusion_model = cancelled
    comfy.sd.load_diffusion_model_state_dict = cancelled
    with pytest.raises(comfy.management.InterruptProcessingException):
        load()
    assert len(tries) == 1
    gc.collect()
    wait_until(lambda: leases(daemon) == 0, what="no lease of what was cancelled")


def test_a_vae_is_made_of_what_the_reader_gives(load, nodes, comfy, tmp_path):
    MODELS.write(tmp_path / "vae.safetensors", {"d.weight": numpy.ones((2, 2), numpy.float32)})
    vae, tier, lines = load(nodes.VaeLoader, vae_name="vae.safetensors")
    assert tier == "path", lines
    assert torch.equal(vae.first_stage_model.d.weight, torch.ones(2, 2))
    metadata = [value for what, value in comfy.seen if what == "vae"]
    assert metadata in ([None], [None, {"a": "b"}])


# ---- the self-test ----

def selftest():
    return sys.modules["pack.selftest"]


def test_a_tier_is_tested_once_before_its_first_use(load, comfy, caplog):
    caplog.set_level("INFO", "distorch")
    assert selftest()._reasons == {}, "not at import"
    torch.manual_seed(4)
    assert selftest().reason_against("assign") is None
    found = torch.rand(3)
    torch.manual_seed(4)
    assert torch.equal(torch.rand(3), found), "nobody's random numbers are used up"
    selftest()._reasons.clear()
    assert load()[1] == load()[1] == "assign"
    assert selftest()._reasons == {"assign": None}
    assert sum("self-test" in record.message for record in caplog.records) == 2


@pytest.mark.parametrize("harm", ["layers", "patches", "binding"])
def test_a_tier_that_computes_something_else_is_switched_off(load, comfy, stock, harm, pack,
                                                             monkeypatch):
    if harm == "layers":
        harm_layers(comfy, monkeypatch)
    elif harm == "patches":
        monkeypatch.setattr(pack.nodes.loaders.patcher.Guard, "patch_weight_to_device",
                            lambda *_arguments, **_options: None)
    else:
        monkeypatch.setattr(pack.nodes.loaders.patcher.Guard, "_bind",
                            lambda guard: guard.model.diffusion_model.joint_blocks.zero_())
    for _ in range(2):
        patcher, tier, lines = load()
        assert tier == "path" and torch.equal(compute(patcher), compute(stock))
        assert lines[1].startswith("assign is switched off: its self-test "), lines


def test_a_cancelled_self_test_says_nothing_about_the_tier(load, comfy):
    inner = comfy.sd.load_diffusion_model_state_dict

    def cancelled(*_arguments, **_options):
        raise comfy.management.InterruptProcessingException

    comfy.sd.load_diffusion_model_state_dict = cancelled
    with pytest.raises(comfy.management.InterruptProcessingException):
        load()
    comfy.sd.load_diffusion_model_state_dict = inner
    assert load()[1] == "assign"


def test_it_computes_where_core_does(pack):
    """On a card too: what lies on a simulated device computes on the CPU."""
    loaders = pack.nodes.loaders
    for device, name in (("cpu", "sim:0"), ("cuda:1", "cuda:1"), ("xpu:0", "cpu")):
        device = torch.device(device)
        assert loaders._name_in_test(device) == name
        computes = loaders._computes(loaders.placement.AUTO, [name])
        assert computes is None or loaders._torch_device(computes) == device


def test_what_has_no_test_is_not_held_up(pack):
    assert selftest().reason_against("path") is None
