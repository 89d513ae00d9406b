# SPDX-License-Identifier: Apache-2.0
"""distorchctl logs: where a daemon's log is to be found, and what of it is shown."""
import os
import pathlib
import pty
import shutil
import signal
import subprocess

import pytest
from conftest import BUILD, HeldDaemon, slowness, wait_until
from test_ctl import CTL, ctl, ctl_json

SYSTEM_SOCKET = "/run/distorchd/distorchd.sock"
needs_no_system = pytest.mark.skipif(os.path.exists(SYSTEM_SOCKET), reason="a daemon runs here")


@pytest.fixture
def journal(tmp_path):
    """A stand-in for journalctl: prints its arguments, a line each, and what the file "more" says."""
    program = tmp_path / "bin" / "journalctl"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


def logs(socket, *words, environment=None):
    return ctl(None, "--socket", socket, "logs", *words, environment=environment)


def test_a_programs_log_says_of_which_device_something_went(start_daemon, make_model):
    daemon = start_daemon("sim.count=1", "sim.memory=64M", "log.format=json")
    path = make_model("logged.safetensors", size=1 << 20)
    assert ctl(daemon, "load", path, "--to", "sim:0").returncode == 0
    assert ctl(daemon, "unload", path.name).returncode == 0
    told = {line["DISTORCHD_EVENT"]: line for line in daemon.log_events()
            if line.get("DISTORCHD_MODEL") == path.name}
    assert told["unloaded"]["DISTORCHD_DEVICE"] == "sim:0"
    assert " from sim:0: as asked" in told["unloaded"]["message"]


# ---- of a file ---------------------------------------------------------------------------


def test_the_file_that_a_daemon_logs_to_is_shown(daemon):
    whole = daemon.log_path.read_text()
    done = ctl(daemon, "logs")
    assert done.returncode == 0 and done.stdout == whole and not done.stderr
    assert "ready: distorchd" in whole
    assert ctl(daemon, "logs", "-n", "1").stdout == whole.splitlines(True)[-1]
    assert ctl(daemon, "logs", "-n0").stdout == ""
    answer = ctl_json(daemon, "logs", "--lines=2")
    assert answer["lines"] == whole.splitlines()[-2:]
    assert answer["file"] == str(daemon.log_path)


def test_with_follow_it_goes_on_until_ctrl_c(daemon, make_model):
    process = subprocess.Popen([CTL, "--socket", str(daemon.socket), "logs", "-f", "-n", "1"],
                               stdout=subprocess.PIPE, text=True)
    assert "ready: distorchd" in process.stdout.readline()
    assert ctl(daemon, "load", make_model("followed.safetensors")).returncode == 0
    assert "loaded followed.safetensors" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(10 * slowness()) == -signal.SIGINT
    process.stdout.close()


def test_a_file_without_a_name_is_shown_too(daemon):
    daemon.log_path.unlink()
    done = ctl(daemon, "logs")
    assert done.returncode == 0 and "ready: distorchd" in done.stdout


def test_the_file_of_a_daemon_under_the_holder_is_found(start_daemon):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", kind=HeldDaemon)
    daemon.kill_daemon()
    assert ctl(daemon, "logs").stdout.count("ready: distorchd") == 2


def test_lines_that_are_no_text_are_harmless_in_json(daemon):
    with open(daemon.log_path, "ab") as log:
        log.write(b"\xff\x1b[31m \"quoted\"\n")
    assert "\x1b" not in ctl_json(daemon, "logs", "-n", "1")["lines"][0]


def test_the_log_of_an_installed_holder_is_found_without_a_daemon(tmp_path):
    log = tmp_path / ".local" / "state" / "distorchd" / "log"
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\n")
    runtime = tmp_path / "run"
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(runtime), "XDG_STATE_HOME": ""}
    socket = runtime / "distorchd" / "distorchd.sock"
    environment.pop("XDG_STATE_HOME")
    done = logs(socket, "-n1", environment=environment)
    assert (done.returncode, done.stdout) == (0, "two\n"), done.stderr
    elsewhere = tmp_path / "state" / "distorchd"
    elsewhere.mkdir(parents=True)
    (elsewhere / "log").write_text("three\n")
    environment["XDG_STATE_HOME"] = str(tmp_path / "state")
    assert logs(socket, environment=environment).stdout == "three\n"
    assert logs(elsewhere / "socket", environment=environment).stdout == "three\n"


