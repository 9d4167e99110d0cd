"""Run taskiq-redis's tests of brokers and result backends against `synap.contrib.taskiq`.

Get them with `git clone https://github.com/taskiq-python/taskiq-redis`, then run
`python -m tests.hosts.taskiq taskiq-redis`. `redis` has to be installed, since the tests import it. A module named
`taskiq_redis` gives them ours under the names they use; the list broker, which acknowledges nothing, is ours with each
task acknowledged when it is read.
"""

from __future__ import annotations

import sys

from tests.hosts.runs import checkout, exceptions, pytest_run

SHIM = """
from typing import Any

from synap.contrib.taskiq import SynapBroadcastBroker, SynapBroker, SynapResultBackend
from taskiq_redis.exceptions import DuplicateExpireTimeSelectedError, ExpireTimeMustBeMoreThanZeroError


class ListQueueBroker(SynapBroker):
    def __init__(self, url, queue_name="taskiq", max_connection_pool_size=None, timeout=30.0):
        super().__init__(url, queue_name, options={"timeout": timeout})

    async def listen(self):
        async for message in super().listen():
            await message.ack()
            yield message.data


class PubSubBroker(SynapBroadcastBroker):
    def __init__(self, url, queue_name="taskiq", max_connection_pool_size=None, timeout=30.0):
        super().__init__(url, queue_name, options={"timeout": timeout})


class RedisStreamBroker(SynapBroker):
    def __init__(self, url, queue_name="taskiq", consumer_group_name=None):
        super().__init__(url, queue_name)


class RedisAsyncResultBackend(SynapResultBackend):
    def __init__(
        self, redis_url, keep_results=True, result_ex_time=None, result_px_time=None,
        max_connection_pool_size=None, timeout=30.0,
    ):
        if any(time is not None and time <= 0 for time in (result_ex_time, result_px_time)):
            raise ExpireTimeMustBeMoreThanZeroError
        if result_ex_time and result_px_time:
            raise DuplicateExpireTimeSelectedError
        ttl = result_px_time / 1000 if result_px_time else result_ex_time
        super().__init__(redis_url, keep_results=keep_results, ttl=ttl, options={"timeout": timeout})


def __getattr__(name) -> Any:  # brokers for Redis Cluster and Sentinel: their tests are not run
    return None
"""

ERRORS = """
from synap.contrib.taskiq import ResultIsMissingError


class DuplicateExpireTimeSelectedError(Exception):
    pass


class ExpireTimeMustBeMoreThanZeroError(Exception):
    pass
"""

LEFT_OUT = {
    "XLEN of a Redis Stream: a queue refuses when it is full instead of dropping what is oldest": (
        "test_broker.py::test_maxlen_in_stream_broker",
    ),
    "a lock that Redis needs for taking over tasks of dead workers; leases end by themselves": (
        "test_broker.py::test_unacknowledged_lock_timeout_in_stream_broker",
    ),
    "the URL may be left out: then it is SYNAP_URL, or http://localhost:15500": (
        "test_broker.py::test_no_url_should_raise_typeerror",
    ),
}

if __name__ == "__main__":
    source = checkout(__doc__, "tests/test_broker.py")
    names = ("test_broker.py", "test_backend.py", "test_result_backend.py")
    files = {name: (source / "tests" / name).read_text("utf-8") for name in names}
    conftest = (source / "tests" / "conftest.py").read_text("utf-8")
    files["conftest.py"] = conftest.replace('"TEST_REDIS_URL"', '"SYNAP_URL"')
    files["taskiq_redis/__init__.py"] = SHIM
    files["taskiq_redis/redis_broker.py"] = "from taskiq_redis import RedisStreamBroker\n"
    files["taskiq_redis/exceptions.py"] = ERRORS
    print("left out: Redis Cluster and Sentinel, which are other kinds of servers")
    sys.exit(pytest_run([*exceptions(LEFT_OUT), "-k", "not cluster and not sentinel"], files))
