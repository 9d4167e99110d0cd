"""What an import of the package brings along, each in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.patience import PATIENCE


def run(program: str) -> str:
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_package_alone_brings_no_client() -> None:
    loaded = run("import sys, synap; print(*sys.modules)").split()
    assert not {"synap.client", "synap.results", "asyncio", "msgspec", "dataclasses"} & set(loaded)


@pytest.mark.parametrize("name", ["SynapClient", "SynapError", "SyncLock", "__version__"])
def test_a_public_name_is_there_when_it_is_the_first_that_is_asked_for(name: str) -> None:
    run(f"from synap import {name}; import synap; assert synap.{name} is {name}; assert {name!r} in dir(synap)")


def test_the_package_says_what_it_has_and_what_it_has_not() -> None:
    said = run(
        "import synap\n"
        "assert synap.errors.SynapError is synap.SynapError\n"
        "assert synap.results.SetResult is synap.SetResult and synap.config.ClientConfig is synap.ClientConfig\n"
        "for name in ('Nothing', 'nothing', '_nothing', '__nothing__'):\n"
        "    try: getattr(synap, name)\n"
        "    except AttributeError as error: print(error)\n"
        "from synap import *\n"
        "assert sorted(set(synap.__all__) - set(globals())) == []\n"
        "try: from synap import Nothing\n"
        "except ImportError: print('right')\n"
    ).splitlines()
    names = ("Nothing", "nothing", "_nothing", "__nothing__")
    assert said == [*(f"module 'synap' has no attribute {name!r}" for name in names), "right"]
