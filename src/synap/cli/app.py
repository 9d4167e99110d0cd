"""The command `synap`: its groups, and the conversion of errors to exit codes."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from typing import Any, List, Optional

import click

from synap._version import __version__
from synap.cli.command import Group
from synap.cli.connection import Connection, shared_options
from synap.cli.exits import BROKEN_PIPE, INTERRUPTED, MEANINGS, OK, OTHER, USAGE, Failure, failure, report, usage
from synap.errors import SynapError
from synap.terminal import escaped

EPILOG = "\n".join(
    [
        "Values are JSON where they parse as JSON, else text (--string: always text); - reads stdin.",
        "Answers are JSON, one document a line. Errors are one line on stderr.",
        "",
        "Exit codes:",
        *(f"  {code:<4} {meaning}" for code, meaning in MEANINGS),
        "",
        'Shell completion: eval "$(_SYNAP_COMPLETE=bash_source synap)"  (or zsh_source, fish_source)',
    ]
)


COMMANDS = {
    "serve": "synap.cli.serve:serve",
    "worker": "synap.cli.worker:worker",
    "demo": "synap.demo.command:demo",
    "kv": "synap.cli.kv:kv",
    "queue": "synap.cli.queue:queue",
    "stream": "synap.cli.stream:stream",
    "pubsub": "synap.cli.pubsub:pubsub",
    "ping": "synap.cli.service:ping",
    "health": "synap.cli.service:health",
    "stats": "synap.cli.service:stats",
    "settings": "synap.cli.service:settings",
    "clients": "synap.cli.service:clients",
    "shutdown": "synap.cli.service:shutdown",
    "keys": "synap.cli.keys:keys",
    "bench": "synap.cli.bench:bench",
    "cluster": "synap.cli.cluster:cluster",
    "backup": "synap.cli.data:backup",
    "export": "synap.cli.data:export",
    "import": "synap.cli.data:import_",
    "doctor": "synap.cli.data:doctor",
}
"""The module of each command, imported on use: `synap kv get` doesn't wait for the server's imports."""


class Root(Group):
    """The command `synap` itself."""

    def list_commands(self, ctx: click.Context) -> List[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> Optional[click.Command]:
        place = COMMANDS.get(name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(
    "synap",
    cls=Root,
    epilog=EPILOG,
    examples=[
        "synap demo                                       see it work",
        "synap serve                                      start a server that keeps its data in ./synap-data",
        'synap kv set user:1 \'{"name": "Alice"}\' --ttl 3600',
        "synap kv get user:1",
        'synap queue publish tasks \'{"type": "send_email"}\'',
        "synap queue consume tasks --timeout 30",
        "synap stream tail chat-room-1 --last 50",
        "synap pubsub subscribe 'notifications.#'",
    ],
)
@click.version_option(__version__, prog_name="synap", message="%(prog)s %(version)s")
@shared_options
@click.pass_context
def synap(ctx: click.Context) -> None:
    """Key-value, acknowledged queues, event streams and pub/sub, from the shell."""
    ctx.ensure_object(Connection)


def invoke(args: List[str]) -> Any:
    """Run the command of the arguments."""
    if "_SYNAP_COMPLETE" in os.environ:
        synap.main(args, "synap")
    # Not `main`, whose handling of Ctrl-C and closed pipes is less specific.
    try:
        with synap.make_context("synap", args) as context:
            return synap.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code


def run(args: Optional[List[str]] = None) -> int:
    """Run one command line; returns its exit code. Errors are one line on stderr."""
    try:
        try:
            result = invoke(sys.argv[1:] if args is None else args)
        finally:
            sys.stdout.flush()
        return result if isinstance(result, int) else OK
    except Failure as problem:
        return report(problem)
    except SynapError as error:
        return report(failure(error))
    except click.UsageError as error:
        if error.ctx is not None and type(error).__name__ == "NoArgsIsHelpError":  # since click 8.2
            click.echo(error.ctx.get_help(), err=True)
            return USAGE
        where = error.ctx.command_path if error.ctx is not None else "synap"
        return report(usage(f"{error.format_message().rstrip('.')}; see `{where} --help`"))
    except click.ClickException as error:
        return report(Failure(OTHER, "FAILED", error.format_message()))
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe. Python would complain once more when it closes stdout.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        name = f" {error.filename}" if error.filename else ""
        return report(Failure(OTHER, "FAILED", f"{error.strerror or error}{name and ':' + name}"))
    except ModuleNotFoundError:
        raise
    except Exception:
        # A bug: print the traceback. Python's own exit code, 1, would mean a negative answer.
        sys.stderr.write(escaped(traceback.format_exc()))
        return OTHER
