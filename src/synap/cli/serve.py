"""`synap serve`: the service. Its options are those of `synap.server.settings`, which also checks them."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import click

from synap.cli import importing
from synap.cli.command import Command
from synap.cli.exits import NEGATIVE, OTHER, usage
from synap.server.options import Option
from synap.server.settings import OPTIONS, load

METAVARS = {
    "text": "TEXT",
    "path": "PATH",
    "file": "PATH",
    "int": "N",
    "rate": "N/s",
    "size": "BYTES",
    "seconds": "SECONDS",
    "keys": "KEY",
    "choice": "WORD",
    "allowed_hosts": "NAME",
    "metrics_queues": "PATTERN",
}
"""By the name of an option, or else its kind."""


def parameter(option: Option) -> click.Option:
    """Build the command line's option for a setting; `load` reads the environment and the file."""
    attributes: Dict[str, Any] = {"default": None, "help": f"{option.doc} [{option.in_environment}{default(option)}]"}
    if option.kind == "flag":
        attributes["is_flag"] = True
    else:
        attributes["metavar"] = "|".join(option.choices) or METAVARS.get(option.name, METAVARS[option.kind])
        attributes["multiple"] = option.kind == "keys"
    return click.Option([option.on_command_line, option.name], **attributes)


def default(option: Option) -> str:
    value = option.default
    if value in (None, False, []):
        return ""
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return f"; default: {value}"


def serve_(config: Optional[str], **options: Any) -> int:
    settings = load(options, config=config)
    data = options.get("data")
    if data is not None and (settings.memory or settings.engine is not None or settings.data != data):
        # Whichever of the two was meant, nothing is to be kept elsewhere in silence.
        raise usage(
            "--data is for what is kept in a directory: leave it out, or --memory and --engine "
            "(SYNAP_MEMORY and SYNAP_ENGINE, memory and engine in the file)"
        )
    if options.get("api_keys") or options.get("admin_keys"):
        click.echo(
            "synap serve: everybody on this machine can read a key on the command line (ps); "
            "give SYNAP_API_KEY, --api-key-file or --keys-file instead",
            err=True,
        )
    if ":" in (options.get("engine") or "").partition("://")[2].rpartition("@")[0]:
        click.echo(
            "synap serve: everybody on this machine can read a password on the command line (ps); "
            "give SYNAP_ENGINE or --engine-password-file instead",
            err=True,
        )
    # Imported late: an invalid option is reported before the server's imports, which take longer.
    with importing():
        from synap.server.run import serve as run

    code = run(settings)
    # A failed start must not look like a negative answer.
    return OTHER if code == NEGATIVE else code


def params() -> List[click.Parameter]:
    config = click.Option(
        ["--config"], metavar="FILE.toml", help="File with any of these options, by name (port = 15500). [SYNAP_CONFIG]"
    )
    return [*(parameter(option) for option in OPTIONS), config]


serve = Command(
    "serve",
    short_help="Run the service.",
    callback=serve_,
    params=params(),
    help="""Run the service until Ctrl-C or SIGTERM, which let requests in flight be answered first.

    Precedence: command line, environment, file, defaults.""",
    examples=[
        "synap serve                                   keeps its data in ./synap-data",
        "synap serve --memory --port 16000             keeps nothing",
        "synap serve --data /var/lib/synap --fsync everysec",
        'synap serve --host 0.0.0.0 --api-key "$KEY" --rate-limit 1000/s',
        "synap serve --config synap.toml",
    ],
)
