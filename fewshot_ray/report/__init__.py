"""Reads and shows a sweep's folder, running or finished; knows nothing of Ray."""
