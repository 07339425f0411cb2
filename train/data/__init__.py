"""From a file in any common format to clean, leak-checked train, validation and test splits.

``prepare.prepare(spec, out)`` is the one entrance; the modules follow its steps:

    spec.py     what the user asks for
    read.py     a file becomes records: mappings with a line or row number
    forms.py    the columns tell the form; a record becomes an example
    chat.py     the same for conversations
    text.py     Unicode, whitespace, control characters; the key that says "same text"
    clean.py    repeats, contradictions, leaks
    tasks.py    what kind of answer is learnt: a label, a JSON object or text
    split.py    train, validation and test, independent of row order
    report.py   what was dropped and why
    write.py    all files or none
"""
