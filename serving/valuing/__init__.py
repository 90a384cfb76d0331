"""What coalitions of documents are worth, by each value function."""
