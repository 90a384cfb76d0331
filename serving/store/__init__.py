"""Where state lies: the data directory, the database, what is encrypted."""
