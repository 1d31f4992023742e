"""Measurements, each one command: `python -m bench.<name>` prints a table."""
