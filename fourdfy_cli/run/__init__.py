"""A run of the three stages: the loop, its state, signals, and what it would do beforehand."""
