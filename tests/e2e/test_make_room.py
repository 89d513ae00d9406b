# SPDX-License-Identifier: Apache-2.0
"""distorchctl make-room: room for a stranger's program, for as long as that runs."""
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import RawError, list_fds, wait_until
from screen import Terminal
from test_ctl import CTL, ctl, ctl_json
from test_top import environment_of

MIB = 1 << 20


def reserved(daemon, index=0):
    return daemon.status()["devices"][index]["reserved"]


def make_room(daemon, *words, **options):
    return subprocess.Popen([CTL, "make-room", *map(str, words)], env=environment_of(daemon),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_the_room_is_there_while_the_program_runs(daemon):
    script = (f"import subprocess, json; print(json.loads(subprocess.run(['{CTL}', 'status', "
              "'--json'], capture_output=True, text=True).stdout)['devices'][0]['reserved'])")
    done = make_room(daemon, "6MiB", "--device", "ram", "--", sys.executable, "-c", script)
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0 and out == f"{6 * MIB}\n", "what goes out is the program's"
    assert "6.0M on ram" in err
    wait_until(lambda: reserved(daemon) == 0, 20)
    quiet = make_room(daemon, "-q", "6MiB", "--device", "ram", "--", "true")
    assert quiet.communicate(timeout=60) == ("", "") and quiet.returncode == 0


@pytest.mark.parametrize("command, status", [
    (["sh", "-c", "exit 41"], 41), (["sh", "-c", "kill -KILL $$"], 137), (["false"], 1),
    (["/nonexistent/pro\033gram"], 127), (["/etc/passwd"], 126), (["sh", "-c", "exit 0", "--", "-x"], 0),
])
def test_the_exit_status_is_the_programs(daemon, command, status):
    done = make_room(daemon, "1M", "--device", "ram", "--", *command)
    _out, err = done.communicate(timeout=60)
    assert done.returncode == status, err
    assert ("cannot run" in err) == (status in (126, 127)) and "\\x5c" not in err
    wait_until(lambda: reserved(daemon) == 0, 20)


def test_the_program_is_not_run_without_the_room(daemon, tmp_path):
    there = tmp_path / "ran"
    done = make_room(daemon, "1T", "--device", "ram", "--", "touch", there)
    _out, err = done.communicate(timeout=60)
    assert done.returncode == 6 and "1.0T" in err and not there.exists()
    assert ctl(daemon, "make-room", "1M", "--device", "cuda:7", "--", "touch",
               there).returncode == 4
    for words in (["1M"], ["--device", "ram"], ["much", "--device", "ram"],
                  ["0", "--device", "ram"], ["1M", "--device", "ram", "--recall", "0s"]):
        assert ctl(daemon, "make-room", *words).returncode == 2, words
    assert ctl(None, "make-room", "1M", "--device", "ram").returncode == 3
    assert not there.exists() and reserved(daemon) == 0


def test_a_number_without_a_unit_is_refused_and_nothing_is_run_or_set(daemon, tmp_path):
    there = tmp_path / "ran"
    before = daemon.status()["devices"][0]["budget"]
    for words, told in ((("make-room", "40", "--device", "ram", "--", "touch", there), "40"),
                        (("budget", "ram", "1"), "1"), (("budget", "ram", "48", "--save"), "48")):
        done = ctl(daemon, *words)
        assert done.returncode == 2
        assert f"{told} has no unit: say {told}M or {told}G ({told}B for bytes)" in done.stderr
    assert not there.exists() and daemon.status()["devices"][0]["budget"] == before
    assert ctl(daemon, "budget", "ram", "1073741824B").returncode == 0
    assert ctl(daemon, "budget", "ram", "0").returncode == 0
    assert daemon.status()["devices"][0]["budget"] == 0


def test_nothing_is_put_into_the_room(start_daemon, make_model):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0")
    idle = make_model("idle.safetensors", size=40 * MIB)
    assert ctl(daemon, "load", idle).returncode == 0
    room = make_room(daemon, "48M", "--device", "ram", "--", "sleep", "600")
    wait_until(lambda: reserved(daemon) == 48 * MIB, 20)
    assert ctl(daemon, "load", make_model("b.safetensors", size=20 * MIB, seed=2)).returncode == 6
    assert ctl(daemon, "load", make_model("c.safetensors", size=8 * MIB, seed=3)).returncode == 0
    room.send_signal(signal.SIGTERM)
    assert room.wait(60) == 128 + signal.SIGTERM, "it is passed on"
    wait_until(lambda: reserved(daemon) == 0, 20)
    assert "reserved" in ctl(daemon, "why", "idle").stdout
    wait_until(lambda: "idle.safetensors" in ctl(daemon, "ps").stdout, 20, "what was displaced")
    assert ctl(daemon, "load", make_model("b.safetensors", size=20 * MIB, seed=2)).returncode == 0


def test_what_made_room_is_told(start_daemon, make_model, distorch):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0")
    for name, mib in (("idle", 40), ("other", 4)):
        path = make_model(f"{name}.safetensors", size=mib * MIB, seed=mib)
        assert ctl(daemon, "load", path).returncode == 0
    done = make_room(daemon, "48M", "--device", "ram", "--", "true")
    _out, err = done.communicate(timeout=60)
    assert done.returncode == 0 and "Evicted: idle.safetensors (40.0M)." in err, err
    wait_until(lambda: ["idle.safetensors", "resident"] in
               [[model["name"], model["state"]] for model in daemon.models()],
               20, "what was displaced")
    with distorch.connect(str(daemon.socket)) as d:
        with d.reserve("ram", 4 * MIB) as room:
            assert not room.evicted, "there was room"
        with d.reserve("ram", 40 * MIB) as room:
            (gone,) = room.evicted
            assert gone.name == "idle.safetensors" and gone.bytes >= 40 * MIB, gone
            assert "reserved" in gone.reason


def test_a_kill_of_the_wrapper_ends_the_room_and_not_the_program(daemon, tmp_path):
    pid_path = tmp_path / "pid"
    room = make_room(daemon, "6M", "--device", "ram", "--", "sh", "-c",
                     f"echo $$ > {pid_path}; exec sleep 600")
    pid = int(wait_until(lambda: pid_path.exists() and pid_path.read_text(), 20))
    assert reserved(daemon) == 6 * MIB
    room.kill()
    room.wait(20)
    wait_until(lambda: reserved(daemon) == 0, 20)
    wait_until(lambda: pathlib.Path(f"/proc/{pid}/comm").read_text() == "sleep\n", 20)
    links = list_fds(pid)
    assert not any("socket" in link for link in links), "the connection is not the program's"
    os.kill(pid, signal.SIGKILL)


def test_ctrl_c_goes_to_the_program(daemon):
    script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.05; done"
    with Terminal([CTL, "make-room", "6M", "--device", "ram", "--", "sh", "-c", script],
                  environment_of(daemon)) as room:
        room.wait_for("ready")
        room.press(b"\x03")
        assert room.wait() == 7
        assert "caught" in room.screen.text()
    wait_until(lambda: reserved(daemon) == 0, 20)


def test_without_a_program_it_lasts_until_ctrl_c_or_its_time(daemon):
    room = make_room(daemon, "6M", "--device", "ram")
    assert "until Ctrl-C" in room.stdout.readline()
    assert reserved(daemon) == 6 * MIB
    room.send_signal(signal.SIGINT)
    assert room.wait(20) == 0
    wait_until(lambda: reserved(daemon) == 0, 20)
    for _ in range(10):  # as soon as it says that it may
        room = make_room(daemon, "6M", "--device", "ram")
        assert "until Ctrl-C" in room.stdout.readline()
        room.send_signal(signal.SIGINT)
        assert room.wait(20) == 0
    wait_until(lambda: reserved(daemon) == 0, 20)
    room = make_room(daemon, "6M", "--device", "ram", "--for", "300ms")
    assert "nothing is put there for 300ms, or until Ctrl-C." in room.stdout.readline()
    assert room.wait(20) == 0
    room = make_room(daemon, "6M", "--device", "ram", "--for", "1m", "--", "true")
    assert "nothing is put there while it runs, at most 1m" in room.communicate(timeout=20)[1]
    wait_until(lambda: reserved(daemon) == 0, 20)
    room = make_room(daemon, "6M", "--device", "ram", "--json", "--for", "1ms")
    out, _err = room.communicate(timeout=20)
    assert json.loads(out)["bytes"] == 6 * MIB and json.loads(out)["device"] == "cpu"


@pytest.mark.parametrize("index, name, text", [(0, "cpu", "ram"), (1, "sim:0", "sim:0")])
def test_a_device_is_named_as_everywhere_however_it_was_said(start_daemon, index, name, text):
    daemon = start_daemon("memory.ram=64M", "sim.count=1")
    uuid = ctl_json(daemon, "devices")["devices"][1]["uuid"]
    for word in ("ram", "CPU", "host") if index == 0 else (uuid, "SIM:0"):
        words = ("make-room", "6M", "--for", "1ms", "--device", word)
        assert ctl(daemon, *words).stdout.startswith(f"6.0M on {text}: "), word
        room = ctl_json(daemon, *words)
        assert (room["device"], room["bytes"], room["evicted"]) == (name, 6 * MIB, []), word


def test_json_of_a_room_for_a_program_is_a_line_on_standard_error(daemon):
    done = make_room(daemon, "6M", "--device", "ram", "--json", "--", "sh", "-c",
                     "echo out; echo err >&2; exit 3")
    out, err = done.communicate(timeout=60)
    assert (done.returncode, out) == (3, "out\n"), "what goes out is the program's"
    line, rest = err.split("\n", 1)
    room = json.loads(line)
    assert rest == "err\n" and (room["schema"], room["device"]) == (1, "cpu")
    assert room["bytes"] == 6 * MIB and room["evicted"] == []
    refused = make_room(daemon, "1T", "--device", "ram", "--json", "--", "echo", "out")
    out, err = refused.communicate(timeout=60)
    assert refused.returncode == 6 and not err
    assert json.loads(out)["error"]["code"] == "no-memory", "no program has the output"


def test_a_room_of_which_nobody_can_be_told_is_not_kept(daemon):
    with open("/dev/full", "w") as full:
        done = subprocess.run([CTL, "make-room", "6M", "--device", "ram", "--json"], stdout=full,
                              stderr=subprocess.PIPE, text=True, env=environment_of(daemon),
                              timeout=60)
    assert done.returncode == 1 and "cannot write the output" in done.stderr
    wait_until(lambda: reserved(daemon) == 0, 20)


@pytest.mark.parametrize("index, device", [(0, "ram"), (1, "sim:0")])
def test_the_room_is_taken_again_after_a_restart(start_daemon, index, device):
    daemon = start_daemon("memory.ram=64M", "sim.count=1", check=False)
    room = make_room(daemon, "6M", "--device", device, "--", "sleep", "600")
    wait_until(lambda: reserved(daemon, index) == 6 * MIB, 20)
    daemon.kill()
    time.sleep(0.2)
    daemon.start()
    wait_until(lambda: reserved(daemon, index) == 6 * MIB, 40)
    room.send_signal(signal.SIGTERM)
    assert room.wait(20) == 128 + signal.SIGTERM
    wait_until(lambda: reserved(daemon, index) == 0, 20)
    daemon.stop()


class Between:
    """A socket before the daemon's that breaks its connection once, behind a given answer."""

    def __init__(self, daemon, path, method):
        self.daemon, self.path, self.method, self.n_broken = daemon, path, method, 0
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.pass_on, args=[client], daemon=True).start()

    def pass_on(self, client):
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server.connect(str(self.daemon.socket))
        is_asked = False
        with client, server:
            while True:
                for one in select.select([client, server], [], [])[0]:
                    packet = one.recv(1 << 20)
                    if not packet:
                        return
                    is_asked = is_asked or (one is client and self.method in packet)
                    (server if one is client else client).send(packet)
                    if is_asked and one is server and self.n_broken == 0:
                        self.n_broken += 1
                        return

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def test_a_room_that_is_lost_just_after_it_was_given_is_taken_again(daemon, tmp_path):
    between = Between(daemon, tmp_path / "between", b"reserve")
    try:
        room = subprocess.Popen([CTL, "make-room", "6M", "--device", "ram", "--", "sleep", "600"],
                                env=environment_of(daemon) | {"DISTORCH_SOCKET": str(between.path)},
                                stderr=subprocess.PIPE, text=True)
        assert "6.0M on ram" in room.stderr.readline()
        wait_until(lambda: between.n_broken == 1, 20)
        wait_until(lambda: reserved(daemon) == 6 * MIB, 40)
        time.sleep(5)  # it looks every two seconds
        assert reserved(daemon) == 6 * MIB, "and once"
        room.send_signal(signal.SIGTERM)
        assert room.wait(20) == 128 + signal.SIGTERM
    finally:
        between.close()
    wait_until(lambda: reserved(daemon) == 0, 20)


