"""When a periodic job is due."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, Optional, Union

from synap.errors import SynapError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")


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

    Needs the extra `worker` (croniter).
    """

    def __init__(self, expression: str, zone: Optional[tzinfo] = None) -> None:
        try:
            from croniter import croniter
        except ImportError:
            raise SynapError("INVALID_REQUEST", "cron expressions need: pip install 'synap-client[worker]'") from None
        if not isinstance(expression, str) or not croniter.is_valid(expression):
            rule = "an expression such as '0 3 * * *' (minute, hour, day, month, weekday)"
            raise SynapError("INVALID_REQUEST", f"cron must be {rule}, got {expression!r}")
        self._croniter: Any = croniter
        self._expression = expression
        self._zone = zone or timezone.utc
        self.text = f"cron {expression} {self._zone}"

    def after(self, moment: float) -> float:
        start = datetime.fromtimestamp(moment, self._zone)
        due: datetime = self._croniter(self._expression, start).get_next(datetime)
        return due.timestamp()


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
