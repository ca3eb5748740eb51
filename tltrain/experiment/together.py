"""Probes that differ in numbers alone, trained at once: what `train.run` does for one, for a grid of them.

Their inputs are stored features, so what is left of a step is the head, and one program does the steps of all heads.
Each run leaves the record that it leaves alone, with its best checkpoint; its seconds are its share of those of all.
"""

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain.cache import space
from tltrain.cache.inputs import Inputs, SplitInputs
from tltrain.errors import TltrainError
from tltrain.experiment import evaluation, loop, report, train
from tltrain.experiment.heads import Group, Heads, at, compile_eval, compile_train, evaluate_over, initial, train_epoch
from tltrain.experiment.phase import Phase, Run, open_checkpoints
from tltrain.pages import run_page
from tltrain.runtime import console, parallel
from tltrain.runtime.checkpoint import Checkpoints
from tltrain.runtime.process import Process
from tltrain.runtime.scalars import Scalars
from tltrain.runtime.workdir import Workdir
from tltrain.training import metrics, setup, steps

NUMBERS = ("seed", "probe.learning_rate", "probe.weight_decay")  # in what probes trained together may differ


def group_of(config: ConfigDict) -> str | None:
    """What configs of probes that can be trained together have in common; None where `config` is none."""
    probe, options = config.probe, config.features
    stored = options.enabled != "off" and (not probe.augment or options.augment_views)
    # the examples follow from the seed; there are no steps
    alone = config.data.shots or probe.optimizer in config_lib.SOLVED
    stored = stored and not config_lib.mixes(probe)
    if config.finetune.epochs or probe.freeze_until != "all" or not stored or alone:
        return None
    return repr({key: value for key, value in config_lib.flatten(config).items() if key not in NUMBERS})


def is_due(path: Path) -> bool:
    """Whether nothing of the run of the workdir `path` is saved; what is goes on alone, by `train.run`."""
    return not (path / "report.json").exists() and not any(path.glob("checkpoints/*/manifest_[0-9]*.json"))


class _Seed(NamedTuple):
    """What the heads of one seed share."""

    variables: dict
    origin: dict[str, Any]
    inputs: Inputs
    output: Path | None  # where what is said about it goes; None: to the terminal


class _Best(NamedTuple):
    """What a member was at its best epoch."""

    score: float
    step: int
    state: steps.TrainState


class _Member:
    """One head on its way: its run, its phase, its place in the grid, its best state so far, the error that ended it.

    What its run says goes to `output.txt` of its workdir.
    """

    def __init__(self, run: Run, phase: Phase, place: tuple[int, int]) -> None:
        self.run, self.phase, self.place = run, phase, place
        self.best: _Best | None = None
        self.error: TltrainError | None = None

    def is_over(self) -> bool:
        """Whether nothing of what is still trained counts for it."""
        return self.error is not None or loop.is_over(self.run.setup, "probe", self.phase.record["history"])

    def end_epoch(self, finished: list[Any], scores: dict[str, Any], state: Any, seconds: float, rate: float) -> None:
        """Records an epoch of `finished` steps; `state` is that of all heads after it."""
        if self.is_over():
            return
        total = metrics.Total()
        step = int(state.step[self.place])
        try:
            with console.into(self.run.work.path / "output.txt"):
                mine = [at(result, self.place) for result in finished]
                loop.record_steps(self.run, self.phase, mine, total, step)
                score = loop.record_epoch(
                    self.run, self.phase, total.summary(self.run.setup.task.metric), scores, seconds, rate
                )
        except TltrainError as error:
            self.error = error
            return
        self.phase.record["seconds"] += seconds
        if self.best is None or score > self.best.score:
            self.best = _Best(score, step, at(state, self.place))

    def finish(
        self,
        evaluations: dict[str, evaluation.Evaluation],
        seconds: dict[str, float],
        seed: _Seed,
        like: Checkpoints,
    ) -> None:
        """Saves the best state, its frozen part shared with `like`, its `evaluations` by split, and the report."""
        assert self.best is not None, "a finished phase has a best epoch"
        run, phase, state = self.run, self.phase, self.best.state
        params = {"backbone": seed.variables["params"]["backbone"], "head": state.params["head"]}
        state = dataclasses.replace(state, params=params, batch_stats=seed.variables["batch_stats"])
        phase.record.update(clock=seconds, logged=run.work.logged(phase.name))
        phase.checkpoints.share_frozen(like)
        phase.checkpoints.save(self.best.step, state, phase.record, self.best.score)
        num_examples = run.setup.data.splits["train"].num_examples
        result = report.phase_result(phase.config, phase.record, self.best.step, num_examples, params, phase.plan)
        whole = train.finish(run, {"probe": result}, "probe", seed.origin, evaluations, seconds)
        try:
            run_page.end_run(run.work.path, lambda: run.setup.data)
        except TltrainError as error:
            self.error = error
        with console.into(run.work.path / "output.txt"):
            report.show(whole, run.work.path)


