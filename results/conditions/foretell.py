"""Forecast the held-out runs from their settings, before any of them is made.

Run as: python results/conditions/foretell.py NAME.csv

Reads held_out.toml and the law in results/conditions.json; writes NAME.csv beside this file: for each run the
probability of lasting 5, 10 and 20 rounds, and the median and 90% interval of its collapse round (empty:
never). The file is to be committed before any run is looked at, and not changed afterwards: one that is there
already is left alone. forecasts.csv is by the law of 29 November 2026, forecasts_second.csv by that of the
30th, forecasts_third.csv by that of 1 December.
"""

import argparse
from pathlib import Path

import pandas as pd

from si_nb.law.learning import load_law
from si_nb.law.prediction import predict
from si_nb.loop.sweep import read_grid

HERE, ROUNDS = Path(__file__).parent, ("5", "10", "20")


def forecast(name, run, law):
    """What the law says of one run."""
    said = predict(run.config, law=law)
    row = {"run_id": name, "group": run.groups[0]}
    row |= {f"lasts_{rounds}": said["probability_lasting"][rounds] for rounds in ROUNDS}
    row |= {f"collapse_{key}": said["collapse_round"][key] for key in ("value", "low", "high")}
    return row | {"outside": " ".join(each["setting"] for each in said["outside"]), "law": law.made}


def main():
    """Write the forecasts of all runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the table to be made")
    path = HERE / parser.parse_args().name
    if path.exists():
        raise SystemExit(f"{path.name} is there already: forecasts are made once; choose another name")
    law, runs = load_law(), read_grid(HERE / "held_out.toml").runs
    rows = [forecast(name, run, law) for name, run in runs.items()]
    pd.DataFrame(rows).to_csv(path, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
