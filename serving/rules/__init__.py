"""Versioned terms of business: prices, policy, limits."""
