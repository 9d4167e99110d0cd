"""What the tests of integrations share: each runs against the real framework, where that is installed."""

from __future__ import annotations

from typing import Iterator

import pytest

from synap.contrib.sharing import close_shared_clients


@pytest.fixture(autouse=True)
def no_client_is_left_open() -> Iterator[None]:
    yield
    close_shared_clients()
