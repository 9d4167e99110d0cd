"""`synap keys`: making, listing, checking and revoking the keys of a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from synap.server import keyfile
from synap.testing import ThrowawayServer
from tests.cli.conftest import Synap


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of keys with one in it, named by the environment."""
    path = tmp_path / "keys.toml"
    monkeypatch.setenv("SYNAP_KEYS_FILE", str(path))
    return path


def made(synap: Synap, name: str, *arguments: str) -> str:
    ended = synap("keys", "new", name, *arguments)
    assert ended.code == 0, ended.err
    return ended.out.decode().strip()


def test_a_new_key_is_shown_once_and_opens_what_it_was_given_for(synap: Synap, file: Path) -> None:
    key = made(synap, "orders", "--grant", "queue:*:orders*", "--grant", "kv:read:price:*", "--requests", "500")
    assert keyfile.has_checksum(key)
    assert key not in file.read_text()
    assert "requests = 500" in file.read_text()
    with ThrowawayServer(arguments=["--keys-file", str(file)]) as server:
        assert synap("queue", "create", "orders-eu", "--url", server.url, "--api-key", key).code == 0
        refused = synap("queue", "create", "mails", "--url", server.url, "--api-key", key)
        assert (refused.code, refused.err.count("\n")) == (4, 1)
        assert refused.err.startswith("synap: [FORBIDDEN]")
        mistyped = synap("queue", "list", "--url", server.url, "--api-key", key[:-1] + ("a" if key[-1] != "a" else "b"))
        assert mistyped.code == 4
        assert "mistyped, or cut" in mistyped.err
        assert key[:-1] not in mistyped.err


def test_keys_are_listed_without_what_opens(synap: Synap, file: Path) -> None:
    keys = [made(synap, "a", "--grant", "kv:read:*"), made(synap, "b", "--grant", "*:*:*", "--grant", "admin")]
    listed = synap("keys", "list")
    assert [document["name"] for document in listed.documents] == ["a", "b"]
    assert "admin" in listed.documents[1]["grants"]
    assert not any(key.encode() in listed.out or keyfile.digest(key).encode() in listed.out for key in keys)


def test_a_check_says_what_a_key_may_do_in_its_exit_code_too(synap: Synap, file: Path) -> None:
    made(synap, "orders", "--grant", "queue:*:orders*")
    assert synap("keys", "check").document == {"file": str(file), "keys": 1}
    assert synap("keys", "check", "orders").document["grants"] == ["queue:*:orders*"]
    yes, no = (synap("keys", "check", "orders", grant) for grant in ("queue:consume:orders-eu", "queue:consume:mails"))
    assert (yes.code, yes.document["allowed"]) == (0, True)
    assert (no.code, no.document["allowed"]) == (1, False)
    assert synap("keys", "check", "orders", "admin").code == 1
    assert synap("keys", "check", "nobody").code == 2
    for misspelt in ("queue:consum:orders-eu", "queues:consume:orders-eu", "queue:consume", "admn"):
        ended = synap("keys", "check", "orders", misspelt)
        assert (ended.code, ended.out) == (2, b"")
        assert "a grant is 'admin' or facility:verb:names" in ended.err
    file.chmod(0o644)
    spoilt = synap("keys", "check")
    assert spoilt.code == 2
    assert "chmod 0600" in spoilt.err


def test_a_revoked_key_is_gone_and_the_others_stay(synap: Synap, file: Path) -> None:
    made(synap, "a", "--grant", "kv:read:*")
    made(synap, "b", "--grant", "kv:read:*")
    assert synap("keys", "revoke", "a").code == 0
    assert [document["name"] for document in synap("keys", "list").documents] == ["b"]
    assert synap("keys", "revoke", "a").code == 2
    assert made(synap, "a", "--grant", "kv:write:*"), "the name is free again"


@pytest.mark.parametrize(
    "arguments",
    [
        ["a"],
        ["a", "--grant", "kv"],
        ["a", "--grant", "kv:fly:*"],
        ["a b", "--grant", "kv:read:*"],
        ["a", "--grant", "kv:read:*", "--requests", "0"],
        ["a", "--grant", "kv:read:*", "--connections", "0"],
    ],
)
def test_keys_that_make_no_sense_are_not_made(synap: Synap, file: Path, arguments: list[str]) -> None:
    ended = synap("keys", "new", *arguments)
    assert (ended.code, ended.out) == (2, b"")
    assert not file.exists() or not keyfile.read(file)


def test_a_name_that_is_none_is_refused_as_what_it_is(synap: Synap, file: Path) -> None:
    ended = synap("keys", "new", "two words", "--grant", "kv:read:*")
    assert ended.code == 2
    assert "a key's name has 1 to 64 letters, digits, _ and -, not 'two words'" in ended.err


def test_a_name_is_given_once(synap: Synap, file: Path) -> None:
    made(synap, "a", "--grant", "kv:read:*")
    before = file.read_bytes()
    assert synap("keys", "new", "a", "--grant", "admin").code == 2
    assert file.read_bytes() == before


def test_a_short_key_is_warned_of_and_not_shown() -> None:
    with ThrowawayServer(arguments=["--api-key", "hush"]) as server:
        server.stop()
    said = "".join(server.output)
    assert "fewer than 16 characters" in said
    assert "hush" not in said
