"""Measurements over whole runs: what each algorithm costs and how well its updates are aligned."""
