"""The runs of a sweep, every arm with every seed, and their table.

Each run has a workdir of its own, `DIR/ARM/seed_S`, made by `train.run` or `together.run`, so a sweep that was stopped
goes on, and a finished run is not done again.
"""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain.cache.space import NoSpaceError
from tltrain.data import sources
from tltrain.errors import ConfigError, TerminatedError, TltrainError, WorkdirError
from tltrain.experiment import report, table, together, train
from tltrain.models import zoo
from tltrain.runtime import console
from tltrain.runtime.process import Process
from tltrain.runtime.record import read_json, read_report
from tltrain.training.tasks.task import LABELS


class Member(NamedTuple):
    """One run of a sweep."""

    arm: str
    config: ConfigDict
    path: Path


def members(base: ConfigDict, arms: list[dict[str, Any]], num_seeds: int, workdir: Path) -> list[Member]:
    """The runs, arm by arm, each config checked.

    Raises:
        ConfigError: an arm has an unknown key or a value that is not allowed, two arms are equal, or the workdir holds
            a run of another config.
    """
    found: list[Member] = []
    if not config_lib.holds("seed", base.get("seed")):
        allowed = config_lib.RULES["seed"][1]
        raise ConfigError(f"seed = {config_lib.shown(base.get('seed'))}, allowed: {allowed}; in the config; correct it")
    for arm in arms:
        if "seed" in arm:
            raise ConfigError("sweep() yields the key 'seed'; seeds are given by --seeds; remove it")
        name = _name(arm, arms)
        if any(member.arm == name for member in found):
            raise ConfigError(f"sweep() yields {arm} twice; remove one")
        for seed in range(base.seed, base.seed + num_seeds):
            config = _changed(base, arm | {"seed": seed})
            found.append(Member(name, config, workdir / name.replace("/", "_") / f"seed_{seed}"))
    for member in found:
        stored = read_json(member.path / "config.json")
        if stored is not None and (changed := config_lib.differences(member.config, stored)):
            raise ConfigError(
                f"the sweep has another config than before; {member.path}: {', '.join(changed)}; "
                "choose another --workdir, or give the same config"
            )
    return found


def _name(arm, arms):
    """`key=value,...`, keys by their last part where that names one key of the whole sweep."""
    keys = {key for other in arms for key in other}
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: leaf if last.count(leaf := key.rpartition(".")[2]) == 1 else key for key in keys}
    return ",".join(f"{short[key]}={value}" for key, value in arm.items()) or "base"


def _changed(base, arm):
    """`base` with the keys of `arm`, as a run would accept it."""
    config = config_lib.copied(base)
    problems = [message for key in arm if (message := config_lib.unknown(key))]
    if problems:
        raise ConfigError(f"{'; '.join(problems)}; in the arm {arm} of sweep(); correct the name")
    try:
        config.update_from_flattened_dict(arm)
        config_lib.validate(config)
        config = sources.resolved(zoo.resolved(config))
    except TltrainError as error:
        raise type(error)(f"{error}; in the arm {arm} of sweep()") from error
    except Exception as error:  # of ml_collections, where the arm or the config lacks keys or holds anything
        raise ConfigError(f"{error}; in the arm {arm} of sweep()") from error
    return config


def run(runs: list[Member], workdir: Path, process: Process, share: tuple[int, int] = (0, 1)) -> int:
    """Trains what is not finished, goes on past what fails, writes and shows the table; returns the exit code.

    Of several that divide the runs, `share` is the number of this one, from 0, and how many there are; whoever is last
    shows the table. What is trained together is not divided.
    """
    num_failed = exit_code = 0
    number, count = share
    units = list(_units(runs).values())[number::count]
    own = [member for unit in units for member in unit]
    failed = _train_together(units, process)
    for i, member in enumerate(own, 1):
        title = f"[{i}/{len(own)}] {member.arm}, seed {member.config.seed}"
        try:
            if member.path in failed:
                raise failed[member.path]
            result = _result(member, title, process)
            console.say(f"{title}: {_outcome(result)}")
        except TerminatedError:
            raise
        except Exception as error:  # whatever an arm does, the others go on
            num_failed += 1
            exit_code = exit_code or getattr(error, "exit_code", 1)
            kind = "" if isinstance(error, TltrainError) else f"{type(error).__name__}: "
            console.warn(f"{title} failed: {kind}{error}")
    num_finished = len([member for member in runs if _finished(member)]) if count > 1 else len(runs)
    if num_finished == len(runs):
        show(runs, workdir)
    else:
        console.say(f"{num_finished} of {len(runs)} runs are finished, by all tasks of the array.")
    if num_failed:
        console.say(f"{num_failed} of {len(own)} runs failed; the same command tries them again.")
    return exit_code


def _units(runs) -> dict[Any, list[Member]]:
    """What is trained together, or alone."""
    units: dict[Any, list[Member]] = {}
    for member in runs:
        units.setdefault(together.group_of(member.config) or member.path, []).append(member)
    return units


def _train_together(units, process):
    """Trains the probes that differ in numbers alone and have not begun; the errors of those that failed, by path."""
    failed: dict[Path, Exception] = {}
    for group in units:
        seeds = dict.fromkeys(member.config.seed for member in group)
        grid = [[(m.config, m.path) for m in group if m.config.seed == seed] for seed in seeds]
        num_due = sum(together.is_due(member.path) for member in group)
        if num_due < 2:
            continue
        console.say(f"Training {num_due} probes together: they differ in rate, decay or seed alone ...")
        try:
            failed |= together.run(grid, Process(asked=process.stop))
        except NoSpaceError as error:
            console.say(f"One by one, then: {error}")
        except TerminatedError:
            raise
        except Exception as error:  # as with an arm that fails, the others go on
            failed |= {member.path: error for member in group if together.is_due(member.path)}
    return failed


def _result(member, title, process):
    """The content of `report.json` of a finished run; runs it where there is none."""
    if (finished := _finished(member)) is not None:
        return finished
    console.say(f"{title} ...")
    with console.into(member.path / "output.txt"):
        return train.run(member.config, member.path, Process(asked=process.stop))


def _finished(member):
    """The content of `report.json`, None where there is none that is sound."""
    with contextlib.suppress(WorkdirError):
        return read_report(member.path)
    return None


def _outcome(result):
    chosen = result["chosen"]
    seconds = report.duration(sum(result["seconds"].values()))
    metric = result["task"]["metric"]
    return f"val {report.figures({metric: chosen['val'][metric]})} ({chosen['phase']}), {seconds} s"


def show(runs: list[Member], workdir: Path) -> None:
    """Prints the table of the finished runs and writes it to the workdir as CSV, Markdown and LaTeX."""
    reports: dict[str, dict[int, dict[str, Any]]] = {}
    for member in runs:
        finished = _finished(member)
        reports.setdefault(member.arm, {}).update({} if finished is None else {member.config.seed: finished})
    made = table.rows(reports)
    lost = [arm for arm, of_seeds in reports.items() if not of_seeds]
    metric = made[0].metric if made else "accuracy"
    header = table.header(metric)
    body = [*map(table.cells, made), *((arm, "0", "failed", *[""] * (len(header) - 3)) for arm in lost)]
    label = LABELS.get(metric, metric.capitalize())
    console.say("")
    unit = ", percent" if metric == "accuracy" else ""
    console.table(f"{label} on {made[0].split if made else 'val'}{unit}", header, body)
    if made:
        table.write(made, workdir)
        console.say(f"The table is in {workdir}: table.csv, table.md, table.tex; each run in ARM/seed_S below it.")
