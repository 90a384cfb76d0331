"""What is observed: logs and metrics."""
