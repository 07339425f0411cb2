"""Measures how fast an engine serves."""
