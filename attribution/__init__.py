"""Attribution: from the worth of coalitions to integer credits and statements with proofs."""
