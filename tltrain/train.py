"""The training loop: `run` reads like the life of an experiment, from its config to its report."""

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain import console, download, evaluate, freeze, metrics, optim, parallel, report, steps, weights
from tltrain.checkpoint import Checkpoints, with_leaves
from tltrain.data import pipeline, sources
from tltrain.errors import DivergedError, TerminatedError
from tltrain.inputs import Inputs, SplitInputs
from tltrain.models import zoo
from tltrain.models.classifier import Classifier
from tltrain.tensorboard import Scalars
from tltrain.workdir import Clock, Workdir


class Run(NamedTuple):
    """What the phases of one run share."""

    config: ConfigDict
    work: Workdir
    data: sources.Data
    model: Classifier
    mesh: Mesh
    inputs: Inputs
    scalars: Scalars
    clock: Clock
    stop: Callable[[], bool]


class Phase(NamedTuple):
    """One phase: its config, what is frozen, its learning rate, its checkpoints, and the record these carry."""

    name: str
    config: ConfigDict
    plan: freeze.Plan
    schedule: optax.Schedule
    tx: optax.GradientTransformation
    steps_per_epoch: int
    checkpoints: Checkpoints
    record: dict[str, Any]

    @property
    def num_steps(self) -> int:
        """Steps of the whole phase."""
        return self.config.epochs * self.steps_per_epoch


