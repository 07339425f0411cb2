"""The history of the registry's schema; each step is a file in ``versions/``, numbered from 0001."""

HEAD = "0002"
"""The newest step; kept here so that opening an up-to-date registry need not import Alembic."""
