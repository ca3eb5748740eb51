"""Foreign files to variables: fetched with a pinned hash, distrusted, and fitted to a backbone leaf by leaf.

A file is read by the table of names and shapes that the backbone gives, never by what it says of itself. Nothing here
knows a run.
"""
