"""How thorough a run is: `SYNAP_TEST_LONG=1 pytest …` does all the rounds of what a usual run does some of."""

from __future__ import annotations

import os

__all__ = ["rounds"]


def rounds(usual: int, long: int) -> int:
    """Return how many rounds to do."""
    return long if os.environ.get("SYNAP_TEST_LONG") else usual
