"""Run kombu's integration tests of a transport against `synap.contrib.celery`.

Get them with `pip download --no-deps --no-binary :all: kombu`, unpack it, and run
`python -m tests.hosts.kombu kombu-5.7.0`. These are the classes of `t/integration/common.py`, which kombu runs for
RabbitMQ, Redis and others. Nothing is left out.
"""

from __future__ import annotations

import sys

from tests.hosts.runs import checkout, pytest_run

TESTS = """
import os
import uuid

import kombu
import pytest
from common import (
    BaseEventLoop, BaseExchangeTypes, BaseFailover, BaseMessage, BasePriority, BaseTimeToLive, BasicFunctionality
)

import synap.contrib.celery

URL = os.environ["SYNAP_URL"].replace("http://", "synap://")


def new_connection():
    return kombu.Connection(f"{URL}/{uuid.uuid4()}")


@pytest.fixture()
def connection():
    with new_connection() as connection:
        yield connection


@pytest.fixture()
def invalid_connection():
    options = {"options": {"retries": 0}}
    return kombu.Connection("synap://localhost:12345", transport_options=options)


@pytest.fixture()
def failover_connection():
    options = {"options": {"retries": 0}}
    return kombu.Connection(["synap://localhost:12345", URL], transport_options=options)


class TestBasicFunctionality(BasicFunctionality):
    pass


class TestExchangeTypes(BaseExchangeTypes):
    pass


class TestTimeToLive(BaseTimeToLive):
    pass


class TestPriority(BasePriority):
    pass


class TestFailover(BaseFailover):
    pass


class TestMessage(BaseMessage):
    pass


class TestEventLoop(BaseEventLoop):
    pass
"""

if __name__ == "__main__":
    source = checkout(__doc__, "t/integration/common.py")
    files = {name: (source / "t/integration" / name).read_text("utf-8") for name in ("common.py",)}
    files["test_synap.py"] = TESTS
    sys.exit(pytest_run([], files))
