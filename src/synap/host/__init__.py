"""An engine with a clock, a disk and callers: what lanes talk to."""

from synap.host.base import ANSWER, ENDED, PUSH, REFUSE, Batch, Held, Log, Session
from synap.host.engine import Host

__all__ = ["ANSWER", "ENDED", "PUSH", "REFUSE", "Batch", "Held", "Host", "Log", "Session"]
