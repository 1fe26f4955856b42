"""Files of text, read, split and encoded."""
