"""Errors come out of an envelope as they went in."""

from __future__ import annotations

import pytest

from synap.errors import QueueNotFoundError, SynapError
from synap.wire.codec import CODECS
from synap.wire.envelope import WIRES


@pytest.mark.parametrize("format", sorted(CODECS))
@pytest.mark.parametrize("uncertain", [False, True])
def test_whether_the_request_may_have_taken_effect_crosses_the_wire(format: str, uncertain: bool) -> None:
    error = SynapError("SERVICE_UNAVAILABLE", "the disk failed", {"retry_after": 1})
    error.may_have_happened = uncertain

    heard = CODECS[format].decode_error(CODECS[format].encode_error(error))
    assert (heard.code, heard.message, heard.may_have_happened) == (error.code, error.message, uncertain)
    assert heard.details["retry_after"] == 1

    envelope = CODECS[format].decode(WIRES[format].error("1", error))["error"]
    assert envelope["details"].get("may_have_happened", False) is uncertain
    assert "may_have_happened" not in error.details, "the error itself is left as it is"


@pytest.mark.parametrize("format", sorted(CODECS))
def test_the_code_gives_the_class(format: str) -> None:
    error = QueueNotFoundError("QUEUE_NOT_FOUND", "there is no queue 'q'", {"queue": "q"})

    heard = CODECS[format].decode_error(CODECS[format].encode_error(error))
    assert type(heard) is QueueNotFoundError
    assert heard.details == {"queue": "q"}
