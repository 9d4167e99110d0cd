"""What the pages tell users to type is there: commands, their options, modules, files, extras."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import FrozenSet, Iterator, List, Tuple

import click
import pytest

from synap.cli.app import synap as root
from tests.docs.pages import FENCED, PAGES, ROOT, commands, lines, name, options
from tests.helpers.patience import PATIENCE

OTHERS = {"releases.md", "containers.md"}
"""Pages whose options are mostly those of other people's tools."""
MODULES = re.compile(r"python -m ((?:bench|tests)[\w.]*)(.*)")


def of_synap(page: Path) -> Iterator[str]:
    return (line for line in commands(page, "synap") if re.match(r"synap( [^.>]|$)", line) and "setuser" not in line)


SYNAP = sorted({(name(page), line) for page in PAGES for line in of_synap(page)})
RUNS = sorted({match.groups() for page in PAGES for line in lines(page) for match in MODULES.finditer(line)})


def walk(line: str) -> Tuple[click.Command, List[str]]:
    """Return the command that a line names and the words behind it."""
    words = [word for word in shlex.split(line)[1:] if word != "…"]
    command: click.Command = root
    while isinstance(command, click.Group) and words:
        following = command.get_command(click.Context(command), words[0])
        assert following is not None, f"there is no command {words[0]!r}"
        command, words = following, words[1:]
    return command, words


def known(command: click.Command) -> FrozenSet[str]:
    context = click.Context(command)
    return frozenset(option for parameter in command.get_params(context) for option in parameter.opts)


def test_lines_were_found() -> None:
    assert len(SYNAP) > 40
    assert len(RUNS) > 25


@pytest.mark.parametrize(("page", "line"), SYNAP)
def test_a_line_for_synap_names_a_command_and_options_that_there_are(page: str, line: str) -> None:
    command, words = walk(line)
    if isinstance(command, click.Group):
        assert not [word for word in words if not word.startswith("--")], words
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known(command), word


@pytest.mark.parametrize("module", sorted({module for module, _ in RUNS if "NAME" not in module}))
def test_a_module_that_a_page_says_to_run_can_be_run_and_knows_the_options(module: str) -> None:
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    for other, rest in RUNS:
        if other == module:
            for option in re.findall(r"--[a-z-]+", rest.partition("#")[0]):
                assert option in done.stdout, f"python -m {module}{rest}"


def test_an_option_that_a_page_names_is_one_of_some_command() -> None:
    there = {option for command in [root, *every(root)] for option in known(command)}
    for folder in ("bench", "tests", "tools"):  # of the modules that are run, see above
        for file in (ROOT / folder).rglob("*.py"):
            there |= set(re.findall(r"add_argument\(\s*\"(--[a-z-]+)\"", file.read_text("utf-8")))
            there |= set(re.findall(r"option\(\s*\"(--[a-z-]+)\"", file.read_text("utf-8")))
    for script in (ROOT / "scripts").iterdir():
        there |= set(re.findall(r'"\$\{1:-\}" = (--[a-z-]+)', script.read_text("utf-8")))
    there |= {"--help", "--tool", "--timeout-graceful-shutdown"}  # the last two are valgrind's and uvicorn's
    named = {(option, name(page)) for page in PAGES if page.name not in OTHERS for option, _ in options(page)}
    assert len(named) > 80
    assert {(option, page) for option, page in named if option not in there} == set()


def every(group: click.Group) -> Iterator[click.Command]:
    for key in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), key)
        assert command is not None
        yield command
        if isinstance(command, click.Group):
            yield from every(command)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_file_that_a_page_names_is_there(page: Path) -> None:
    """Of the repository's own; those that a user has, or a run makes, are named by other paths."""
    text = "\n".join(lines(page))
    for path in set(re.findall(r"\b((?:src|tests|tools|deploy|console|scripts)/[\w./-]*\w)", text)):
        if not (ROOT / path).exists() and not (ROOT / "docs" / path).exists():
            assert path in ("console/bundle", "console/console"), path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_a_block_installs_is_enough_for_the_commands_behind_it(page: Path) -> None:
    """The command line needs the extra `server`, and a cluster's URL the extra `cluster` (or `demo`)."""
    for block in FENCED.findall(page.read_text("utf-8")):
        _, installs, behind = block.partition("pip install")
        line = behind.partition("\n")[0].partition("#")[0]
        extras = {extra for named in re.findall(r"\[([\w,]+)\]", line) for extra in named.split(",")}
        if installs and "dev" not in extras and re.search(r"(^|&& )synap ", behind, re.MULTILINE):
            assert "server" in extras, block
            if "valkey://" in behind or "demo --cluster" in behind:
                assert extras & {"cluster", "demo"}, block


def test_an_extra_that_a_page_names_is_one() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.optional-dependencies]")[2]
    extras = set(re.findall(r"^(\w+) = \[", text.partition("\n[")[0], re.MULTILINE))
    named = {
        extra
        for page in PAGES
        for inside in re.findall(r"(?:synap-client|\"\.|'\.)\[([\w,]+)\]", page.read_text("utf-8"))
        for extra in inside.split(",")
    }
    assert {"server", "cluster", "demo", "dev"} <= named
    assert named - extras == set()
