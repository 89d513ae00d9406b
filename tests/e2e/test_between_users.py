# SPDX-License-Identifier: Apache-2.0
"""What one user learns of another, and what he may do with what is another's."""
import os

import pytest
from conftest import RawError, close_all, wait_until
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


def lease_of(client, path):
    result, fds = client.attach(path, map=False)
    close_all(fds)
    return result["lease"]


def recalls(client):
    client.call("ping")
    return [params for name, params in client.events if name == "recall"]


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


def test_what_a_client_calls_its_program_is_not_for_other_users(user, make_model):
    alice, bob, also_bob = user(ALICE), user(BOB, "secret"), user(BOB)
    path = make_model("m.safetensors")
    for client in (bob, alice):
        client.load(path)

    def unload(client):
        (line,) = client.call("unload", {"select": {"models": [path.name]}, "mode": "recall",
                                         "recall_ms": 1})["held"]
        return line["reason"] + line["holders"][0]["comm"]

    bobs = lease_of(bob, path)
    assert "secret" not in unload(alice) and unload(also_bob).count("secret") == 2
    others = [(client, lease_of(client, path)) for client in (alice, also_bob)]
    bob.call("detach", {"lease": bobs})
    unload(bob)
    (to_alice,), (to_bob,) = recalls(alice), recalls(also_bob)
    assert "secret" not in to_alice["for_whom"] and to_bob["for_whom"] == "secret"
    for client, number in others:
        client.call("detach", {"lease": number})


def test_a_recall_in_vain_names_who_still_leases(user, raw, make_model):
    alice, bob = user(ALICE), user(BOB)
    path = make_model("m.safetensors")
    alice.load(path)
    leases = [lease_of(client, path) for client in (alice, bob)]
    number = raw.request("unload", {"select": {"models": [path.name]}, "mode": "recall",
                                    "recall_ms": 3600000})
    wait_until(lambda: recalls(alice) and recalls(bob), what="both recalls")
    n_clients = raw.call("status")["clients"]
    alice.close()
    wait_until(lambda: raw.call("status")["clients"] < n_clients, what="the end of hers")
    assert raw.call("cancel", {"id": number})["found"]
    _error, result, _fds = raw.wait(number)
    (held,) = result["held"]
    assert [one["uid"] for one in held["holders"]] == [BOB]
    assert held["reason"].startswith(f"in use by PID {os.getpid()} (")
    bob.call("detach", {"lease": leases[1]})


def test_whose_model_it_is_and_an_administrator_label_it(user, raw, make_model):
    alice, bob = user(ALICE), user(BOB)
    path = make_model("m.safetensors")
    for client in (alice, bob):
        client.load(path)

    def label(client, text, **policy):
        return client.call("set", {"model": path.name, "label": text, "policy": policy})["model"]

    assert label(alice, "hers")["label"] == "hers"
    with pytest.raises(RawError) as refused:
        label(bob, "broken, do not use", pin=True)
    assert refused.value.error["detail"]["field"] == "label"
    assert refused.value.code == "not-allowed" and f"uid {ALICE}" in refused.value.error["message"]
    shown = bob.call("show", {"model": path.name})
    assert shown["model"]["label"] == "hers" and not shown["model"]["pinned"]
    assert label(raw, "an administrator's")["label"] == "an administrator's"
    assert "label" not in label(alice, "")
