"""The process that keeps the stack of a home as it should be."""
