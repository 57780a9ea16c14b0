"""Launches sweeps from a laptop on a cluster: cluster files, what their nodes have room for and cost, the head, and submission."""
