"""Workers that are killed: whatever they had in hand comes back, and nothing else does."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

from synap import SynapClient
from synap.testing import ThrowawayServer
from synap.testing.reaper import kill_at_exit
from tests.adversary.accounting import faults
from tests.helpers.patience import PATIENCE

LEASE = 1.0
MESSAGES = 600
WORKERS = 4


class Worker:
    """A worker process and what it said."""

    def __init__(self, url: str, queue: str, seed: str, log: Path) -> None:
        self.path = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).with_name("worker.py")),
                    url,
                    queue,
                    str(LEASE),
                    seed,
                    str(PATIENCE),
                ],
                stdout=out,
            )
        kill_at_exit(self.process.pid)

    def lines(self) -> List[Dict[str, Any]]:
        """Read what it said; a line that the kill cut off was not said."""
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines(keepends=True) if line[-1] == "\n"]


def hire(url: str, queue: str, place: Path, count: int) -> Worker:
    return Worker(url, queue, f"{queue}-{count}", place / f"worker-{count}.jsonl")


def run_until_done(
    url: str, queue: str, place: Path, kills: int, server: ThrowawayServer | None = None
) -> List[Worker]:
    """Keep four workers at it, killing one now and then (and the service, where it is given), until all is done."""
    dice = random.Random(queue)
    workers = [hire(url, queue, place, number) for number in range(WORKERS)]
    at_work = list(workers)
    for _ in range(kills):
        time.sleep(0.1 + dice.random() * 0.2)
        if server is not None and dice.random() < 0.3:
            server.restart()
        victim = at_work.pop(dice.randrange(len(at_work)))
        victim.process.kill()
        victim.process.wait()
        workers.append(hire(url, queue, place, len(workers)))
        at_work.append(workers[-1])
    for worker in at_work:
        assert worker.process.wait(PATIENCE) == 0, worker.path.name
    return workers


def publish(url: str, queue: str) -> List[str]:
    with SynapClient(url=url) as client:
        client.queue.create(queue, max_retries=4)
        return [client.queue.publish(queue, number).message_id for number in range(MESSAGES)]


def close_books(url: str, queue: str, published: List[str], workers: List[Worker]) -> Tuple[List[str], Any]:
    """Compare what was said with what is left."""
    with SynapClient(url=url) as client:
        dead = set()
        while True:
            message = client.queue.consume(f"{queue}.dlq")
            if message is None:
                break
            dead.add(message.headers["x-dead-letter-message-id"])
        stats = client.queue.stats(queue)
    return faults(published, dead, [worker.lines() for worker in workers], LEASE), stats


def test_killed_workers_lose_nothing(server: ThrowawayServer, name: str, tmp_path: Path) -> None:
    published = publish(server.url, name)
    workers = run_until_done(server.url, name, tmp_path, kills=8)
    found, stats = close_books(server.url, name, published, workers)
    assert found == []
    assert (stats.depth, stats.pending, stats.delayed) == (0, 0, 0)
    assert stats.acked_total + stats.dead_lettered_total == MESSAGES


def test_killed_workers_and_a_killed_service_lose_nothing(name: str, tmp_path: Path) -> None:
    with ThrowawayServer(data=tmp_path / "data") as server:
        published = publish(server.url, name)
        workers = run_until_done(server.url, name, tmp_path, kills=8, server=server)
        found, stats = close_books(server.url, name, published, workers)
    assert found == []
    assert (stats.depth, stats.pending, stats.delayed) == (0, 0, 0)
    assert stats.acked_total + stats.dead_lettered_total == MESSAGES


def test_the_books_know_a_dead_letter_by_the_id_it_had(server: ThrowawayServer, name: str) -> None:
    with SynapClient(url=server.url) as client:
        published = [client.queue.publish(name, number).message_id for number in range(2)]
        for _ in published:
            message = client.queue.consume(name)
            assert message is not None
            client.queue.nack(name, message.message_id, requeue=False)
    found, stats = close_books(server.url, name, published, [])
    assert found == []
    assert stats.dead_lettered_total == 2


def test_the_books_show_what_is_wrong() -> None:
    """The checker finds what it is there to find."""

    def got(message: str, lease: int, begins: float, retries: int = 0) -> Dict[str, Any]:
        return {"got": message, "lease": lease, "deadline": begins + LEASE, "retry_count": retries, "message": 0}

    sound = [got("a", 1, 10.0), {"acking": "a", "lease": 1}, {"acked": "a", "lease": 1}]
    assert faults(["a"], set(), [sound], LEASE) == []
    assert "lost" in faults(["a"], set(), [[got("a", 1, 10.0)]], LEASE)[0]
    late = [got("a", 1, 10.0), {"acking": "a", "lease": 1}, {"late": "a", "lease": 1}]
    assert "lost" in faults(["a"], set(), [late], LEASE)[0]
    again = [got("a", 2, 12.0, 1), {"acking": "a", "lease": 2}]
    assert "came back" in faults(["a"], set(), [sound, again], LEASE)[0]
    twice = [[got("a", 1, 10.0)], [got("a", 2, 10.5, 1), {"acking": "a", "lease": 2}]]
    assert "leased to two" in faults(["a"], set(), twice, LEASE)[0]
    uncounted = [[got("a", 1, 10.0)], [got("a", 2, 12.0, 0), {"acking": "a", "lease": 2}]]
    assert "retry_count" in faults(["a"], set(), uncounted, LEASE)[0]
    swapped = [[got("b", 1, 10.0), {"acking": "b", "lease": 1}, got("a", 1, 11.0), {"acking": "a", "lease": 1}]]
    assert "out of order" in faults(["a", "b"], set(), swapped, LEASE)[0]
