"""The parts of `benchmarks/soak.py`, of which `make test` runs a few rounds."""