def run(grid: Sequence[Sequence[tuple[ConfigDict, Path]]], process: Process) -> dict[Path, TltrainError]:
    """Trains the probes of `grid` `[seeds][arms]`, pairs of a config and a workdir, that are due.

    All are of one group by `group_of`, those of a row of one seed, those of a column of equal numbers. Nothing is saved
    before the end: after a stop the same call begins again.

    Returns:
        The error of each that failed, by its workdir.

    Raises:
        space.NoSpaceError: features cannot be stored.
        TltrainError: none can be trained, for a reason of the kind the class says.
    """
    shared = setup.load(grid[0][0][0], process.clock)
    seeds: list[_Seed] = []
    for (first, path), *_ in grid:
        output = path / "output.txt" if seeds else None
        with _into(output):
            variables, origin = train.initial_variables(first, shared.model)
        seeds.append(_Seed(variables, origin, Inputs(shared._replace(config=first), process), output))
    group = Group(shared, process)
    heads = initial(group, [[c for c, _ in row] for row in grid], [seed.variables["params"]["head"] for seed in seeds])
    with contextlib.ExitStack() as stack:
        members = [
            _open(stack, group, seeds[s], *cell, (s, a))
            for s, row in enumerate(grid)
            for a, cell in enumerate(row)
            if is_due(cell[1])
        ]
        each, once = space.of_checkpoints(shared, "probe")
        space.check_checkpoints(members[0].run.work.path, each * len(members) + once * len(grid))
        heads = _train(group, seeds, heads, members)
        _finish(group, seeds, heads, members)
    return {member.run.work.path: member.error for member in members if member.error}


def _open(stack, group: Group, seed: _Seed, config: ConfigDict, path: Path, place: tuple[int, int]) -> _Member:
    """The record of one head, closed with `stack`."""
    work = stack.enter_context(contextlib.closing(Workdir(path, config)))
    train.begin(work, group.setup, seed.origin)
    work.rewind_metrics("probe", 0)
    scalars = Scalars(path, config)
    stack.enter_context(contextlib.closing(scalars))
    own = group.setup._replace(config=config)
    checkpoints = open_checkpoints(path, own, "probe", seed.variables["params"])
    stack.enter_context(contextlib.closing(checkpoints))
    member = Run(own, group.process, seed.inputs, work, scalars)
    return _Member(member, Phase.of(own, "probe", checkpoints), place)


def _into(output):
    return console.into(output) if output else contextlib.nullcontext()


def _inputs(group: Group, seeds: Sequence[_Seed], split: str) -> list[SplitInputs]:
    """Stored features of a split, by seed."""
    found = []
    for seed in seeds:
        with _into(seed.output):
            found.append(seed.inputs.of_phase("probe", split, seed.variables))
    if found[0].start != group.plan.cut:
        raise space.NoSpaceError("only probes of stored features are trained together")
    return found


def _train(group: Group, seeds: Sequence[_Seed], heads: Heads, members: Sequence[_Member]) -> Heads:
    """All epochs, each recorded for every member; returns the heads after the last."""
    train_inputs, val_inputs = _inputs(group, seeds, "train"), _inputs(group, seeds, "val")
    train_step = compile_train(group, heads, train_inputs)
    eval_step = compile_eval(group, heads, val_inputs)
    heads = parallel.replicate(heads, group.setup.mesh)
    num_examples = group.setup.data.splits["train"].num_examples
    for epoch in range(group.setup.config.probe.epochs):
        if all(member.is_over() for member in members):
            break
        started = time.perf_counter()
        heads, finished = train_epoch(group, train_step, heads, train_inputs, epoch)
        seconds = (time.perf_counter() - started) / len(members)
        found = evaluate_over(group, eval_step, heads, val_inputs, "val")
        state = jax.device_get(heads.state)
        with group.process.clock("record"):
            for member in members:
                member.end_epoch(finished, found[member.place].scores, state, seconds, num_examples / seconds)
    return heads


def _finish(group: Group, seeds: Sequence[_Seed], heads: Heads, members: Sequence[_Member]) -> None:
    """Evaluates the best state of each member on val and on test, saves it, writes the reports."""
    best = {member: member.best for member in members if member.error is None and member.best is not None}
    if not best:
        return
    state = jax.tree.map(np.array, heads.state)
    for member, (_, _, own) in best.items():
        jax.tree.map(lambda whole, leaf, place=member.place: whole.__setitem__(place, leaf), state, own)
    heads = parallel.replicate(Heads(state, heads.seed, heads.learning_rate, heads.weight_decay), group.setup.mesh)
    found = {}
    for split in list(group.setup.data.splits)[1:]:
        inputs = _inputs(group, seeds, split)
        found[split] = evaluate_over(group, compile_eval(group, heads, inputs), heads, inputs, split)
    seconds = {part: spent / len(members) for part, spent in group.process.clock.total().items()}
    first: dict[int, Checkpoints] = {}
    for member in best:
        s = member.place[0]
        first.setdefault(s, member.phase.checkpoints)
        evaluations = {split: of_heads[member.place] for split, of_heads in found.items()}
        member.finish(evaluations, seconds, seeds[s], first[s])
