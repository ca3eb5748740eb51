"""The process and its machine: devices, signals, the command line, and what a run writes of itself to disk.

Workdir, checkpoints, JSON and event files know runs by path and content. Nothing here knows what an example, a model
or a phase is, and nothing here computes.
"""
