"""What the bodies of functions reach for.

The server records what a default, a check, a view or a ``BEGIN ATOMIC`` body depends on; the text
of other bodies it keeps as it was written. These modules parse that text and resolve the names in
it, so that a schema copy can bring along, or name, what the functions need.

``trees`` and ``plpgsql`` decide what a text refers to, ``reader`` is the program that parses it in
a process of its own, ``child`` runs that program, ``resolve`` finds the objects behind names, and
``reach`` follows them through a database.
"""
