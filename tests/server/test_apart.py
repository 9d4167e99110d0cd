"""Large answers in pieces, and in steps: the same bytes as at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from synap.commands import BatchAnswer, BatchOutcome, ErrorAnswer, GetAnswer, HistoryAnswer, MGetAnswer, SuccessAnswer
from synap.server import apart
from synap.server.apart import APART, Encoded
from synap.wire.codec import CODECS

ENCODE: dict[str, Callable[[Any], bytes]] = {"json": msgspec.json.encode, "msgpack": msgspec.msgpack.encode}


def answers(encode: Callable[[Any], bytes]) -> dict[str, Any]:
    """Answers with lists of values."""
    small, large = GetAnswer(True, encode({"a": [1, "x" * 3000]}), 5), GetAnswer(True, encode("y" * 100_000), None)
    several = [small, GetAnswer(False, None, None), large, small, large]
    error = ErrorAnswer("INVALID_PAYLOAD", "no", {})
    outcomes = [
        BatchOutcome("success", small),
        BatchOutcome("error", None, error),
        BatchOutcome("success", SuccessAnswer()),
        BatchOutcome("success", MGetAnswer([large, small])),
    ]
    return {
        "one": MGetAnswer([small]),
        "fifteen": MGetAnswer(several * 3),
        "sixteen": MGetAnswer([*several * 3, large]),
        "many": MGetAnswer([small] * 66_000),
        "batch": BatchAnswer(outcomes * 100),
        "nothing": HistoryAnswer([], 0, 0),
    }


@pytest.mark.parametrize("name", answers(msgspec.json.encode))
@pytest.mark.parametrize("format", ["json", "msgpack"])
def test_in_steps_an_answer_is_the_same_bytes(format: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = answers(ENCODE[format])[name]
    whole = CODECS[format].encode_answer(answer)
    assert b"".join(APART[format].pieces(answer)) == whole
    for step in (1, 5000, apart.STEP):
        if step == 1 and name == "many":
            continue
        monkeypatch.setattr(apart, "STEP", step)
        steps = APART[format].in_steps(answer)
        assert steps is not None
        made = []
        while True:
            try:
                made.append(next(steps))
            except StopIteration as done:
                encoded = done.value
                break
        assert isinstance(encoded, Encoded)
        assert b"".join(encoded.pieces) == whole
        assert encoded.size == len(whole)
        assert sum(map(int, filter(None, made))) <= len(whole)
        if name == "many":
            assert len(made) > 100


def test_an_answer_without_a_list_of_values_has_no_steps() -> None:
    assert APART["json"].in_steps(GetAnswer(True, b'"x"', None)) is None
    assert APART["json"].in_steps(SuccessAnswer()) is None
