"""Turns data into an adapter."""
