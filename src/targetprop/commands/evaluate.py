"""Test a run's weights."""

from __future__ import annotations

import argparse

from targetprop.commands.common import answer, console, data_dir, finished_config, overrides
from targetprop.training import build, checkpoint, evaluate, runner
from targetprop.training.checkpoint import CheckpointError
from targetprop.training.config import place
from targetprop.training.session import demand_same_data, load_weights

EXAMPLE = "targetprop evaluate runs/mine --weights best"


def add(p: argparse.ArgumentParser) -> None:
    """The arguments."""
    p.add_argument("run", help="the run's folder")
    p.add_argument("--weights", choices=("best", "last"), default="last", help="which checkpoint")
    p.add_argument("--data-dir", help="where data sets lie")


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Print the accuracy of a checkpoint on the test images."""
    folder = place(args.run)
    chosen = finished_config(folder, [*overrides(words), *data_dir(args)])
    path = folder / f"{args.weights}.pt"
    if args.weights == "best" and not path.exists():
        raise CheckpointError(
            f"{path}: no such checkpoint: without validation images there is no best one; "
            "give --weights last."
        )
    state = checkpoint.load(path)
    runner.demand_own(chosen, state, path)
    session = build.set_up(chosen, folder)
    demand_same_data({"classes": session.data["classes"]}, state, path)
    load_weights(session.net, state, path)
    scores = evaluate.accuracy(session.net, session.algo, session.test)
    console.print(f"{path}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    answer(args, scores)
