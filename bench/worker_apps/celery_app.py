"""Celery with Redis: acknowledged after the job (`acks_late`), as all the others here; results are not kept."""

from __future__ import annotations

import os
import sys
import time
from typing import Optional

from celery import Celery

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from bench.worker_apps.board import ran

app = Celery("bench", broker=os.environ["BENCH_URL"])
app.conf.update(task_acks_late=True, task_ignore_result=True, worker_hijack_root_logger=False)


@app.task(name="job")
def job(sent: Optional[float]) -> None:
    """Do nothing."""
    ran(sent)


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        job.delay(time.monotonic())
        if float(sys.argv[2]):
            time.sleep(float(sys.argv[2]))
