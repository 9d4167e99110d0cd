"""With `type=T` a value is checked and comes back as an object of that type; objects of such types may be stored."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field, make_dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Dict, List, Optional, Set, Tuple
from uuid import UUID

import attr
import msgspec
import pydantic
import pytest
from typing_extensions import TypedDict

from synap import AsyncSynapClient, StreamEvent, SynapError
from tests.helpers.patience import in_time
from tests.helpers.seen import Seen


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Address:
    street: str
    since: Optional[date] = None


@dataclass
class User:
    name: str
    age: int
    addresses: List[Address] = field(default_factory=list)
    colours: Dict[str, Colour] = field(default_factory=dict)


class Point(msgspec.Struct):
    x: float
    y: float


class Narrow(msgspec.Struct, forbid_unknown_fields=True):
    x: float


class NarrowModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    x: float


@attr.s(auto_attribs=True)
class Parcel:
    number: int
    stops: Set[str] = attr.Factory(set)


class Movie(TypedDict):
    title: str
    year: int


class Order(pydantic.BaseModel):
    number: UUID
    total: Decimal
    placed: datetime
    by: str = pydantic.Field(alias="customer")


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    day: date


ALICE = User("Alice", 30, [Address("Elm Street", date(2020, 2, 29))], {"favourite": Colour.RED})
NOON = datetime(2024, 5, 1, 12, 0, 0, 250_000, tzinfo=timezone.utc)
NUMBER = UUID("12345678-1234-5678-1234-567812345678")
ORDER = Order(number=NUMBER, total=Decimal("9.90"), placed=NOON, customer="Alice")

OBJECTS: List[Tuple[Any, Any]] = [
    (ALICE, User),
    (Point(1.5, -2.0), Point),
    (Movie(title="Metropolis", year=1927), Movie),
    (Parcel(7, {"Bern", "Basel"}), Parcel),
    (ORDER, Order),
    (Strict(day=date(2024, 1, 1)), Strict),
    (NOON, datetime),
    (date(2024, 5, 1), date),
    (timedelta(seconds=90), timedelta),
    (NUMBER, UUID),
    (Decimal("0.10"), Decimal),
    (Colour.BLUE, Colour),
    ([ALICE, ALICE], List[User]),
    ({"a": ORDER}, Dict[str, Order]),
    ([{"when": NOON}], List[Dict[str, datetime]]),
    (None, Optional[User]),
    (7, int),
    ("text", str),
]
NAMES = [str(getattr(wanted, "__name__", wanted)) for _, wanted in OBJECTS]


@pytest.mark.parametrize(("value", "wanted"), OBJECTS, ids=NAMES)
async def test_an_object_comes_back_equal_and_of_its_type(
    client: AsyncSynapClient, name: str, value: Any, wanted: Any
) -> None:
    await client.kv.set(name, value)
    result = await client.kv.get(name, type=wanted)
    assert result.value == value
    assert type(result.value) is type(value)


@pytest.mark.parametrize(("wanted", "ignored"), [(Point, True), (Address, True), (Narrow, False), (NarrowModel, False)])
async def test_a_field_that_the_type_does_not_know_is_ignored_unless_it_forbids_that(
    client: AsyncSynapClient, name: str, wanted: Any, ignored: bool
) -> None:
    await client.kv.set(name, {"x": 1.0, "y": 2.0, "street": "Elm Street", "more": 3})
    if ignored:
        assert isinstance((await client.kv.get(name, type=wanted)).value, wanted)
    else:
        with pytest.raises(SynapError) as caught:
            await client.kv.get(name, type=wanted)
        assert caught.value.code == "WRONG_TYPE"


async def test_a_set_is_refused_on_its_own_and_may_be_in_an_object_whose_type_brings_it_back(
    client: AsyncSynapClient, name: str
) -> None:
    with pytest.raises(SynapError) as caught:
        await client.kv.set(name, {"Bern"})
    assert caught.value.code == "INVALID_PAYLOAD"
    await client.kv.set(name, Parcel(1, {"Bern"}))
    assert (await client.kv.get(name, type=Parcel)).value == Parcel(1, {"Bern"})


async def test_every_facility_takes_and_gives_objects(client: AsyncSynapClient, name: str) -> None:
    await client.kv.mset({name: ALICE})
    assert (await client.kv.get(name, required=True, type=User)).value == ALICE
    await client.queue.publish(name, ALICE)
    message = await client.queue.consume(name, type=User)
    assert message is not None
    assert message.message == ALICE
    await client.queue.ack(name, message.message_id)
    await client.stream.publish(name, "joined", ALICE)
    assert [event.data for event in (await client.stream.history(name, type=User)).events] == [ALICE]
    results = await client.batch([{"command": "kv.set", "payload": {"key": name, "value": {"inside": [ALICE]}}}])
    assert results[0].status == "success"
    assert (await client.kv.get(name, type=Dict[str, List[User]])).value == {"inside": [ALICE]}


@pytest.mark.without("crashing")
async def test_topics_take_objects(client: AsyncSynapClient, name: str) -> None:
    seen = Seen()
    await client.pubsub.subscribe([name], seen)
    await client.pubsub.publish(name, Point(1.0, 2.0))
    assert await seen.first(1) == [(name, {"x": 1.0, "y": 2.0})]


async def test_without_a_type_an_object_comes_back_as_plain_values(client: AsyncSynapClient, name: str) -> None:
    await client.kv.set(name, ALICE)
    assert (await client.kv.get(name)).value == {
        "name": "Alice",
        "age": 30,
        "addresses": [{"street": "Elm Street", "since": "2020-02-29"}],
        "colours": {"favourite": "red"},
    }


async def test_a_missing_key_has_no_type(client: AsyncSynapClient, name: str) -> None:
    result = await client.kv.get(name, type=User)
    assert (result.found, result.value) == (False, None)


MISFITS: List[Tuple[Any, Any, str]] = [
    ({"name": "Alice", "age": "thirty"}, User, "$.age"),
    ({"name": "Alice"}, User, "$"),
    ({"name": "Alice", "age": 1, "addresses": [{"street": "a"}, {"street": 2}]}, User, "$.addresses[1].street"),
    ({"a": "green"}, Dict[str, Colour], "$[...]"),
    ([{"number": "x", "total": 1, "placed": "2024-05-01T12:00:00Z", "customer": "A"}], List[Order], "$[0].number"),
    ("123", int, "$"),
    ("yesterday", datetime, "$"),
    (None, User, "$"),
]


@pytest.mark.parametrize(("value", "wanted", "path"), MISFITS, ids=[path for _, _, path in MISFITS])
async def test_a_value_that_does_not_fit_is_refused_with_the_path(
    client: AsyncSynapClient, name: str, value: Any, wanted: Any, path: str
) -> None:
    await client.kv.set(name, value)
    with pytest.raises(SynapError) as caught:
        await client.kv.get(name, type=wanted)
    assert caught.value.code == "WRONG_TYPE"
    assert caught.value.details == {"key": name, "path": path}
    assert path in caught.value.message


async def test_a_message_that_does_not_fit_stays_leased_and_is_named(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, {"name": "Alice"})
    with pytest.raises(SynapError) as caught:
        await client.queue.consume(name, type=User)
    assert caught.value.code == "WRONG_TYPE"
    assert caught.value.details["queue"] == name
    assert await client.queue.consume(name) is None
    assert (await client.queue.nack(name, caught.value.details["message_id"], requeue=False)).success


async def test_of_many_messages_the_one_that_does_not_fit_is_named_and_so_are_all(
    client: AsyncSynapClient, name: str
) -> None:
    for value in (ALICE, {"name": "Alice"}, ALICE):
        await client.queue.publish(name, value)
    with pytest.raises(SynapError) as caught:
        await client.queue.consume_many([name], max=3, type=User)
    details = caught.value.details
    assert caught.value.code == "WRONG_TYPE"
    assert details["message_id"] == details["messages"][1]["message_id"]
    for held in details["messages"]:
        await client.queue.ack(held["queue"], held["message_id"])
    await client.queue.publish(name, ALICE)
    assert [message.message for message in await client.queue.consume_many([name], type=User)] == [ALICE]


async def test_a_type_that_can_not_be_is_refused_before_anything_is_taken(client: AsyncSynapClient, name: str) -> None:
    await client.queue.publish(name, 1)
    for wanted in ("User", 5, object, asyncio.Event):
        with pytest.raises(SynapError) as caught:
            await client.queue.consume(name, type=wanted)
        assert caught.value.code == "INVALID_REQUEST"
    assert await client.queue.consume(name, type=int) is not None


async def test_an_object_that_can_not_be_stored_is_refused_by_path(client: AsyncSynapClient, name: str) -> None:
    @dataclass
    class Odd:
        number: float
        thing: Any = None

    for value, path in (
        (Odd(float("nan")), "$.number"),
        ({"a": [Odd(1.0, 2**70)]}, "$.a[0].thing"),
        (Odd(1.0, object()), "$"),
        ({"deep": [object()]}, "$.deep[0]"),
    ):
        with pytest.raises(SynapError) as caught:
            await client.kv.set(name, value)
        assert caught.value.code == "INVALID_PAYLOAD"
        assert caught.value.details["path"] == path


@pytest.mark.without("crashing")
async def test_events_are_pushed_with_data_of_the_type(client: AsyncSynapClient, name: str) -> None:
    seen = Seen()
    await client.stream.subscribe(name, seen, type=User)
    await client.stream.publish(name, "joined", ALICE)
    await client.stream.publish(name, "joined", {"name": "nobody"})
    await client.stream.publish(name, "joined", ALICE)
    events: List[StreamEvent[User]] = await seen.first(2)
    assert [(event.offset, event.data) for event in events] == [(0, ALICE), (2, ALICE)]


@pytest.mark.without("crashing")
async def test_an_iterator_raises_for_what_does_not_fit_and_goes_on(client: AsyncSynapClient, name: str) -> None:
    for data in (ALICE, "nobody", ALICE):
        await client.stream.publish(name, "joined", data)
    subscription = await client.stream.subscribe(name, replay=True, type=User)
    offsets: List[int] = []

    async def follow() -> None:
        async for event in in_time(subscription):
            offsets.append(event.offset)

    with pytest.raises(SynapError) as caught:
        await follow()
    assert (caught.value.code, caught.value.details["offset"]) == ("WRONG_TYPE", 1)
    async for event in in_time(subscription):
        assert event.data == ALICE
        offsets.append(event.offset)
        break
    assert offsets == [0, 2]
    await subscription.unsubscribe()


async def test_keys_of_a_dictionary_come_back_as_the_type_that_is_asked_for(
    client: AsyncSynapClient, name: str
) -> None:
    day = date(2026, 1, 31)
    await client.kv.set(name, {"1": "one", "2": "two"})
    assert (await client.kv.get(name, type=Dict[int, str])).value == {1: "one", 2: "two"}
    await client.kv.set(name, {day.isoformat(): 1.5})
    assert (await client.kv.get(name, type=Dict[date, float])).value == {day: 1.5}
    await client.kv.set(name, {"one": "1"})
    with pytest.raises(SynapError, match=r"the value at key in \$ doesn't fit") as caught:
        await client.kv.get(name, type=Dict[int, str])
    assert caught.value.details["path"] == "key in $"


@pytest.mark.only("memory", "sync")
@pytest.mark.once_per_place
async def test_a_type_can_be_used_once_all_that_it_mentions_is_defined(
    client: AsyncSynapClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class Node:
        leaf: Leaf  # type: ignore[name-defined]  # noqa: F821

    await client.kv.set(name, {"leaf": {"x": 1}})
    with pytest.raises(SynapError, match="'Leaf' is not defined"):
        await client.kv.get(name, type=Node)

    leaf = make_dataclass("Leaf", [("x", int)])
    monkeypatch.setitem(globals(), "Leaf", leaf)
    assert (await client.kv.get(name, type=Node)).value == Node(leaf(1))
