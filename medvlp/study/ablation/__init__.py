"""Grids of runs: planned, made, kept and compared."""
