"""A worker that may be killed at any moment: consumes, says so, works, acknowledges, says so.

Run with the URL, the queue, the seconds a lease lasts, a seed, and the seconds the service may be away. Prints a JSON
line for each step, before and after it counts:

    {"got": id, "lease": n, "deadline": t, "retry_count": n, "message": m}  the message is leased
    {"acking": id, "lease": n}                                              about to acknowledge: it may happen now
    {"acked": id, "lease": n}                                               acknowledged
    {"nacking": id, "lease": n}                                             about to give it back
    {"nacked": id, "lease": n}                                              given back
    {"late": id, "lease": n}                                                neither: the lease was over
"""

import json
import random
import sys
import time
from typing import Any

from synap import MessageNotFoundError, SynapClient


def say(**what: Any) -> None:
    """Print one step, whole and at once."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def work(url: str, queue: str, lease_seconds: float, seed: str, patience: float) -> None:
    """Work until the queue has been empty for long enough that no lease can be left."""
    dice = random.Random(seed)
    with SynapClient(url=url, retries=10_000, retry_delay=0.05, retry_max_delay=0.5, timeout=patience) as client:
        while True:
            message = client.queue.consume(queue, timeout=int(lease_seconds) + 2, ack_deadline=lease_seconds)
            if message is None:
                return
            step = {"lease": message.lease}
            say(
                got=message.message_id,
                deadline=message.deadline,
                retry_count=message.retry_count,
                message=message.message,
                **step,
            )
            time.sleep(dice.random() * 0.01)
            try:
                if dice.random() < 0.1:
                    say(nacking=message.message_id, **step)
                    client.queue.nack(queue, message.message_id)
                    say(nacked=message.message_id, **step)
                else:
                    say(acking=message.message_id, **step)
                    client.queue.ack(queue, message.message_id)
                    say(acked=message.message_id, **step)
            except MessageNotFoundError:
                say(late=message.message_id, **step)


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4], float(sys.argv[5]))
