"""Carry out the conditions sweep; a run ends when it is over, not only after its last round.

Run as: python results/conditions/run.py FOLDER [--jobs 2] [--grid results/conditions/grid.toml]

Runs that have collapsed go on labelling in vain, and a strict vote that keeps nothing any more tries six
problems for each label it wants: most of the time of a sweep would go into dead runs. So a run ends after
two rounds running with less than a tenth of the newest problems answered exactly. Interrupted, it goes on
with the same command. Tables are gathered as they come.
"""

import argparse
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from si_nb.loop.rounds import run_experiment
from si_nb.loop.settings import base_key
from si_nb.loop.sweep import base_config, read_grid, sweep_run, train_base
from si_nb.record.table import read_table, trajectory

OVER, ROUNDS_RUNNING = 0.1, 2  # accuracy at the newest length, rounds


def is_over(table):
    """Whether a run has been below the limit for two rounds running."""
    if table["round"].max() < ROUNDS_RUNNING:
        return False
    newest = trajectory(table).tail(ROUNDS_RUNNING)
    return bool((newest["successes"] < OVER * newest["trials"]).all())


def after_round(table):
    """What the loop asks after each round: the arms that should stop, and why."""
    return {
        arm: f"below {OVER:g} for {ROUNDS_RUNNING} rounds"
        for arm, rows in table.groupby("arm")
        if is_over(rows)
    }


def is_done(config, folder):
    """Whether a run has reached its last round or is over."""
    if not folder.measurements.exists():
        return False
    table = read_table(folder.measurements)
    return table["round"].max() >= config.si_rounds or is_over(table)


def carry_out_bundle(out, configs):
    """Train the base models that some runs share, and carry out those runs."""
    torch.set_num_threads(1)
    open_ = [config for config in configs if not is_done(config, sweep_run(config, out))]
    if open_:
        train_base(base_config(configs), out, workers=1)
    for config in open_:
        folder = sweep_run(config, out)
        options = {"skip_base_model_train": True, "progress": False, "workers": 1, "after_round": after_round}
        run_experiment(config, folder.path, folder.models, **options)
        shutil.rmtree(folder.rounds, ignore_errors=True)
        shutil.rmtree(folder.data, ignore_errors=True)
    return len(open_)


def gather(runs, out):
    """One table of all runs that are done, one row for every run, and what they were made on."""
    done = {
        name: sweep_run(run.config, out)
        for name, run in runs.items()
        if is_done(run.config, sweep_run(run.config, out))
    }
    if not done:
        return 0
    tables = {name: read_table(folder.measurements) for name, folder in done.items()}
    pd.concat(tables.values()).to_csv(out / "measurements.csv", index=False, lineterminator="\n")
    rows = []
    for name, run in runs.items():
        last = int(tables[name]["round"].max()) if name in tables else 0
        status = (
            "unfinished" if name not in tables else "finished" if last >= run.config.si_rounds else "over"
        )
        settings = {**asdict(run.config), "si_method": ",".join(run.config.si_method)}
        rows.append(
            {"run_id": name, "groups": ";".join(run.groups), "status": status, "last_round": last, **settings}
        )
    pd.DataFrame(rows).to_csv(out / "runs.csv", index=False, lineterminator="\n")
    shutil.copy(next(iter(done.values())).path / "environment.json", out / "environment.json")
    return len(done)


def main():
    """Carry out what is not done yet, two bundles at a time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--grid", type=Path, default=Path(__file__).parent / "grid.toml")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    runs, out, bundles = read_grid(args.grid).runs, args.out.absolute(), {}
    for run in runs.values():
        bundles.setdefault(base_key(run.config), []).append(run.config)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(partial(carry_out_bundle, out), configs) for configs in bundles.values()]
        for future in as_completed(futures):
            future.result()
            print(f"{gather(runs, out)} of {len(runs)} runs done", flush=True)


if __name__ == "__main__":
    main()
