"""Everything that knows Ray or Optuna: the search, trials as Tune and Train jobs, the sweep's driver."""
