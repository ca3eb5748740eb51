"""What the run would take of memory and disk."""

import shutil
from collections.abc import Iterator

import jax

from tltrain.cache import features, space
from tltrain.checks import phases
from tltrain.checks.case import Case
from tltrain.checks.finding import Finding, fine, problem
from tltrain.checks.machine import existing, memory_of_device
from tltrain.errors import ConfigError, WorkdirError
from tltrain.models import zoo


def check_memory(case: Case) -> Iterator[Finding]:
    """Bytes of each phase's training step, as XLA planned them."""
    if case.config.parallel == "pmap":
        yield fine("memory: not estimated under parallel = 'pmap'; with 'jit' a step takes about the same")
        return
    for phase in phases.prepared(case):
        if phase.train_step is None:
            features = case.data.splits["train"].num_examples * zoo.num_features(case.model) * 4
            yield fine(f"{phase.name}: no training step, its head is solved for; features of train {_mib(features)}")
            continue
        variables, slots = _bytes((phase.state.params, phase.state.batch_stats)), _bytes(phase.state.opt_state)
        peak = _peak(phase)
        text = (
            f"{phase.name}: a training step takes {_mib(peak)}: parameters {_mib(variables)}, optimizer "
            f"{_mib(slots)}, batch, activations and gradients {_mib(peak - variables - slots)}"
        )
        if fits(case, phase):
            yield fine(text)
        else:
            yield problem(f"{text}; {_mib(memory_of_device())} are free; lower batch_size", ConfigError.exit_code)


def _peak(phase):
    return max(_of_program(program.memory_analysis()) for program in phase.train_step.programs.values())


def _of_program(planned):
    arguments = planned.argument_size_in_bytes - planned.alias_size_in_bytes  # what is donated holds results
    return arguments + planned.output_size_in_bytes + planned.temp_size_in_bytes


def fits(case: Case, phase: phases.Prepared) -> bool:
    """Whether the training step of `phase` fits a device; True where that cannot be told."""
    return phase.train_step is None or case.config.parallel == "pmap" or _peak(phase) <= memory_of_device()


def check_disk(case: Case) -> Iterator[Finding]:
    """Space for the stored features and the checkpoints."""
    folder = features.directory(case.config)
    free, due = shutil.disk_usage(existing(folder)).free, phases.due_stores(case)
    needed = sum(store.num_bytes for store in due)
    text = f"features to store: {_mib(needed)}, {_mib(free)} free in {folder}"
    if needed <= 0.95 * free:
        yield fine(text if due else f"no features to store that are not in {folder} already")
    elif case.config.features.enabled == "on":
        yield problem(f"{text}: the run would stop; set features.dir", WorkdirError.exit_code)
    else:
        yield problem(
            f"{text}: the run would compute frozen stages anew each epoch; free some, set features.dir, "
            "features.dtype = 'bfloat16', or a later freeze_until",
            WorkdirError.exit_code,
        )
    needed, free = space.of_run(case.setup), shutil.disk_usage(existing(case.workdir)).free
    text = f"checkpoints: up to {_mib(needed)}, {_mib(free)} free in {case.workdir}"
    there = (case.workdir / "checkpoints").exists()  # which counts for the run that is there
    fits = there or needed <= 0.95 * free
    yield fine(text) if fits else problem(f"{text}; free some, or lower checkpoint.keep", WorkdirError.exit_code)


def _bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _mib(count):
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
