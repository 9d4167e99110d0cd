"""The clients: `AsyncSynapClient` and its groups in `_async`, the sync client generated from them in `_sync`.

`calls` sends and retries requests by the policy in `retry`; `handlers` holds event handlers; `groups` the descriptors
of the groups.
"""
