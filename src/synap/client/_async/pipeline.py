"""Pipelines: `client.pipeline()`."""

from __future__ import annotations

from typing import Optional

from typing_extensions import Self

from synap import commands as c
from synap.client._async.calls import AsyncCalls
from synap.client.recording import Recording
from synap.errors import ConnectionError, SynapError


class Pipeline:
    """Commands that are sent as one batch when the block ends: `async with client.pipeline() as p:`.

    Methods are those of the client, in the groups `kv`, `queue`, `stream` and `pubsub`; each returns a `Handle`, whose
    `result()` is available after the block. Arguments are checked at once. One command that fails doesn't stop the
    others, unless the pipeline is `atomic`: then all take effect or none, and the others have failed with
    `BATCH_ABORTED`. The block itself raises only where the batch was not answered. One that is left by an exception
    sends nothing.
    """

    def __init__(self, calls: AsyncCalls, atomic: bool) -> None:
        self._recording = recording = Recording(calls.config.format)
        self.kv = recording.kv
        self.queue = recording.queue
        self.stream = recording.stream
        self.pubsub = recording.pubsub
        self._calls = calls
        self._atomic = atomic
        self._entered = False

    async def __aenter__(self) -> Self:
        if self._entered:
            raise SynapError("INVALID_REQUEST", "a pipeline can be used once, make a new one: client.pipeline()")
        self._entered = True
        return self

    async def __aexit__(self, kind: object, error: Optional[BaseException], trace: object) -> None:
        self._recording.close("this pipeline has ended, make a new one: client.pipeline()")
        if error is not None:
            why = f"the pipeline's block was left by {type(error).__name__}: nothing was sent"
            self._recording.drop(SynapError("BATCH_ABORTED", why))
            return
        if not len(self._recording):
            return
        command, request = self._recording.request(self._atomic)
        try:
            answer: c.BatchResults = await self._calls.call(command, request)
        except SynapError as failure:
            self._recording.drop(failure)
            raise
        except BaseException as failure:  # a cancellation, or a signal handler's: it is the block's, and no result's
            ended = ConnectionError("CONNECTION_LOST", f"{type(failure).__name__} ended the wait for the answer")
            ended.may_have_happened = command.has_effects
            self._recording.drop(ended)
            raise
        self._recording.answered(answer.results)

    def __len__(self) -> int:
        return len(self._recording)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} commands>"
