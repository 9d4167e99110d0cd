"""Bugs planted one at a time, to see whether the tests notice: `python -m tests.seeded`. Not part of the test run."""

from __future__ import annotations

from tests.seeded import engine, storage

__all__ = ["SEEDS"]

SEEDS = (*engine.SEEDS, *storage.SEEDS)
"""Every planted bug, by area."""
