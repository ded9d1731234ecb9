"""A program on a pseudo-terminal, and what a person would see there."""

import os
import pty
import select
import struct
import subprocess
import termios
import time
import unicodedata
from fcntl import ioctl


class Screen:
    """The part of a VT100 that our line editor uses. Lines that scroll off are kept in `gone`."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows
        self.cells = [[" "] * columns for _ in range(rows)]
        self.gone = []
        self.row = self.col = 0
        self.escape = None  # bytes of an unfinished sequence

    def feed(self, text):
        for c in text:
            if self.escape is not None:
                self.escape += c
                if self.escape != "[" and "@" <= c <= "~":
                    self.control(self.escape[1:-1], c)
                    self.escape = None
            elif c == "\033":
                self.escape = ""
            elif c == "\r":
                self.col = 0
            elif c == "\n":
                self.line_feed()
            elif c == "\b":
                self.col = max(self.col - 1, 0)
            elif c >= " ":
                self.put(c)

    def put(self, c):
        width = 0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        if width == 0:
            self.cells[self.row][self.col - 1] += c
            return
        if self.col + width > self.columns:
            self.col = 0
            self.line_feed()
        self.cells[self.row][self.col] = c
        if width == 2:
            self.cells[self.row][self.col + 1] = ""
        self.col += width

    def line_feed(self):
        self.row += 1
        if self.row == self.rows:
            self.gone.append(self.cells.pop(0))
            self.cells.append([" "] * self.columns)
            self.row -= 1

    def control(self, parameters, final):
        n = int(parameters) if parameters.isdigit() else 1
        if final == "A":
            self.row = max(self.row - n, 0)
        elif final == "C":
            self.col = min(self.col + n, self.columns - 1)
        elif final == "H":
            self.row = self.col = 0
        elif final == "J":
            first = 0 if parameters == "2" else self.row
            for row in range(first, self.rows):
                start = self.col if row == self.row and parameters != "2" else 0
                self.cells[row][start:] = [" "] * (self.columns - start)
        else:
            assert final in "hlK", f"unknown sequence {parameters}{final}"

    def lines(self):
        """All that was ever shown, without the empty rows at the end."""
        text = ["".join(row).rstrip() for row in self.gone + self.cells]
        while text and not text[-1]:
            text.pop()
        return text

    def cursor(self):
        return self.row + len(self.gone), self.col


class Terminal:
    def __init__(self, *args, columns=80, rows=24, term="xterm", **environment):
        self.screen = Screen(columns, rows)
        self.output = ""
        self.undecoded = b""
        self.fd, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.modes_before = self.modes()
        self.process = subprocess.Popen(
            [str(a) for a in args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": term, **environment},
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def modes(self):
        return termios.tcgetattr(self.fd)[:4]

    def echoes(self):
        return bool(self.modes()[3] & termios.ECHO)

    def read(self, timeout):
        """Takes in some output; False once there is none any more."""
        if not select.select([self.fd], [], [], timeout)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # Linux's end of a pseudo-terminal
            return False
        self.undecoded += data
        text = self.undecoded.decode(errors="ignore")
        if text.encode() == self.undecoded:
            self.undecoded = b""
            self.output += text
            self.screen.feed(text)
        return bool(data)

    def wait(self, condition, timeout=30):
        """Reads until condition(self) holds."""
        end = time.monotonic() + timeout
        while not condition(self):
            assert time.monotonic() < end, f"in vain: the screen has {self.screen.lines()}"
            self.read(0.1)

    def wait_prompt(self, text="> "):
        """Until the last line shown is this."""
        self.wait(lambda t: t.screen.lines() and t.screen.lines()[-1] == text.rstrip())

    def send(self, keys):
        os.write(self.fd, keys.encode() if isinstance(keys, str) else keys)

    def kill(self, number):
        self.process.send_signal(number)

    def resize(self, columns, rows):
        """Clears our screen: terminals differ in what they make of the old rows."""
        self.screen = Screen(columns, rows)
        ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send_and_see(self, keys, *lines):
        """Types something; waits until these are the last lines on the screen."""
        self.send(keys)
        self.wait(lambda t: t.screen.lines()[-len(lines) :] == list(lines))

    def exit_status(self, timeout=30):
        """Of the program, which is about to end. Negative: killed by this signal."""
        end = time.monotonic() + timeout
        while self.read(0.1):
            assert time.monotonic() < end, f"still running: the screen has {self.screen.lines()}"
        return self.process.wait(timeout)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
