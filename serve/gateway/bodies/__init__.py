"""What the body of each endpoint may hold: typed allow-lists, from which alone the engine's copy is made.

``fields`` has the types and caps that several endpoints share, ``messages`` the messages of a chat,
``schemas`` the JSON schemas, regexes and grammars that constrain an answer, ``generation``, ``responses`` and
``pooling`` one class per endpoint, ``refused`` the names that no request may set, and why.
"""
