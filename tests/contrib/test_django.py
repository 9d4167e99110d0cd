"""Django: what its own tests don't ask of a cache and a session engine."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, Dict, Iterator

import pytest

from synap import SynapClient

pytest.importorskip("django")

from django.conf import settings
from django.core.cache import caches
from django.test import override_settings

from synap.contrib.django.cache import SynapCache
from tests.helpers.patience import PATIENCE, about

if not settings.configured:
    settings.configure(SECRET_KEY="test", USE_TZ=True)


@pytest.fixture
def names() -> str:
    return f"{uuid.uuid4()}:"


@pytest.fixture
def cache(synap_url: str, names: str) -> SynapCache:
    return SynapCache(synap_url, {"OPTIONS": {"namespace": names, "timeout": PATIENCE}})


@pytest.fixture
def django_settings(synap_url: str) -> Iterator[None]:
    place: Dict[str, Any] = {"BACKEND": "synap.contrib.django.cache.SynapCache", "LOCATION": synap_url}
    with override_settings(
        CACHES={"default": place},
        SESSION_ENGINE="synap.contrib.django.sessions",
        SESSION_SYNAP_URL=synap_url,
        SESSION_SYNAP_OPTIONS={"timeout": PATIENCE},
    ):
        yield


def test_clear_keeps_what_is_not_the_caches(cache: SynapCache, names: str, synap_url: str) -> None:
    with SynapClient(url=synap_url) as client:
        client.kv.set(f"other:{names}", "stays")
        cache.set_many({f"k{n}": n for n in range(20)})
        assert client.kv.scan(names).keys
        cache.clear()
        assert not client.kv.scan(names).keys
        assert client.kv.get(f"other:{names}").value == "stays"


def test_integers_are_integers_at_the_service_and_keep_their_ttl(cache: SynapCache, names: str, synap_url: str) -> None:
    cache.set("n", 1, timeout=60)
    assert cache.incr("n", 4) == 5
    with SynapClient(url=synap_url) as client:
        found = client.kv.get(f"{names}:1:n")
    assert found.value == 5
    assert found.ttl is not None


def test_more_keys_than_go_into_one_call(cache: SynapCache) -> None:
    """Beyond 10,000 they were refused."""
    values = {f"k{number}": number for number in range(10_001)}
    assert cache.set_many(values, 60) == []
    assert cache.get_many(values) == values
    cache.delete_many(values)
    assert cache.get_many(iter(values)) == {}
    cache.set_many(values, 0)


def test_part_of_a_second_is_rounded_up(cache: SynapCache) -> None:
    cache.set("k", "v", timeout=0.2)
    assert cache.get("k") == "v"


def test_a_counter_that_ends_while_it_is_counted_up_is_not_begun_anew_without_an_end(
    cache: SynapCache, names: str, synap_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.set("n", 1, timeout=60)
    group = type(cache.client.kv)
    exists = group.exists

    def and_ends(kv: Any, key: str) -> bool:
        there = exists(kv, key)
        kv.delete(key)
        return there

    with monkeypatch.context() as patch:
        patch.setattr(group, "exists", and_ends)
        assert cache.incr("n") == 2
    assert cache.client.kv.ttl(f"{names}:1:n") is not None


def test_incr_says_what_is_wrong(cache: SynapCache) -> None:
    with pytest.raises(ValueError, match="not found"):
        cache.incr("missing")
    cache.set("word", "text")
    with pytest.raises(TypeError):
        cache.incr("word")


@pytest.mark.usefixtures("django_settings")
def test_the_configured_cache_works_sync_and_async() -> None:
    key = str(uuid.uuid4())
    caches["default"].set(key, {1, 2})
    assert asyncio.run(caches["default"].aget(key)) == {1, 2}


@pytest.mark.usefixtures("django_settings")
def test_a_session_that_ended_elsewhere_is_not_brought_back() -> None:
    from django.contrib.sessions.backends.base import UpdateError

    from synap.contrib.django.sessions import SessionStore

    session = SessionStore()
    session["user"] = 1
    session.create()
    other = SessionStore(session.session_key)
    assert other["user"] == 1
    session.delete()
    other["user"] = 2
    with pytest.raises(UpdateError):
        other.save()
    assert not other.exists(other.session_key)


@pytest.mark.usefixtures("django_settings")
def test_a_session_expires_at_the_service(synap_url: str) -> None:
    from synap.contrib.django.sessions import PREFIX, SessionStore

    session = SessionStore()
    session["user"] = 1
    session.set_expiry(100)
    session.save()
    with SynapClient(url=synap_url) as client:
        ttl = client.kv.get(f"{PREFIX}{session.session_key}").ttl
    assert ttl is not None
    assert ttl in about(100)
    session.set_expiry(-1)
    session.save()
    assert not session.exists(session.session_key)
