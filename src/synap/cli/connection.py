"""The options of the connection: `--url`, `--api-key`, `--timeout`, before or after a command's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Collection, Dict, Optional, TypeVar

import click

from synap.cli.exits import usage
from synap.config import DEFAULT_URL

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

    def open(self, *, binary: bool = False) -> SynapClient:
        """Create the client; with `binary`, values may be `bytes`."""
        if self.url is not None and self.url.startswith("memory://"):
            raise usage("memory:// begins empty and ends with this command: use a server's URL, or file:///DIR")
        from synap import SynapClient

        return SynapClient(**self.options(), format="msgpack" if binary else "json")

    def options(self) -> Dict[str, Any]:
        """Return the keyword arguments for another client of the same service."""
        return {"retries": RETRIES, **{name: value for name, value in vars(self).items() if name != "pretty"}}


RETRIES = 3
"""About a second: a user at a shell wants to see the error soon, and can repeat the command."""


def remember(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Store an option in the `Connection`, whether it stands before or after the command's name."""
    if value is not None and param.name is not None:
        setattr(ctx.ensure_object(Connection), param.name, value)
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
    ("--pretty", {"is_flag": True, "default": None, "help": "Indent the output, in colour on a terminal."}),
)


def connects(command: Callable[..., Any]) -> Callable[..., Any]:
    """Pass a command its `Connection`, and add the options of the connection except those it defines itself."""
    return shared_options(click.pass_obj(command))


def connects_to_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Do as `connects` does, without `--url`, for a command that takes the URL as an argument."""
    return shared_options(click.pass_obj(command), but=("--url",))


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
