"""The node's log: one line for each record on stderr, as text or JSON, without content and names.

An exception is shown by its kind and place; its text may quote what somebody sent, so it appears at level debug only.
Nobody who logs waits for whoever reads the log: a thread writes, and what it cannot write in time is dropped and
counted. What one place says again and again is counted too, so that no client can fill a disk.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TextIO

import msgspec

Format = Literal["text", "json"]
LEVELS: Final = ("debug", "info", "warning", "error")
_ROOT: Final = "walytis_vault"
WAITING_MOST: Final = 1000
"""Lines that wait to be written (a count)."""
PLACE_MOST: Final = 20
"""Records of one place in the code that are written in `PLACE_S` seconds (a count)."""
PLACE_S: Final = 10.0
FILE_MOST: Final = 8 << 20
"""Bytes of a log file; then it is renamed to `<name>.1`, in place of the one before."""
_STDERR: Final = 2


class _Formatter(logging.Formatter):
    """One line for each record."""

    def __init__(self, *, as_json: bool, verbatim: bool) -> None:
        super().__init__()
        self._as_json = as_json
        self._verbatim = verbatim

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        where = record.name.removeprefix(f"{_ROOT}.")
        fields = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "where": where,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = self._error(record.exc_info[1])
        if self._as_json:
            return msgspec.json.encode(fields).decode()
        line = f"{fields['time']} {fields['level']:7} {where}: {fields['message']}"
        if "error" in fields:
            line += f" [{fields['error']}]"
        # A line break in what was logged must not look like another record.
        return line.replace("\r", "\\r").replace("\n", "\\n")

    def _error(self, error: BaseException) -> str:
        if self._verbatim:
            return "".join(traceback.format_exception(error))
        frames = traceback.extract_tb(error.__traceback__)
        places = " < ".join(f"{_short(f.filename)}:{f.lineno} {f.name}" for f in reversed(frames[-8:]))
        return f"{type(error).__name__} at {places}"


def _short(path: str) -> str:
    """The last two parts of a path: no folder of the user is named."""
    return "/".join(path.split("/")[-2:])


class _Repeats:
    """Bounds what one place in the code may say."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, int], tuple[float, int]] = {}

    def more(self, record: logging.LogRecord) -> int:
        """How many like it were left out before it; -1: leave this one out too."""
        place, now = (record.pathname, record.lineno), time.monotonic()
        began, count = self._places.get(place, (now, 0))
        left_out = max(0, count - PLACE_MOST)
        if now - began >= PLACE_S:
            began, count = now, 0
        self._places[place] = began, count + 1
        if count >= PLACE_MOST:
            return -1
        return 0 if count else left_out


class _Handler(logging.Handler):
    """Hands lines to a thread that writes them.

    Args:
        write: takes one line; may block, and may raise OSError.
        every: whether also what is said again and again is written.
    """

    def __init__(self, write: Callable[[str], None], *, every: bool) -> None:
        super().__init__()
        self._write = write
        self._repeats = None if every else _Repeats()
        self._lines: deque[str] = deque()
        self._condition = threading.Condition()
        self._dropped = 0
        self._ended = False
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Leave a record to the thread. Never blocks."""
        more = self._repeats.more(record) if self._repeats is not None else 0
        if more < 0:
            return
        if more:
            record = logging.makeLogRecord({**record.__dict__, "msg": f"{record.getMessage()} (and {more} more)"})
            record.args = None
        line = self.format(record)
        with self._condition:
            if len(self._lines) >= WAITING_MOST:
                self._dropped += 1
                return
            self._lines.append(line)
            self._condition.notify_all()

    def drain(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until all is written; True if it is."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._lines, timeout)

    def close(self) -> None:
        """Let the thread end when it has written what waits."""
        super().close()
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._lines or self._ended)
                if not self._lines:
                    return
                line, dropped, self._dropped = self._lines[0], self._dropped, 0
            if dropped:
                lost = _record(f"{dropped} records were dropped: the log was not read in time")
                self._put(self.format(lost))
            self._put(line)
            with self._condition:
                self._lines.popleft()
                self._condition.notify_all()

    def _put(self, line: str) -> None:
        try:
            self._write(line + "\n")
        except (OSError, ValueError):  # nobody can be told: this was the way to tell
            with self._condition:
                self._dropped += 1


def _record(message: str) -> logging.LogRecord:
    return logging.LogRecord(f"{_ROOT}.logs", logging.WARNING, __file__, 0, message, None, None)


class _Descriptor:
    """Writes to stderr's descriptor, past Python's buffer and its lock; bounds the file behind it, if any."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def __call__(self, line: str) -> None:
        if self._file is not None:
            self._turn(self._file)
        data = memoryview(line.encode(errors="backslashreplace"))
        while data:
            data = data[os.write(_STDERR, data) :]

    @staticmethod
    def _turn(file: Path) -> None:
        """Begin anew when the file is full. Whatever else writes to stdout and stderr follows."""
        info = os.fstat(_STDERR)
        if info.st_size < FILE_MOST or not os.path.samestat(info, os.stat(file)):
            return
        os.replace(file, file.with_name(f"{file.name}.1"))
        fresh = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        both = os.path.samestat(info, os.fstat(1))
        os.dup2(fresh, _STDERR)
        if both:
            os.dup2(fresh, 1)
        os.close(fresh)


def set_up(
    form: Format = "text", level: str = "warning", stream: TextIO | None = None, *, file: Path | None = None
) -> None:
    """Send the records of this package to a stream. Other libraries' records appear at level debug only.

    Args:
        form: "text" or "json".
        level: one of `LEVELS`; less important records are dropped.
        stream: None for stderr.
        file: what stderr writes to, to be bounded to `FILE_MOST` bytes, and as many in the file before.
    """

    def to_stream(line: str) -> None:
        assert stream is not None
        stream.write(line)
        stream.flush()

    handler = _Handler(to_stream if stream is not None else _Descriptor(file), every=level == "debug")
    handler.setFormatter(_Formatter(as_json=form == "json", verbatim=level == "debug"))
    ours, root = logging.getLogger(_ROOT), logging.getLogger()
    for logger in (ours, root):
        for old in list(logger.handlers):
            logger.removeHandler(old)
            old.close()
        logger.addHandler(handler)
    ours.setLevel(level.upper())
    ours.propagate = False
    root.setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL + 1)


def drain(timeout: float) -> None:
    """Wait up to `timeout` seconds until what was logged is written: before the process ends."""
    for handler in logging.getLogger(_ROOT).handlers:
        if isinstance(handler, _Handler):
            handler.drain(timeout)
