"""Adapters to Stable-Baselines3."""
