"""Clients through real proxies. Needs nginx from Debian's packages: `pytest tests/proxies`, not part of the suite."""
