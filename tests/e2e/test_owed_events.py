# SPDX-License-Identifier: Apache-2.0
"""Events that belong to a client are never lost in silence, whatever call has no memory."""

import pytest
from conftest import RawError, close_all, wait_until

MAX_CALLS = 200


def heard_by(raw):
    """What a client that waits hears of its lease: "lost" or the code of a goodbye."""
    message, _ = raw.recv()
    if message[1] == "goodbye":
        assert raw.is_closed()
        return message[2]["code"]
    assert message[0] == 2 and message[1] == "lost"
    return "lost"


def verdict(raw, path):
    """Is the model found to be bad? None: verify had no memory to say so."""
    try:
        checks = raw.call("verify", {"models": [path.name]})["checks"]
    except RawError as error:
        assert error.code == "no-memory"
        return None
    return any("offset" in check for check in checks)


def is_empty(daemon):
    daemon.unload_all()
    return all(model["state"] == "failed" for model in daemon.models())


@pytest.mark.seconds(120)
def test_whoever_loses_a_lease_hears_of_it_whatever_has_no_memory(daemon, make_model):
    path = make_model(size=1 << 16)
    heard = []
    for nth in range(1, MAX_CALLS):
        with daemon.raw() as checker, daemon.raw() as holder:
            checker.load(path)
            close_all(holder.attach(path, map=False)[1])  # maps nothing that outlives it
            daemon.tell("corrupt 5000")
            daemon.tell(f"fault malloc:{nth}:ENOMEM:once")
            if verdict(checker, path):
                heard.append(heard_by(holder))
            is_over = daemon.tell("hits malloc") == "0"
            daemon.tell("clear")
        wait_until(lambda: is_empty(daemon), what="the end of the copy")
        if is_over:
            break
    assert is_over
    assert set(heard) == {"lost", "no-memory"}
