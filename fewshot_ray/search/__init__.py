"""The search, without Ray: a sweep's folder and records, its study, its stopping rules, and the state machine that chooses trials."""
