"""Everything that uses Ray or Optuna: the search, trials as Tune and Train jobs, the sweep's driver, and launching on clusters."""
