"""Training: what an experiment is, its abstract plan, the pure step, and the loop with its hooks."""
