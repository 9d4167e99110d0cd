"""The same empty job for each worker that `bench.workers` measures. Peers run under the Python that has them."""
