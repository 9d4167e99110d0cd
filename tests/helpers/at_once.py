"""A mark for tests of what is only so where the answer's own turn of the event loop resumes whoever waits for it."""

from __future__ import annotations

import pytest

from synap.lanes.native.pending import RESUMES_AT_ONCE

AT_ONCE = pytest.mark.skipif(not RESUMES_AT_ONCE, reason="tasks of this Python wait for a future of asyncio's")
