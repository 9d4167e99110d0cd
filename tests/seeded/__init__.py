"""Bugs planted one at a time, to see whether the tests notice: `python -m tests.seeded`. Not part of the test run."""

from __future__ import annotations

from tests.seeded import client, cluster, engine, lanes, server, storage, worker

__all__ = ["SEEDS"]

SEEDS = (*client.SEEDS, *cluster.SEEDS, *engine.SEEDS, *lanes.SEEDS, *server.SEEDS, *storage.SEEDS, *worker.SEEDS)
"""Every planted bug, by area."""
