"""Passes over source data: sums filled in rounds, by one process or several, stopped when known, gone on with."""
