"""Events to the outside: alerts, and the webhooks that carry them."""
