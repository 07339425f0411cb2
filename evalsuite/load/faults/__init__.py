"""Breaks things on purpose in front of, behind and beside a running gateway, and counts what clients see.

``python -m evalsuite.load.faults disconnects|cuts|drain|controller|direct|all``
"""
