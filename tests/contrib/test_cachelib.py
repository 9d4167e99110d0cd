"""Cachelib: what its own tests don't ask, and Flask-Caching on top."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from synap import SynapClient, SynapError

pytest.importorskip("cachelib")

from synap.contrib.cachelib import SynapCache
from tests.helpers.patience import PATIENCE


@pytest.fixture
def cache(synap_url: str) -> SynapCache:
    return SynapCache(synap_url, key_prefix=f"{uuid.uuid4()}:")


def test_values_come_back_and_integers_stay_integers_at_the_service(cache: SynapCache, synap_url: str) -> None:
    cache.set_many({"tuple": (1, {"a"}), "count": 3, "flag": True, "large": 2**80})
    assert cache.get_many("tuple", "count", "flag", "large", "missing") == [(1, {"a"}), 3, True, 2**80, None]
    assert cache.inc("count", 2) == 5
    assert cache.dec("count") == 4
    with SynapClient(url=synap_url) as client:
        assert client.kv.get(f"{cache.key_prefix}count").value == 4


def test_caches_with_equal_options_share_a_client_those_of_clusters_too() -> None:
    """`engine` was a TypeError."""
    engine = {"durability": "none", "patience": 5.0}

    def client(**options: object) -> object:
        return SynapCache("memory://options", options=options)._client

    assert client(engine=engine) is client(engine=dict(reversed(list(engine.items()))))
    assert client(engine=engine) is not client(engine={**engine, "patience": 6.0})
    for wrong in ({"engine": ["durability"]}, {"timeout": [1, {"a": []}]}, {"engin": engine}):
        with pytest.raises(SynapError) as caught:
            client(**wrong)
        assert caught.value.code == "INVALID_REQUEST"


def test_more_keys_than_go_into_one_call(cache: SynapCache) -> None:
    """Beyond 10,000 they were refused."""
    values = {f"k{number}": number for number in range(10_001)}
    assert cache.set_many(values) == list(values)
    assert cache.get_many(*values) == list(range(10_001))
    assert cache.delete_many(*values) == list(values)
    assert set(cache.get_many(*values)) == {None}
    assert cache.set_many(values, timedelta(seconds=-1)) == list(values)


def test_clear_deletes_what_has_the_prefix_and_nothing_else(cache: SynapCache, synap_url: str) -> None:
    other = SynapCache(synap_url, key_prefix=f"{uuid.uuid4()}:")
    for one in (cache, other):
        one.set_many({f"k{n}": n for n in range(50)})
    assert cache.clear()
    assert cache.get_many("k0", "k49") == [None, None]
    assert other.get_many("k0", "k49") == [0, 49]


def test_a_timeout_that_is_over_stores_nothing(cache: SynapCache) -> None:
    assert cache.set("gone", 1, timeout=-1)
    assert cache.add("gone", 1, timeout=-1)
    cache.set_many({"gone": 1}, timeout=-1)
    assert not cache.has("gone")


def test_counting_something_else_is_refused(cache: SynapCache) -> None:
    cache.set("word", "spam")
    with pytest.raises(SynapError) as caught:
        cache.inc("word")
    assert caught.value.code == "WRONG_TYPE"


def test_deleting_what_is_not_there_is_no_error_whatever_cachelib_says_of_errors(synap_url: str) -> None:
    cache = SynapCache(synap_url, timedelta(minutes=1), ignore_delete_many_errors=False)
    assert cache.delete_many("not there") == ["not there"]


def test_a_client_that_can_not_carry_bytes_is_refused(synap_url: str) -> None:
    with SynapClient(url=synap_url) as client, pytest.raises(SynapError, match="msgpack"):
        SynapCache(client=client)


def test_flask_caching_uses_it(synap_url: str) -> None:
    flask = pytest.importorskip("flask")
    flask_caching = pytest.importorskip("flask_caching")
    app = flask.Flask("test")
    prefix = f"{uuid.uuid4()}:"
    app.config.update(
        CACHE_TYPE="synap.contrib.cachelib.flask_caching",
        CACHE_ARGS=[synap_url],
        CACHE_OPTIONS={"key_prefix": prefix, "options": {"timeout": PATIENCE}},
    )
    cache = flask_caching.Cache(app)
    calls = []

    @app.route("/")  # type: ignore[untyped-decorator, unused-ignore]  # Flask's types differ by version
    @cache.cached(timeout=60)  # type: ignore[untyped-decorator, unused-ignore]  # not typed
    def index() -> str:
        calls.append(1)
        return "hello"

    with app.test_client() as browser:
        assert browser.get("/").text == browser.get("/").text == "hello"
    assert calls == [1]
    with SynapClient(url=synap_url, format="msgpack") as client:
        assert client.kv.scan(prefix).keys
