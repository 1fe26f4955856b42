"""Reports, made from run folders alone."""
