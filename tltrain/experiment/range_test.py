"""The learning rate that a phase bears, by a range test.

The rate rises from step to step while the phase trains from the state it would begin with; the loss falls where the
rate is useful and grows where it is too large (Smith 2017, arXiv 1506.01186). All else is as in the phase, except that
gradual unfreezing has come to its end. For finetune the probe comes first: that of the run in the workdir where it is
past it, else one that is trained in the folder `find_lr` of it.
"""

import contextlib
import json
import math
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain import formats, places
from tltrain.cache.inputs import Inputs, SplitInputs
from tltrain.data import sources
from tltrain.errors import ConfigError, TerminatedError
from tltrain.experiment import finished, programs, train
from tltrain.models import zoo
from tltrain.pages import charts, page
from tltrain.runtime import console, parallel
from tltrain.runtime.process import Process
from tltrain.runtime.record import read_json
from tltrain.training import optim, setup, steps
from tltrain.training.setup import Setup

_KEPT = 0.9  # share of the running mean of the loss that a step keeps
_DIVERGED = 4.0  # times the lowest running mean so far
_ROWS = 12  # of the curve on the terminal


class Curve(NamedTuple):
    """A range test: the `rates` float64 `[N]` of its steps, their `losses`, and these as a running mean."""

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray


def run(
    config: ConfigDict, workdir: Path, name: str | None, test: tuple[float, float, int], process: Process
) -> dict[str, Any]:
    """Makes the range test of phase `name` of `config`, by `test` `(low, high, steps)`; shows and returns the result.

    Returns:
        The content of `find_lr.json`, which is written to `workdir` beside the page `find_lr.html`.

    Raises:
        ConfigError: there is no such phase, or the rates do not rise.
        TltrainError: of the kind its class says.
    """
    config_lib.validate(config)
    config = sources.resolved(zoo.resolved(config))
    name = name or next(phase for phase in reversed(config_lib.PHASES) if config[phase].epochs)
    low, high, num_steps = test
    if not config[name].epochs:
        raise ConfigError(f"{name}.epochs = 0: the phase is skipped; in the config; name another by --phase")
    if config[name].optimizer in config_lib.SOLVED:
        raise ConfigError(
            f"{name}.optimizer = {config[name].optimizer!r} takes no steps, so there is no rate to find; in the "
            "config; set adam, or name another phase by --phase"
        )
    if low >= high:
        raise ConfigError(f"--low = {low:g} is not below --high = {high:g}; on the command line; let the rate rise")
    fixed = setup.load(config, process.clock)
    if name == "finetune" and config.probe.epochs:
        variables = _after_probe(fixed, workdir, process)
    else:
        variables, _ = train.initial_variables(config, fixed.model)
    inputs = Inputs(fixed, process).of_phase(name, "train", variables)
    rates = low * (high / low) ** (np.arange(num_steps) / (num_steps - 1))
    with contextlib.closing(_losses(fixed, name, variables, inputs, rates, process)) as losses:
        curve = smoothed(rates, losses)
    found = {"phase": name, "suggestion": suggestion(curve)} | {key: v.tolist() for key, v in curve._asdict().items()}
    _write(workdir / "find_lr.json", found)
    title = page.title_of("loss", type(fixed.task))
    page.write_text(workdir / "find_lr.html", _drawn(curve, found, num_steps, workdir, title))
    _show_curve(curve)
    _show(found, num_steps, workdir)
    return found


def _after_probe(fixed: Setup, workdir: Path, process: Process) -> dict:
    """The variables that fine-tuning begins with."""
    config = fixed.config
    stored = read_json(workdir / "config.json")
    if stored is not None:
        changed = [line for line in config_lib.differences(config, stored) if not line.startswith("finetune.")]
        if changed:
            raise ConfigError(
                f"the workdir holds a run of another config; {workdir}: {', '.join(changed)}; choose another --workdir"
            )
        if (made_of := read_json(workdir / "identity.json")) is not None:
            formats.check_workdir(made_of, workdir)
        if (workdir / "report.json").exists() or (workdir / "checkpoints" / "finetune").exists():
            console.say(f"The probe is that of the run in {workdir}.")
            return finished.model_of(workdir, config, fixed.model, "probe")
    alone = config_lib.copied(config)
    alone.finetune.epochs = 0
    console.say(f"The probe is trained first, in {workdir / 'find_lr'}.")
    train.run(alone, workdir / "find_lr", Process(asked=process.stop))
    return finished.model_of(workdir / "find_lr", alone, fixed.model, "probe")


