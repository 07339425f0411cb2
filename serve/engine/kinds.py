"""What engines beyond vLLM are called, known without a client of theirs."""

import re

OPENAI = "openai"
"""How a record and the fleet's file call a server that speaks OpenAI's routes and nothing of vLLM's."""

SERVED = re.compile(r"(?!ft:)[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")
"""Names that are taken over from a server: they come into headers, log lines and labels."""
