# SPDX-License-Identifier: Apache-2.0
"""The binding's torch tensors: bytes, aliasing, copy-on-write, lifetimes."""
import ctypes

import pytest
from conftest import MODELS, make_safetensors, wait_until
from test_formats import Type, refusal, write_gguf

torch = pytest.importorskip("torch")


def leases(daemon):
    return sum(model["leases"] for model in daemon.models())


def address(buffer):
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def test_torch_tensors_alias_the_mapping(connect, tmp_path):
    path = tmp_path / "m.safetensors"
    make_safetensors(path, {"w": ("BF16", [8, 8]), "e": ("F32", [0]),
                            "b": ("BOOL", [2], b"\1\0"), "s": ("F32", [])})
    with connect().open(path) as weights, torch.inference_mode():
        state = weights.state_dict()
        assert list(state) == ["w", "e", "b", "s"]
        assert state["w"].dtype == torch.bfloat16 and state["w"].shape == (8, 8)
        assert state["e"].shape == (0,) and state["s"].shape == ()
        assert state["b"].tolist() == [True, False]
        assert not state["w"].is_inference()
    before = state["w"].view(torch.int16).clone()
    state["w"].view(torch.int16).fill_(1)
    with connect().open(path) as other:
        assert (other["w"].torch().view(torch.int16) == before).all()
    assert (state["w"].view(torch.int16) == 1).all()


def test_torch_has_every_type_that_it_can(connect, tmp_path):
    path = tmp_path / "m.safetensors"
    words = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16",
             "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32",
             "F32": "float32", "C64": "complex64", "F64": "float64", "I64": "int64",
             "U64": "uint64", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
             "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
             "F8_E5M2FNUZ": "float8_e5m2fnuz"}
    parts = make_safetensors(path, {dtype: (dtype, [2, 3]) for dtype in words})
    with connect().open(path) as weights:
        for dtype, word in words.items():
            if hasattr(torch, word):
                tensor = weights[dtype].torch()
                assert (tensor.dtype, tensor.shape) == (getattr(torch, word), (2, 3))
                assert bytes(weights[dtype].buffer) == parts[dtype]
                assert tensor.data_ptr() == address(weights[dtype].buffer)
                assert tensor.element_size() * tensor.numel() == weights[dtype].nbytes


def test_a_torch_tensor_keeps_the_lease(connect, daemon, make_model):
    path = make_model()
    d = connect()
    with d.open(path) as weights:
        part = torch.nn.Parameter(weights["t.0"].torch())[5:7]
        expected = bytes(weights["t.0"].buffer[20:28])
    assert leases(daemon) == 1
    assert part.detach().numpy().tobytes() == expected
    del part
    wait_until(lambda: leases(daemon) == 0, what="the lease's end")


def test_torch_says_how_to_dequantise(connect, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"w": (Type.Q4_0, [32])})
    with connect().open(path) as weights:
        assert "gguf.quants.dequantize" in refusal(weights["w"].torch)


def test_a_whole_model_equals_what_safetensors_reads(connect, tmp_path):
    from safetensors.torch import load_file

    path = MODELS.write(tmp_path / "m.safetensors", MODELS.tensors_of("tiny_sd3_1"))
    expected = load_file(path)
    with connect().open(path) as weights:
        state = weights.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value), name
        assert not state[name].requires_grad


def test_halves_of_bytes_are_counted_in_pairs(connect, tmp_path):
    if not hasattr(torch, "float4_e2m1fn_x2"):
        pytest.skip("this torch has no such type")
    path = tmp_path / "m.safetensors"
    parts = make_safetensors(path, {"q": ("F4", [3, 8])})
    with connect().open(path) as weights:
        tensor = weights["q"].torch()
    assert tensor.shape == (3, 4) and tensor.view(torch.uint8).numpy().tobytes() == parts["q"]


def test_the_memory_is_unmapped_with_the_last_tensor(connect, daemon, make_model):
    def is_mapped():
        with open("/proc/self/maps", encoding="utf-8") as lines:
            return any("memfd:distorch" in line for line in lines)

    path = make_model()
    state = connect().open(path).state_dict()
    part = next(iter(state.values()))[1:]
    del state
    assert is_mapped() and part.sum() is not None
    del part
    wait_until(lambda: leases(daemon) == 0, what="the lease's end")
    assert not is_mapped()
