"""The life of an experiment, from its config to its report."""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain import formats
from tltrain.cache import space
from tltrain.cache.inputs import Inputs
from tltrain.data import identity, sources
from tltrain.errors import ConfigError, TerminatedError, WeightsError, WorkdirError
from tltrain.experiment import evaluation, loop, report, solved
from tltrain.experiment.phase import Phase, Run, open_checkpoints
from tltrain.models import zoo
from tltrain.models.classifier import Classifier
from tltrain.pages import run_page
from tltrain.runtime import console, hosts, record, signals, writer
from tltrain.runtime.checkpoint import Checkpoints, with_leaves
from tltrain.runtime.process import Process
from tltrain.runtime.record import LOG, has_digest, is_changed, read_report
from tltrain.runtime.scalars import Scalars
from tltrain.runtime.workdir import Workdir
from tltrain.training import optim, setup, steps
from tltrain.weights import reader


def run(config: ConfigDict, path: Path, process: Process | None = None) -> dict[str, Any]:
    """Trains what `config` describes, in `path`; the same call again goes on where it stopped.

    Args:
        config: see `config.default`.
        path: the workdir.
        process: collects seconds by part, where the caller may have put in the imports; once its `stop()` is true the
            state is saved and the run ends.

    Returns:
        The content of `report.json`.

    Raises:
        TltrainError: of the kind its class says.
    """
    config_lib.validate(config)
    config = sources.resolved(zoo.resolved(config))
    if hosts.count() > 1:
        _check_hosts(config)
    with contextlib.closing(writer.only(lambda: Workdir(path, config), path=path)) as work:
        return _run_in(work, config, process or Process())


def _run_in(work: Workdir, config: ConfigDict, process: Process) -> dict[str, Any]:
    path = work.path
    if (finished := hosts.on_writer(_finished, path)) is not None:
        console.say(f"This run is finished; remove {path} to run it again.")
        if hosts.is_writer() and not (path / "report.html").exists():  # a kill came between
            run_page.end_run(path, lambda: setup.read_data(config))
        report.show(finished, path)
        return finished
    with signals.abandonable("reading data and weights"):
        fixed = setup.load(config, process.clock)
        console.say(report.data_line(fixed.data))
        hosts.on_writer(lambda: space.check_checkpoints(path, space.of_run(fixed)))
        variables, origin = initial_variables(config, fixed.model)
    begin(work, fixed, origin)
    phases, best = {}, {}
    with contextlib.closing(writer.only(lambda: Scalars(path, config))) as scalars:
        shared = Run(fixed, process, Inputs(fixed, process), work, scalars)
        for name in config_lib.PHASES:
            if config[name].epochs:
                variables, phases[name] = _run_phase(shared, name, variables)
                best[name] = variables
        best_by = config.checkpoint.best
        chosen = max(phases, key=lambda name: fixed.task.rank(phases[name]["best"]["val"], best_by))
        evaluations = _evaluate(shared, chosen, best[chosen])
        result = finish(shared, phases, chosen, origin, evaluations, process.clock.total())
    if hosts.is_writer():
        run_page.end_run(path, lambda: fixed.data)
    report.show(result, path)
    return result


def _check_hosts(config):
    """Raises ConfigError where processes differ, or the config asks for what one process does alone."""
    hosts.agree(json.loads(config_lib.to_json(config)), lambda first: config_lib.differences(config, first))
    if config.parallel == "pmap":
        raise ConfigError(f"parallel = 'pmap' is for one process, here are {hosts.count()}; set parallel = 'jit'")
    for name in config_lib.PHASES:
        if config[name].optimizer in ("logreg", "knn"):  # which need the features of all examples in one place
            raise ConfigError(
                f"{name}.optimizer = {config[name].optimizer!r} is for one process, here are {hosts.count()}; start "
                "one, or set ridge"
            )


def begin(work: Workdir, fixed: setup.Setup, origin: dict[str, Any]) -> None:
    """Makes `work` the record of a run of `fixed` from the weights of `origin`; raises where it is one of another."""
    data, files = fixed.data, fixed.data.kind.files() | fixed.model.backbone.files(fixed.config)
    made_of = identity.of(data, origin.get("sha256"))
    hosts.agree(made_of, lambda first: identity.differences(first, made_of))
    stored = work.read_json("identity.json")
    if not (stored is None or has_digest(stored)):
        raise WorkdirError(
            f"{work.path / 'identity.json'} is damaged; its digest does not match, so the inputs cannot be compared "
            "with those the run began with; put it back, remove it if they are the same, or choose another --workdir"
        )
    if stored is not None:
        formats.check_workdir(stored, work.path)
    identity.check(stored, made_of, work.path)
    work.begin(made_of)
    for name, text in files.items():
        if work.keep(f"{record.PRETRAINED}/{name}", text) != text:
            raise WeightsError(
                f"the workdir holds a run with another {name} beside its weights; "
                f"{work.path / record.PRETRAINED / name}; put that one back beside them, or choose another --workdir"
            )


def _finished(path: Path) -> dict[str, Any] | None:
    """The content of `report.json` where the run is finished and its record sound; where it is not, it is made anew."""
    if not (path / "report.json").exists():
        return None
    try:
        finished = read_report(path)
    except formats.OtherFormError:
        raise
    except WorkdirError as error:
        console.warn(f"{error}; this is that command")
        return None
    if is_changed(path, LOG, finished):
        console.warn(f"{path / LOG} is not what the run wrote; its digest does not match; no result depends on it")
    return finished


