"""The `text-gym` command."""
