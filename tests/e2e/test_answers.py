# SPDX-License-Identifier: Apache-2.0
"""What people are told: names, reasons, numbers, and what there is instead of what they asked."""

import os

import pytest
from conftest import RawError, close_all, make_safetensors, opened, wait_until
from test_wire_hostile import as_nobody, needs_root

MIB = 1 << 20


def refusal(raw, method, params, fds=()):
    with pytest.raises(RawError) as caught:
        raw.call(method, params, fds)
    return caught.value.error


def make_same(tmp_path, n=2, name="same.safetensors"):
    """n different models of one base name, in the folders d0, d1, ..."""
    paths = []
    for number in range(n):
        (tmp_path / f"d{number}").mkdir()
        paths.append(tmp_path / f"d{number}" / name)
        make_safetensors(paths[-1], {"t": ("U8", [1 << 16])}, seed=number + 1)
    return paths


def cut_short(path):
    os.truncate(path, path.stat().st_size - 512)
    return path


# ---- names -----------------------------------------------------------------------------


@pytest.mark.daemon("limits.loads-per-user=1", "load.direct-io=off")
def test_a_load_not_waited_for_is_answered_with_name_and_path(daemon, make_model):
    paths = [make_model(f"{i}.safetensors", size=8 * MIB, seed=i) for i in range(3)]
    daemon.tell("fault pread:1:delay=50:ever")
    with daemon.raw() as raw, opened(paths[2]) as fd:
        for path in paths[:2]:  # the second has to wait its turn
            model = raw.load(path, no_wait=True)["model"]
            assert (model.get("name"), model.get("path")) == (path.name, str(path))
        number = raw.request("load", {}, [fd])
        wait_until(lambda: len(daemon.models()) == 3, what="the third load")
        assert {m["name"] for m in daemon.models()} == {p.name for p in paths}
        daemon.tell("clear")
        assert raw.wait(number)[1]["model"]["name"] == paths[2].name
