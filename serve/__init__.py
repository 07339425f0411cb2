"""Answers requests: the registry of adapters, the engine that runs them and the gateway in front of it."""
