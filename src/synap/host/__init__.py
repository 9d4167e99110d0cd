"""Between lanes and engines: `Host` is the interface, `EngineHost` runs an engine in this process."""

from synap.host.base import ANSWER, ENDED, PUSH, REFUSE, Host, Output, Session
from synap.host.engine import EngineHost
from synap.host.log import Batch, Log

__all__ = ["ANSWER", "ENDED", "PUSH", "REFUSE", "Batch", "EngineHost", "Host", "Log", "Output", "Session"]
