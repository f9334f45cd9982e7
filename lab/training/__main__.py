"""Trains one of the bundled models, or a converter for any VAE: ``python -m foresight.lab.training TASK``.

The same command goes on after a stop. `python dev.py train` runs the demo family's tasks in their order.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from . import causal, consistency, converter, distil, dit, footage, l2r, refiner, reward, scorer, vae
from .loop import Task, train

# What makes each task; its parameters are the command's options.
TASKS: dict[str, Callable[..., Task]] = {
    "vae": vae.demo_vae, "decoder": vae.Decoder, "dit": dit.Transformer, "l2r": l2r.DemoL2R, "scorer": scorer.Scorer,
    "reward": reward.Reward, "converter": converter.from_videos, "footage_vae": footage.footage_vae,
    "causal": causal.Causal, "consistency": consistency.Consistency, "self_forcing": distil.self_forcing,
    "diagonal": distil.diagonal, "refiner": refiner.Refine,
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser, make: Callable[..., Task]) -> None:
    kinds = get_type_hints(make.__init__ if inspect.isclass(make) else make)
    for name, parameter in inspect.signature(make).parameters.items():
        if name == "scale":
            continue
        kind, required = kinds[name], parameter.default is parameter.empty
        how: dict[str, Any] = {"required": required, "default": None if required else parameter.default}
        if kind is bool:
            how["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            how["choices"] = get_args(kind)
        else:
            how["type"] = kind if kind in (int, float, str) else Path
        parser.add_argument("--" + name.replace("_", "-"), **how)


def read(arguments: list[str] | None = None) -> tuple[Callable[..., Task], dict[str, Any], int | None, float]:
    """What makes the task, its options, the steps if they were given, and the scale."""
    parser = argparse.ArgumentParser(prog="python -m foresight.lab.training", description=__doc__.splitlines()[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    for name, make in TASKS.items():
        about = inspect.getdoc(make) or inspect.getdoc(inspect.getmodule(make))
        task = tasks.add_parser(name, description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        task.add_argument("--steps", type=int, help="the recipe's own if not given")
        task.add_argument("--scale", type=float, default=1.0, help="share of steps and data, e.g. 0.01 to try it out")
        add_options(task, make)
    options = vars(parser.parse_args(arguments))
    make, steps, scale = TASKS[options.pop("task")], options.pop("steps"), options.pop("scale")
    return make, options | ({"scale": scale} if "scale" in inspect.signature(make).parameters else {}), steps, scale


def main() -> None:
    make, options, steps, scale = read()
    task = make(**options)
    train(task, max(1, round(task.steps * scale)) if steps is None else steps)


if __name__ == "__main__":
    main()
