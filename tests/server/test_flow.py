"""What a connection holds for its caller is weighed as the answers' classes say, short cuts included."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from synap.server import sizes
from synap.server.flow import FlowSession
from tests.host.test_batch_short_cuts import ANSWERS


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_an_answer_by_itself_weighs_what_its_class_says(answer: Any) -> None:
    session = FlowSession.__new__(FlowSession)
    session.host, session.permit, session.promised, session.output = Mock(touched=[]), None, 0, []
    session.answer(1, answer)
    assert session.promised == sizes.estimate(answer)
