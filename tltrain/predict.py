"""`python -m tltrain.predict --workdir DIR photos/ a.jpg`: what the best model of a finished run says of files."""

import argparse
import sys

from tltrain import places
from tltrain.errors import ConfigError
from tltrain.experiment import finished, predicting
from tltrain.runtime import command, command_line, console
from tltrain.runtime.process import Process

WRITERS = {".csv": predicting.csv_lines, ".jsonl": predicting.json_lines}


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    parser = command_line.of_run("predict")
    parser.add_argument(
        "files",
        nargs="+",
        type=command_line.path,
        help="examples, folders of them, tables of them; - for lines of text",
    )
    for name, meaning in {
        "--output": "write every prediction to this .csv or .jsonl file",
        "--features": "write pooled features to this .npz: files, features",
    }.items():
        parser.add_argument(name, type=command_line.output_file, help=meaning)
    return command.run(parser, argv, _run)


def _run(arguments: argparse.Namespace, process: Process) -> int:
    taken = {path.resolve() for path in arguments.files}
    for path in filter(None, (arguments.output, arguments.features)):
        if path.resolve() in taken:
            raise ConfigError(f"{path} would be overwritten; it is named twice on the command line; give another file")
        taken.add(path.resolve())
    if arguments.output and arguments.output.suffix not in WRITERS:
        raise ConfigError(f"--output {arguments.output}; on the command line; give a name that ends in .csv or .jsonl")
    wanted = arguments.features is not None
    found = predicting.predict(finished.load(arguments.workdir), arguments.files, process, wanted)
    predicting.show(found)
    if arguments.output:
        places.write_lines(arguments.output, WRITERS[arguments.output.suffix](found))
        console.say(f"Every prediction is in {arguments.output}.")
    if arguments.features:
        predicting.write_features(found, arguments.features)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
