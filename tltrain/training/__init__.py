"""Pure functions of arrays: the steps, their optimizer, metrics, scores and mixing.

What is here is called under `jit` or on a few numbers after it. Nothing here opens a file, prints, or knows what comes
before or after a step.
"""
