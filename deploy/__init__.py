"""Moves a proven adapter to traffic; the only room that knows all the others."""
