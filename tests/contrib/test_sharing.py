"""What integrations share, in processes that fork."""

from __future__ import annotations

import threading

from synap.contrib import sharing
from tests.helpers.forks import alone, forks, in_a_fork
from tests.helpers.patience import PATIENCE


@forks
@alone
def test_a_child_that_was_forked_while_a_thread_asked_for_a_client_gets_one() -> None:
    inside, over = threading.Event(), threading.Event()

    def ask() -> None:
        with sharing._lock:
            inside.set()
            assert over.wait(PATIENCE)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        assert inside.wait(PATIENCE)
        assert in_a_fork(lambda: sharing.shared_client("memory://", {}).kv.incr("n")) == "1"
    finally:
        over.set()
        thread.join()
