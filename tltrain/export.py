"""`python -m tltrain.export --workdir DIR --format keras,onnx`: a finished run as files that need no tltrain.

Each goes the whole way to probabilities, float32 `[B, num_classes]`, or to numbers where labels are numbers. It begins
with images, uint8 RGB `[B, H, W, 3]` of any size: resize and pixel scaling are inside, decoding is not; or with the
tokens of texts, int32 `[B, L]` of any length, padding last: `tokenizer.json` beside the files makes them. A file is
loaded again and compared with the run on examples of val, at their own sizes, before it gets its name. Beside the files
stands `class_names.json`.
"""

import sys

import jax

from tltrain.experiment import finished
from tltrain.exports import proven
from tltrain.exports.formats import FORMATS
from tltrain.runtime import command, command_line

# what help calls the arguments of a file, by what a run takes
ARGUMENTS = {"images": ("images",), "texts": ("input_ids", "attention_mask", "token_type_ids")}


def main(argv: list[str]) -> int:
    """Runs the command line `argv`; returns the exit code."""

    def work(arguments, process):
        # an export has no use for an accelerator, which may be at work, nor again for programs with weights inside
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_compilation_cache", False)
        names = list(dict.fromkeys(arguments.format.split(",")))
        folder = arguments.output or arguments.workdir / "export"
        proven.check(names, folder)
        proven.export(finished.load(arguments.workdir), names, folder, process)
        return 0

    return command.run(_parser(), argv, work)


def _parser():
    formats = []
    for name, one in FORMATS.items():
        uses = [f"  {kind}: {one.use('PATH', names, 'probabilities')}" for kind, names in ARGUMENTS.items()]
        formats += [f"{name}: {one.file}", *uses, f"  class names: {one.class_names}"]
    parser = command_line.of_run("export")
    parser.description = "\n\n".join([parser.description or "", (__doc__ or "").partition("\n\n")[2].rstrip()])
    parser.epilog = "\n".join(["formats, the file each makes, and its use:", *formats, "", parser.epilog or ""])
    parser.add_argument("--format", required=True, help=f"one of {', '.join(FORMATS)}, or some with commas between")
    parser.add_argument("--output", type=command_line.path, help="folder of the files; default: export in the workdir")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv))
