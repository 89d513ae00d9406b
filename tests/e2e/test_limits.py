# SPDX-License-Identifier: Apache-2.0
"""What one user can take from the others."""
from conftest import close_all, opened


def test_bytes_are_held_once_however_many_leases(raw, make_model):
    path = make_model(size=1 << 20)
    leases = []
    for _ in range(3):
        with opened(path) as file:
            result, fds = raw.call_fds("load", {"attach": True, "map": True}, [file])
        close_all(fds)
        leases.append(result["lease"])
    place = raw.call("list")["models"][0]["where"][0]["bytes"]
    client, = raw.call("clients")["clients"]
    assert (client["leases"], client["held_bytes"]) == (3, place)
    user, = raw.call("show", {"model": raw.call("list")["models"][0]["id"]})["clients"]
    assert user["held_bytes"] == place
    for lease in leases:
        raw.call("detach", {"lease": lease})
