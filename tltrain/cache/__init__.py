"""Frozen work done once: which activations a phase wants, their stores, the compiled forward pass that fills them.

A phase asks `inputs` for batches and does not see whether they are examples or what frozen stages made of them. Nothing
here trains.
"""
