"""Corpora: read texts from files or Python objects, split and encode them, and cache the result."""
