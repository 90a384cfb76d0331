"""The meter's books in Redis: the connection, the scripts, the embedded server, and the rebuilding after a loss."""
