"""Seconds and bytes: of checkpoints, of the quickstart, of Ray."""
