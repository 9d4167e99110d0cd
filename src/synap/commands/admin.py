"""Administration: payloads, answers and commands. The host executes them, not the engine."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from synap import results
from synap.commands.command import Command, Flag
from synap.commands.fields import Answer, ClientNumber, Limit, Payload, SuccessAnswer


class AdminStats(Payload):
    pass


class AdminConfig(Payload):
    pass


class AdminHealth(Payload):
    pass


class AdminShutdown(Payload):
    pass


class AdminWatch(Payload):
    enabled: bool = True


class AdminClients(Payload):
    after: Optional[ClientNumber] = None
    limit: Limit = 1000
    disconnect: Optional[ClientNumber] = None


class SubscribedToFigures(Answer):
    """The figures are pushed under `subscription_id`, as messages of the topic `admin.watch`."""

    subscription_id: int
    watching: bool


class ClientsAnswer(Answer):
    """`disconnected`: whether the connection to disconnect existed; null where none was named."""

    clients: List[results.ClientInfo]
    total: int
    has_more: bool
    disconnected: Optional[bool] = None


class Figures(Answer):
    """Free-form figures by name: numbers, texts, or further figures."""

    figures: Dict[str, Any]


ADMIN_STATS = Command(
    80, "admin.stats", AdminStats, Figures, "Read the service's figures.", Flag.ADMIN, result=Dict[str, Any]
)
ADMIN_CONFIG = Command(
    81,
    "admin.config",
    AdminConfig,
    Figures,
    "Read the configuration, secrets left out.",
    Flag.ADMIN,
    result=Dict[str, Any],
)
ADMIN_HEALTH = Command(
    82, "admin.health", AdminHealth, Figures, "Read the state of the service.", Flag.ADMIN, result=Dict[str, Any]
)
ADMIN_SHUTDOWN = Command(
    83, "admin.shutdown", AdminShutdown, SuccessAnswer, "Drain and stop the service.", Flag.ADMIN | Flag.EFFECT
)
ADMIN_WATCH = Command(
    84,
    "admin.watch",
    AdminWatch,
    SubscribedToFigures,
    "Have the service's figures pushed twice a second, or no longer.",
    Flag.ADMIN | Flag.PUSHES,
)
ADMIN_CLIENTS = Command(
    85,
    "admin.clients",
    AdminClients,
    ClientsAnswer,
    "List the connections, or disconnect one.",
    Flag.ADMIN,
)
