"""Games over coalitions: their values, exact and estimated, and what their players get."""
