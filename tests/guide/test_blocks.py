"""The guide's examples, run as they are printed against a real service."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List

import pytest

import synap
from synap import AsyncSynapClient, StreamEvent
from synap.testing import ThrowawayServer
from tests.guide.blocks import BLOCKS, run, source
from tests.helpers.patience import PATIENCE, about
from tests.helpers.seen import Seen

COMPARED = {1, 5, 7, 8, 10, 12, 14, 15, 17, 18, 20, 21, 23, 24, 25, 27, 28, 30, 31, 33, 35}
"""Blocks that print a signature, a class or a shell command: `test_signatures.py` has them."""

RUN = {
    2: "test_the_quick_starts_run",
    3: "test_the_quick_starts_run",
    4: "test_the_configuration_is_accepted",
    6: "test_set",
    9: "test_get",
    11: "test_delete",
    13: "test_incr_and_decr",
    16: "test_scan",
    19: "test_publish_to_a_queue",
    22: "test_consume",
    26: "test_publish_to_a_room",
    29: "test_subscribe_to_a_room",
    32: "test_publish_to_a_topic",
    34: "test_subscribe_to_topics",
    36: "test_handling_errors",
    37: "test_context_manager",
    38: "test_type_hints",
    39: "test_cache_decorator",
    40: "test_background_task_worker",
    41: "test_chat_listener",
    42: "test_notifications",
    43: "test_the_sync_client",
    44: "test_fixtures",
    45: "test_mock_client",
    46: "test_connection_pool",
    47: "test_explicit_close",
    48: "test_reconnection",
    49: "test_batch",
    50: "test_custom_serialization",
    51: "test_event_handlers",
    52: "test_type_stubs",
}
"""Which test runs which block."""

Printed = pytest.CaptureFixture[str]


def names(client: AsyncSynapClient, **more: Any) -> Dict[str, Any]:
    """What the guide's shorter blocks take for granted: its imports, and a client."""
    exported = {name: getattr(synap, name) for name in synap.__all__}
    return {
        **exported,
        "__name__": "guide",
        "Any": Any,
        "Dict": Dict,
        "asyncio": asyncio,
        "client": client,
        "datetime": datetime,
        **more,
    }


