"""Comparisons of agents over seeds, with their controls."""
