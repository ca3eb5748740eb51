"""The life of a run, from its config to its report, in reading order: `train`, `loop`, `evaluation`, `finished`.

What a phase is, when it is evaluated, saved and over is decided here and nowhere else; `solved` and `together` are
other ways through a phase. Nothing here reads a command line.
"""
