"""The file of keys: names, digests, grants and quotas, as TOML.

    [orders]
    digest = "sha256:…"
    grants = ["queue:*:orders*", "kv:read:price:*"]
    quota = { requests = 100, connections = 20 }

A key is `synap_`, 32 random characters (190 bits) and 6 of a checksum, so that scanners find leaked ones and typing
errors are recognised. Only digests are stored: a key of that entropy needs no slow hash.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import re
import secrets
import stat
import sys
import zlib
from typing import Any

import msgspec

from synap.errors import SynapError
from synap.server.grants import Access, Grant, Quota
from synap.storage import private

_toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

PREFIX = "synap_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
LEAST = 16
"""Length below which a chosen key is warned of."""
MAX_FILE = 4 * 1024 * 1024


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """One key in the file."""

    digest: str
    grants: list[str] = []
    quota: Quota = Quota()


def new_key() -> str:
    """Generate a key."""
    chance = "".join(secrets.choice(_ALPHABET) for _ in range(32))
    return PREFIX + chance + _checksum(chance)


def has_checksum(key: str) -> bool:
    """Return whether a generated key's checksum is right."""
    return len(key) == len(PREFIX) + 38 and key.startswith(PREFIX) and _checksum(key[6:-6]) == key[-6:]


def _checksum(text: str) -> str:
    number = zlib.crc32(text.encode("utf-8", "replace"))
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits


def digest(key: str) -> str:
    """Return the digest under which a key is stored."""
    return "sha256:" + hashlib.sha256(b"synap key\0" + key.encode("utf-8", "surrogateescape")).hexdigest()


def read(path: str | os.PathLike[str]) -> dict[str, Access]:
    """Read a file of keys; returns the access for each digest. Raises `INVALID_REQUEST` with the place of an error."""
    return parse(read_text(path), os.fspath(path))


def parse(text: str, path: str) -> dict[str, Access]:
    """Parse the text of a file of keys."""
    found: dict[str, Access] = {}
    for name, entry in _entries(text, path).items():
        if entry.digest in found:
            raise _bad(path, f"[{name}] and [{found[entry.digest].name}] are the same key")
        try:
            grants = [Grant(grant) for grant in entry.grants if grant != "admin"]
        except SynapError as error:
            raise _bad(path, f"[{name}]: {error.message}") from None
        found[entry.digest] = Access(name, "admin" in entry.grants, grants, entry.quota, entry.digest)
    return found


def _entries(text: str, path: str) -> dict[str, Entry]:
    try:
        table = _toml.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and what its parser lets through
        raise _bad(path, f"not TOML: {error}") from None
    entries = {}
    for name, content in table.items():
        if not _NAME.fullmatch(name):
            raise _bad(path, _named(name))
        try:
            entry = msgspec.convert(content, Entry)
        except msgspec.ValidationError as error:
            raise _bad(path, f"[{name}]: {error}") from None
        for limit, value in msgspec.structs.asdict(entry.quota).items():
            least = 0.001 if limit == "requests" else 1
            if value is not None and not least <= value < math.inf:
                raise _bad(path, f"[{name}]: quota.{limit} must be {least:g} or more, got {value!r}")
        if not _DIGEST.fullmatch(entry.digest):
            raise _bad(path, f"[{name}]: a digest is sha256: and 64 hexadecimal digits; `synap keys new` makes one")
        entries[name] = entry
    return entries


def parse_secrets(text: str, path: str) -> list[str]:
    """Parse the text of a file with one key per line. Raises `INVALID_REQUEST`, whose message has no key in it."""
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise _bad(path, "there is no key in it")
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise _bad(path, "a key has printable ASCII characters only")
    return keys


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a file that only its owner and group may access. Raises `INVALID_REQUEST`."""
    shown = os.fspath(path)
    try:
        with open(path, "rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if os.name == "posix" and mode & stat.S_IRWXO:
                raise _bad(shown, f"others can read or change it; chmod 0600 {shown}")
            data = opened.read(MAX_FILE + 1)
    except OSError as error:
        raise _bad(shown, f"it can't be read: {error.strerror}") from None
    if len(data) > MAX_FILE:
        raise _bad(shown, f"it has more than {MAX_FILE:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _bad(shown, "it is not UTF-8") from None


def add(path: str | os.PathLike[str], name: str, key: str, grants: list[str], quota: Quota) -> None:
    """Add a key to a file, which is made where it isn't there. Raises `INVALID_REQUEST`."""
    shown = os.fspath(path)
    if not _NAME.fullmatch(name):
        raise _bad(shown, _named(name))
    lines = [f"[{name}]", f'digest = "{digest(key)}"', f"grants = {json.dumps(grants, ensure_ascii=False)}"]
    limits = ", ".join(
        f"{limit} = {value:g}" for limit, value in msgspec.structs.asdict(quota).items() if value is not None
    )
    if limits:
        lines.append(f"quota = {{ {limits} }}")
    with private.locked(shown):
        text = read_text(path)
        if name in _entries(text, shown):
            raise _bad(shown, f"there is a key named {name!r}; revoke it first, or take another name")
        text = text + ("\n" if text else "") + "\n".join(lines) + "\n"
        parse(text, shown)
        _replace(shown, text)


def remove(path: str | os.PathLike[str], name: str) -> None:
    """Remove a key from a file. Raises `INVALID_REQUEST` where there is no key of that name."""
    shown = os.fspath(path)
    read_text(path)  # raises where it isn't there
    with private.locked(shown):
        lines = read_text(path).splitlines(keepends=True)
        header = f"[{name}]"
        at = next((index for index, line in enumerate(lines) if line.split("#")[0].strip() == header), None)
        if at is None:
            raise _bad(shown, f"there is no key named {name[:80]!r}")
        end = next((index for index in range(at + 1, len(lines)) if lines[index].startswith("[")), len(lines))
        text = "".join(lines[:at] + lines[end:])
        if name in _entries(text, shown):
            raise _bad(shown, f"[{name}] isn't written as `synap keys new` does; take it out by hand")
        _replace(shown, text)


def _replace(path: str, text: str) -> None:
    """Replace a file of keys atomically, with the same mode and owner."""
    with private.replacing(path, keep=True) as opened:
        opened.write(text.encode())


def _named(name: str) -> str:
    return f"a key's name has 1 to 64 letters, digits, _ and -, not {name[:80]!r}"


def _bad(path: str, what: str) -> SynapError:
    return SynapError("INVALID_REQUEST", f"{path}: {what}", {"option": "keys_file"})
