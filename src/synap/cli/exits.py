"""Exit codes, and the error line on stderr."""

from __future__ import annotations

import sys
from typing import Dict, Optional

from synap.errors import SynapError, http_status
from synap.lanes.errors import CERTIFICATE_HINT, START_HINT
from synap.terminal import escaped

OK = 0
NEGATIVE = 1
USAGE = 2
CONNECTION = 3
REFUSED = 4
OTHER = 5
INTERRUPTED = 130
BROKEN_PIPE = 141
"""The reader of the output has closed the pipe: the code that a shell gives a program which SIGPIPE ended."""

MEANINGS = (
    (OK, "done"),
    (NEGATIVE, "negative answer: no such key, queue, room or message; nothing in time"),
    (USAGE, "the command line, or what it asks for, makes no sense"),
    (CONNECTION, "no service there, or it went away before it answered"),
    (REFUSED, "refused by the service: API key, permission, rate limit, size, capacity"),
    (OTHER, "anything else"),
    (INTERRUPTED, "Ctrl-C"),
    (BROKEN_PIPE, "the reader of the output has closed it, such as head"),
)

BY_STATUS = {400: USAGE, 404: NEGATIVE, **dict.fromkeys((401, 403, 413, 429, 503, 507), REFUSED)}
"""By the HTTP status of an error's code, of all errors but these."""
BY_CODE = {"INVALID_PAYLOAD": USAGE, **dict.fromkeys(("CONNECTION_FAILED", "CONNECTION_LOST", "TIMEOUT"), CONNECTION)}

ADVICE: Dict[str, str] = {
    "CONNECTION_FAILED": "is it a Synap service, and running? `synap serve` starts one, --url or SYNAP_URL says where",
    "CONNECTION_LOST": "try again",
    "TIMEOUT": "try again, or allow more with --timeout",
    "UNAUTHORIZED": "give a key with --api-key or SYNAP_API_KEY",
    "WRONG_TYPE": "look at it with `synap kv get`",
    "SERVICE_UNAVAILABLE": "try again later; `synap health` says how it is",
}


class Failure(Exception):
    """Raised to end a command with an exit code and an error line."""

    def __init__(self, exit_code: int, code: str, message: str, advice: Optional[str] = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code
        self.message = message
        self.advice = advice


def failure(error: SynapError) -> Failure:
    """Convert an error of the client to an exit code, an error line and advice."""
    advice = ADVICE.get(error.code)
    if START_HINT in error.message:
        advice = "--url or SYNAP_URL says where it is, if it is somewhere else"
    answered = "[SSL: " in error.message  # somebody there does, and what is wrong with TLS is said
    if answered or CERTIFICATE_HINT in error.message:
        advice = None
    if "ACL SETUSER" in error.message:  # of a cluster's node, which knows no API keys
        advice = None
    retry_after = error.details.get("retry_after")
    if retry_after is not None:
        advice = f"try again in {retry_after:g} s"
    message = error.message
    if error.may_have_happened and "may have" not in message:
        message += " (it may have taken effect)"
    exit_code = BY_CODE.get(error.code) or BY_STATUS.get(http_status(error.code), OTHER)
    if "no node of the cluster can be reached" in error.message and not answered:
        exit_code = CONNECTION
    return Failure(exit_code, error.code, message, advice)


def negative(code: str, message: str) -> Failure:
    """Build the `Failure` of a negative answer."""
    return Failure(NEGATIVE, code, message)


def usage(message: str) -> Failure:
    """Build the `Failure` of a command line that is invalid."""
    return Failure(USAGE, "USAGE", message)


def report(problem: Failure) -> int:
    """Write the error line and its advice to stderr; returns the exit code."""
    text = problem.message if problem.advice is None else f"{problem.message}; {problem.advice}"
    sys.stderr.write(f"synap: [{problem.code}] {escaped(' '.join(text.split()))}\n")
    return problem.exit_code