def _losses(
    fixed: Setup,
    name: str,
    variables: dict,
    inputs: SplitInputs,
    rates: np.ndarray,
    process: Process,
) -> Generator[float, None, None]:
    """The mean loss before each step, the rate of which is the next of `rates`."""
    phase, plan, mesh = fixed.config[name], fixed.plan(name), fixed.mesh
    low, growth = float(rates[0]), float(rates[1] / rates[0])
    tx = optim.make(phase, lambda step: low * growth**step, plan, plan)
    state = steps.create_state(variables["params"], variables["batch_stats"], tx, plan, phase.ema)
    state = parallel.replicate(jax.tree.map(np.asarray, state), mesh)
    console.say("Compiling the training step ...")
    train_step = programs.train(fixed, name, tx, plan, inputs, state)
    batches = parallel.prefetch(_endless(inputs), mesh, fixed.config.parallel)
    with console.progress(f"raising the rate of {name}", len(rates)) as update:
        for done, batch in zip(range(len(rates)), batches, strict=False):
            if process.stop():
                raise TerminatedError("stopped while the rate was raised; nothing is kept; start again")
            state, (counted, _) = train_step(state, batch)
            update(done + 1)
            yield float(counted.loss) / max(int(counted.count), 1)


def _endless(inputs: SplitInputs) -> Iterator[Any]:
    epoch = 0
    while True:
        yield from inputs.batches(epoch, 0)
        epoch += 1


def smoothed(rates: np.ndarray, losses: Iterator[float]) -> Curve:
    """The curve as far as its running mean stays below `_DIVERGED` times the lowest and finite; takes no loss more."""
    taken: list[float] = []
    means: list[float] = []
    total = 0.0
    for i, loss in enumerate(losses):
        total = _KEPT * total + (1 - _KEPT) * loss
        mean = total / (1 - _KEPT ** (i + 1))
        if not math.isfinite(mean):
            break
        taken.append(loss)
        means.append(mean)
        if mean > _DIVERGED * min(means):
            break
    return Curve(rates[: len(taken)], np.asarray(taken), np.asarray(means))


def suggestion(curve: Curve) -> dict[str, float] | None:
    """`steepest`: the rate at which the loss falls fastest, and `minimum_10`: a tenth of that at which it is lowest.

    None where the loss never falls: the rates are all too large, or none is enough.
    """
    settled = round(1 / (1 - _KEPT))  # steps before which the running mean is one of a few losses
    if len(curve.rates) <= settled or (lowest := int(curve.smoothed.argmin())) <= settled:
        return None
    slopes = np.gradient(curve.smoothed, np.log(curve.rates))[settled : lowest + 1]
    steepest = settled + int(slopes.argmin())
    return {"steepest": float(curve.rates[steepest]), "minimum_10": float(curve.rates[lowest]) / 10}


def _write(path: Path, found: dict[str, Any]) -> None:
    with places.writing(path, "free space or choose another --workdir"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n")


def _drawn(curve: Curve, found: dict[str, Any], num_steps: int, workdir: Path, title: str) -> str:
    """The page of the curve, the rate on a logarithmic axis."""
    steepest = found["suggestion"] and found["suggestion"]["steepest"]
    best = [(rate, mean) for rate, _, mean in zip(*curve, strict=True) if rate == steepest]
    points = [list(zip(curve.rates.tolist(), values.tolist(), strict=True)) for values in curve[1:]]
    series = [charts.Series("loss", "c8", points[:1]), charts.Series("running mean", "c0", points[1:], best)]
    return page.fill(
        "find_lr.html",
        name=page.name_of(workdir),
        phase=found["phase"],
        suggestion=found["suggestion"],
        done=len(curve.rates),
        num_steps=num_steps,
        chart=charts.lines(title, series, "learning rate", log_x=True),
    )


def _show_curve(curve: Curve) -> None:
    """The curve on the terminal, at a few of its rates."""
    chosen = np.unique(np.linspace(0, len(curve.rates) - 1, _ROWS).round().astype(int))
    rows = [[f"{curve.rates[i]:.1e}", f"{curve.losses[i]:.4f}", f"{curve.smoothed[i]:.4f}"] for i in chosen]
    console.table("", ["learning rate", "loss", "running mean"], rows)


def _show(found: dict[str, Any], num_steps: int, workdir: Path) -> None:
    done, name = len(found["rates"]), found["phase"]
    if done < num_steps:
        console.say(f"Ended after step {done} of {num_steps}: the loss diverged.")
    if found["suggestion"] is None:
        console.say("The loss fell at no rate of these; try others by --low and --high.")
    else:
        steepest, tenth = found["suggestion"]["steepest"], found["suggestion"]["minimum_10"]
        console.say(
            f"{name}.learning_rate: the loss falls fastest at {steepest:.1e}; "
            f"a tenth of the rate where it is lowest is {tenth:.1e}."
        )
    console.say(f"The curve is in {workdir / 'find_lr.html'}, its numbers in find_lr.json.")
