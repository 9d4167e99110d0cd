"""Synap beside the servers and clients people would otherwise pick, in one run on one machine: `python -m bench`."""