def run(config: ConfigDict, path: Path, clock: Clock, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Trains what `config` describes, in `path`; the same call again goes on where it stopped.

    Args:
        config: see `config.default`.
        path: the workdir.
        clock: collects seconds by part; the caller may have put in the imports.
        stop: polled after every step; once it is true the state is saved and the run ends.

    Returns:
        The content of `report.json`.

    Raises:
        TltrainError: of the kind its class says.
    """
    config_lib.validate(config)
    zoo.check(config)
    with contextlib.closing(Workdir(path, config)) as work:
        return _run_in(work, config, clock, stop)


def _run_in(work: Workdir, config: ConfigDict, clock: Clock, stop: Callable[[], bool]) -> dict[str, Any]:
    path = work.path
    if (finished := work.read_json("report.json")) is not None:
        console.say(f"This run is finished; remove {path} to run it again.")
        report.show(finished, path)
        return finished
    mesh = parallel.make_mesh(config.batch_size)
    with clock("data"):
        data = sources.load(config.data)
    work.write_json("class_names.json", data.class_names)
    console.say(report.data_line(data))
    model = zoo.create(config, len(data.class_names))
    variables, origin = _variables(config, model)
    inputs = Inputs(config, model, data, clock, stop)
    phases, best = {}, {}
    with contextlib.closing(Scalars(path / "tensorboard" if config.log.tensorboard else None)) as scalars:
        shared = Run(config, work, data, model, mesh, inputs, scalars, clock, stop)
        for name in config_lib.PHASES:
            if config[name].epochs:
                variables, phases[name] = _run_phase(shared, name, variables)
                best[name] = variables
        result = _finish(shared, phases, best, origin)
    work.write_json("report.json", result)
    report.show(result, path)
    return result


def _variables(config, model) -> tuple[dict, dict[str, Any]]:
    """Initial variables, and where they came from for the report."""
    source = config.model.weights
    if source == "random":
        console.say("Weights: random; nothing is pretrained")
        return zoo.init(model, config.seed, None), {"source": source}
    path = download.imagenet(model.backbone) if source == "imagenet" else Path(source).expanduser()
    shapes = {name: tree["backbone"] for name, tree in zoo.shapes(model).items()}
    loaded = weights.load(path, model.backbone.keras_layers(), shapes)
    unused = f"; not used: {', '.join(loaded.ignored)}" if loaded.ignored else ""
    console.say(
        f"Weights: {path.name} fills all {loaded.num_arrays} arrays of {config.model.backbone}; new: head{unused}"
    )
    return zoo.init(model, config.seed, loaded.variables), {"source": str(path), "sha256": loaded.sha256}


def _run_phase(run: Run, name: str, variables: dict) -> tuple[dict, dict[str, Any]]:
    """Trains what is left of a phase; returns the variables that were best on val, and the phase's result."""
    config = run.config[name]
    plan = freeze.plan(variables["params"], run.model.backbone.stages, config.freeze_until)
    num_images = run.data.splits["train"].num_examples
    per_epoch = pipeline.num_batches(num_images, run.config.batch_size)
    schedule = optim.make_schedule(config, per_epoch)
    tx = optim.make(config, schedule, plan.labels)
    state = jax.tree.map(np.asarray, steps.create_state(variables["params"], variables["batch_stats"], tx))
    record: dict[str, Any] = {"history": [], "partial": None, "seconds": 0.0, "clock": {}}
    folder = run.work.path / "checkpoints" / name
    frozen = freeze.prefixes(run.model.backbone.stages, plan.cut)
    with contextlib.closing(Checkpoints(folder, run.config.checkpoint.keep, frozen)) as checkpoints:
        if (latest := checkpoints.latest()) is not None:
            leaves, record = checkpoints.restore(latest)
            state = with_leaves(state, leaves)
            run.clock.resume(record["clock"])
        phase = Phase(name, config, plan, schedule, tx, per_epoch, checkpoints, record)
        run.work.rewind_metrics(name, int(state.step))
        if state.step < phase.num_steps:
            console.say(report.phase_line(name, config, int(state.step), phase.num_steps))
            report.show_parameters(variables["params"], run.model.backbone.stages, plan.cut)
            _train(run, phase, state)
        best = checkpoints.best()
        assert best is not None, "a finished phase has a checkpoint"
        state = with_leaves(state, checkpoints.restore(best)[0])
    result = report.phase_result(config, record, best, num_images, state.params, plan)
    return {"params": state.params, "batch_stats": state.batch_stats}, result


def _train(run: Run, phase: Phase, state: steps.TrainState) -> None:
    """The epochs from `state` on: train, evaluate on val, record, save."""
    frozen = {"params": state.params, "batch_stats": state.batch_stats}
    train, val = (run.inputs.of_phase(phase.name, split, frozen) for split in ("train", "val"))
    train_step, eval_step = _compile(run, phase, state, train, val)
    state = parallel.replicate(state, run.mesh)
    for epoch in range(int(state.step) // phase.steps_per_epoch, phase.config.epochs):
        first, started = int(state.step) % phase.steps_per_epoch, time.perf_counter()
        state, total = _train_epoch(run, phase, train_step, train, state, epoch)
        passed = time.perf_counter() - started
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        with run.clock("eval"):
            scores = evaluate.over(eval_step, variables, val, run.data, "val", run.mesh, run.config)
        step = int(state.step)
        entry = {"phase": phase.name, "epoch": epoch + 1, "step": step, "train": total.summary(), "val": scores}
        _check_finite(scores["loss"], f"{phase.name}: val loss after epoch {epoch + 1}")
        phase.record["history"].append(entry)
        phase.record.update(partial=None, seconds=phase.record["seconds"] + passed, clock=run.clock.total())
        run.work.append_metrics(entry | {"seconds": passed})
        run.scalars.write(
            phase.name, step, {f"{s}/{k}": entry[s][k] for s in ("train", "val") for k in ("loss", "accuracy")}
        )
        rate = (phase.steps_per_epoch - first) * run.config.batch_size / passed
        console.say(report.epoch_line(entry, phase.config.epochs, rate))
        score = scores["accuracy"] if run.config.checkpoint.best == "accuracy" else -scores["loss"]
        phase.checkpoints.save(step, state, phase.record, score)


def _compile(run, phase, state, train: SplitInputs, val: SplitInputs):
    config, size = run.config, run.config.batch_size
    step = functools.partial(
        steps.train_step,
        model=run.model,
        tx=phase.tx,
        plan=phase.plan,
        start=train.start,
        seed=config.seed,
        batch_norm_train=phase.config.batch_norm == "train",
        smoothing=config.loss.label_smoothing,
        class_weights=jnp.asarray(sources.class_weights(config.loss.class_weights, run.data)),
    )
    val_step = functools.partial(steps.eval_step, model=run.model, start=val.start)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    console.say("Compiling the training and evaluation steps ...")
    with run.clock("compile"):
        shapes = train.batch_shapes(size)
        compiled = parallel.compile_step(step, state, shapes, run.mesh, config.parallel, donate=True)
        shapes = val.batch_shapes(size)
        return compiled, parallel.compile_step(val_step, variables, shapes, run.mesh, config.parallel, per_example=True)


def _train_epoch(run: Run, phase: Phase, train_step, train: SplitInputs, state, epoch: int):
    """Steps to the end of `epoch`, also from its middle; returns the state and the totals of the whole epoch."""
    first = int(state.step) - epoch * phase.steps_per_epoch
    begun = phase.record["partial"]
    total = metrics.Total.from_state(begun) if begun else metrics.Total(len(run.data.class_names))
    pending: list[Any] = []
    batches = parallel.prefetch(train.batches(epoch, first), run.mesh, run.config.parallel)
    title = f"{phase.name} {epoch + 1}/{phase.config.epochs}"
    started, shown = time.perf_counter(), time.perf_counter()
    with console.progress(title, phase.steps_per_epoch, first) as update:
        for i in range(first, phase.steps_per_epoch):
            with run.clock("data"):
                batch = next(batches)
            with run.clock("train"):
                state, step_metrics = train_step(state, batch)
            pending.append(step_metrics)
            step, stop = epoch * phase.steps_per_epoch + i + 1, run.stop()
            save = stop or (run.config.checkpoint.every_steps and step % run.config.checkpoint.every_steps == 0)
            last = i + 1 == phase.steps_per_epoch
            if save or last or step % run.config.log.every_steps == 0 or time.perf_counter() - shown > 0.5:
                with run.clock("train"):
                    _drain(run, phase, pending, total, step)
                shown = time.perf_counter()
                rate = (i + 1 - first) * run.config.batch_size / (shown - started)
                update(i + 1, report.progress_note(total.summary(), rate))
            if save and not last:
                phase.record.update(partial=total.state(), clock=run.clock.total())
                phase.checkpoints.save(step, state, phase.record, score=-1e30)
            if stop:
                raise TerminatedError(
                    f"stopped at {phase.name} step {step}; saved in {run.work.path}; the same command goes on"
                )
    return state, total


def _drain(run, phase, pending, total, last_step):
    """Fetches the metrics of finished steps, adds them up, logs those that are due, stops at one that is not finite."""
    first_step = last_step - len(pending) + 1
    for step, (counted, grad_norm) in enumerate(jax.device_get(pending), first_step):
        _check_finite(float(counted.loss), f"{phase.name}: loss at step {step}")
        _check_finite(float(grad_norm), f"{phase.name}: gradient at step {step}")
        total.add(counted)
        if step % run.config.log.every_steps == 0:
            one = metrics.Total(len(run.data.class_names))
            one.add(counted)
            scalars = one.summary() | {"grad_norm": float(grad_norm), "learning_rate": float(phase.schedule(step - 1))}
            run.work.append_metrics({"phase": phase.name, "step": step, **scalars})
            run.scalars.write(phase.name, step, {f"step/{key}": value for key, value in scalars.items()})
    pending.clear()


def _check_finite(value, what):
    if not np.isfinite(value):
        raise DivergedError(
            f"{what} is {value}; checkpoints before it are kept; lower the learning rate, add warm-up or clip_norm"
        )


def _finish(run: Run, phases, best, origin) -> dict[str, Any]:
    """The content of `report.json`; where there is a test split, the chosen model meets it here, once."""
    key, sign = ("accuracy", 1) if run.config.checkpoint.best == "accuracy" else ("loss", -1)
    chosen = max(phases, key=lambda name: sign * phases[name]["best"]["val"][key])
    result = report.of_run(run.data, phases, chosen, origin)
    if "test" in run.data.splits:
        test, variables = run.inputs.images("test"), best[chosen]
        step = functools.partial(steps.eval_step, model=run.model, start=test.start)
        with run.clock("compile"):
            shapes = test.batch_shapes(run.config.batch_size)
            eval_step = parallel.compile_step(step, variables, shapes, run.mesh, run.config.parallel, per_example=True)
        with run.clock("eval"):
            result["test"] = evaluate.over(eval_step, variables, test, run.data, "test", run.mesh, run.config)
    result["num_corrupt"] = run.inputs.num_corrupt()
    result["seconds"] = {part: round(seconds, 2) for part, seconds in run.clock.total().items()}
    return result
