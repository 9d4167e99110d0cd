"""The options of the service: on the command line, in the environment, in a file.

The command line takes precedence over the environment (`SYNAP_PORT`), that over the file (`--config`, TOML), that over
the defaults. `ServerConfig` is the one list; the command line and the reference page are generated from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synap.config import without_secret
from synap.errors import SynapError
from synap.server.options import Option, bad_option, converted
from synap.wire.frames import HELD, MAX_BODY

_toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def _option(default: Any, *about: Any, **more: Any) -> Any:
    metadata = {"option": Option("", *about, **more)}
    kept = {"default_factory": list} if default is list else {"default": default}
    return field(metadata=metadata, **kept)


_engine_option = functools.partial(_option, engine=True)
_KB = 1024
_HOST = re.compile(r"[A-Za-z0-9_.-]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?")


@dataclass
class ServerConfig:
    """The configuration of the service.

    Raises `INVALID_REQUEST` with the option and the rule it breaks.
    """

    host: str = _option("127.0.0.1", "text", "Address to listen on; one that other machines can reach needs a key.")
    port: int = _option(15500, "int", "Port to listen on; 0 takes a free one.", 0, 65_535)
    engine: str | None = _option(
        None, "text", "URL of what keeps the data, such as valkey://host:port, in place of --data."
    )
    durability: str = _engine_option(
        "replicated",
        "choice",
        "On a cluster, who has a write before it is answered: the primary (none), replicas too (replicated), all on "
        "disk (synced).",
        choices=("none", "replicated", "synced"),
    )
    replicas: int = _engine_option(1, "int", "On a cluster, replicas that must have a write.", 1, 100)
    patience: float = _engine_option(
        10.0, "seconds", "On a cluster, how long a call is tried through failovers.", 0.1, 3600
    )
    space: str = _engine_option(
        "syn", "text", "On a cluster, what all keys begin with, so that several services can share it."
    )
    partitions: int | None = _engine_option(
        None, "int", "On a cluster, parts names are spread over; counts at the first start.", 1, 16_384
    )
    engine_user: str | None = _engine_option(None, "text", "On a cluster, the ACL user.")
    engine_password_file: str | None = _engine_option(None, "file", "On a cluster, the file with the password.")
    engine_ca: str | None = _engine_option(None, "file", "On a cluster with TLS, who signed its certificates (PEM).")
    engine_cert: str | None = _engine_option(None, "file", "On a cluster with TLS, this service's certificate (PEM).")
    engine_key: str | None = _engine_option(None, "file", "On a cluster with TLS, the key of that certificate (PEM).")
    allow_eviction: bool = _engine_option(
        False, "flag", "On a cluster, start even if its nodes evict keys when memory is short."
    )
    unchecked: bool = _engine_option(False, "flag", "On a cluster, don't look at its nodes' settings first.")
    memory: bool = _option(False, "flag", "Keep nothing on disk.")
    data: str = _option("./synap-data", "path", "Directory to keep the data in.")
    fsync: str = _option(
        "always",
        "choice",
        "When a write is on disk: before its answer (always), a second later (everysec), when the system likes (no).",
        choices=("always", "everysec", "no"),
    )
    api_keys: list[str] = _option(
        list, "keys", "Key that opens the service; may be given several times.", flag="--api-key"
    )
    admin_keys: list[str] = _option(
        list, "keys", "Key that also opens admin.* and backups; may be given several times.", flag="--admin-key"
    )
    api_key_file: str | None = _option(None, "path", "File with such keys, one a line; read again when it changes.")
    admin_key_file: str | None = _option(None, "path", "File with such admin keys.")
    keys_file: str | None = _option(None, "path", "File of named keys with grants and quotas, see `synap keys`.")
    audit_log: str | None = _option(
        None, "path", "File for the audit log: administration, creation, deletion, refusals; - is stderr."
    )
    insecure_no_auth: bool = _option(False, "flag", "Let everybody in on an address that other machines can reach.")
    allowed_hosts: list[str] = _option(
        list,
        "keys",
        "Name the service answers to (Host) beside addresses and names without a dot; may be given several times.",
        flag="--allowed-host",
    )
    rate_limit: float | None = _option(None, "rate", "Requests a second for each key (without keys: for each address).")
    tls_cert: str | None = _option(None, "file", "Certificate chain (PEM): the service speaks TLS only.")
    tls_key: str | None = _option(None, "file", "Private key of the certificate (PEM).")
    tls_client_ca: str | None = _option(
        None, "file", "Certificates (PEM) that callers' certificates must be signed by."
    )
    tls_min_version: str = _option("1.2", "choice", "Oldest version of TLS that is spoken.", choices=("1.2", "1.3"))
    tls_ciphers: str | None = _option(
        None,
        "text",
        "Cipher suites of TLS 1.2, as OpenSSL writes them; by default those with AES-GCM or ChaCha20 and forward "
        "secrecy.",
    )
    memory_limit: int | None = _option(
        None,
        "size",
        "Bytes the service may hold in memory; writes beyond are refused. By default 80 % of what the machine, "
        "or its cgroup, has.",
        1024 * _KB,
    )
    evict: str = _option(
        "none",
        "choice",
        "What makes room at --memory-limit: nothing (none), or keys with a ttl, least recently used first (lru).",
        choices=("none", "lru"),
    )
    idle_queues: float = _option(
        86_400.0, "seconds", "How long queues and rooms that use alone made are kept empty.", 1, 10**9
    )
    room_events: int = _option(100_000, "int", "Events a room keeps.", 1, 100_000_000)
    room_age: float = _option(86_400.0, "seconds", "How long a room keeps an event.", 1, 10**9)
    max_body: int = _option(
        MAX_BODY,
        "size",
        "Bytes the body of a request may have; no more than the default, and than a fifth of --transit-limit.",
        _KB,
        MAX_BODY,
    )
    max_connections: int = _option(20_000, "int", "Connections at a time.", 1, 1_000_000)
    transit_limit: int | None = _option(
        None,
        "size",
        "Bytes of unfinished bodies, of untaken answers and of those in the making of all peers; beyond, who has "
        "most is disconnected. By default a quarter of --memory-limit, at least 96 MiB.",
        1024 * _KB,
    )
    unread_timeout: float = _option(
        90.0, "seconds", "How long a peer may take nothing of what waits for it.", 1, 86_400
    )
    stream_buffer: int = _option(
        1024 * 1024, "size", "Bytes of events under way to one connection; further ones wait in their room.", 16 * _KB
    )
    pubsub_buffer: int = _option(
        8 * 1024 * 1024,
        "size",
        "Bytes of messages under way to one connection; beyond, a slow subscriber is dropped.",
        16 * _KB,
    )
    snapshot_size: int = _option(8 * 1024 * 1024, "size", "Bytes of log below which no snapshot is taken.", 64 * _KB)
    disk_reserve: int = _option(
        8 * 1024 * 1024,
        "size",
        "Bytes of a file beside the data that is removed on a full disk, so that a start and what makes room still "
        "work (at most an eighth of the file system); 0: none.",
    )
    handshake_timeout: float = _option(
        10.0,
        "seconds",
        "How long a client may take for a TLS handshake, the head of a request, or its first frame.",
        0.1,
        3600,
    )
    idle_timeout: float = _option(
        75.0, "seconds", "How long a plain HTTP connection is kept open without a request.", 0.1, 86_400
    )
    drain_timeout: float = _option(5.0, "seconds", "How long stopping waits for answers under way.", 0, 3600)
    metrics_queues: list[str] = _option(
        list,
        "keys",
        "Pattern of queues that always have metrics of their own; beside them, the 1,000 used most have.",
        flag="--metrics-queue",
    )
    no_console: bool = _option(False, "flag", "Don't serve the console at /.")
    console_session: float = _option(
        900.0, "seconds", "How long the console stays signed in without anybody at it.", 1, 12 * 3600
    )
    log_level: str = _option("info", "choice", "How much is logged.", choices=("debug", "info", "warning", "error"))
    log_format: str = _option(
        "text", "choice", "How it is logged: lines of text, or of JSON.", choices=("text", "json")
    )
    access_log: bool = _option(
        False, "flag", "Log each HTTP request, and each connection of the other lanes when it ends."
    )

    def __post_init__(self) -> None:
        for option in OPTIONS:
            setattr(self, option.name, converted(option, getattr(self, option.name)))
        if self.transit_limit is not None:  # a larger one could never be inflated and decoded within that
            self.max_body = min(self.max_body, self.transit_limit // (HELD + 1))
        if self.engine is not None and self.memory:
            raise SynapError("INVALID_REQUEST", "engine and memory exclude each other", {"option": "engine"})
        scheme, _, place = (self.engine or "").partition("://")
        if scheme in ("memory", "file"):  # the same in other words, so that what looks at `data` looks at the right one
            self.engine, self.memory = None, scheme == "memory"
            self.data = place if scheme == "file" else self.data
            if not self.data:
                raise bad_option("engine", "file:///DIR", "file://")
        if bool(self.tls_cert) != bool(self.tls_key):
            lacks, there = ("tls_key", "tls_cert") if self.tls_cert else ("tls_cert", "tls_key")
            raise bad_option(lacks, f"given with {there}", getattr(self, lacks))
        for name in ("tls_client_ca", "tls_ciphers"):
            if getattr(self, name) and not self.tls_cert:
                raise bad_option(name, "given with tls_cert and tls_key", f"only {name}")
        for host in self.allowed_hosts:
            if not _HOST.fullmatch(host):
                raise bad_option("allowed_hosts", "names such as synap.example.com, each in full", host)
        for option in OPTIONS:
            path = getattr(self, option.name)
            if option.kind == "file" and path is not None and not os.path.isfile(path):
                raise bad_option(option.name, "a file", path)
        if not self.loopback and not self.keys_on and not self.insecure_no_auth:
            raise SynapError(
                "INVALID_REQUEST",
                f"host {self.host!r} can be reached from other machines and no key is set: "
                "give --api-key, or say --insecure-no-auth if that is meant",
                {"option": "host"},
            )

    @property
    def keys_on(self) -> bool:
        """Whether callers need a key."""
        return bool(
            self.api_keys or self.admin_keys or self.api_key_file or self.admin_key_file or self.keys_file is not None
        )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)

    def __repr__(self) -> str:
        return f"ServerConfig({self.shown()})"

    def shown(self) -> dict[str, Any]:
        """All options without secrets: of keys only their number."""
        shown = dataclasses.asdict(self)
        for name in ("api_keys", "admin_keys"):
            shown[name] = len(shown[name])
        if self.engine is not None:
            shown["engine"] = without_secret(self.engine)
        return shown


def is_loopback(host: str) -> bool:
    """Return whether a name or address is one that only this machine has."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


