"""Help, examples, and command lines that make no sense."""

from __future__ import annotations

import shlex
from typing import Iterator, List, Tuple

import click
import pytest

from synap.cli.app import synap as root
from synap.cli.command import Command, Group
from tests.cli.conftest import Synap


def commands(group: click.Group, path: Tuple[str, ...] = ()) -> Iterator[Tuple[Tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = list(commands(root))


def command_line(example: str) -> List[str]:
    """The words of an example that are for `synap`, up to where the shell takes over or a comment begins."""
    _, _, rest = example.partition("synap ")
    words: List[str] = []
    for word in shlex.split(rest.partition("   ")[0]):
        if word in ("|", ">>", "&&", "<", ">", ";"):
            break
        words.append(word)
    return words


@pytest.mark.parametrize(("path", "command"), [pytest.param(*found, id=" ".join(found[0])) for found in ALL])
def test_every_command_has_help_and_examples_that_parse(path: Tuple[str, ...], command: click.Command) -> None:
    assert isinstance(command, (Command, Group))
    assert command.examples, "no examples"
    assert command.help
    for example in command.examples:
        assert f"synap {' '.join(path)}" in example
        if isinstance(command, Command):
            line = command_line(example)[len(path) :]
            command.make_context(path[-1], line)


@pytest.mark.parametrize("path", [found[0] for found in ALL], ids=" ".join)
def test_help_shows_them(synap: Synap, path: Tuple[str, ...]) -> None:
    ended = synap(*path, "--help")
    assert ended.code == 0
    assert b"Examples:" in ended.out
    assert b" RANGE" not in ended.out, "click's own name of a type is none of a value"
    assert max(map(len, ended.out.decode().splitlines())) <= 130


def test_what_an_option_of_serve_takes_is_called_a_key_where_it_is_one() -> None:
    taken = {option.name: option.metavar for option in dict(ALL)[("serve",)].params if isinstance(option, click.Option)}
    assert {name for name, metavar in taken.items() if metavar == "KEY"} == {"api_keys", "admin_keys"}
    assert (taken["allowed_hosts"], taken["metrics_queues"]) == ("NAME", "PATTERN")


def test_help_documents_the_exit_codes(synap: Synap) -> None:
    said = synap("--help").out.decode()
    for code in ("0", "1", "2", "3", "4", "5", "130"):
        assert any(line.split()[:1] == [code] for line in said.splitlines()), code
    assert "Exit code 1" in synap("kv", "get", "--help").out.decode()


def test_without_arguments_it_shows_its_help(synap: Synap) -> None:
    ended = synap()
    assert b"Examples:" in ended.out + ended.err.encode()
    assert ended.code in (0, 2)  # click before 8.2, and since


def test_the_version_is_shown(synap: Synap) -> None:
    from synap._version import __version__

    assert synap("--version").out.decode() == f"synap {__version__}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("kv gett x", "did you mean 'get'?"),
        ("kvv", "did you mean 'kv'?"),
        ("kv get x --rwa", "--raw"),
        ("kv get", "KEY"),
        ("kv get a b", "b"),
        ("kv incr x --amount many", "many"),
        ("kv expire x soon", "soon"),
        ("kv get x --timeout -1", "--timeout"),
        ("kv get x --url ftp://nowhere", "ftp"),
        ("kv get x --url memory://", "memory://"),
        ("bench --under-way none", "--under-way"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_exit_code_2_and_one_line(synap: Synap, line: str, said: str) -> None:
    ended = synap(*line.split())
    assert ended.code == 2
    assert ended.err.startswith("synap: [")
    assert ended.err.count("\n") == 1
    assert said in ended.err
