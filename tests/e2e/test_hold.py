# SPDX-License-Identifier: Apache-2.0
"""distorchd-hold by itself: what it starts here is a program that does what a test tells it."""
import contextlib
import os
import pathlib
import pty
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import BUILD, HeldDaemon, _die_with_parent, let_others_in, opened, slowness, wait_until

HOLD = BUILD / "bin" / "distorchd-hold"
# Each line that comes in is run. Unbuffered: the next life goes on where this one ended.
PUPPET = """
import array, os, signal, socket
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(chr(0) + os.environ["NOTIFY_SOCKET"][1:])
def store(name, number=1):
    fds = array.array("i", [os.memfd_create(name) for _ in range(number)])
    notify.sendmsg([f"FDSTORE=1\\nFDNAME={name}".encode()],
                   [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    for fd in fds:
        os.close(fd)
def unstore(name):
    notify.send(f"FDSTOREREMOVE=1\\nFDNAME={name}".encode())
def die():
    os.kill(os.getpid(), signal.SIGKILL)
print("life", os.environ["FDSTORE"], *os.environ.get("LISTEN_FDNAMES", "").split(":"), flush=True)
lines = open(0, "rb", buffering=0)
while True:
    exec(lines.readline())
"""


class Hold:
    """A distorchd-hold over a puppet; its own words are in .log()."""

    def __init__(self, folder, program=(HOLD,), command=sys.executable, **options):
        self.log_path = folder / "hold.log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [*program, "--", command, "-I", "-S", "-c", PUPPET], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, start_new_session=True, **options)
        self.pid = self.process.pid

    def log(self):
        return self.log_path.read_text()

    def tell(self, *lines):
        self.process.stdin.write("".join(line + "\n" for line in lines).encode())
        self.process.stdin.flush()

    def hear(self):
        return self.process.stdout.readline().decode().split()

    def life(self):
        """Of the next one: the number that it may park, and the names of what it got."""
        word, number, *names = self.hear()
        assert word == "life", word
        return int(number), names

    def child(self):
        text = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return int(text.split()[0])

    def end(self):
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture
def hold(tmp_path):
    """hold(options of Hold) -> a Hold, ended after the test."""
    holds = []

    def start(**options):
        options.setdefault("preexec_fn", _die_with_parent)
        holds.append(Hold(tmp_path, **options))
        return holds[-1]

    yield start
    for one in holds:
        one.end()


def state_of(pid):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_what_was_said_before_a_death_counts(hold):
    one = hold()
    one.life()
    one.tell("store('old')", "store('both')", "print('stored', flush=True)")
    assert one.hear() == ["stored"]
    pid = one.child()
    os.kill(one.pid, signal.SIGSTOP)  # it is busy elsewhere
    one.tell("unstore('old')", "store('new')", "die()")
    wait_until(lambda: state_of(pid) == "Z", what="the daemon's death")
    os.kill(one.pid, signal.SIGCONT)
    assert one.life()[1] == ["both", "new"]


def with_files(most):
    """For Popen: at most so many descriptors."""
    def limit():
        _die_with_parent()
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    return limit


def test_no_more_is_promised_than_can_be_handed_over(hold):
    one = hold(preexec_fn=with_files(160))
    number, _names = one.life()
    assert number == 64
    names = [f"m{index}" for index in range(number)]
    one.tell(*(f"store('{name}')" for name in names), "die()")
    assert one.life()[1] == names
    one.tell("store('more')", "die()")
    assert one.life()[1] == names and "the store is full" in one.log()


def test_a_limit_that_leaves_no_room_is_no_fault(hold):
    assert hold(preexec_fn=with_files(20)).life() == (0, [])


def test_descriptors_that_cannot_be_handed_over_wait(hold):
    one = hold(preexec_fn=with_files(160))
    one.life()
    names = [f"m{index}" for index in range(40)]
    one.tell(*(f"store('{name}')" for name in names), "print('stored', flush=True)")
    assert one.hear() == ["stored"]
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (60, 160))
    one.tell("die()")
    wait_until(lambda: "cannot hand over" in one.log(), what="the fault")
    resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (160, 160))
    assert one.life()[1] == names


