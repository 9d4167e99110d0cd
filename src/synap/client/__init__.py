"""The clients: `AsyncSynapClient` and its groups in `_async`, the sync client generated from them in `_sync`.

`calls` carries requests and tries again as `retry` says; `handlers` is what a user is told; `groups` how a client holds
its groups.
"""
