"""The one loop over phases, its state, and the EMA."""