def test_descriptors_that_were_cut_off_are_told(hold):
    one = hold(preexec_fn=with_files(40))
    assert one.life()[0] == 4
    one.tell("store('many', 32)", "store('more', 32)")
    wait_until(lambda: "raise the limit of open files" in one.log(), what="the warning")


def test_want_of_a_process_is_met_with_patience(tmp_path, hold):
    def limit():
        _die_with_parent()
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))

    program = tmp_path / "hold"
    shutil.copy(HOLD, program)
    let_others_in(program)
    # Root has as many as it likes.
    options = {"user": 65534} if os.geteuid() == 0 else {}
    # To look for leaks takes a process.
    options["env"] = {**os.environ, "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") +
                      ":detect_leaks=0"}
    one = hold(program=[program], preexec_fn=limit, **options)
    wait_until(lambda: one.log().count("no process for the daemon") >= 4, what="four tries")
    time.sleep(0.2)
    assert one.log().count("no process for the daemon") < 20
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(10 * slowness()) == 0


def test_the_sockets_name_goes_with_the_holder_whatever_it_is(start_daemon):
    class Named(HeldDaemon):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.socket = self.folder / "a~b" / "s~"

    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", kind=Named)
    daemon.stop()  # which looks for the name
    assert list(daemon.socket.parent.iterdir()) == []
    daemon.is_checked = False


def test_a_command_that_cannot_be_run_costs_no_model(tmp_path, hold):
    command = tmp_path / "python"
    command.symlink_to(sys.executable)
    one = hold(command=command)
    one.life()
    command.unlink()
    one.tell("store('hdr.of-a-model')", "die()")
    wait_until(lambda: one.log().count("cannot run") >= 2, what="a second try")
    command.symlink_to(sys.executable)
    assert one.life()[1] == ["hdr.of-a-model"]
    command.unlink()
    one.tell("unstore('hdr.of-a-model')", "die()")
    assert one.process.wait(10 * slowness()) == 127, "nothing to lose"


@pytest.fixture
def terminal():
    """(its master, what has a process begin a session on it)"""
    master, slave = pty.openpty()

    def enter():
        _die_with_parent()
        os.close(os.open(os.ttyname(slave), os.O_RDWR))  # the first of a session is its own

    yield master, enter
    os.close(master)
    os.close(slave)


def test_control_c_tells_the_daemon_once(start_daemon, terminal):
    class InTerminal(HeldDaemon):
        def spawn(self, command, environment, log):
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    start_new_session=True, env=environment,
                                    preexec_fn=terminal[1])

    daemon = start_daemon("memory.ram=64M", "memory.reserve=0", kind=InTerminal, check=False)
    os.write(terminal[0], b"\x03")
    assert daemon.process.wait(10 * slowness()) == 0
    assert "told to end by SIGINT" in daemon.log() and "told twice" not in daemon.log()


def test_control_c_ends_a_daemon_of_another_group_too(hold, terminal):
    one = hold(preexec_fn=terminal[1])
    one.life()
    one.tell("os.setpgid(0, 0)", "print('elsewhere', flush=True)")
    assert one.hear() == ["elsewhere"]
    os.write(terminal[0], b"\x03")
    assert one.process.wait(10 * slowness()) == 128 + signal.SIGTERM


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace: needs root")
def test_nobody_is_believed_while_there_is_no_daemon(tmp_path, hold):
    """Whoever is outside the holder's namespace has the pid 0 there."""
    command = tmp_path / "python"
    command.symlink_to(sys.executable)
    one = hold(program=["unshare", "--pid", "--fork", "--kill-child", HOLD], command=command)
    one.life()
    one.tell("print(os.environ['NOTIFY_SOCKET'], flush=True)", "store('hdr.of-a-model')")
    address = one.hear()[0].replace("@", "\0")
    command.unlink()
    one.tell("die()")
    wait_until(lambda: one.log().count("starting it again") >= 4, what="a long wait")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger, opened("/dev/null") as fd:
        stranger.connect(address)
        socket.send_fds(stranger, [b"FDSTORE=1\nFDNAME=planted"], [fd])
        time.sleep(0.1)
    command.symlink_to(sys.executable)
    assert one.life()[1] == ["hdr.of-a-model"]
