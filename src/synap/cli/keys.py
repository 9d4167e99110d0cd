"""`synap keys`: create, list, revoke and check the keys in a file that `synap serve --keys-file` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Tuple

import click

from synap.cli.command import Command, Group
from synap.cli.documents import emit
from synap.cli.exits import negative, usage
from synap.server import keyfile
from synap.server.grants import Grant, Quota

__all__ = ["keys"]

FILE = "synap-keys.toml"


@click.group(
    "keys",
    cls=Group,
    examples=[
        "synap keys new orders --grant 'queue:*:orders*' --grant 'kv:read:price:*'",
        "synap keys new ops --grant '*:*:*' --grant admin",
        "synap keys list",
        "synap keys check orders queue:consume:orders-eu",
        "synap keys revoke orders",
    ],
)
def keys() -> None:
    """Keys with grants, in a file that the service reloads when it changes."""


def file_option() -> click.Option:
    return click.Option(
        ["--file", "path"],
        metavar="FILE",
        default=FILE,
        show_default=True,
        envvar="SYNAP_KEYS_FILE",
        help="The file of keys.",
    )


def new_(
    path: str,
    name: str,
    grants: Tuple[str, ...],
    requests: Optional[float],
    sent: Optional[float],
    connections: Optional[int],
    subscriptions: Optional[int],
    waiting: Optional[int],
) -> None:
    if not grants:
        raise usage("a key without a grant opens nothing; give --grant, such as --grant 'queue:*:orders*'")
    for grant in grants:
        if grant != "admin":
            Grant(grant)
    key = keyfile.new_key()
    quota = Quota(requests=requests, bytes=sent, connections=connections, subscriptions=subscriptions, waiting=waiting)
    keyfile.add(path, name, key, list(grants), quota)
    click.echo(key)
    click.echo(f"{name} is in {path}; its key is shown this once", err=True)


def list_(path: str) -> None:
    for access in keyfile.read(path).values():
        emit({"name": access.name, "grants": access.texts()})


def revoke_(path: str, name: str) -> None:
    keyfile.remove(path, name)
    click.echo(f"{name} is revoked; running services notice within seconds", err=True)


def check_(path: str, name: Optional[str], grant: Optional[str]) -> None:
    if not Path(path).exists():
        raise usage(f"there is no {path}")
    found = {access.name: access for access in keyfile.read(path).values()}
    if name is None:
        emit({"file": path, "keys": len(found)})
        return
    access = found.get(name)
    if access is None:
        raise usage(f"there is no key named {name!r} in {path}")
    if grant is None:
        emit({"name": name, "grants": access.texts()})
        return
    facility, _, rest = grant.partition(":")
    verb, colon, what = rest.partition(":")
    allowed = access.admin if grant == "admin" else bool(colon) and access.may(facility, verb, what)
    emit({"name": name, "asked": grant, "allowed": allowed})
    if not allowed:
        raise negative("FORBIDDEN", f"{name} may not {grant}")


keys.add_command(
    Command(
        "new",
        short_help="Create a key.",
        callback=new_,
        params=[
            click.Argument(["name"]),
            click.Option(["--grant", "grants"], multiple=True, metavar="GRANT", help="admin, or facility:verb:names."),
            click.Option(["--requests"], type=click.FloatRange(min=0, min_open=True), help="Commands a second."),
            click.Option(["--bytes", "sent"], type=click.FloatRange(min=1), help="Bytes of requests a second."),
            click.Option(["--connections"], type=click.IntRange(min=1), help="Connections at a time."),
            click.Option(["--subscriptions"], type=click.IntRange(min=1), help="Subscriptions on a connection."),
            click.Option(["--waiting"], type=click.IntRange(min=1), help="Requests that wait on a connection."),
            file_option(),
        ],
        help="Create a key and print it, this once. The file keeps only its digest, its grants and its quota.",
        examples=["synap keys new orders --grant 'queue:*:orders*' --requests 500"],
    )
)
keys.add_command(
    Command(
        "list",
        short_help="List keys and grants.",
        callback=list_,
        params=[file_option()],
        help="List the keys.",
        examples=["synap keys list", "synap keys list --file /etc/synap/keys.toml"],
    )
)
keys.add_command(
    Command(
        "revoke",
        short_help="Revoke a key.",
        callback=revoke_,
        params=[click.Argument(["name"]), file_option()],
        help="Remove a key from the file. Services close its connections within seconds.",
        examples=["synap keys revoke orders"],
    )
)
keys.add_command(
    Command(
        "check",
        short_help="Check the file, or what a key may do.",
        callback=check_,
        params=[click.Argument(["name"], required=False), click.Argument(["grant"], required=False), file_option()],
        help="Check the file; with a name, show its grants; with a grant too, say whether it has that.",
        examples=["synap keys check orders queue:consume:orders-eu"],
    )
)