OPTIONS: tuple[Option, ...] = tuple(
    one.metadata["option"]._replace(name=one.name, default=[] if one.default is dataclasses.MISSING else one.default)
    for one in dataclasses.fields(ServerConfig)
)
ENGINE_OPTIONS = tuple(option.name for option in OPTIONS if option.engine)
"""Options that are passed to the engine that `engine` names."""
_BY_NAME = {option.name: option for option in OPTIONS}
_CLIENTS = {"SYNAP_URL", "SYNAP_API_KEY", "SYNAP_CONFIG"}
"""Variables that are not options of the service."""


def load(
    overrides: Mapping[str, Any] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ServerConfig:
    """Build the configuration from `overrides` (None: not given), the environment, the TOML file and the defaults.

    Without `config`, the file that `SYNAP_CONFIG` names. Raises `INVALID_REQUEST` for an unknown name, with the nearest
    known one, and for an invalid value, with the variable or file it came from.
    """
    values = _read_credentials(environ)
    sources = dict.fromkeys(values, "a credential")
    path = config or environ.get("SYNAP_CONFIG")
    if path:
        of_file = _read_file(Path(path))
        values.update(of_file)
        sources.update(dict.fromkeys(of_file, os.fspath(path)))
    of_environment = _read_environment(environ)
    values.update(of_environment)
    sources.update((name, _BY_NAME[name].in_environment) for name in of_environment)
    for name, value in (overrides or {}).items():
        if name not in _BY_NAME:
            raise _unknown("option", name, _BY_NAME)
        if value is not None and value != () and value != []:
            values[name] = value
            sources.pop(name, None)
    try:
        return ServerConfig(**values)
    except SynapError as error:
        source = sources.get(error.details.get("option", ""))
        if source is None:
            raise
        raise SynapError(error.code, f"{source}: {error.message}", error.details) from None


_CREDENTIALS = {
    "synap-api-key": "api_key_file",
    "synap-admin-key": "admin_key_file",
    "synap-keys": "keys_file",
    "synap-tls-cert": "tls_cert",
    "synap-tls-key": "tls_key",
}
"""Credentials of systemd (`LoadCredential=`) that are used as defaults, and their options."""


def _read_credentials(environ: Mapping[str, str]) -> dict[str, Any]:
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return {}
    found = {option: os.path.join(folder, name) for name, option in _CREDENTIALS.items()}
    return {option: path for option, path in found.items() if os.path.isfile(path)}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = _toml.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SynapError("INVALID_REQUEST", f"{path} can't be read: {error.strerror}", {"option": "config"}) from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and what its parser lets through
        raise SynapError("INVALID_REQUEST", f"{path} is not TOML: {error}", {"option": "config"}) from None
    for name in table:
        if name not in _BY_NAME:
            raise _unknown(f"{path}: option", name, _BY_NAME)
    return table


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    known = {option.in_environment: option for option in OPTIONS}
    values: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith("SYNAP_"):
            continue
        option = known.get(variable)
        if option is None:
            # Other programs' variables may begin like ours; one that is close to ours is a typo.
            if variable not in _CLIENTS and difflib.get_close_matches(variable, known, 1, 0.9):
                raise _unknown("variable", variable, known)
        elif text and not (variable == "SYNAP_PORT" and "://" in text):
            # Kubernetes sets SYNAP_PORT=tcp://… for a service of that name; it means nothing to us.
            values[option.name] = text.split(",") if option.kind == "keys" else text
    return values


def _unknown(what: str, name: str, known: Mapping[str, Any]) -> SynapError:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "known are: " + ", ".join(known)
    return SynapError("INVALID_REQUEST", f"{what} {name!r} is not known; {hint}", {"option": name})
