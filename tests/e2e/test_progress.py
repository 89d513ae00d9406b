# SPDX-License-Identifier: Apache-2.0
"""What distorchctl tells of a load that runs: one row of the terminal, and figures that are known."""
import signal
import subprocess

import pytest
from conftest import make_sparse_model, wait_until
from screen import Terminal
from test_ctl import CTL, ctl, ctl_json
from test_top import environment_of

REDRAW = "\r\x1b[K"


@pytest.fixture
def slow(start_daemon):
    return start_daemon("memory.ram=4G", "memory.reserve=0",
                        environment={"DISTORCHD_FAULT": "pread:3:delay=100:ever"})


class Load(Terminal):
    """distorchctl load on a terminal; 'drawn' is all that it drew."""

    def __init__(self, daemon, path, columns=80):
        super().__init__([CTL, "load", path], environment_of(daemon, NO_COLOR="1"),
                         columns=columns)
        self.daemon = daemon
        self.drawn = ""
        self.feed, self.screen.feed = self.screen.feed, self._keep

    def _keep(self, data):
        self.drawn += data.decode(errors="replace")
        self.feed(data)

    def end(self):
        self.press("\x03")
        self.daemon.tell("clear")
        assert self.wait() in (0, 130)


@pytest.mark.parametrize("columns", [80, 40, 12])
def test_the_bar_stays_on_its_row(slow, tmp_path, columns):
    path = make_sparse_model(tmp_path / f"{'a-rather-long-name-' * 3}.safetensors", 64 << 20)
    wanted = "/s" if columns == 80 else "/64.0M" if columns == 40 else "Loading"
    with Load(slow, path, columns) as load:
        lines = load.wait_for(lambda lines: wanted in "".join(lines)
                              and load.drawn.count(REDRAW) > 4)
        assert lines[0].startswith("Loading a-ra"[:columns - 2]) and not any(lines[1:]), lines
        if columns == 80:
            assert "░" in lines[0] and "/64.0M" in lines[0], lines
        load.end()


def test_speed_is_that_of_what_came_meanwhile(slow, tmp_path):
    path = make_sparse_model(tmp_path / "slow.safetensors", 64 << 20)
    with subprocess.Popen([CTL, "load", "-q", path], env=environment_of(slow)) as first:
        wait_until(lambda: any((m["progress_bytes"] or 0) > 4 << 20
                               for m in ctl_json(slow, "ps")["models"]), 40)
        with Load(slow, path) as load:
            load.wait_for("/s")
            rows = [row for row in load.drawn.split(REDRAW) if "/64.0M" in row]
            assert "/s" not in rows[0] and "left" not in rows[0], rows
            load.end()
        first.send_signal(signal.SIGINT)
        assert first.wait(20) in (0, 130)


def test_status_and_show_tell_what_is_loading(slow, tmp_path):
    path = make_sparse_model(tmp_path / "slow.safetensors", 64 << 20)
    with Load(slow, path) as load:
        load.wait_for("/64.0M")
        assert "\n  Models 0    loading 1    clients 2" in ctl(slow, "status").stdout
        assert "\nwhere      loading " in ctl(slow, "show", path.name).stdout
        load.end()
    assert "loading" not in ctl(slow, "status").stdout.partition("Models")[2].partition("\n")[0]
