"""The training loop over phases, its checkpoints, and the EMA."""
