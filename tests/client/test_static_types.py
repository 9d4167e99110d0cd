"""What type checkers know of the public API: `assert_type` is checked by mypy, which goes through this folder too, and
by pyright in `.ci/run`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional

from typing_extensions import assert_type

from synap import AsyncSynapClient, GetResult, QueueMessage, StreamEvent, SynapClient


@dataclass
class User:
    name: str


async def test_typed_results_of_the_async_client() -> None:
    async with AsyncSynapClient(url="memory://") as client:
        await client.kv.set("u", User("Alice"))
        assert_type((await client.kv.get("u", type=User)).value, Optional[User])
        assert_type((await client.kv.get("u", required=True, type=User)), GetResult[User])
        assert_type((await client.kv.get("u")).value, Optional[Any])
        await client.kv.set("many", [User("Alice")])
        assert_type((await client.kv.get("many", type=List[User])).value, Optional[List[User]])
        await client.queue.publish("q", User("Alice"))
        message = await client.queue.consume("q", type=User)
        assert_type(message, Optional[QueueMessage[User]])
        assert message is not None
        assert_type(message.message, User)
        await client.stream.publish("r", "joined", User("Alice"))
        page = await client.stream.history("r", type=User)
        assert_type(page.events, List[StreamEvent[User]])
        async with await client.stream.subscribe("r", replay=True, type=User) as subscription:
            async for event in subscription:
                assert_type(event.data, User)
                break


def test_typed_results_of_the_sync_client() -> None:
    with SynapClient(url="memory://") as client:
        client.kv.set("u", User("Alice"))
        assert_type(client.kv.get("u", type=User).value, Optional[User])
        client.queue.publish("q", User("Alice"))
        assert_type(client.queue.consume("q", type=User), Optional[QueueMessage[User]])
        client.stream.publish("r", "joined", User("Alice"))
        assert_type(client.stream.history("r", type=User).events[0].data, User)
        with client.stream.subscribe("r", replay=True, type=User) as subscription:
            for event in subscription:
                assert_type(event.data, User)
                break


def test_a_result_without_a_type_parameter_holds_anything() -> None:
    result: GetResult = GetResult(True, {"name": "Alice"})
    assert_type(result.value, Optional[Any])
