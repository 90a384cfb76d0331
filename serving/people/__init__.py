"""Who may call: customers, operators, and the API keys of all."""
