"""Everything that uses Ray to run a sweep: Tune's searcher and scheduler, trials in actors and workers, the session, and the driver."""
