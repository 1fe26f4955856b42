"""Learners for TextGen-v0, and the `text-gym` command. Imports text_gym; text_gym does not know it."""
