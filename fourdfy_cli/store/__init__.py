"""What lies on disk: checkpoints, and the run folder around them."""
