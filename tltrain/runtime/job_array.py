"""Tasks of a Slurm job array: processes that do parts of one work and know nothing of each other."""

import os


def task() -> tuple[int, int] | None:
    """The number of this one, from 0, and how many there are; None where this process is no task of an array."""
    number, first, count = (int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", 0)) for name in ("ID", "MIN", "COUNT"))
    step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", 1))
    return ((number - first) // step, count) if count else None
