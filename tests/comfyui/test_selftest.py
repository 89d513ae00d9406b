# SPDX-License-Identifier: Apache-2.0
"""The self-test of the assign tier in a real ComfyUI: once, before the first use, and heard."""
from graphs import sample


def said(outputs):
    return outputs["load"]["distorch"][0]


def lines_of(log):
    return [line for line in log.splitlines() if "distorch: self-test of assign: " in line]


def test_a_tier_is_tested_once_before_its_first_use(server):
    assert not lines_of(server.log()), "not at import"
    server.run(sample("sd3_1", own=False))
    assert not lines_of(server.log()), "nor for who does not use it"
    for kind in ("sd3_1", "sd3_2"):
        assert said(server.run(sample(kind)))["tier"] == "assign"
    (line,) = lines_of(server.log())
    assert "passed" in line


def test_a_core_that_computes_something_else_has_its_models_by_the_path(start_server, daemon):
    server = start_server(daemon, DISTORCH_TEST_BREAK="layers")
    expected = server.latent(server.run(sample("sd3_2", own=False)))
    for kind in ("sd3_1", "sd3_2"):
        outputs = server.run(sample(kind))
        shown = said(outputs)
        assert shown["tier"] == "path", shown
        assert "assign is switched off: its self-test computes something else" in shown["lines"][1]
    assert server.latent(outputs) == expected
    assert len(lines_of(server.log())) == 1
