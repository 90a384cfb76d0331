"""Pages: what people look at rather than read."""
