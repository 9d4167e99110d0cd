"""`Handle`: the result of a pipeline's method, available later."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Coroutine, Generic, Optional, Protocol, TypeVar

import msgspec

from synap.client.batches import error_of
from synap.commands import Command
from synap.errors import SynapError
from synap.results import BatchResult
from synap.wire.outcomes import decoded

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

log = logging.getLogger("synap.client")


class _Notice:
    """Logs the error of a command when it is garbage-collected, unless somebody has `asked` for it."""

    __slots__ = ("_command", "_error", "asked")

    def __init__(self, command: Command, error: BaseException) -> None:
        self._command = command
        self._error = error
        self.asked = False

    def __del__(self) -> None:
        if not self.asked:
            log.error("%s in a pipeline failed and its result was never asked for: %s", self._command.name, self._error)


class Handle(Generic[R_co]):
    """The result of one command of a pipeline: `result()` returns it, or raises, once the pipeline has ended.

    The error of a failed command whose `result()` was never called is logged when the handle is garbage-collected.
    """

    __slots__ = ("_command", "_error", "_method", "_notice", "_result")

    def __init__(self, command: Command, method: Coroutine[Any, Any, R_co]) -> None:
        self._command = command
        self._method: Optional[Coroutine[Any, Any, R_co]] = method
        """The client's method, suspended until its answer comes; None once it is done."""
        self._error: Optional[BaseException] = None
        self._notice: Optional[_Notice] = None
        """Of an error that nothing but `result()` raises. No `__del__` of this class: Python discards what a signal
        handler raises within one, and most handles have no error."""
        self._result: Any = None

    @property
    def done(self) -> bool:
        """Whether `result()` has an answer."""
        return self._method is None

    def result(self) -> R_co:
        """Return the command's result or raise its error; `INVALID_REQUEST` before the pipeline has ended."""
        if self._method is not None:
            message = f"the result of {self._command.name} is there once the pipeline's block has ended"
            raise SynapError("INVALID_REQUEST", message)
        if self._notice is not None:
            self._notice.asked = True
        if self._error is not None:
            raise self._error
        result: R_co = self._result
        return result

    def take(self, answer: BatchResult) -> None:
        """Resume the method with `answer`, its command's. For the pipeline."""
        method = self._method
        if method is None:
            return
        try:
            if answer.status == "success":
                convert = partial(msgspec.convert, type=self._command.result)
                method.send(decoded(self._command, convert, answer.payload))
            else:
                method.throw(error_of(answer))
        except StopIteration as returned:
            self._result = returned.value
        except SynapError as error:
            self.fail(error.with_traceback(None), reported=error.code == "BATCH_ABORTED")
            return
        self._method = None

    def fail(self, error: BaseException, *, reported: bool = True) -> None:
        """End with `error`; `reported`: the pipeline's block raises or reports it anyway."""
        if self._method is not None:
            self._method.close()
            self._method = None
            self._error = error
            if not reported:
                self._notice = _Notice(self._command, error)

    def __repr__(self) -> str:
        state = "not run yet" if self._method is not None else "failed" if self._error is not None else "done"
        return f"<Handle of {self._command.name}: {state}>"


class Record(Protocol):
    """Records a call of a client's method."""

    def __call__(self, method: Coroutine[Any, Any, R]) -> Handle[R]: ...
