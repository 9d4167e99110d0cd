"""Celery: a broker (a transport of kombu) and a result backend.

    import synap.contrib.celery  # registers the URL schemes

    app = Celery("shop", broker="synap://localhost:15500", backend="synap://localhost:15500")

`synap://[:api_key@]host[:port][/prefix]`; `synaps://` is the same with TLS. Broker and backend are independent.
"""

from __future__ import annotations

from typing import Dict

from celery.app.backends import BACKEND_ALIASES
from kombu.transport import TRANSPORT_ALIASES

from synap.contrib.celery.backend import SynapBackend
from synap.contrib.celery.channel import Channel
from synap.contrib.celery.transport import Transport

__all__ = ["Channel", "SynapBackend", "Transport"]


def _register() -> None:
    transports: Dict[str, str] = TRANSPORT_ALIASES
    backends: Dict[str, str] = BACKEND_ALIASES
    for scheme in ("synap", "synaps"):
        transports[scheme] = "synap.contrib.celery.transport:Transport"
        backends[scheme] = "synap.contrib.celery.backend:SynapBackend"


_register()
