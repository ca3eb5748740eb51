"""`tltrain VERB ...` and `python -m tltrain VERB ...`, the same as `python -m tltrain.VERB ...`; the list of verbs."""

import difflib
import importlib
import sys

from tltrain.errors import ConfigError
from tltrain.runtime.verbs import VERBS


def main(argv: list[str] | None = None) -> int:
    """Runs the command line `argv`, by default that of the process; returns the exit code."""
    verb, *others = (sys.argv if argv is None else argv)[1:] or ["--help"]
    if verb in VERBS:
        return importlib.import_module(f"tltrain.{verb}").main([verb, *others])
    if verb in ("--help", "-h") and not others:
        print("usage: tltrain VERB ...; tltrain VERB --help says more\n")
        print("\n".join(f"  {name:10}{about.what}" for name, about in VERBS.items()))
        return 0
    near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0)
    error = f"no verb {verb!r}; on the command line; did you mean {near[0]!r}? All are {', '.join(VERBS)}"
    print(f"tltrain: {error}", file=sys.stderr)
    return ConfigError.exit_code


if __name__ == "__main__":
    sys.exit(main())
