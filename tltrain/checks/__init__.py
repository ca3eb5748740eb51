"""What the doctor looks at, a file a section; each check yields findings.

A check calls what a run would call, on a few examples. Nothing here changes a workdir or a store.
"""