# ---- of the journal ----------------------------------------------------------------------


@needs_no_system
def test_of_the_systems_daemon_its_unit_is_shown(journal):
    def shown(*words):
        done = logs(SYSTEM_SOCKET, *words, environment=journal)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    unit = ["--quiet", "--no-pager", "--unit", "distorchd.service"]
    assert shown() == ["-n50", *unit]
    assert shown("-n", "7") == ["-n7", *unit]
    assert shown("-f") == ["-n50", *unit, "--follow"]
    *words, since = shown("--since", "10m")
    assert words == unit and since.startswith("--since=@")
    now = int(subprocess.check_output(["date", "+%s"]))
    assert abs(now - 600 - int(since[9:])) < 60
    assert shown("--since", "10m", "-n", "3")[0] == "-n3"


def test_of_a_users_daemon_his_own_manager_is_asked(journal, tmp_path):
    environment = {**journal, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    done = logs(tmp_path / "distorchd" / "distorchd.sock", environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["-n50", "--quiet", "--no-pager", "--user", "--unit",
                                   "distorchd.service"]
    answer = ctl(None, "--socket", tmp_path / "distorchd" / "distorchd.sock", "logs", "--json",
                 environment=environment)
    assert '"unit":' in answer.stdout and '"--user"' in answer.stdout


@needs_no_system
@pytest.mark.skipif(not shutil.which("journalctl"), reason="needs journalctl")
def test_without_a_line_in_the_journal_it_says_what_that_may_mean(tmp_path):
    for socket in (SYSTEM_SOCKET, tmp_path / "distorchd" / "distorchd.sock"):
        done = logs(socket, environment={"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)})
        if done.returncode == 0:
            pytest.skip("this machine has had such a unit")
        assert done.returncode == 1 and not done.stdout
        assert "the journal has no line of distorchd.service" in done.stderr
        assert "started by hand" in done.stderr


@needs_no_system
@pytest.mark.parametrize("words", [(), ("-f",), ("--json",)])
def test_without_journalctl_it_says_so(tmp_path, words):
    done = logs(SYSTEM_SOCKET, *words, environment={"PATH": str(tmp_path)})
    assert done.returncode == 1 and "journalctl cannot be run" in done.stdout + done.stderr


# ---- of neither --------------------------------------------------------------------------


class Elsewhere(HeldDaemon):
    """Its standard error goes to where the test says."""

    def command(self):
        return HeldDaemon.command(self)[2:]

    def daemon_pid(self):
        return self.pid

    def spawn(self, command, environment, log):
        master, slave = pty.openpty()
        self.drawn = {"terminal": slave, "nothing": os.open("/dev/null", os.O_WRONLY)}
        self.ends = [master, *self.drawn.values()]
        return super().spawn(command, environment, self.drawn[self.place])

    def remove(self):
        super().remove()
        for end in self.ends:
            os.close(end)


@pytest.mark.parametrize("place, said", [("terminal", "/dev/pts/"), ("nothing", "/dev/null")])
def test_who_logs_to_neither_is_told_of(start_daemon, place, said):
    daemon = start_daemon("memory.ram=64M", "memory.reserve=0",
                          kind=type("Daemon", (Elsewhere,), {"place": place}))
    done = ctl(daemon, "logs")
    assert done.returncode == 1 and not done.stdout
    assert f"started by hand and logs to {said}" in done.stderr
    assert "log.format" in done.stderr


def test_where_no_daemon_is_nothing_can_be_told(tmp_path):
    done = logs(tmp_path / "d.sock")
    assert done.returncode == 3 and "standard error" in done.stderr
    # A lock that was left behind, with the number of some other process.
    (tmp_path / "d.sock.lock").write_text(f"{os.getpid()}\n")
    assert logs(tmp_path / "d.sock").returncode == 3
    (tmp_path / "d.sock.lock").write_text("999999999999999999999999\n")
    assert logs(tmp_path / "d.sock").returncode == 3


def test_what_cannot_be_meant_is_refused(daemon):
    for words, said in ((["--since", "10m"], "carry no time"), (["-n", "-1"], "number of lines"),
                        (["-n", "x"], "number of lines"), (["-n", ""], "number of lines"),
                        (["-f", "--json"], "no JSON"), (["more"], "usage")):
        done = ctl(daemon, "logs", *words)
        assert done.returncode == 2 and said in done.stdout + done.stderr, words