def initial_variables(config: ConfigDict, model: Classifier) -> tuple[dict, dict[str, Any]]:
    """The variables a run of `config` starts from, and where they came from for the report."""
    source, sha256 = config.model.weights, config.model.sha256
    path = reader.path_of(source, model.backbone)
    if path is None:
        console.say("Weights: random; nothing is pretrained")
        return zoo.init(model, config.seed, None), {"source": source}
    shapes = {name: tree["backbone"] for name, tree in zoo.shapes(model).items()}
    loaded = reader.load(path, model.backbone, shapes, sha256)
    algorithm = reader.verified_by(source, model.backbone, path, sha256)
    verified = f"{algorithm} verified" if algorithm else f"not verified: sha256 {loaded.sha256[:12]}..."
    unused = f"; not used: {', '.join(loaded.ignored)}" if loaded.ignored else ""
    console.say(
        f"Weights: {path.name} ({verified}) fills all {loaded.num_arrays} arrays of {config.model.backbone}; "
        f"new: head{unused}"
    )
    return zoo.init(model, config.seed, loaded.variables), {"source": str(path), "sha256": loaded.sha256}


def _run_phase(run: Run, name: str, variables: dict) -> tuple[dict, dict[str, Any]]:
    """Trains what is left of a phase; returns the variables that were best on val, and the phase's result."""
    fixed, params = run.setup, variables["params"]
    with contextlib.closing(open_checkpoints(run.work.path, fixed, name, params)) as checkpoints:
        phase = Phase.of(fixed, name, checkpoints)
        tx = optim.make(phase.config, phase.schedule, phase.plan, phase.plan)
        state = steps.create_state(params, variables["batch_stats"], tx, phase.plan, phase.config.ema)
        state = jax.tree.map(np.asarray, state)
        if (latest := _resumable(fixed, name, checkpoints)) is not None:
            leaves, record = checkpoints.restore(latest)
            state, phase = with_leaves(state, leaves), phase._replace(record=phase.record | record)
            run.process.clock.resume(record["clock"])
        _rewind_metrics(run, phase, int(state.step))
        if not loop.is_over(fixed, name, phase.record["history"]):
            console.say(report.phase_line(name, phase.config, int(state.step), phase.num_steps))
            report.show_parameters(state.params, phase.plan)
            (solved.fit if phase.config.optimizer in config_lib.SOLVED else loop.train)(run, phase, state)
        best = checkpoints.best()
        assert best is not None, "a finished phase has a checkpoint"
        state = with_leaves(state, checkpoints.restore(best)[0])
    num_examples = fixed.data.splits["train"].num_examples
    result = report.phase_result(phase.config, phase.record, best, num_examples, state.params, phase.plan)
    return steps.variables(state, phase.plan), result


def _rewind_metrics(run, phase, step):
    """Drops what was logged after `step`; says where what was logged before is not all there."""
    run.work.rewind_metrics(phase.name, max([step, *(entry["step"] for entry in phase.record["history"])]))
    if phase.record.get("logged", found := run.work.logged(phase.name)) != found:
        console.warn(
            f"{run.work.path / LOG} was changed or damaged: its lines of {phase.name} are not all those "
            "that were written; the run goes on, and its result does not depend on them"
        )


def _resumable(fixed: setup.Setup, name: str, checkpoints: Checkpoints) -> int | None:
    """The step to go on from: the newest, or one before the best where that is lost: a worse one is no substitute."""
    while (latest := checkpoints.latest()) is not None:
        best = loop.best_step(fixed, checkpoints.restore(latest)[1]["history"])
        if best is None or best in checkpoints.steps():
            return latest
        earlier = max((step for step in checkpoints.steps() if step < best), default=0)
        console.warn(f"{name}: the checkpoint of its best epoch is damaged; steps after {earlier} are trained again")
        checkpoints.rewind(earlier)
    return None


def _evaluate(run: Run, chosen: str, variables: dict) -> dict[str, evaluation.Evaluation]:
    """The best model, of the phase `chosen`, on val and on test, which it meets here, once."""
    evaluations: dict[str, evaluation.Evaluation] = {}
    for split in list(run.setup.data.splits)[1:]:
        inputs = run.inputs.of_phase(chosen, split, variables)
        found = loop.evaluate_split(run, variables, inputs, split)
        if found is None:
            raise TerminatedError(
                f"stopped while {split} was evaluated; all else is in {run.work.path}; the same command goes on"
            )
        evaluations[split] = found
    return evaluations


def finish(
    run: Run,
    phases: dict[str, Any],
    chosen: str,
    origin: dict[str, Any],
    evaluations: dict[str, evaluation.Evaluation],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Writes the predictions and `report.json`, whose content is returned; arguments as of `report.of_run`."""
    counted = run.inputs.num_corrupt()
    return hosts.on_writer(_written, run, phases, chosen, origin, evaluations, counted, seconds)


def _written(run, phases, chosen, origin, evaluations, counted, seconds):
    task, splits = run.setup.task, run.setup.data.splits
    run.work.write_lines("predictions.jsonl", evaluation.predictions(task, splits, evaluations))
    measured = evaluation.in_detail(task, splits, evaluations)
    rate = run.inputs.examples_per_second()
    made = report.of_run(run.setup, phases, chosen, origin, measured, counted, rate, seconds)
    run.scalars.result(made)
    return run.work.finish(made)
