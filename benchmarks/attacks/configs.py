"""2,000 wrong or strange configs: each runs, or is refused in one line that names its key.

    python benchmarks/attacks/configs.py [COUNT]

Every key with every one of some thirty values, in the file and on the command line, and keys that are missing,
misspelt, groups instead of values and values instead of groups; COUNT of them are drawn. What is not refused trains to
its end on 16 images. Two cores: 15 minutes.
"""

import collections
import concurrent.futures
import contextlib
import io
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import small

PROCESSES = 2
SHRUNK = """config.probe.epochs = 1
config.finetune.epochs = 1
config.finetune.freeze_until = "Conv_1"
config.checkpoint.every_steps = 0"""
IN_FILE = (
    "None",
    "True",
    "-1",
    "0",
    "1",
    "2.5",
    "-0.1",
    "1e-3",
    "2**63",
    "10**400",
    "1e308",
    "float('nan')",
    "float('inf')",
    "''",
    "'x'",
    "'all'",
    "'a\\nb\\x1b[31m'",
    "'\\udcff'",
    "'x' * 10_000",
    "b'x'",
    "()",
    "(1, 2)",
    "('train', 'val', 'test', 'more')",
    "[1, 2]",
    "{}",
    "{'a': 1}",
    "{1: 2}",
    "__import__('ml_collections').ConfigDict({'a': 1})",
    "object()",
    "len",
    "__import__('numpy').float32(0.5)",
    "__import__('numpy').zeros(3)",
)
ON_LINE = ("", "x", "-1", "1.5", "None", "(1,", "True", "9" * 400)


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    from tltrain.config import RULES

    mutants = [*in_file(RULES), *on_line(RULES), *of_names(RULES)]
    print(f"{len(mutants)} mutants", flush=True)
    mutants = random.Random(0).sample(mutants, min(count, len(mutants)))
    counts, faults = collections.Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small.write(root, images=8)
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(PROCESSES, spawn) as pool:
            for mutant, (code, fault) in zip(mutants, pool.map(tried, [(root, m) for m in mutants]), strict=True):
                counts[code] += 1
                if fault:
                    faults.append(f"{mutant}: {fault}")
                    print(faults[-1], flush=True)
    names = {-1: "raised", 0: "ran", 2: "refused as config", 4: "as data", 5: "as weights", 6: "as workdir"}
    print(f"{len(mutants)} mutants: " + ", ".join(f"{counts[code]} {names.get(code, code)}" for code in sorted(counts)))
    print(f"{len(faults)} faults")
    return bool(faults)


def in_file(rules):
    """(lines of the config file, arguments, what a refusal has to name)."""
    for key in rules:
        for value in IN_FILE:
            yield f"config.{key} = {value}", [], key
            if value in ("None", "{'a': 1}", "10**400"):
                yield f"config.update_from_flattened_dict({{{key!r}: {value}}})", [], key


def on_line(rules):
    for key in rules:
        for value in ON_LINE:
            yield "", [f"--config.{key}={value}"], key
        yield "", [f"--config.{key}"], key
        yield "", [f"--noconfig.{key}"], key


def of_names(rules):
    for key in rules:
        group, _, leaf = key.rpartition(".")
        place = f"config.{group}" if group else "config"
        yield f"del {place}.{leaf}", [], key
        yield f"{place}.{leaf}s = 1", [], f"{leaf}s"
        yield f"{place}.{leaf[:-1]} = {place}.{leaf}", [], leaf[:-1]
        yield "", [f"--config.{key}s=1"], f"{key}s"
        yield "", [f"--config.{key}.more=1"], key
    for group in sorted({key.rpartition(".")[0] for key in rules} - {""}):
        for value in ("None", "3", "'x'", "{}", "[]", "config.probe"):
            if value != f"config.{group}":
                yield f"config.{group} = {value}", [], group
        yield f"del config.{group}", [], group
        yield "", [f"--config.{group}=x"], group


def tried(case):
    """Runs a mutant in this process: its exit code, and what is wrong with how it ended."""
    root, (lines, arguments, name) = case
    os.environ["TLTRAIN_CACHE"] = str(root / f"cache{os.getpid()}")
    from tltrain import main as verb

    work = root / f"run{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    file = small.config(root, root / f"config{os.getpid()}.py", f"{SHRUNK}\n{lines}")
    out, error = io.StringIO(), io.StringIO()
    os.chdir(root)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = verb.main(["main", f"--config={file}", f"--workdir={work}", *arguments])
    except BaseException:
        return -1, traceback.format_exc()[-600:]
    text = error.getvalue().strip()
    if code == 0:
        return code, text if "Traceback" in text else ""
    fine = text.startswith("tltrain: ") and text.isprintable() and name in text
    return code, "" if fine else f"exit {code}: {text[-400:]!r}"


if __name__ == "__main__":
    sys.exit(main())
