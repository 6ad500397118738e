"""The node's log: one line for each record on stderr, as text or JSON, without content and names.

An exception is shown by its kind and place; its text may quote what somebody sent, so it appears at level debug only.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
import traceback
from typing import Final, Literal, TextIO

import msgspec

Format = Literal["text", "json"]
LEVELS: Final = ("debug", "info", "warning", "error")
_ROOT: Final = "walytis_vault"


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


def set_up(form: Format = "text", level: str = "warning", stream: TextIO | None = None) -> None:
    """Send the records of this package to a stream. Other libraries' records appear at level debug only.

    Args:
        form: "text" or "json".
        level: one of `LEVELS`; less important records are dropped.
        stream: None for stderr.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(as_json=form == "json", verbatim=level == "debug"))
    ours, root = logging.getLogger(_ROOT), logging.getLogger()
    for logger in (ours, root):
        for old in list(logger.handlers):
            logger.removeHandler(old)
        logger.addHandler(handler)
    ours.setLevel(level.upper())
    ours.propagate = False
    root.setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL + 1)