def test_every_block_has_a_test() -> None:
    assert set(BLOCKS) == set(range(1, len(BLOCKS) + 1))
    assert set(RUN) | COMPARED == set(BLOCKS)
    assert not set(RUN) & COMPARED
    assert all(test in globals() for test in RUN.values())


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("auth", [False, True])
def test_the_quick_starts_run(number: int, auth: bool, tmp_path: Path) -> None:
    arguments = ["--api-key", "synap_your_api_key"] if auth else []
    with ThrowawayServer(arguments=arguments) as server:
        program = tmp_path / "quick_start.py"
        program.write_text(source(number, server.url), "utf-8")
        done = subprocess.run([sys.executable, program], capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_the_configuration_is_accepted(url: str, client: AsyncSynapClient) -> None:
    made = await run(4, url, names(client))
    await made["client"].kv.set("key", "value")
    assert (await client.kv.get("key")).value == "value"
    await made["client"].close()


async def test_set(url: str, client: AsyncSynapClient, capsys: Printed) -> None:
    await run(6, url, names(client, result={"computed": True}))
    assert (await client.kv.get("session:abc")).value == {"user_id": 123}
    cached = await client.kv.get("cache:data")
    assert cached.value == {"computed": True}
    assert cached.ttl in about(3600)
    await run(6, url, names(client, result=None))
    assert capsys.readouterr().out == "Lock acquired\nLock already exists\n"


async def test_get(url: str, client: AsyncSynapClient, capsys: Printed) -> None:
    await run(9, url, names(client))
    await client.kv.set("user:1001", {"name": "Alice"})
    await run(9, url, names(client))
    assert capsys.readouterr().out == "Key not found\nValue: {'name': 'Alice'}\nTTL: None\n"


async def test_delete(url: str, client: AsyncSynapClient, capsys: Printed) -> None:
    await client.kv.mset({"user:1001": 1, "user:1002": 2, "user:1003": 3})
    await run(11, url, names(client))
    assert capsys.readouterr().out == "Deleted 2 keys\n"


async def test_incr_and_decr(url: str, client: AsyncSynapClient) -> None:
    made = await run(13, url, names(client))
    assert (made["views"], made["count"], made["remaining"]) == (1, 5, -1)


async def test_scan(url: str, client: AsyncSynapClient, capsys: Printed) -> None:
    await client.kv.mset({f"user:{number}": number for number in range(250)})
    await client.kv.set("other", 1)
    made = await run(16, url, names(client))
    assert sorted(made["all_keys"]) == sorted(f"user:{number}" for number in range(250))
    assert capsys.readouterr().out == "Found 250 user keys\n"


async def test_publish_to_a_queue(url: str, client: AsyncSynapClient, capsys: Printed) -> None:
    made = await run(19, url, names(client))
    assert capsys.readouterr().out == f"Published message {made['result'].message_id} at position 1\n"
    message = await client.queue.consume("tasks")
    assert message is not None
    assert (message.priority, message.headers) == (8, {"source": "signup-flow"})
    assert message.message == {"type": "send_email", "to": "user@example.com", "subject": "Welcome!"}


async def test_consume(url: str, client: AsyncSynapClient) -> None:
    processed: List[Any] = []

    async def process_task(task: Any) -> None:
        processed.append(task)
        if task == "bad":
            raise ValueError("no good")

    await client.queue.publish("tasks", "polled")
    await client.queue.publish("tasks", "good")
    await run(22, url, names(client, process_task=process_task))
    assert (await client.queue.stats("tasks")).acked_total == 1
    await client.queue.purge("tasks")
    await client.queue.publish("tasks", "polled")
    await client.queue.publish("tasks", "bad")
    await run(22, url, names(client, process_task=process_task))
    assert processed == ["good", "bad"]
    stats = await client.queue.stats("tasks")
    assert (stats.acked_total, stats.nacked_total, stats.depth) == (1, 1, 1)


async def test_publish_to_a_room(url: str, client: AsyncSynapClient, capsys: Printed) -> None:
    await run(26, url, names(client))
    assert capsys.readouterr().out == "Event 0 sent to 0 subscribers\n"


async def test_subscribe_to_a_room(url: str, client: AsyncSynapClient, capsys: Printed) -> None:
    for number in range(60):
        await client.stream.publish("chat-room-1", "message", {"user": "alice", "text": str(number)})
    seen = Seen()
    code = names(client)

    class Waiting:
        """Holds the block's `unsubscribe` back until the history has come."""

        async def subscribe(self, room: str, callback: Any, **options: Any) -> Any:
            def both(event: StreamEvent) -> None:
                callback(event)
                seen(event.offset)

            subscription = await client.stream.subscribe(room, both, **options)
            await seen.first(50)
            return subscription

    code["client"] = type("Client", (), {"stream": Waiting()})()
    await run(29, url, code)
    assert seen.items == list(range(10, 60))
    assert capsys.readouterr().out == "".join(f"alice: {number}\n" for number in range(10, 60))


async def test_publish_to_a_topic(url: str, client: AsyncSynapClient, capsys: Printed) -> None:
    seen = Seen()
    subscription = await client.pubsub.subscribe(["notifications.email.*"], seen)
    await run(32, url, names(client))
    assert capsys.readouterr().out == "Delivered to 1 subscribers\n"
    [(topic, message)] = await seen.first(1)
    assert (topic, message["to"]) == ("notifications.email.user", "alice@example.com")
    await subscription.unsubscribe()


async def test_subscribe_to_topics(url: str, client: AsyncSynapClient, capsys: Printed) -> None:
    seen = Seen()
    code = names(client)

    class Waiting:
        """Publishes between the block's `subscribe` and its `unsubscribe`."""

        async def subscribe(self, topics: List[str], callback: Any) -> Any:
            def both(topic: str, message: Any) -> None:
                callback(topic, message)
                seen(topic)

            subscription = await client.pubsub.subscribe(topics, both)
            for topic in ("notifications.email.a", "notifications.sms.a", "events.user", "events.user.b.c"):
                await client.pubsub.publish(topic, 1)
            await seen.until("events.user.b.c")
            return subscription

    code["client"] = type("Client", (), {"pubsub": Waiting()})()
    await run(34, url, code)
    assert capsys.readouterr().out == "[notifications.email.a] 1\n[events.user] 1\n[events.user.b.c] 1\n"
    assert (await client.pubsub.publish("events.user", 1)).subscribers_matched == 0


async def test_handling_errors(url: str, client: AsyncSynapClient, capsys: Printed) -> None:
    made = await run(36, url, names(client))
    assert not made["value"].found
    assert capsys.readouterr().out == ""
    await made["client"].close()


async def test_context_manager(url: str, client: AsyncSynapClient) -> None:
    made = await run(37, url, names(client))
    assert made["result"].value == "value"


async def test_type_hints(url: str, client: AsyncSynapClient) -> None:
    made = await run(38, url, names(client))
    await client.kv.set("user:1", {"name": "Alice"})
    assert await made["get_user"](client, 1) == {"name": "Alice"}
    assert await made["get_user"](client, 2) is None


async def test_cache_decorator(url: str, client: AsyncSynapClient) -> None:
    asked: List[int] = []

    async def fetch_from_database(user_id: int) -> Dict[str, Any]:
        asked.append(user_id)
        return {"id": user_id, "name": "Alice"}

    made = await run(39, url, names(client, fetch_from_database=fetch_from_database))
    service = made["UserService"](client)
    for _ in range(3):
        assert await service.get_user_profile(7) == {"id": 7, "name": "Alice"}
    assert asked == [7]
    assert (await client.kv.get("get_user_profile:(7,):{}")).ttl in about(300)


async def test_background_task_worker(url: str, client: AsyncSynapClient, capsys: Printed) -> None:
    made = await run(40, url, names(client))
    TaskWorker: Any = made["TaskWorker"]
    tries: Dict[str, int] = {}
    done = Seen()

    class Worker(TaskWorker):  # type: ignore[misc]  # the guide's class, made by its block
        async def process_task(self, task: Dict[str, Any]) -> None:
            await super().process_task(task)
            tries[task["name"]] = tries.get(task["name"], 0) + 1
            if task["name"] == "flaky" and tries["flaky"] < 3:
                raise ValueError("not this time")
            done(task["name"])

    worker = Worker(client, "guide-tasks")
    working = asyncio.create_task(worker.start())
    for name in ("first", "flaky", "last"):
        await client.queue.publish("guide-tasks", {"name": name})
    assert sorted(await done.first(3)) == ["first", "flaky", "last"]
    while (await client.queue.stats("guide-tasks")).acked_total < 3:
        await asyncio.sleep(0.01)
    worker.stop()
    await client.queue.publish("guide-tasks", {"name": "one more, so that it looks"})
    await asyncio.wait_for(working, PATIENCE)
    assert tries["flaky"] == 3
    stats = await client.queue.stats("guide-tasks")
    assert (stats.depth, stats.pending, stats.acked_total, stats.nacked_total) == (0, 0, 4, 2)
    printed = capsys.readouterr().out
    assert "Processing task: {'name': 'first'}\n" in printed
    assert printed.count("Worker error: not this time\n") == 2


async def test_chat_listener(url: str, client: AsyncSynapClient, capsys: Printed) -> None:
    made = await run(41, url, names(client))
    ChatListener: Any = made["ChatListener"]

    class Listener(ChatListener):  # type: ignore[misc]  # the guide's class, made by its block
        def get_username(self) -> str:
            return "alice"

    for number in range(60):
        await client.stream.publish("chat-lobby", "message", {"user": "bob", "text": f"old {number}"})
    async with AsyncSynapClient(url=url) as another:
        listener, speaker = Listener(client), Listener(another)
        await listener.join_room("lobby")
        await client.stream.publish("chat-lobby", "join", {"user": "carol"})
        await speaker.send_message("lobby", "Hello everyone!")
        await client.stream.publish("chat-lobby", "leave", {"user": "carol"})
        printed = ""
        while "left the room" not in printed:
            await asyncio.sleep(0.01)
            printed += capsys.readouterr().out
        await listener.leave_room()
        await speaker.leave_room()
    expected = [f"bob: old {number}" for number in range(10, 60)]
    expected += ["carol joined the room", "alice: Hello everyone!", "carol left the room"]
    assert printed.splitlines() == expected


async def test_notifications(url: str, client: AsyncSynapClient) -> None:
    made = await run(42, url, names(client))
    NotificationService: Any = made["NotificationService"]
    sent = Seen()

    class Service(NotificationService):  # type: ignore[misc]  # the guide's class, made by its block
        def send_email(self, message: Dict[str, Any]) -> None:
            sent("email", message["to"])

        def send_sms(self, message: Dict[str, Any]) -> None:
            sent("sms", message["to"])

        def send_push(self, message: Dict[str, Any]) -> None:
            sent("push", message["to"])

    async with AsyncSynapClient(url=url) as another:
        service = Service(another)
        await service.start_listening()
        await service.notify_email("alice@example.com", "Welcome!", "Thanks")
        await client.pubsub.publish("notifications.sms.user", {"to": "+49"})
        await client.pubsub.publish("notifications.push", {"to": "phone"})
        assert await sent.first(3) == [("email", "alice@example.com"), ("sms", "+49"), ("push", "phone")]


async def test_the_sync_client(url: str, client: AsyncSynapClient) -> None:
    def use() -> Any:
        made: Dict[str, Any] = {"__name__": "guide"}
        exec(compile(source(43, url), "guide", "exec"), made)
        made["client"].close()
        return made["value"]

    value = await asyncio.get_running_loop().run_in_executor(None, use)
    assert (value.found, value.value) == (True, "value")
    message = await client.queue.consume("tasks")
    assert message is not None
    assert message.message == {"data": "value"}


def test_fixtures(url: str, tmp_path: Path) -> None:
    (tmp_path / "test_guide.py").write_text(source(44, url), "utf-8")
    settings = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    (tmp_path / "pytest.ini").write_text(settings, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(place or ".") for place in sys.path)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


async def test_mock_client(url: str, client: AsyncSynapClient) -> None:
    made = await run(45, url, names(client))
    assert made["result"].ttl == 3600
    made["mock_client"].kv.get.assert_awaited_once_with("user:1")
    with pytest.raises(AttributeError):
        made["mock_client"].kvs  # noqa: B018  (what the real client has not, the mock has not)


async def test_connection_pool(url: str, client: AsyncSynapClient) -> None:
    made = await run(46, url, names(client))
    await made["client"].close()


async def test_explicit_close(url: str, client: AsyncSynapClient) -> None:
    await run(47, url, names(client))
    assert (await client.kv.get("key")).value == "value"


async def test_reconnection(url: str, client: AsyncSynapClient) -> None:
    made = await run(48, url, names(client))
    assert not (await made["client"].kv.get("key")).found
    await made["client"].close()


async def test_batch(url: str, client: AsyncSynapClient, capsys: Printed) -> None:
    made = await run(49, url, names(client))
    assert [result.status for result in made["results"]] == ["success"] * 3
    assert made["results"][2].payload["value"] == "Alice"
    assert capsys.readouterr().out.count("Success: ") == 3
    assert (await client.kv.get("user:2")).value == "Bob"


async def test_custom_serialization(url: str, client: AsyncSynapClient) -> None:
    large_object = {"raw": bytes(range(256)) * 1000, "list": list(range(1000))}
    made = await run(50, url, names(client, large_object=large_object))
    assert (await made["client"].kv.get("binary-data")).value == large_object
    await made["client"].close()


async def test_event_handlers(client: AsyncSynapClient, capsys: Printed) -> None:
    with ThrowawayServer() as server:
        made = await run(51, server.url, names(client))
        printed = ""
        await made["client"].kv.set("key", "value")
        while "Connected to Synap\n" not in printed:
            await asyncio.sleep(0.01)
            printed += capsys.readouterr().out
        await made["client"].stream.subscribe("room", print)
        server.kill()
        while "Disconnected: " not in printed:
            await asyncio.sleep(0.01)
            printed += capsys.readouterr().out
        await made["client"].close()


async def test_type_stubs(url: str, client: AsyncSynapClient) -> None:
    made = await run(52, url, {})
    assert made["AsyncSynapClient"] is AsyncSynapClient
