"""One paid call, from admission to receipt."""
