"""One log line per event, as text (key=value) or JSON, to standard error or a file that may be rotated.

Its vocabulary is outcomes.py.  It is given labels, IDs, addresses and counts; secrets, codes and what a
redirected request contained are never handed to it.
"""

import json
import logging
import logging.handlers
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from taaslib.outcomes import Outcome

_PLAIN = re.compile(r"[A-Za-z0-9._:/\[\]*,+-]+")
_MINUTE = 60.0
_LONGEST = 4096  # characters of one value
_RECORD = vars(logging.LogRecord("taas", logging.INFO, "", 0, "", None, None))

_O = Outcome
_AT = {  # info, where nothing else is said
    logging.ERROR: (_O.STORE_BROKEN, _O.FAULT, _O.STALLED, _O.PORT_FAILED, _O.OUT_OF_DESCRIPTORS),
    logging.WARNING: (_O.STORE_BUSY, _O.WARNING, _O.SUPPRESSED, _O.WRONG_CODE, _O.SLOWED, _O.CODE_USED)
    + (_O.CODE_OVERUSED, _O.STRANGER, _O.FULL),
    logging.DEBUG: (_O.CLAIMED, _O.SILENT, _O.GONE, _O.TLS_FAILED, _O.PLAIN_HTTP, _O.ASKED),
}
LEVELS = dict.fromkeys(Outcome, logging.INFO) | {each: level for level, some in _AT.items() for each in some}

class Journal:
    """FILE (None: standard error) is opened again when logrotate has moved it.  Raises OSError.

    Of each event LINES_PER_MINUTE are written; how many more there were is told when the minute is over.
    """
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._minute_ends = 0.0
        self.counts = dict.fromkeys(Outcome, 0)  # since the start, written or not
        self._before = self.counts.copy()  # as this minute began
        self._handler: logging.Handler = logging.StreamHandler(sys.stderr)
        self.configure(None)

    def configure(self, file: Path | None, form: str = "text", level: str = "info", most: int = 600) -> None:
        """Go on like this; or, if FILE can't be opened, as before.  Raises OSError."""
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        if file:
            handler = logging.handlers.WatchedFileHandler(file, encoding="utf-8")
        self._handler.close()
        self._handler, self._most = handler, most
        self._as_json = form == "json"
        self._level: int = getattr(logging, level.upper())

    def note(self, outcome: Outcome, more: Callable[[], dict[str, Any]] = dict, /, **facts: object) -> None:
        """Write one line; facts that are None are left out.  MORE is asked only for one that is written."""
        if self._clock() >= self._minute_ends:
            self._tell_suppressed()
        count = self.counts[outcome] = self.counts[outcome] + 1
        level = LEVELS[outcome]
        if level >= self._level and count - self._before[outcome] <= self._most:
            self._write(level, outcome, facts | more())

    def _tell_suppressed(self) -> None:
        """Strangers bring about most of what is noted; they shall not fill the disk."""
        before, self._before = self._before, self.counts.copy()
        self._minute_ends = self._clock() + _MINUTE
        for outcome, count in self._before.items():
            lines = count - before[outcome] - self._most
            if lines > 0 and LEVELS[outcome] >= self._level:
                self._write(logging.WARNING, Outcome.SUPPRESSED, {"what": outcome.value, "lines": lines})

    def _write(self, level: int, outcome: Outcome, facts: Mapping[str, object]) -> None:
        now = time.time()
        stamp = f"{_second(int(now))}.{int(now % 1 * 1000):03}+00:00"
        name = logging.getLevelName(level).lower()
        known = {key: value for key, value in facts.items() if value is not None}
        if self._as_json:
            values = {k: v if isinstance(v, (int, float)) else str(v)[:_LONGEST] for k, v in known.items()}
            line = json.dumps({"time": stamp, "level": name, "event": outcome.value, **values})
        else:
            line = " ".join([stamp, name, outcome.value, *(f"{k}={_text(v)}" for k, v in known.items())])
        try:
            record = logging.LogRecord.__new__(logging.LogRecord)  # to make a real one takes 20 us
            record.__dict__.update(_RECORD, msg=line)
            self._handler.handle(record)
        except OSError:  # the file's folder is out of reach since privileges were dropped: no reason to stop
            print(line, file=sys.stderr)

    def close(self) -> None:
        self._tell_suppressed()
        self._handler.close()

@lru_cache(maxsize=1)
def _second(now: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))

def _text(value: object) -> str:
    """A value as one word, quoted where a reader or a terminal could be misled."""
    text = str(value)[:_LONGEST]
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
