"""Jinja templates; ``serving.portal`` loads them by name. No page loads anything from elsewhere."""
