"""Reports of runs and comparisons, created from run folders alone."""
