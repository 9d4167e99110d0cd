"""The options of the connection: `--url`, `--api-key`, `--timeout`, before or after a command's name."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Collection, Dict, Mapping, Optional, Set, Tuple, TypeVar

import click

from synap.cli.exits import usage
from synap.config import CLUSTERS, DEFAULT_URL

if TYPE_CHECKING:
    from synap import SynapClient

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Connection:
    """The connection options of the command line; those left out come from the environment."""

    url: Optional[str] = None
    api_key: Optional[str] = None
    timeout: float = 30.0
    pretty: bool = False
    tls_ca: Optional[str] = None
    tls_cert: Optional[str] = None
    tls_key: Optional[str] = None
    engine_user: Optional[str] = None
    engine_password_file: Optional[str] = None
    engine_ca: Optional[str] = None
    engine_cert: Optional[str] = None
    engine_key: Optional[str] = None
    given: Set[str] = field(default_factory=set)
    """The options that the command line has, such as `--api-key`."""

    @property
    def place(self) -> str:
        """The URL, the default one included."""
        return self.url or os.environ.get("SYNAP_URL") or DEFAULT_URL

    def open(self, *, binary: bool = False) -> SynapClient:
        """Create the client; with `binary`, values may be `bytes`."""
        if self.url is not None and self.url.startswith("memory://"):
            raise usage("memory:// begins empty and ends with this command: use a server's URL, or file:///DIR")
        from synap import SynapClient

        return SynapClient(**self.options(), format="msgpack" if binary else "json")

    def options(self) -> Dict[str, Any]:
        """Return the keyword arguments for a client of the service; raises `Failure` as `check` does."""
        self.check(self.place)
        fields = {name: getattr(self, name) for name in ("url", "api_key", "timeout", "tls_ca", "tls_cert", "tls_key")}
        return {"retries": RETRIES, **fields, "engine": self.engine(self.place)}

    def engine(self, url: str) -> Optional[Mapping[str, Any]]:
        """Return how a cluster is reached, None for another URL. What isn't given comes from the environment."""
        scheme = url.partition("://")[0]
        if scheme not in CLUSTERS:
            return None
        found = {}
        for name in ("engine_user", "engine_password_file", *(ENGINE_TLS if scheme in TLS_CLUSTERS else ())):
            found[name] = os.environ.get(f"SYNAP_{name.upper()}")
        found.update({name: getattr(self, name) for name in (*found, *ENGINE_TLS) if getattr(self, name) is not None})
        return {name: value for name, value in found.items() if value}

    def check(self, place: str, *without: str) -> None:
        """Refuse the options that aren't used with `place`, a URL or a directory, and those in `without`.

        Raises `Failure` with what would be right.
        """
        scheme, separator, _ = place.partition("://")
        what = f"{scheme}://" if separator else "a directory"
        used, right = USED.get(scheme if separator else "", (ALL, ""))  # of an unknown scheme the client tells
        for option in sorted(self.given - {"--url", "--pretty", *used} | self.given.intersection(without)):
            if option == "--url":
                right = "the URL or directory is an argument"
            raise usage(f"{option} is not used with {what}; {right if option not in used else 'leave it out'}")


RETRIES = 3
"""About a second: a user at a shell wants to see the error soon, and can repeat the command."""


