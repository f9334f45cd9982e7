"""python -m foresight.evaluation COMMAND ...

    run        a suite of prompts x seeds x methods, kept in one SQLite file
    report     the paper's tables and figures from it
    cost       what settings will cost, by the paper's cost model
    calibrate  the detector's thresholds fitted to logged runs
    tune       the race fitted to your own model: your graph over the API, then the preset
    ceiling    how early anything can be known on a model's schedule
    convert    a released CogVideoX or causal Wan transformer under the names that ComfyUI reads
    demo       the embedded model with and without Foresight, on a running ComfyUI

Each explains itself with --help.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = ("run", "report", "cost", "calibrate", "tune", "ceiling", "convert", "demo")
MODULES = {"demo": "demo_command"}  # where the name is another than the command's


def main(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(__doc__)
    elif name not in COMMANDS:
        sys.exit(f"evaluation: there is no command {name!r}; commands are {', '.join(COMMANDS)}.")
    else:
        importlib.import_module(f".{MODULES.get(name, name)}", __package__).main(arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
