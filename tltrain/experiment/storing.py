"""The features of a run, computed ahead of it: by one process, or a part each by the tasks of a job array."""

from ml_collections import ConfigDict

from tltrain import config as config_lib
from tltrain.cache import features
from tltrain.cache.inputs import Inputs
from tltrain.data import sources
from tltrain.experiment import report, train
from tltrain.models import zoo
from tltrain.runtime import console, signals
from tltrain.runtime.process import Process
from tltrain.training import setup


def run(config: ConfigDict, process: Process, task: tuple[int, int] | None = None) -> None:
    """Stores what `train.run` would store of `config` before its first step.

    Args:
        config: see `config.default`.
        process: collects seconds, and says when to stop.
        task: the part of this process, see `extraction.write`; None: all that is missing, and stores get their names.

    Raises:
        TltrainError: of the kind its class says.
    """
    config_lib.validate(config)
    config = sources.resolved(zoo.resolved(config))
    with signals.abandonable("reading data and weights"):
        fixed = setup.load(config, process.clock)
        console.say(report.data_line(fixed.data))
        variables, _ = train.initial_variables(config, fixed.model)
    inputs, frozen = Inputs(fixed, process), len(fixed.model.backbone.stages)
    for name in config_lib.PHASES:
        cut = fixed.plan(name).cut
        if not config[name].epochs:
            continue
        if cut > frozen:
            console.say(f"{name}: its frozen stages train in the phase before, so they are computed by the run")
            continue
        frozen = cut
        for split in fixed.data.splits:
            if reason := inputs.why_examples(name, split == "train"):
                console.say(f"{name}: nothing is stored of {split}; {reason}")
            elif not inputs.stores(name, split, variables, task):
                console.say(f"{name}: the part of this task of {split} is stored")
    folder = features.directory(config)
    if task is None:
        console.say(f"All that can be stored ahead of the run is in {folder}")
    else:
        console.say(f"The same command without a job array does what is missing, in {folder}")
