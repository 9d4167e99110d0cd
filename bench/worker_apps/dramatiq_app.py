"""dramatiq with Redis."""

from __future__ import annotations

import os
import sys
import time
from typing import Optional

import dramatiq
from dramatiq.brokers.redis import RedisBroker

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from bench.worker_apps.board import ran

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_URL"]))


@dramatiq.actor(actor_name="job")
def job(sent: Optional[float]) -> None:
    """Do nothing."""
    ran(sent)


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        job.send(time.monotonic())
        if float(sys.argv[2]):
            time.sleep(float(sys.argv[2]))
