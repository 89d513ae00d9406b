# SPDX-License-Identifier: Apache-2.0
"""What one user learns of another, and what he may do with what is another's."""
import os

import pytest
from test_wire_hostile import needs_root

MIB = 1 << 20
ALICE, BOB, CAROL = 3001, 3002, 3003
pytestmark = needs_root


@pytest.fixture
def user(daemon):
    """user(uid, label) -> a connection of that user, who calls his program so."""
    clients = []

    def connect(uid, label=None):
        os.chmod(daemon.folder, 0o755)
        os.chmod(daemon.socket, 0o666)
        os.seteuid(uid)
        try:
            clients.append(daemon.raw(hello=False))
        finally:
            os.seteuid(0)
        said = {} if label is None else {"label": label}
        clients[-1].call("hello", {"protocol": [1, 1], "client": "raw/1", **said})
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def evictions(client):
    """What a user is told of evictions: by the history, by both events and by the status."""
    client.call("ping")
    records = client.call("events.history")["records"] + client.call("status")["last"]
    records += [params["record"] for name, params in client.events if name == "record"]
    told = [record for record in records if record["type"] == "evicted"]
    told += [params for name, params in client.events if name == "evicted"]
    return [(one["why"], one["for_whom"]) for one in told]


@pytest.mark.daemon("memory.ram=8M")
def test_who_loses_a_model_learns_no_name_of_the_one_it_went_for(user, raw, make_model):
    alice, bob = user(ALICE), user(BOB)
    mine, secret = (make_model(f"{name}.safetensors", size=5 * MIB) for name in ("mine", "secret"))
    for client in (alice, bob, raw):
        client.call("subscribe", {})
    alice.load(mine)
    bob.load(secret)
    assert evictions(alice) == [("to make room for another model", "another model")] * 4
    assert evictions(raw) == [(f"to make room for {secret.name}", secret.name)] * 4
    alice.load(secret)  # now she may know it
    assert (f"to make room for {secret.name}", secret.name) in evictions(alice)
