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


Share = tuple[int, int]  # of several that divide the runs, the number of one, from 0, and how many there are


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
        folder = workdir / name.replace("/", "_")
        if other := next((member.arm for member in found if member.path.parent == folder), None):
            raise ConfigError(
                f"the arms {other} and {name} would share a folder; {folder}; let them differ in more than / and _"
            )
        for seed in range(base.seed, base.seed + num_seeds):
            config = _changed(base, arm | {"seed": seed})
            found.append(Member(name, config, folder / f"seed_{seed}"))
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


def run(runs: list[Member], workdir: Path, process: Process, share: Share = (0, 1)) -> int:
    """Trains what is not finished of a share, goes on past what fails; returns the exit code.

    Whoever is last writes and shows the table, see `end`.
    """
    num_failed = exit_code = 0
    units = _units(runs, share)
    own = [member for unit in units for member in unit]
    failed = _train_together(units, process)
    for i, member in enumerate(own, 1):
        title = title_of(member, i, len(own))
        try:
            if member.path in failed:
                raise failed[member.path]
            result = _result(member, title, process)
            tell(title, result)
        except TerminatedError:
            raise
        except Exception as error:  # whatever an arm does, the others go on
            num_failed += 1
            exit_code = exit_code or getattr(error, "exit_code", 1)
            kind = "" if isinstance(error, TltrainError) else f"{type(error).__name__}: "
            console.warn(f"{title} failed: {kind}{error}")
    end(runs, workdir, own, num_failed)
    return exit_code


def end(runs: list[Member], workdir: Path, own: list[Member], num_failed: int) -> None:
    """Shows the table once the `own` runs are done, where these are all or the others are finished too."""
    num_finished = sum(finished(member) is not None for member in runs)
    if len(own) == len(runs) or num_finished == len(runs):
        show(runs, workdir)
    else:
        console.say(f"{num_finished} of {len(runs)} runs are finished, by all who share them.")
    if num_failed:
        console.say(f"{num_failed} of {len(own)} runs failed; the same command tries them again.")


def members_of(runs: list[Member], share: Share) -> list[Member]:
    """The runs of a share; what is trained together is not divided."""
    return [member for unit in _units(runs, share) for member in unit]


def _units(runs, share) -> list[list[Member]]:
    """What of a share is trained together, or alone."""
    units: dict[Any, list[Member]] = {}
    for member in runs:
        units.setdefault(together.group_of(member.config) or member.path, []).append(member)
    number, count = share
    return list(units.values())[number::count]


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
    if (done := finished(member)) is not None:
        return done
    console.say(f"{title} ...")
    with console.into(member.path / "output.txt"):
        return train.run(member.config, member.path, Process(asked=process.stop))


def finished(member: Member) -> dict[str, Any] | None:
    """The content of `report.json`, None where there is none that is sound."""
    with contextlib.suppress(WorkdirError):
        return read_report(member.path)
    return None


def title_of(member: Member, number: int, count: int) -> str:
    """What a run is called, the `number`-th of `count`."""
    return f"[{number}/{count}] {member.arm}, seed {member.config.seed}"


def tell(title: str, result: dict[str, Any]) -> None:
    """Says in a line what a finished run, called `title`, has reached."""
    chosen = result["chosen"]
    seconds = report.duration(sum(result["seconds"].values()))
    metric = result["task"]["metric"]
    console.say(f"{title}: val {report.figures({metric: chosen['val'][metric]})} ({chosen['phase']}), {seconds} s")


def show(runs: list[Member], workdir: Path) -> None:
    """Prints the table of the finished runs and writes it to the workdir as CSV, Markdown and LaTeX."""
    reports: dict[str, dict[int, dict[str, Any]]] = {}
    for member in runs:
        result = finished(member)
        reports.setdefault(member.arm, {}).update({} if result is None else {member.config.seed: result})
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
