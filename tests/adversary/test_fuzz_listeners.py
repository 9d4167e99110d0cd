"""A few seconds of `tests.adversary.fuzz_listeners`, whose ten minutes are a command of their own."""

from __future__ import annotations

from tests.adversary.fuzz_listeners import main


def test_nonsense_on_every_listener_leaves_no_trace() -> None:
    assert main(["--minutes", "0.05", "--seed", "1"]) == 0
