# SPDX-License-Identifier: Apache-2.0
"""A program on a terminal of its own: what it draws, as rows of text, and what it did to the
terminal. Knows what ncurses sends for TERM=xterm and refuses the rest."""
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import unicodedata

ESCAPE = re.compile(rb"\x1b(?:\[([?>]?)([0-9;]*)([@-~])|\](?:[^\x07\x1b]*)\x07|([()])(.)|([=>78MDE]))")
LAST = b"\0"  # never drawn


class Screen:
    """Rows of cells, and the words that move over them."""

    def __init__(self, rows, columns):
        self.rest = b""
        self.is_alternate = False
        self.is_cursor_shown = True
        self.ink = 0
        self.resize(rows, columns)

    def resize(self, rows, columns):
        self.rows, self.columns = rows, columns
        self.cells = [[" "] * columns for _ in range(rows)]
        self.reverse = [False] * rows  # those drawn in reverse, as far as they are drawn
        self.top, self.bottom = 0, rows - 1  # what scrolls
        self.row = self.column = 0
        self.last = " "

    def lines(self):
        return ["".join(row).rstrip() for row in self.cells]

    def text(self):
        return "\n".join(self.lines())

    def feed(self, data):
        data = self.rest + data
        at = 0
        while at < len(data):
            if data[at] == 0x1b:
                match = ESCAPE.match(data, at)
                if match is None:
                    assert len(data) - at < 32, f"unknown: {data[at:at + 32]!r}"
                    break
                self._escape(match)
                at = match.end()
                continue
            size = 1 if data[at] < 0xc0 else 2 if data[at] < 0xe0 else 3 if data[at] < 0xf0 else 4
            if at + size > len(data):
                break
            self._character(data[at:at + size].decode())
            at += size
        self.rest = data[at:]

    def _character(self, character):
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._down()
        elif character == "\b":
            self.column = max(self.column - 1, 0)
        elif character == "\t":
            self.column = min(self.column // 8 * 8 + 8, self.columns - 1)
        else:
            assert ord(character) >= 0x20, f"a control character on the screen: {character!r}"
            width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
            if self.column + width > self.columns:  # as a terminal wraps
                self.column = 0
                self._down()
            self.cells[self.row][self.column] = character
            for i in range(1, width):
                self.cells[self.row][self.column + i] = ""
            self.reverse[self.row] = bool(self.ink & 2)
            self.column += width
            self.last = character

    def _move_rows(self, gone, new):
        """One row goes, an empty one comes."""
        for rows, empty in ((self.cells, [" "] * self.columns), (self.reverse, False)):
            del rows[gone]
            rows.insert(new, empty)

    def _down(self):
        if self.row == self.bottom:
            self._move_rows(self.top, self.bottom)
        else:
            self.row = min(self.row + 1, self.rows - 1)

    def _up(self):
        if self.row == self.top:
            self._move_rows(self.bottom, self.top)
        else:
            self.row = max(self.row - 1, 0)

    def _escape(self, match):
        private, numbers, kind = match[1], match[2], match[3]
        if kind is None:
            if match[6] == b"M":
                self._up()
            return
        values = [int(n) if n else 0 for n in numbers.split(b";")] if numbers else []
        first = max(values[0] if values else 1, 1)
        row = self.cells[self.row]
        if private:
            if kind in b"hl" and 1049 in values:
                self.is_alternate = kind == b"h"
            if kind in b"hl" and 25 in values:
                self.is_cursor_shown = kind == b"h"
        elif kind == b"H":
            self.row = min(first, self.rows) - 1
            self.column = min(values[1] if len(values) > 1 else 1, self.columns) - 1
        elif kind in b"ABCD":
            rows = {b"A": -1, b"B": 1}.get(kind, 0) * first
            columns = {b"C": 1, b"D": -1}.get(kind, 0) * first
            self.row = min(max(self.row + rows, 0), self.rows - 1)
            self.column = min(max(self.column + columns, 0), self.columns - 1)
        elif kind == b"G":
            self.column = min(first, self.columns) - 1
        elif kind == b"d":
            self.row = min(first, self.rows) - 1
        elif kind == b"J":
            begin = (0, 0) if values in ([2], [3]) else (self.row, self.column)
            for r in range(begin[0], self.rows):
                for c in range(begin[1] if r == begin[0] else 0, self.columns):
                    self.cells[r][c] = " "
                    self.reverse[r] = self.reverse[r] and begin[1] > 0 and r == begin[0]
        elif kind == b"K":
            begin, end = {1: (0, self.column + 1), 2: (0, self.columns)}.get(
                values[0] if values else 0, (self.column, self.columns))
            row[begin:end] = [" "] * (end - begin)
            self.reverse[self.row] = self.reverse[self.row] and begin > 0
        elif kind == b"X":
            end = min(self.column + first, self.columns)
            row[self.column:end] = [" "] * (end - self.column)
        elif kind == b"P":
            row[self.column:] = row[self.column + first:] + [" "] * min(
                first, self.columns - self.column)
        elif kind == b"@":
            row[self.column:] = ([" "] * first + row[self.column:])[:self.columns - self.column]
        elif kind == b"b":
            for _ in range(first):
                self._character(self.last)
        elif kind in b"STLM":  # scroll; insert and delete lines
            top = self.row if kind in b"LM" else self.top
            for _ in range(first):
                self._move_rows(*((top, self.bottom) if kind in b"SM" else (self.bottom, top)))
        elif kind == b"r":
            self.top, self.bottom = (values[0] - 1, values[1] - 1) if values else \
                (0, self.rows - 1)
            self.row = self.column = 0
        elif kind == b"m":
            for value in values or [0]:
                self.ink = {0: 0, 1: self.ink | 1, 7: self.ink | 2, 27: self.ink & ~2,
                            22: self.ink & ~1}.get(value, self.ink)
                assert not 30 <= value <= 47, "a colour"
        else:
            assert kind in b"ltch", f"unknown: {match[0]!r}"


def _of_the_terminal():
    """In the child: the terminal is its own, and no signal is ignored, as one of a job in the
    background would be."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Terminal:
    """A program that runs as the leader of a terminal's session."""

    def __init__(self, command, environment, rows=24, columns=80):
        self.screen = Screen(rows, columns)
        self.has_ended = False  # all that it drew has been taken
        self.master, self.slave = pty.openpty()
        self._set_size(rows, columns)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            command, stdin=self.slave, stdout=self.slave, stderr=self.slave, env=environment,
            start_new_session=True,
            preexec_fn=_of_the_terminal)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def _set_size(self, rows, columns):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, rows, columns):
        """As a window that is drawn larger: the kernel tells the program."""
        self.read(0)
        self.screen.resize(rows, columns)
        self._set_size(rows, columns)

    def read(self, seconds):
        """Take what is drawn within that time."""
        end = time.monotonic() + seconds
        while True:
            left = max(end - time.monotonic(), 0)
            if not select.select([self.master], [], [], left)[0]:
                return
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            self.has_ended = data.endswith(LAST)
            self.screen.feed(data.removesuffix(LAST))
            if self.has_ended:
                return

    def wait_for(self, condition, seconds=20.0):
        """Until 'condition' (a text on the screen, or a function of its lines) is true."""
        end = time.monotonic() + seconds
        while True:
            self.read(0.05)
            text = self.screen.text()
            if condition in text if isinstance(condition, str) else condition(self.screen.lines()):
                return self.screen.lines()
            assert self.process.poll() is None, f"it ended: {self.process.returncode}\n{text}"
            assert time.monotonic() < end, f"not on the screen: {condition}\n{text}"

    def press(self, keys):
        os.write(self.master, keys if isinstance(keys, bytes) else keys.encode())

    def wait(self, seconds=20.0):
        """Its exit status; what it drew last is taken meanwhile."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it goes on:\n{self.screen.text()}"
            self.read(0.05)
        # The kernel passes it on a little later: what is written behind it comes behind it.
        os.write(self.slave, LAST)
        while not self.has_ended:
            assert time.monotonic() < end, f"the rest does not come:\n{self.screen.text()}"
            self.read(0.05)
        return self.process.returncode

    def is_given_back(self):
        """Everything as it was before: modes, cursor, the screen of before."""
        return (termios.tcgetattr(self.slave) == self.before and not self.screen.is_alternate
                and self.screen.is_cursor_shown)
