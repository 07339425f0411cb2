"""Turns an adapter into a verdict."""
