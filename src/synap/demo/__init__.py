"""`synap demo`: the whole system at a real job, with real processes over the network.

A producer publishes one task for every file of the running Python's standard library; worker processes lease the
tasks, hash the files, store the digests, and publish to a room and a topic. One worker is killed while it
holds leases. At the end every digest is checked against its file.
"""
