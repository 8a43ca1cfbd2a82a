"""Judges every forecaster on every run of the sweeps, and learns the weights of their average.

Runs that may be looked at are forecast with what the runs of other tasks and base strengths teach, and give
`weights.json`. Held-out runs are forecast with `population.json` as it is, and give `forecasts/`. Either
takes a quarter of an hour of one core. Run as: python results/judge.py look|test [processes]
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd

from si_nb.law.forecasters import FORECASTERS
from si_nb.law.horizon import fit_population, load_population, margins
from si_nb.law.scores import rolling_origin, stack
from si_nb.loop.voting import KEEP_RULES
from si_nb.record.table import RUN, read_table

HERE, SWEEPS = Path(__file__).parent, ("sweep", "long")
RESAMPLES, LEADS, DIGITS = 200, (1, 2, 4), 4


def load(role):
    """Counts of the runs of one role, and their settings."""
    runs = pd.concat([pd.read_csv(HERE / name / "runs.csv", keep_default_na=False) for name in SWEEPS])
    runs = runs.merge(pd.read_csv(HERE / "split.csv").query("role == @role")[["run_id"]], on="run_id")
    return read_table(*[HERE / name for name in SWEEPS]).merge(runs[["run_id"]], on="run_id"), runs


def judge_one(job, names):
    """Scores and calls of one run."""
    table, population = job
    scores, calls, _ = rolling_origin(table, names, resamples=RESAMPLES, population=population)
    return scores[scores["lead"].isin(LEADS)], calls


def judge(role, names, processes):
    """Scores and calls of all runs of a role, long ones first."""
    table, runs = load(role)
    if role == "look":
        kinds = {name: rule.kind for name, rule in KEEP_RULES.items()}
        known = margins(table).assign(kind=lambda rows: rows["arm"].map(kinds))
        known = known.merge(runs[["run_id", "task", "max_iters"]], on=["run_id", "task"])
        cells = known[["task", "max_iters"]].drop_duplicates()
        left_out = {}
        for task, steps in cells.itertuples(index=False):
            others = known[(known["task"] != task) | (known["max_iters"] != steps)]
            left_out[task, steps] = fit_population(others)
    parts = {key[0]: part for key, part in table.groupby(RUN)}
    runs = runs.sort_values("si_rounds", ascending=False)
    jobs = [
        (parts[row.run_id], left_out[row.task, row.max_iters] if role == "look" else load_population())
        for row in runs.itertuples()
    ]
    with ProcessPoolExecutor(processes) as pool:
        found = list(pool.map(partial(judge_one, names=names), jobs))
    return [pd.concat(part, ignore_index=True) for part in zip(*found, strict=True)]


if __name__ == "__main__":
    role, processes = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    # best is the horizon law wherever lengths were measured, so it is not judged by itself
    names = tuple(FORECASTERS) if role == "look" else (*FORECASTERS, "average")
    scores, calls = judge(role, names, processes)
    if role == "look":
        weights = {name: round(weight, DIGITS) for name, weight in stack(scores, names).items()}
        (HERE / "weights.json").write_text(json.dumps(weights, indent=1) + "\n")
    else:
        (HERE / "forecasts").mkdir(exist_ok=True)
        for name, part in (("scores", scores), ("calls", calls)):
            part = part.drop(columns=["task", "arm", "seed"]).round(DIGITS)
            part.to_csv(HERE / "forecasts" / f"{name}.csv", index=False, lineterminator="\n")