def remember(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Store an option in the `Connection`, whether it stands before or after the command's name."""
    if value is not None and param.name is not None:
        connection = ctx.ensure_object(Connection)
        connection.given.add(param.opts[0])
        setattr(connection, param.name, value)
    return value


SHARED = (
    ("--url", {"metavar": "URL", "help": f"Where the service is, or SYNAP_URL. [default: {DEFAULT_URL}]"}),
    ("--api-key", {"metavar": "KEY", "help": "API key; SYNAP_API_KEY keeps it out of the process list."}),
    (
        "--timeout",
        {
            "metavar": "SECONDS",
            "type": click.FloatRange(min=0, min_open=True),
            "help": "Timeout of a request. [default: 30]",
        },
    ),
    ("--tls-ca", {"metavar": "FILE", "help": "With https://, the CA of the service's certificate (PEM)."}),
    ("--tls-cert", {"metavar": "FILE", "help": "Client certificate (PEM), which may replace an API key."}),
    ("--tls-key", {"metavar": "FILE", "help": "Private key of that certificate, if it is in another file."}),
    ("--engine-user", {"metavar": "NAME", "help": "With valkey://, the ACL user, or SYNAP_ENGINE_USER."}),
    (
        "--engine-password-file",
        {"metavar": "FILE", "help": "The file with its password, or SYNAP_ENGINE_PASSWORD_FILE."},
    ),
    ("--engine-ca", {"metavar": "FILE", "help": "With valkeys://, the CA of the nodes, or SYNAP_ENGINE_CA."}),
    ("--engine-cert", {"metavar": "FILE", "help": "Certificate for the nodes (PEM), or SYNAP_ENGINE_CERT."}),
    ("--engine-key", {"metavar": "FILE", "help": "Private key of that certificate, or SYNAP_ENGINE_KEY."}),
    ("--pretty", {"is_flag": True, "default": None, "help": "Indent the output, in colour on a terminal."}),
)


ALL = tuple(name for name, _ in SHARED)
OF_SERVICES = ("--timeout", "--api-key", "--tls-ca", "--tls-cert", "--tls-key")
OF_CLUSTERS = ("--timeout", "--engine-user", "--engine-password-file", "--engine-ca", "--engine-cert", "--engine-key")
ENGINE_TLS = ("engine_ca", "engine_cert", "engine_key")
TLS_CLUSTERS = ("valkeys", "rediss")
_SERVICE = f"a service takes --api-key, and with https:// {', '.join(OF_SERVICES[2:])}"
_CLUSTER = f"a cluster takes {', '.join(OF_CLUSTERS[1:])}"
USED: Dict[str, Tuple[Tuple[str, ...], str]] = {
    "": ((), "leave it out"),
    "file": (("--timeout",), "leave it out"),
    "memory": (("--timeout",), "leave it out"),
    "http": (OF_SERVICES[:2], _SERVICE),
    "https": (OF_SERVICES, _SERVICE),
    **dict.fromkeys(CLUSTERS, (OF_CLUSTERS, _CLUSTER)),
}
"""By the scheme of a URL ('' for a directory), the options that are used, and what is right in place of others."""


def refuse_all(command: click.Command, ctx: click.Context) -> None:
    """Refuse options of the connection before the name of a command that has none."""
    connection = ctx.find_object(Connection)
    given = connection.given - {"--pretty"} if connection is not None else ()
    if given and not any(param.callback is remember for param in command.params):
        raise usage(f"{min(given)} before `{command.name}` is not used; see `{ctx.command_path} --help`")


def connects(command: Callable[..., Any]) -> Callable[..., Any]:
    """Pass a command its `Connection`, and add the options of the connection except those it defines itself."""
    return shared_options(click.pass_obj(command))


def connects_to_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Do as `connects` does, without `--url`, for a command that takes the URL as an argument."""
    return shared_options(click.pass_obj(command), but=("--url",))


def connects_to_cluster(command: Callable[..., Any]) -> Callable[..., Any]:
    """Do as `connects_to_argument` does, for a command that is about a cluster alone."""
    return shared_options(
        click.pass_obj(command), but=[name for name, _ in SHARED if name not in (*OF_CLUSTERS[1:], "--pretty")]
    )


def connects_elsewhere(command: Callable[..., Any]) -> Callable[..., Any]:
    """Do as `connects` does, with `--url` and `--api-key` alone, for a command whose client is made by others."""
    return shared_options(
        click.pass_obj(command), but=[name for name, _ in SHARED if name not in ("--url", "--api-key")]
    )


def shared_options(command: F, *, but: Collection[str] = ()) -> F:
    """Add the options of the connection to a command, except those it defines itself, and except `but`."""
    own = {name for param in getattr(command, "__click_params__", ()) for name in param.opts}
    for name, attributes in reversed(SHARED):
        if name not in (*but, *own):
            add = click.option(name, expose_value=False, callback=remember, is_eager=True, **attributes)
            command = add(command)
    return command
