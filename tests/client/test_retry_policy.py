"""When a request is tried again, and after how long."""

from __future__ import annotations

import math
from typing import Optional

import pytest

from synap import ClientConfig, SynapError
from synap.client.retry import RetryPolicy, is_repeatable, retry_after
from synap.commands import KV_INCR, PUBSUB_PUBLISH
from synap.errors import from_wire


def policy(retries: int = 5, *, chance: float = 0.0, **options: float) -> RetryPolicy:
    config = ClientConfig(retries=retries, **options)  # type: ignore[arg-type]
    return RetryPolicy(config, lambda: chance)


LOST = from_wire("CONNECTION_LOST", "gone")


def test_pauses_grow_up_to_the_longest() -> None:
    growing = policy(retry_delay=1.0, retry_backoff=2.0, retry_max_delay=5.0)
    assert [growing.pause(LOST, attempt) for attempt in range(6)] == [1.0, 2.0, 4.0, 5.0, 5.0, None]


def test_chance_shortens_a_pause_by_up_to_half() -> None:
    assert policy(retry_delay=1.0, chance=0.5).pause(LOST, 0) == 0.75
    assert policy(retry_delay=1.0, chance=1.0).pause(LOST, 0) == 0.5


def test_a_backoff_beyond_all_numbers_is_the_longest_pause() -> None:
    assert policy(10**6, retry_backoff=10.0, retry_max_delay=7.0).pause(LOST, 999_999) == 7.0


@pytest.mark.parametrize("code", ["CONNECTION_FAILED", "CONNECTION_LOST", "RATE_LIMIT_EXCEEDED", "SERVICE_UNAVAILABLE"])
def test_what_may_be_over_in_a_moment_is_tried_again(code: str) -> None:
    assert policy().pause(from_wire(code, "again"), 0) is not None


@pytest.mark.parametrize("code", ["TIMEOUT", "INVALID_PAYLOAD", "KEY_NOT_FOUND", "UNAUTHORIZED", "QUEUE_FULL"])
def test_everything_else_is_not(code: str) -> None:
    assert policy().pause(from_wire(code, "no"), 0) is None


@pytest.mark.parametrize(("asked", "pause"), [(0.05, 0.1), (3, 3.0), (30, 30.0), (31, None)])
def test_what_the_service_asks_for_is_waited_unless_it_is_too_long(asked: float, pause: Optional[float]) -> None:
    error = from_wire("RATE_LIMIT_EXCEEDED", "slower", {"retry_after": asked})
    assert policy().pause(error, 0) == pause


@pytest.mark.parametrize("asked", [10**400, 1e300, math.inf], ids=["no float", "large", "infinite"])
def test_no_pause_is_longer_than_can_be_waited(asked: float) -> None:
    error = from_wire("RATE_LIMIT_EXCEEDED", "slower", {"retry_after": asked})
    assert policy().pause(error, 0) is None
    assert retry_after(error) <= 10**6


def test_no_retries_means_none() -> None:
    assert policy(0).pause(LOST, 0) is None


def test_what_is_remembered_may_be_repeated_and_a_topic_message_only_if_it_was_not_sent() -> None:
    doubtful = SynapError("CONNECTION_LOST", "gone")
    doubtful.may_have_happened = True
    assert is_repeatable(KV_INCR, doubtful)
    assert not is_repeatable(PUBSUB_PUBLISH, doubtful)
    assert is_repeatable(PUBSUB_PUBLISH, LOST)


def test_tries_that_were_brought_about_lengthen_the_pauses_and_are_none_of_the_retries() -> None:
    growing = policy(1, retry_delay=1.0, retry_backoff=2.0, retry_max_delay=5.0, chance=0.0)
    assert [growing.pause(LOST, 0, free) for free in range(4)] == [1.0, 2.0, 4.0, 5.0]
    assert growing.pause(LOST, 1, 0) is None
