"""When a periodic job is due."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, List, Optional, Union

from synap.errors import SynapError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_DAY = 86_400.0
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_RANDOM = re.compile(r"\bR\b", re.IGNORECASE)


class Schedule:
    """Computes when a job is due next; the same in every process, since it depends on the clock alone."""

    text = ""
    """The schedule as text. A job whose text changes is rescheduled."""

    def after(self, moment: float) -> float:
        """Return the first time after `moment` at which the job is due. Both are Unix seconds."""
        raise NotImplementedError


@dataclass(frozen=True)
class Every(Schedule):
    """Multiples of an interval, counted from 1970."""

    seconds: float
    text: str

    def after(self, moment: float) -> float:
        number = moment // self.seconds + 1
        if number * self.seconds <= moment:  # floats: // of a multiple may be one less
            number += 1
        return number * self.seconds


class Cron(Schedule):
    """A cron expression of five fields, or six with seconds at the end, in a time zone (UTC unless another is given).

    Where clocks go back, an hour that comes twice counts once, unless the expression names no hour (`*`). Where they go
    forward, a time that is left out is due as they do. Needs the extra `worker` (croniter).
    """

    def __init__(self, expression: str, zone: Optional[tzinfo] = None) -> None:
        try:
            from croniter import croniter
        except ImportError:
            raise SynapError("INVALID_REQUEST", "cron expressions need: pip install 'synap-client[worker]'") from None
        if not isinstance(expression, str) or not _has_form(expression) or not croniter.is_valid(expression):
            rule = "an expression such as '0 3 * * *' (minute, hour, day, month, weekday)"
            raise SynapError("INVALID_REQUEST", f"cron must be {rule}, got {expression!r}")
        self._croniter: Any = croniter
        self._expression = expression
        self._zone = zone or timezone.utc
        self._every_hour = croniter.expand(expression)[0][1] == ["*"]
        self.text = f"cron {expression} {self._zone}"
        try:
            self.after(0.0)
        except ValueError:
            raise SynapError("INVALID_REQUEST", f"cron must name a day that comes, got {expression!r}") from None

    def after(self, moment: float) -> float:
        wall = moment + self._offset(moment)
        due = self._first(wall, moment)
        if self._every_hour:
            _, *again = self._instants(wall) or [moment]
            if again and moment < again[0]:
                # The clock will be put back, to a time before this one.
                change = self._change(moment, again[0])
                due = min(due, self._first(change + self._offset(change) - 1.0, moment))
        return due

    def _first(self, wall: float, moment: float) -> float:
        """Return the first moment after `moment` that the expression names, of those when clocks show more than `wall`.

        What clocks show is given in seconds as if it were UTC.
        """
        times = self._croniter(self._expression, wall)
        while True:
            for instant in self._instants(times.get_next(float)):
                if instant > moment:
                    return instant

    def _instants(self, wall: float) -> List[float]:
        """Return when clocks show a time and it counts: at most twice, and never where they leave it out."""
        before, after = self._offset(wall - _DAY), self._offset(wall + _DAY)
        offsets = sorted({before, after}, reverse=True)
        instants = [wall - offset for offset in offsets if self._offset(wall - offset) == offset]
        if self._every_hour:
            return instants
        return instants[:1] or [self._change(wall - offsets[0], wall - offsets[-1])]

    def _change(self, early: float, late: float) -> float:
        """Return when clocks are put forward or back between two moments, to the second."""
        low, high = math.floor(early), math.ceil(late)
        offset = self._offset(low)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._offset(middle) == offset else (low, middle)
        return float(high)

    def _offset(self, moment: float) -> float:
        """Return how many seconds clocks are ahead of UTC."""
        offset = (_EPOCH + timedelta(seconds=moment)).astimezone(self._zone).utcoffset()
        return offset.total_seconds() if offset is not None else 0.0


def _has_form(expression: str) -> bool:
    """Return whether a text has as many fields as we promise, and none that croniter takes for a random number."""
    return (len(expression.split()) in (5, 6) or expression.startswith("@")) and not _RANDOM.search(expression)


def every(interval: Union[str, float, timedelta]) -> Every:
    """Read an interval: seconds, a `timedelta`, or a text such as '90s', '5m', '1h30m', '1d'."""
    seconds: Optional[float] = None
    if isinstance(interval, timedelta):
        seconds = interval.total_seconds()
    elif isinstance(interval, (int, float)) and not isinstance(interval, bool):
        seconds = float(interval)
    elif isinstance(interval, str) and _PART.sub("", interval.replace(" ", "")) == "" and interval.strip():
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(interval))
    if seconds is None or not 0 < seconds <= 31_536_000:
        message = f"an interval must be seconds, a timedelta or a text such as '90s', '5m', '1h30m', got {interval!r}"
        raise SynapError("INVALID_REQUEST", message)
    return Every(seconds, f"every {seconds:g}")
