"""Where a command's service is: `--url`, `--api-key`, `--timeout`, for every command and before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, TypeVar

import click

from synap.cli.exits import usage
from synap.config import DEFAULT_URL

if TYPE_CHECKING:
    from synap import SynapClient

__all__ = ["Connection", "connects", "takes_place"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Connection:
    """What the command line said about the service; what it left out comes from the environment."""

    url: Optional[str] = None
    api_key: Optional[str] = None
    timeout: float = 30.0
    pretty: bool = False
    tls_ca: Optional[str] = None
    tls_cert: Optional[str] = None
    tls_key: Optional[str] = None

    def open(self, *, binary: bool = False) -> SynapClient:
        """Make the client; with `binary`, values may be and come back as `bytes`."""
        if self.url is not None and self.url.startswith("memory://"):
            raise usage("memory:// begins empty and ends with this command: use a server's URL, or file:///DIR")
        from synap import SynapClient

        return SynapClient(**self.options(), format="msgpack" if binary else "json")

    def options(self) -> Dict[str, Any]:
        """Give what another client of the same service has to be made with."""
        named = {"url": self.url, "api_key": self.api_key, "timeout": self.timeout, "retries": RETRIES}
        return {**named, "tls_ca": self.tls_ca, "tls_cert": self.tls_cert, "tls_key": self.tls_key}


RETRIES = 3
"""A second or less: whoever types a command wants to know that nobody answers, and can repeat it."""


def remember(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Keep an option where the command finds it, whether it stood before or after the command's name."""
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
            "help": "How long an answer may take. [default: 30]",
        },
    ),
    ("--tls-ca", {"metavar": "FILE", "help": "With https://, who signed the service's certificate (PEM)."}),
    ("--tls-cert", {"metavar": "FILE", "help": "A certificate of your own (PEM), which may do without a key."}),
    ("--tls-key", {"metavar": "FILE", "help": "The key of that certificate, where it is in another file."}),
    ("--pretty", {"is_flag": True, "default": None, "help": "Indent the output, in colour on a terminal."}),
)


OTHERS = [name for name, _ in SHARED if name != "--url"]


def connects(command: F) -> F:
    """Give a command the options that say where its service is, beside those of its own that are called the same."""
    return _with_shared(command, "--url", *OTHERS)


def takes_place(command: F) -> F:
    """Give a command whose arguments say where its service is the other options of the connection."""
    return _with_shared(command, *OTHERS)


def _with_shared(command: F, *names: str) -> F:
    own = {name for param in getattr(command, "__click_params__", ()) for name in param.opts}
    for name, attributes in reversed(SHARED):
        if name in names and name not in own:
            add = click.option(name, expose_value=False, callback=remember, is_eager=True, **attributes)
            command = add(command)
    return command
