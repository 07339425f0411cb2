"""Shows an evaluation to people: a page to keep and a table for the terminal."""
