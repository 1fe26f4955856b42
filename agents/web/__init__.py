"""Pages on this machine: a comparison as it runs, and a trained agent to play with."""
