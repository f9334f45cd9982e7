"""python -m foresight.evaluation COMMAND ...

    run        a suite of prompts x seeds x methods, kept in one SQLite file
    report     the paper's tables and figures from it
    cost       what settings will cost, by the paper's cost model
    calibrate  the detector's thresholds fitted to logged runs
    ceiling    how early anything can be known on a model's schedule

Each explains itself with --help.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = {name: f".{module}" for name, module in (
    ("run", "run"), ("report", "report"), ("cost", "cost"), ("calibrate", "calibrate"),
    ("ceiling", "ceiling"), ("convert", "convert"),
)}  # fmt: skip


def main(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(__doc__)
    elif name not in COMMANDS:
        sys.exit(f"evaluation: there is no command {name!r}; commands are {', '.join(COMMANDS)}.")
    else:
        importlib.import_module(COMMANDS[name], __package__).main(arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
