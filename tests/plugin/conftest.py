# SPDX-License-Identifier: Apache-2.0
"""The binding and the ComfyUI pack with a real torch, on the CPU, and a real daemon: what a venv
without torch cannot run. The daemon and the pack are those of tests/e2e; ComfyUI is stand_in.py,
once for each generation of signatures."""
import importlib.util
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))


def _module_of(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


END_TO_END = _module_of("end_to_end", ROOT / "tests/e2e/conftest.py")
globals().update({name: value for name, value in vars(END_TO_END).items()
                  if not name.startswith("__")})  # its fixtures and hooks are this folder's too
MODELS = _module_of("tiny_models", ROOT / "tests/comfyui/models.py")

from test_plugin import pack  # noqa: E402, F401


def generations():
    if importlib.util.find_spec("torch") is None:
        return []
    import stand_in

    return list(stand_in.GENERATIONS)


@pytest.fixture(params=generations())
def comfy(request, monkeypatch, tmp_path):
    """A ComfyUI's modules of one generation, with model files in tmp_path."""
    import stand_in

    found = stand_in.GENERATIONS[request.param](tmp_path)
    for name, module in found.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield found
    found.seen.clear()  # a path is what a lease may hang on
