"""The clients as specifications of mocks, as the guide shows it."""

from __future__ import annotations

import inspect
from unittest.mock import AsyncMock, MagicMock

import pytest

from synap import AsyncSynapClient, GetResult, QueueMessage, SynapClient


async def test_the_guides_mock_answers_what_it_is_told() -> None:
    mock_client = AsyncMock(spec=AsyncSynapClient)
    mock_client.kv.get.return_value = GetResult(found=True, value={"name": "Alice"}, ttl=3600)

    result = await mock_client.kv.get("user:1")

    assert result.value["name"] == "Alice"
    mock_client.kv.get.assert_awaited_once_with("user:1")


@pytest.mark.parametrize("group", ["kv", "queue", "stream", "pubsub"])
async def test_every_group_of_a_mock_is_awaitable(group: str) -> None:
    mock_client = AsyncMock(spec=AsyncSynapClient)
    getattr(mock_client, group).publish.return_value = 7
    assert await getattr(mock_client, group).publish("x", 1) == 7


async def test_the_clients_own_methods_are_awaitable_in_a_mock() -> None:
    mock_client = AsyncMock(spec=AsyncSynapClient)
    mock_client.ping.return_value = 0.5
    assert await mock_client.ping() == 0.5
    await mock_client.close()
    mock_client.close.assert_awaited_once()


def test_a_mock_knows_only_what_the_client_has() -> None:
    with pytest.raises(AttributeError):
        AsyncMock(spec=AsyncSynapClient).kvv  # noqa: B018


def test_the_sync_clients_mock_is_not_awaitable() -> None:
    mock_client = MagicMock(spec=SynapClient)
    message = QueueMessage("1", "hello", 5, 0, {})
    mock_client.queue.consume.return_value = message
    assert mock_client.queue.consume("tasks") is message


async def test_a_real_clients_groups_are_no_coroutine_functions() -> None:
    client = AsyncSynapClient(url="memory://")
    assert not inspect.iscoroutinefunction(client.kv)
    assert client.kv is client.kv
    await client.close()
