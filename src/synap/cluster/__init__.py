"""The cluster engine: the same commands on a Valkey or Redis Cluster that people already run."""
