"""What clients and their methods are given: options, and what is refused before anything is sent."""

from __future__ import annotations

import inspect
import sys
from typing import Any, Dict

import pytest

import synap
from synap import AsyncSynapClient, ClientConfig, ConnectionError, SynapClient, SynapError
from synap.config import without_secret
from synap.worker import Worker
from tests.client.conftest import Make

NOWHERE = "http://127.0.0.1:1"
CLIENTS = [AsyncSynapClient, SynapClient]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_configuration_and_its_fields_are_the_same(client: Any) -> None:
    options: Dict[str, Any] = {"url": NOWHERE, "api_key": "k", "timeout": 5.0, "retries": 1, "format": "msgpack"}
    assert client(ClientConfig(**options)).config == client(**options).config


@pytest.mark.parametrize("client", CLIENTS)
def test_every_field_of_the_configuration_is_an_argument_with_its_default(client: Any) -> None:
    parameters = inspect.signature(client).parameters
    for name, field in ClientConfig.__dataclass_fields__.items():
        assert repr(parameters[name].default) == repr(field.default)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", ClientConfig.__dataclass_fields__)
def test_each_argument_becomes_the_field_of_its_name(client: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Dict[str, Any] = {}
    module = sys.modules[client.__module__]
    monkeypatch.setattr(module, "resolve", lambda config, options: seen.update(options) or ClientConfig(url=NOWHERE))
    given = object()
    client(**{name: given})
    assert seen.keys() == ClientConfig.__dataclass_fields__.keys()
    assert [field for field, value in seen.items() if value is given] == [name]


@pytest.mark.parametrize("client", CLIENTS)
def test_an_unknown_option_is_refused_with_the_nearest_one(client: Any) -> None:
    with pytest.raises(SynapError, match="there is no option 'retires', did you mean 'retries'"):
        client(url=NOWHERE, retires=3)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_configuration_and_options_together_are_refused(client: Any) -> None:
    with pytest.raises(SynapError, match="not both"):
        client(ClientConfig(), timeout=5)
    for same in ({"timeout": 30.0}, {"retries": 3}, {"url": None}, {"keep_alive": True}):
        with pytest.raises(SynapError, match="not both"):
            client(ClientConfig(retries=3), **same)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_url_may_come_first(client: Any) -> None:
    assert client("memory://name").config == client(url="memory://name").config
    assert client(NOWHERE, timeout=5).config.timeout == 5
    with pytest.raises(SynapError, match="the URL is given twice"):
        client(NOWHERE, url=NOWHERE)


@pytest.mark.parametrize("client", CLIENTS)
def test_what_is_no_configuration_is_refused_with_what_would_be(client: Any) -> None:
    with pytest.raises(SynapError, match="config must be a ClientConfig or a URL, got 'int'"):
        client(12)
    with pytest.raises(SynapError, match="'http' is gone"):
        client(url=NOWHERE, transport="http")
    for seconds in (0, -1):
        with pytest.raises(SynapError, match="timeout must be a number of seconds, more than 0"):
            client(timeout=seconds)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(("url", "words"), [("htp://x", "did you mean http://"), ("ftp://x", "must begin with one of")])
def test_an_unknown_scheme_is_refused_by_name(client: Any, url: str, words: str) -> None:
    with pytest.raises(SynapError, match=words):
        client(url=url)


@pytest.mark.parametrize("client", CLIENTS)
def test_the_environment_gives_url_and_key(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNAP_URL", "memory://from-the-environment")
    monkeypatch.setenv("SYNAP_API_KEY", "secret")
    config = client().config
    assert (config.url, config.api_key) == ("memory://from-the-environment", "secret")
    assert "secret" not in repr(config)


async def test_nothing_connects_before_the_first_call(make: Make) -> None:
    client = make(NOWHERE, retries=0)
    with pytest.raises(ConnectionError) as caught:
        await client.kv.get("key")
    assert caught.value.code == "CONNECTION_FAILED"
    assert not caught.value.may_have_happened
    assert "nothing was sent" in str(caught.value)


async def test_connect_says_what_is_wrong(make: Make) -> None:
    with pytest.raises(ConnectionError, match=r"no connection to 127\.0\.0\.1:1"):
        await make(NOWHERE, retries=0).connect()


async def test_a_closed_client_says_so(make: Make) -> None:
    client = make("memory://")
    await client.kv.set("key", 1)
    await client.close()
    await client.close()
    for call in (client.kv.get("key"), client.connect(), client.health(), client.stream.subscribe("room")):
        with pytest.raises(ConnectionError, match="this client is closed"):
            await call


async def test_a_client_that_was_never_used_can_be_closed(make: Make) -> None:
    await make(NOWHERE).close()


async def test_leaving_out_the_deadline_leaves_it_to_the_queue(make: Make) -> None:
    client = make("memory://")
    await client.queue.create("own", ack_deadline=500)
    await client.queue.publish("own", 1)
    await client.queue.publish("own", 2)
    theirs = await client.queue.consume("own")
    ours = await client.queue.consume("own", ack_deadline=30)
    assert theirs is not None
    assert ours is not None
    assert theirs.deadline - ours.deadline > 400
    assert inspect.signature(AsyncSynapClient(url="memory://").queue.consume).parameters["ack_deadline"].default == 30


@pytest.mark.parametrize("key", [b"key", 7, None, 1.5])
async def test_a_key_that_is_no_string_is_refused_and_not_turned_into_one(make: Make, key: Any) -> None:
    client = make("memory://")
    for call in (client.kv.get(key), client.kv.set(key, 1), client.kv.delete("a", key), client.kv.mset({key: 1})):
        with pytest.raises(SynapError, match="key must be a string") as caught:
            await call
        assert caught.value.code == "INVALID_PAYLOAD"


async def test_headers_are_strings_named_by_strings(make: Make) -> None:
    client = make("memory://")
    for headers in ({"a": 1}, {"a": b"b"}, {1: "b"}, "a=b"):
        with pytest.raises(SynapError, match="headers must be"):
            await client.queue.publish("queue", 1, headers=headers)  # type: ignore[arg-type]


async def test_strings_of_other_types_are_strings(make: Make) -> None:
    class Name(str):
        pass

    client = make("memory://")
    await client.kv.set(Name("key"), 1)
    assert (await client.kv.get("key")).value == 1
    await client.queue.publish(Name("queue"), 1, headers={Name("a"): Name("b")})
    message = await client.queue.consume(Name("queue"))
    assert message is not None
    assert message.headers == {"a": "b"}


async def test_a_value_that_can_not_be_stored_is_refused_by_its_path(make: Make) -> None:
    client = make("memory://")
    with pytest.raises(SynapError, match=r"\$.a\[1\]"):
        await client.kv.set("key", {"a": [1, object()]})
    with pytest.raises(SynapError, match=r"commands\[0\]"):
        await client.batch([{"command": "kv.set", "payload": {"key": "key", "value": b"raw"}}])


@pytest.mark.parametrize(
    ("commands", "words"),
    [
        ([{"command": "kv.get", "payload": {"key": "a"}, "pay": 1}], r"commands\[0\] has the unknown field 'pay'"),
        ([{"payload": {}}], r"commands\[0\] needs the field 'command'"),
        (["kv.get"], r"commands\[0\] must be a dictionary"),
        ([{"command": "kv.get", "payload": ["a"]}], r"commands\[0\].payload must be a dictionary"),
        ([{"command": 7, "payload": {}}], r"commands\[0\].command must be the name of a command"),
        ({"command": "kv.get"}, "commands must be a list"),
    ],
)
async def test_a_batch_that_is_none_is_refused(make: Make, commands: Any, words: str) -> None:
    with pytest.raises(SynapError, match=words):
        await make("memory://").batch(commands)


async def test_an_empty_batch_has_no_results(make: Make) -> None:
    assert await make(NOWHERE).batch([]) == []


async def test_a_callback_must_be_callable(make: Make) -> None:
    with pytest.raises(SynapError, match="callback must be callable"):
        await make("memory://").stream.subscribe("room", "print")  # type: ignore[call-overload]


async def test_topics_are_a_list(make: Make) -> None:
    with pytest.raises(SynapError, match="topics must be a list of strings"):
        await make("memory://").pubsub.subscribe("a.b")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", synap.__all__)
def test_everything_listed_is_there(name: str) -> None:
    assert hasattr(synap, name)


SECRET_URLS = [
    "valkey://user:hush@10.0.0.1:6379",
    "valkey://user:hu@hush@10.0.0.1:6379",
    "valkey://:hush@10.0.0.1:6379,10.0.0.2:6379",
    "user:hush@10.0.0.1:6379",
    "wrong://user:hush://hush@host",
    "http://user:hush@host",
    "file://user:hush@host/path",
    "http://host:1/?api_key=hush",
    "http://host:1/#hush",
    "valkey://user:hush?@host:nonsense",
]


@pytest.mark.parametrize("url", SECRET_URLS)
def test_no_password_of_a_url_is_in_an_error(url: str) -> None:
    assert "hush" not in without_secret(url)
    if url.startswith("valkey://") and "nonsense" not in url:
        config = ClientConfig(url=url, engine={"password": "hush"})
        worker = Worker(AsyncSynapClient(config))
        assert "hush" not in f"{config!r} {SynapClient(config)!r} {worker.client!r} {worker!r}"
        return
    with pytest.raises(SynapError) as caught:
        ClientConfig(url=url)
    assert "hush" not in f"{caught.value} {caught.value.details}"


def test_what_is_no_secret_in_a_url_is_shown() -> None:
    assert without_secret("valkey://user:hush@10.0.0.1:6379,10.0.0.2") == "valkey://***@10.0.0.1:6379,10.0.0.2"
    assert without_secret("http://host:1/path") == "http://host:1/path"


@pytest.mark.parametrize("config", [{"api_key": "hush"}, ["hush"], 17])
def test_what_is_no_configuration_is_not_repeated(config: Any) -> None:
    with pytest.raises(SynapError) as caught:
        SynapClient(config)
    assert "hush" not in str(caught.value)


def test_an_empty_key_in_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNAP_API_KEY", "")
    monkeypatch.setenv("SYNAP_URL", "")
    for client in CLIENTS:
        assert client().config.api_key is None
        assert client().config.url == "http://localhost:15500"
