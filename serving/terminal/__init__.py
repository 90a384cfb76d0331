"""Terminal output: the commands and the demo print through it."""
