"""Django's session engine: sessions are keys that expire, as durable as the service.

SESSION_ENGINE = "synap.contrib.django.sessions"
SESSION_SYNAP_URL = "http://localhost:15500"  # without it `SYNAP_URL` of the environment
SESSION_SYNAP_OPTIONS = {"api_key": "…"}  # fields of ClientConfig
"""

from __future__ import annotations

from typing import Any, Dict, Optional

from django.conf import settings
from django.contrib.sessions.backends.base import CreateError, SessionBase, UpdateError

from synap import SynapClient
from synap.contrib.sharing import shared_client

__all__ = ["SessionStore"]

PREFIX = "django:session:"


class SessionStore(SessionBase):
    """A session, stored as Django signs and serializes it, under `django:session:<key>`."""

    @property
    def client(self) -> SynapClient:
        """The client that the sessions of this process share."""
        return shared_client(
            getattr(settings, "SESSION_SYNAP_URL", None), getattr(settings, "SESSION_SYNAP_OPTIONS", {})
        )

    def load(self) -> Dict[str, Any]:
        """Return the stored session, or an empty one without a key."""
        if self.session_key:
            found = self.client.kv.get(PREFIX + self.session_key)
            if found.found:
                session: Dict[str, Any] = self.decode(found.value)
                return session
        self._session_key = None
        return {}

    def exists(self, session_key: Optional[str]) -> bool:
        """Return whether a session of this key is stored."""
        return bool(session_key) and self.client.kv.exists(f"{PREFIX}{session_key}")

    def create(self) -> None:
        """Save the session under a new key."""
        while True:
            self._session_key = self._get_new_session_key()
            try:
                self.save(must_create=True)
            except CreateError:
                continue  # the key is taken
            self.modified = True
            return

    def save(self, must_create: bool = False) -> None:
        """Store the session; raises `CreateError` if its key is taken, `UpdateError` if it was deleted."""
        if self.session_key is None:
            self.create()
            return
        data = self.encode(self._get_session(no_load=must_create))
        ttl = self.get_expiry_age()
        if ttl <= 0:
            self.client.kv.delete(PREFIX + self.session_key)
            return
        stored = self.client.kv.set(PREFIX + self.session_key, data, ttl=ttl, nx=must_create, xx=not must_create)
        if not stored.success:
            raise CreateError if must_create else UpdateError

    def delete(self, session_key: Optional[str] = None) -> None:
        """Delete the session of `session_key`, by default this one."""
        key = session_key or self.session_key
        if key is not None:
            self.client.kv.delete(PREFIX + key)

    @classmethod
    def clear_expired(cls) -> None:
        """Do nothing: expired keys are removed by the service."""
