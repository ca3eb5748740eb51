"""Kinds of examples: what an encoded one is, and how it becomes a row of a batch.

`kind.py` is what every kind is; nothing else knows more of an example than that.
"""
