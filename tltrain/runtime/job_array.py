"""Tasks of a Slurm job array: processes that do parts of one work and know nothing of each other."""

import os

from tltrain.errors import ConfigError


def task() -> tuple[int, int] | None:
    """The number of this one, from 0, and how many there are; None where this process is no task of an array.

    Raises:
        ConfigError: tasks are not numbered evenly, as in `--array=3,17`, so nobody knows which part is whose.
    """
    given = {name: os.environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in ("ID", "MIN", "MAX", "STEP", "COUNT")}
    if given["COUNT"] in ("", "0"):
        return None
    try:
        count, first, step = int(given["COUNT"]), int(given["MIN"] or 0), int(given["STEP"] or 1)
        numbers = range(first, int(given["MAX"] or first + step * (count - 1)) + 1, step)
        if len(numbers) == count:
            return numbers.index(int(given["ID"])), count
    except ValueError:
        pass
    told = ", ".join(f"{name} {value}" for name, value in given.items() if value)
    raise ConfigError(
        f"the tasks of the job array are not numbered evenly; by SLURM_ARRAY_TASK_...: {told}; give sbatch --array=0-N "
        "with all its tasks, those that are done take seconds, or do what is missing without an array"
    )
