"""Telling an exception that a signal handler raised in the middle of a function from one of that function's own."""

from __future__ import annotations

import signal
import threading
from traceback import walk_tb


def raised_by_handler(error: BaseException) -> bool:
    """Return whether `error` came through a function that handles a signal in this process."""
    if threading.current_thread() is not threading.main_thread():
        return False
    codes = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()}
    return any(frame.f_code in codes for frame, _ in walk_tb(error.__traceback__))
