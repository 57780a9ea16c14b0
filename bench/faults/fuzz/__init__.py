"""Malformed input for the command line: `fuzz.py` runs it, a module a kind of input makes it."""
