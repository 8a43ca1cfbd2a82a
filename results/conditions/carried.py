"""Compare what must be known to foretell how far a round carries: settings, or how right its labels are.

Run as: python results/conditions/carried.py
(needs scikit-learn beside si_nb; half a minute)

The unit is a stretch of up to three rounds of a run (a run's first round is left out), and what is foretold
is the mean number of lengths by which the horizon moves in a round of it. Conditions are dealt into folds;
everything learns on the other folds. Trees are boosted on the absolute error; the law is fitted anew. Writes
carried.csv beside this file: for each forecaster the mean absolute error in digits, all runs and each kind of
filter, every base model counting once, and its difference to the law with a 95% interval by base model.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from score import FOLDS, KINDS, SWEEPS, deal
from sklearn.ensemble import HistGradientBoostingRegressor

from si_nb.law.learning import fit_parameters, read_runs, residual, stretches, transitions
from si_nb.law.scores import clustered
from si_nb.law.states import states
from si_nb.record.table import error_budget

HERE = Path(__file__).parent
SETTINGS = ["original_digits", "length", "n_layer", "n_embd", "si_iter", "num_samples", "batch_size"]
SETTINGS += ["voters", "reverse", "addition", "answer", "unvoted", "voted"]
LABELS, CURVE = ["right"], ["margin", "log_steepness"]
BASE_CURVE = ["base_ratio", "base_steepness", "max_iters"]
KNOWN = {
    "settings": SETTINGS,
    "settings, curve of now": SETTINGS + CURVE,
    "settings, accuracy of labels": SETTINGS + LABELS,
    "all of these, base model's curve": SETTINGS + CURVE + LABELS + ["wrong"] + BASE_CURVE,
    "accuracy of labels, filter": [*LABELS, "wrong", "unvoted", "voted"],
}


def described(steps, found):
    """Transitions with all that forecasters may know of them."""
    start = found[found["round"] == 0].set_index("run_id")
    kind = steps["arm"].map(KINDS)
    return steps.assign(
        kind=kind,
        part=stretches(steps),
        moved=np.expm1(steps["gain"]) * steps["horizon"],
        reverse=(steps["task"] == "reverse") * 1.0,
        addition=(steps["task"] == "reverse_addition") * 1.0,
        answer=(steps["loss_on"] == "answer") * 1.0,
        unvoted=(kind == "unvoted") * 1.0,
        voted=(kind == "voted") * 1.0,
        right=1 / (1 + np.exp(-steps["label_log_odds"])),
        margin=np.log(steps["horizon"] / steps["length"]),
        log_steepness=np.log(steps["steepness"]),
        base_ratio=np.log(start["horizon"] / start["length"]).reindex(steps["run_id"]).to_numpy(),
        base_steepness=np.log(start["steepness"]).reindex(steps["run_id"]).to_numpy(),
    )


def joined(rows, columns):
    """Stretches of rounds: means of the columns."""
    key = ["run_id", "part", "kind", "base", "fold"]
    return rows[rows["round"] > 0].groupby(key)[columns].mean().reset_index()


def by_trees(rows, columns):
    """What boosted trees foretell of every stretch, from the folds it is not in."""
    said = np.empty(len(rows))
    for number in range(FOLDS):
        here = (rows["fold"] == number).to_numpy()
        trees = HistGradientBoostingRegressor(
            max_depth=4,
            max_iter=150,
            learning_rate=0.06,
            min_samples_leaf=15,
            loss="absolute_error",
            random_state=0,
        ).fit(rows.loc[~here, columns], rows.loc[~here, "moved"].clip(-2, 3))
        said[here] = trees.predict(rows.loc[here, columns])
    return said


def by_law(steps):
    """What the law foretells of every round, its parameters from the folds that the round is not in."""
    said = np.empty(len(steps))
    for number in range(FOLDS):
        here = (steps["fold"] == number).to_numpy()
        values = fit_parameters(steps[~here].reset_index(drop=True))
        rows = steps[here].reset_index(drop=True)
        said[here] = np.expm1(rows["gain"] - residual("gain", values, rows)) * rows["horizon"]
    return said


def main():
    """Write the table."""
    table, runs = read_runs(*SWEEPS)
    found = states(table)
    steps = transitions(found, error_budget(table), runs)
    steps["fold"] = deal(steps, np.random.default_rng(0))
    rows = described(steps, found).assign(law=by_law(steps))
    known = sorted({name for names in KNOWN.values() for name in names})
    rows = joined(rows, [*known, "moved", "law"])
    errors = {"law": (rows["moved"] - rows["law"]).abs()}
    for name, columns in KNOWN.items():
        errors[name] = (rows["moved"] - by_trees(rows, columns)).abs()
    errors["constant"] = (rows["moved"] - rows.groupby("kind")["moved"].transform("median")).abs()
    shown = []
    for name, error in errors.items():
        row = {"known": name, "all": error.groupby(rows["base"]).mean().mean()}
        row |= {kind: part.groupby(rows["base"]).mean().mean() for kind, part in error.groupby(rows["kind"])}
        than_law = clustered(error - errors["law"], rows["base"])
        shown.append(
            row | {key: than_law[key] for key in ("difference", "low", "high", "clusters", "verdict")}
        )
    pd.DataFrame(shown).round(4).to_csv(HERE / "carried.csv", index=False, lineterminator="\n")
    print(pd.DataFrame(shown).round(3).to_string())


if __name__ == "__main__":
    main()
