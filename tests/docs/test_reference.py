"""The made pages say what is so: defaults of queues, who answers which code, what to do about it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from synap import SynapClient
from synap.commands.queue import QueueConfig
from synap.engine.priorities import Rules
from synap.errors import CODES, NEVER_ANSWERED
from synap.server.openapi import describe

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "commands.md").read_text("utf-8")


def test_the_pages_are_what_the_tool_makes() -> None:
    subprocess.run([sys.executable, "tools/reference.py", "--check"], cwd=ROOT, check=True)


@pytest.mark.parametrize("field", msgspec.structs.fields(QueueConfig), ids=lambda field: field.name)
def test_a_default_that_the_page_gives_a_queue_is_its_default(field: msgspec.structs.FieldInfo) -> None:
    (row,) = re.findall(rf"^\| `config\.{field.name}` .*[Dd]efault ([\w,.]+)", PAGE, re.MULTILINE)
    default = getattr(Rules(), field.name)
    assert row.rstrip(".,").replace(",", "") == (str(default).lower() if isinstance(default, bool) else f"{default:g}")


def test_what_says_if_given_takes_null_for_a_value_and_what_says_optional_does_not() -> None:
    assert "| `if_value` | any value | if given |" in PAGE
    assert "| `headers` | object of text | optional |" in PAGE
    with SynapClient(url="memory://") as client:
        client.kv.set("k", None)
        both: Any = client.batch(
            [
                {"command": "kv.set", "payload": {"key": "k", "value": 1, "if_value": None}},
                {"command": "kv.set", "payload": {"key": "k", "value": 2, "if_value": None}},
            ]
        )
        taken, refused = both
        assert [taken.payload["success"], refused.payload["success"]] == [True, False]
        published, config = client.batch(
            [
                {"command": "queue.publish", "payload": {"queue": "q", "message": 1, "headers": None}},
                {"command": "queue.create", "payload": {"queue": "q", "config": {"max_depth": None}}},
            ]
        )
        assert published.status == "success"
        assert config.error is not None
        assert config.error["code"] == "INVALID_PAYLOAD"


@pytest.mark.parametrize("code", CODES)
def test_a_code_has_a_row_with_what_to_do(code: str) -> None:
    (row,) = re.findall(rf"^\| `{code}` \| (\S+) \| `(\w+)` \| (.+) \|$", PAGE, re.MULTILINE)
    status, exception, advice = row
    assert exception == CODES[code].exception.__name__
    assert status == ("–" if code in NEVER_ANSWERED else str(CODES[code].status))
    assert advice.endswith(".")


def test_the_description_of_the_service_names_the_codes_that_it_answers() -> None:
    answers = describe(keys=True)["paths"]["/api/v1/command"]["post"]["responses"].values()
    named = {code for answer in answers for code in re.findall(r"\b[A-Z]+_[A-Z_]+\b|FORBIDDEN", answer["description"])}
    ends = {"SUPERSEDED", "EVENTS_LOST"}
    assert named - ends == set(CODES) - set(NEVER_ANSWERED) - ends - {"UNAUTHORIZED"}
