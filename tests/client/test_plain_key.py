"""A key that travels unencrypted is warned of, once for each server."""

from __future__ import annotations

import warnings

import pytest

from synap import AsyncSynapClient, SynapClient


def test_a_key_for_another_host_over_plain_http_is_warned_of_once() -> None:
    url = "http://warned-of-once.example:15500"
    with pytest.warns(UserWarning, match="travels unencrypted to warned-of-once"):
        SynapClient(url=url, api_key="k").close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SynapClient(url=url, api_key="k").close()
        AsyncSynapClient(url=url, api_key="k")


@pytest.mark.parametrize("url", ["http://localhost:1", "http://127.0.0.1:1", "https://safe.example", "memory://"])
def test_where_it_stays_here_or_is_encrypted_it_is_not(url: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SynapClient(url=url, api_key="k").close()
