"""`synap keys`: create, list, revoke and check the keys in a file that `synap serve --keys-file` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Tuple

import click

from synap.cli.command import Group
from synap.cli.documents import emit, need_output
from synap.cli.exits import negative, usage
from synap.server import keyfile
from synap.server.grants import Grant, Quota

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


in_file = click.option(
    "--file",
    "path",
    metavar="FILE",
    default=FILE,
    show_default=True,
    envvar="SYNAP_KEYS_FILE",
    help="The file of keys.",
)


@keys.command("new", examples=["synap keys new orders --grant 'queue:*:orders*' --requests 500"])
@click.argument("name")
@click.option("--grant", "grants", multiple=True, metavar="GRANT", help="admin, or facility:verb:names.")
@click.option("--requests", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Commands a second.")
@click.option("--bytes", type=click.FloatRange(min=1), metavar="N", help="Bytes of requests a second.")
@click.option("--connections", type=click.IntRange(min=1), metavar="N", help="Connections at a time.")
@click.option("--subscriptions", type=click.IntRange(min=1), metavar="N", help="Subscriptions on a connection.")
@click.option("--waiting", type=click.IntRange(min=1), metavar="N", help="Requests that wait on a connection.")
@in_file
def new(path: str, name: str, grants: Tuple[str, ...], **quota: Any) -> None:
    """Create a key and print it, this once.

    The file keeps only its digest, its grants and its quota.
    """
    if not grants:
        raise usage("a key without a grant opens nothing; give --grant, such as --grant 'queue:*:orders*'")
    for grant in grants:
        if grant != "admin":
            Grant(grant)
    need_output()
    key = keyfile.new_key()
    keyfile.add(path, name, key, list(grants), Quota(**quota))
    click.echo(key)
    click.echo(f"{name} is in {path}; its key is shown this once", err=True)


@keys.command("list", examples=["synap keys list", "synap keys list --file /etc/synap/keys.toml"])
@in_file
def list_(path: str) -> None:
    """List keys and grants."""
    for access in keyfile.read(path).values():
        emit({"name": access.name, "grants": access.texts()})


@keys.command("revoke", examples=["synap keys revoke orders"])
@click.argument("name")
@in_file
def revoke(path: str, name: str) -> None:
    """Remove a key from the file. Services that read it there close its connections within seconds."""
    keyfile.remove(path, name)
    click.echo(f"{name} is revoked; services that read {path} notice within seconds", err=True)


@keys.command(
    "check",
    short_help="Check the file, or what a key may do.",
    examples=["synap keys check orders queue:consume:orders-eu"],
)
@click.argument("name", required=False)
@click.argument("grant", required=False)
@in_file
def check(path: str, name: Optional[str], grant: Optional[str]) -> None:
    """Check the file; with a name, show its grants; with a grant too, say whether it has that."""
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
    if grant == "admin":
        allowed = access.admin
    else:
        asked = Grant(grant)
        allowed = access.may(asked.facility, asked.verb, asked.pattern)
    emit({"name": name, "asked": grant, "allowed": allowed})
    if not allowed:
        raise negative("FORBIDDEN", f"{name} may not {grant}")
