"""`python -m tltrain.find_lr --config FILE [--phase finetune]`: what learning rate a phase bears, by a range test."""

import sys

from tltrain.config import PHASES
from tltrain.experiment import range_test
from tltrain.runtime import command, command_line


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""
    rate = command_line.number(1e-12, 1e12)
    parser = command_line.of_config("find_lr")
    parser.add_argument("--phase", choices=PHASES, help="default: the last that has epochs")
    parser.add_argument("--low", type=rate, default=1e-7, metavar="RATE", help="of the first step; default: 1e-7")
    parser.add_argument("--high", type=rate, default=1.0, metavar="RATE", help="of the last step; default: 1")
    text = "from the one to the other; default: 100"
    parser.add_argument("--steps", type=command_line.number(20, 1_000_000), default=100, metavar="N", help=text)

    def work(arguments, process):
        test = (arguments.low, arguments.high, arguments.steps)
        range_test.run(arguments.config, arguments.workdir, arguments.phase, test, process)
        return 0

    return command.run(parser, argv, work)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
