"""Attribution: from the worth of coalitions to integer credits, statements and their proofs. Loads no server library."""
