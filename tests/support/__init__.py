"""Shared parts of the tests that are not fixtures."""
