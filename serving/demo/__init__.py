"""The whole story in a minute, on text that every machine has."""
