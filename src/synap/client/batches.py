"""Batches: the request of `batch()` from the user's dictionaries, the exception of a failed command."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from synap.commands import COMMANDS, BatchRequest
from synap.errors import SynapError, from_wire, invalid
from synap.results import BatchResult
from synap.wire import typed

_FIELDS = ("command", "payload")


def batch_request(commands: Sequence[Mapping[str, Any]], atomic: bool, format: str) -> BatchRequest:
    """Build the request; raises `INVALID_PAYLOAD` for malformed items and values that can't be stored.

    The service checks the commands' names and payloads, each with an error of its own.
    """
    if isinstance(commands, (str, bytes, Mapping)) or not isinstance(commands, Sequence):
        raise invalid("commands", "a list of dictionaries", commands)
    items: List[Dict[str, Any]] = []
    for index, command in enumerate(commands):
        try:
            name, payload = command["command"], command.get("payload")
        except (LookupError, TypeError, AttributeError):
            raise _misfit(index, command) from None
        if len(command) != 2 and (len(command) > 2 or ("payload" not in command and len(command) != 1)):
            raise _misfit(index, command)
        if type(name) is not str:
            raise invalid(f"commands[{index}].command", "the name of a command", name)
        if payload is None:
            payload = {}
        elif not isinstance(payload, dict):
            raise invalid(f"commands[{index}].payload", "a dictionary", payload)
        for field, value in payload.items():
            if type(value) is not str or type(field) is not str:
                payload = typed.storable(payload, format, f"$.commands[{index}].payload")
                break
        items.append({"command": name, "payload": payload})
    return BatchRequest(items, atomic)  # type: ignore[arg-type]  # encoded as they are


def only_reads(request: BatchRequest) -> bool:
    """Return whether a batch has no effects, so that it may be repeated."""
    names: Any = request.commands
    return not any(item["command"] not in COMMANDS or COMMANDS[item["command"]].has_effects for item in names)


def error_of(result: BatchResult) -> SynapError:
    """Return the exception that the `error` of a failed command stands for."""
    error = result.error or {}
    return from_wire(error.get("code", ""), error.get("message", ""), error.get("details"))


def _misfit(index: int, command: Any) -> SynapError:
    """Explain why something is not `{'command': …, 'payload': …}`."""
    place = f"commands[{index}]"
    if not isinstance(command, Mapping):
        return invalid(place, "a dictionary with 'command' and 'payload'", command)
    unknown = [key for key in command if key not in _FIELDS]
    if unknown:
        message = f"{place} has the unknown field {unknown[0]!r}; its fields are: {', '.join(_FIELDS)}"
        return SynapError("INVALID_PAYLOAD", message, {"field": str(unknown[0])})
    return SynapError("INVALID_PAYLOAD", f"{place} needs the field 'command'", {"field": "command"})