def test_the_end_of_the_program_is_seen_while_the_daemon_stands_still(daemon, tmp_path):
    go = tmp_path / "go"
    room = make_room(daemon, "6M", "--device", "ram", "--", "sh", "-c",
                     f"while ! [ -e {go} ]; do sleep 0.05; done; exit 3")
    wait_until(lambda: reserved(daemon) == 6 * MIB, 20)
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(2.5)  # the wrapper is in a call by now
        go.touch()
        assert room.wait(10) == 3
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def test_python_reserves_too(daemon, connect):
    with connect() as d:
        with d.reserve("ram", 6 * MIB) as room:
            assert reserved(daemon) == 6 * MIB and "held" in repr(room)
        assert reserved(daemon) == 0 and "released" in repr(room)
        room.release()
        brief = d.reserve("cpu", 5 * MIB, ttl=0.05)
        wait_until(lambda: reserved(daemon) == 0, 20)
        wait_until(lambda: "ended" in repr(brief), 20)
        with pytest.raises(ValueError, match="ttl must be more than 0 seconds"):
            d.reserve("cpu", 5 * MIB, ttl=0)
        last = d.reserve("cpu", 5 * MIB, ttl=3600)
        assert "held" in repr(last)
        assert ctl_json(daemon, "devices", "ram")["devices"][0]["reserved"] == 5 * MIB
    assert "ended" in repr(last)
    wait_until(lambda: reserved(daemon) == 0, 20)


def test_room_in_ram_is_what_the_machine_has(start_daemon):
    """Nothing had looked before the first load: more was granted than there is."""
    with open("/proc/meminfo", encoding="ascii") as text:
        available = next(int(line.split()[1]) << 10 for line in text if "MemAvailable" in line)
    daemon = start_daemon("memory.ram=1T", f"memory.reserve={available // 2}B")
    with daemon.raw() as raw:
        with pytest.raises(RawError) as refused:
            raw.call("reserve", {"device": "cpu", "bytes": available})
        assert refused.value.code == "no-memory"
        assert raw.call("reserve", {"device": "cpu", "bytes": available // 8})["token"]
