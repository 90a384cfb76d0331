"""A period, from its records to its statements."""
