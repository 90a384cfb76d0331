"""What people read at a terminal; the commands and the demo print through it."""
