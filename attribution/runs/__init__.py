"""A period on paper: the run over its records, the statements, and the proofs of both."""
