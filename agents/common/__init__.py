"""Base class and common parts of all agents."""
