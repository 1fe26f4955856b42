"""Policies and discriminators."""
