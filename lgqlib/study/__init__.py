"""Grids of runs: executed, collected, judged and reported."""
