# SPDX-License-Identifier: Apache-2.0
"""distorchd-hold by itself: what it starts here is a program that does what a test tells it."""
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from conftest import BUILD, _die_with_parent, slowness, wait_until

HOLD = BUILD / "bin" / "distorchd-hold"
# Each line that comes in is run. Unbuffered: the next life goes on where this one ended.
PUPPET = """
import array, os, signal, socket
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(chr(0) + os.environ["NOTIFY_SOCKET"][1:])
def store(name):
    fd = os.memfd_create(name)
    notify.sendmsg([f"FDSTORE=1\\nFDNAME={name}".encode()],
                   [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
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

    def __init__(self, folder, **options):
        self.log_path = folder / "hold.log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [HOLD, "--", sys.executable, "-I", "-S", "-c", PUPPET], stdin=subprocess.PIPE,
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
        os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture
def hold(tmp_path):
    """hold(options of Popen) -> a Hold, ended after the test."""
    holds = []

    def start(**options):
        holds.append(Hold(tmp_path, preexec_fn=_die_with_parent, **options))
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
