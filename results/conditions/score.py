"""Score forecasts of lives: the law of conditions and its rivals, all on runs whose condition none of them
has seen.

Run as: python results/conditions/score.py [--held_out]
(needs lifelines and scikit-learn beside si_nb; some minutes)

With --held_out the forecasters learn from all those runs, the law is the one in results/conditions.json as it
was committed before the runs of results/held_out were looked at, and those are what is forecast. A run that
takes in several lengths a round is scored at the length it is at. The table is results/held_out/scores.csv.

A condition is a task with a base length, width, base steps, batch and what the loss is on. Conditions are
dealt into folds; everything that learns does so on the other folds. Origins are fixed rounds among runs
still alive there. Writes results/conditions/scores.csv: for each run, origin and forecaster the probability
of being alive R rounds on and whether it was (only where the run was meant to go so far, so that nothing
depends on how it went), the censored ranked probability score of ln(collapse length / base length), the
interval, the call and its error. And results/conditions/accuracy.csv, for forecasters that say how accurate
the newest length will be: log score, ranked probability score, what intervals hold and how wide they are one,
two, four and eight rounds on, for each run the mean over origins 0 and 1, and over its later ones.
"""

import argparse
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from lifelines import LogNormalAFTFitter
from sklearn.ensemble import HistGradientBoostingClassifier

from si_nb.law.conditions import complete
from si_nb.law.forecasters import forecast
from si_nb.law.horizon import course, fit_population, margins
from si_nb.law.learning import fit_law, load_law, read_runs, transitions
from si_nb.law.prediction import follow
from si_nb.law.round_curves import LawError, collapse_rounds
from si_nb.law.scores import AHEAD, fates, score_counts
from si_nb.law.states import states
from si_nb.loop.voting import KEEP_RULES
from si_nb.record.table import error_budget, results_folder, trajectory

SWEEPS = ("sweep", "long", "copy", "reverse_addition", "quick", "conditions", "critical")
ORIGINS, FOLDS, DRAWS, FARTHEST = (0, 1, 2, 3, 5, 8, 12), 6, 400, 60
LEADS = np.array([1, 2, 4, 8])  # rounds after the origin at which accuracy is forecast
CURVES_FROM = 2  # origin from which a curve over rounds can speak
SETTINGS = (
    "original_digits",
    "n_layer",
    "n_embd",
    "max_iters",
    "si_iter",
    "num_samples",
    "batch_size",
    "voters",
    "vote_threshold",
)


@dataclass(frozen=True)
class Said:
    """What a forecaster says of a run after an origin."""

    collapses: np.ndarray | None  # (B,) rounds after the origin; inf: never; None: it does not say
    accuracy: np.ndarray | None = None  # (B, len(LEADS)); None: it does not say
    scatter: np.ndarray | float = 0.0  # overdispersion of counts about them, one or (B,)


def sample_of(survival, generator):
    """Collapse rounds drawn from a survival curve over the next rounds; inf where it never falls so far."""
    below = np.asarray(survival)[None] < generator.random(DRAWS)[:, None]
    return np.where(below.any(1), below.argmax(1) + 1.0, np.inf)


def kaplan_meier(left, ended):
    """Survival over the next rounds of runs that had so many rounds left, ended or only watched so long."""
    rounds = np.arange(1, FARTHEST + 1)
    at_risk = (left[:, None] >= rounds).sum(0)
    died = ((left[:, None] == rounds) & ended[:, None]).sum(0)
    return np.cumprod(1 - died / np.maximum(at_risk, 1))


def features(fate):
    """Settings as logarithms, kinds and tasks as indicators, and the base model's curve."""
    found = np.log(fate[list(SETTINGS)].astype(float))
    for column in ("kind", "task"):
        found = found.join(
            pd.get_dummies(fate[column])
            .reindex(columns=sorted(CATEGORIES[column])[1:], fill_value=False)
            .astype(float)
        )
    answer = (fate["loss_on"] == "answer").astype(float)
    return found.assign(answer=answer, ratio=fate["ratio"], steep=fate["steep"])


KINDS = {name: rule.kind for name, rule in KEEP_RULES.items()}
CATEGORIES = {"kind": {"unvoted", "voted", "oracle"}, "task": {"copy", "reverse", "reverse_addition"}}


class Everything:
    """All tables once, and what each forecaster learns from some of the runs."""

    def __init__(self, names, most_lengths):
        self.table, self.runs = read_runs(*names, lengths=(1, most_lengths))
        self.states = states(self.table)
        self.steps = transitions(self.states, error_budget(self.table), self.runs)
        self.margins, self.series = margins(self.table), trajectory(self.table)
        fate = fates(self.table, self.runs, KINDS)
        start = self.states[self.states["round"] == 0].set_index("run_id")
        fate["ratio"] = np.log(start["horizon"] / start["length"]).reindex(fate["run_id"]).to_numpy()
        fate["steep"] = np.log(start["steepness"]).reindex(fate["run_id"]).to_numpy()
        self.fate = fate.dropna(subset=["ratio"]).reset_index(drop=True)

    def learn(self, known, law=None):
        """What is taught by the runs whose names are known; the law too, unless it is given."""
        here = {
            name: getattr(self, name)[getattr(self, name)["run_id"].isin(known)].reset_index(drop=True)
            for name in ("states", "steps", "runs", "margins", "fate")
        }
        law = law or fit_law(here["states"], here["steps"], here["runs"], 20)
        learned = dict(here, law=law)
        learned["population"] = fit_population(here["margins"].assign(kind=here["margins"]["arm"].map(KINDS)))
        alive = here["margins"][here["margins"]["margin"] > 0].dropna(subset=["speed"])
        by_run = alive.groupby("run_id")["speed"].agg(["mean", "std", "size"])
        learned["speed"] = (
            by_run["mean"].clip(-1, 2).mean(),
            by_run["mean"].clip(-1, 2).std(),
            by_run["std"].median(),
        )
        learned["trees"], learned["aft"] = self.learn_hazard(here["fate"]), self.learn_life(here["fate"])
        rounds = here["states"].merge(here["fate"][["run_id", "kind", "at_least", "censored"]], on="run_id")
        rounds["left"] = rounds["at_least"] - rounds["round"]
        learned["rounds"] = rounds[rounds["left"] > 0].reset_index(drop=True)
        errors = here["fate"][["run_id", "kind"]].merge(here["margins"], on="run_id").query("margin > 0")
        rate = 1 - errors["successes"] / errors["trials"]
        errors["growth"] = rate.groupby(errors["run_id"]).diff()
        learned["growth"] = errors.groupby("kind")["growth"].agg(["mean", "std"])
        series = self.series[self.series["run_id"].isin(known)]
        accuracy = (series["successes"] / series["trials"]).set_axis(series["run_id"])
        learned["accuracy"] = {name: part.to_numpy() for name, part in accuracy.groupby(level=0)}
        return learned

    @staticmethod
    def learn_hazard(fate):
        """Boosted trees for the chance of collapse in a round."""
        rows = fate.loc[fate.index.repeat(fate["at_least"])].reset_index(drop=True)
        rows["number"] = rows.groupby("run_id").cumcount() + 1
        dies = (rows["number"] == rows["at_least"]) & ~rows["censored"]
        X = features(rows).assign(number=rows["number"])
        return HistGradientBoostingClassifier(
            max_depth=3, max_iter=120, learning_rate=0.08, min_samples_leaf=10, random_state=0
        ).fit(X.to_numpy(), dies)

    @staticmethod
    def learn_life(fate):
        """Log-linear accelerated failure time."""
        X = features(fate).assign(life=fate["at_least"].clip(lower=1), died=(~fate["censored"]).astype(int))
        X = X.loc[:, X.nunique() > 1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LogNormalAFTFitter(penalizer=0.02).fit(X, "life", "died")


def walks(every, learned, run, origin, generator):
    """The forecasters that follow a run round by round; {name: Said}."""
    states = every.states[(every.states["run_id"] == run["run_id"]) & (every.states["round"] <= origin)]
    seen = every.steps[(every.steps["run_id"] == run["run_id"]) & (every.steps["round"] < origin)]
    margin = every.margins[(every.margins["run_id"] == run["run_id"]) & (every.margins["round"] <= origin)]
    state, told = states.iloc[-1], run[[*SETTINGS, "task", "loss_on", "lengths_per_round"]]
    settings, below = complete({**told, "si_method": run["arm"]}), 2 * state["successes"] < state["trials"]

    def said(accuracy, scatter=0.0):
        collapses = collapse_rounds(accuracy, origin, below) - origin
        return Said(collapses, accuracy[:, LEADS - 1], scatter)

    asked = FARTHEST, DRAWS, generator
    found = {"conditions": said(follow(learned["law"], settings, *asked, state, seen).accuracy)}
    if origin == 0:
        found["conditions, settings only"] = said(follow(learned["law"], settings, *asked).accuracy)
    path = course(margin, learned["population"], *asked)
    found["horizon law"] = said(path.accuracy, path.overdispersion)
    mean, between, within = learned["speed"]
    own = (
        mean
        + between * generator.standard_normal((DRAWS, 1))
        + within * generator.standard_normal((DRAWS, FARTHEST))
    )
    left = margin["margin"].iloc[-1] + np.cumsum(own - run["lengths_per_round"], 1)
    found["constant speed"] = Said(collapse_rounds(0.5 + np.sign(left) / 4, origin, below) - origin)
    growth, error = (
        learned["growth"].loc[run["kind"]],
        1 - margin["successes"].iloc[-1] / margin["trials"].iloc[-1],
    )
    slopes = np.maximum(generator.normal(growth["mean"], growth["std"], (DRAWS, 1)), 0)
    found["self-training bound"] = said(np.clip(1 - error - slopes * np.arange(1, FARTHEST + 1), 0, 1))
    return found


def neighbours(every, learned, run, origin, generator):
    """What became of the five runs nearest in kind, margin and log-odds."""
    states = every.states[every.states["run_id"] == run["run_id"]]
    state = states[states["round"] <= origin].iloc[-1]
    near = learned["rounds"][learned["rounds"]["kind"] == run["kind"]]
    apart = ((near["horizon"] - near["length"] - state["horizon"] + state["length"]) / 1.0) ** 2 + (
        (near["log_odds"] - state["log_odds"]) / 2
    ) ** 2
    five = near.loc[apart.sort_values().index].drop_duplicates("run_id").head(5)
    curve = kaplan_meier(five["left"].to_numpy(), ~five["censored"].to_numpy())
    later = np.array(
        [
            learned["accuracy"][name][np.minimum(number + LEADS, len(learned["accuracy"][name]) - 1)]
            for name, number in zip(five["run_id"], five["round"], strict=True)
        ]
    )
    return Said(sample_of(curve, generator), later[generator.integers(len(later), size=DRAWS)])


def survivals(every, learned, run, origin, generator):
    """The forecasters that know lives alone; {name: Said}."""
    same = learned["fate"][(learned["fate"]["kind"] == run["kind"]) & (learned["fate"]["at_least"] > origin)]
    curves = {
        "median of the living": kaplan_meier(
            same["at_least"].to_numpy() - origin, ~same["censored"].to_numpy()
        )
    }
    later, one = np.arange(origin, origin + FARTHEST + 1), run.to_frame().T.infer_objects()
    times = np.maximum(later, 1e-6)
    curve = learned["aft"].predict_survival_function(features(one), times=times).to_numpy()[:, 0]
    curves["failure time"] = curve[1:] / max(curve[0], 1e-9)
    X = np.c_[np.repeat(features(one).to_numpy(float), FARTHEST, 0), later[1:]]
    curves["boosted trees"] = np.cumprod(1 - learned["trees"].predict_proba(X)[:, 1])
    return {name: Said(sample_of(curve, generator)) for name, curve in curves.items()}


def curves(every, run, origin, generator):
    """Curves over rounds, and accuracy as it is now; {name: Said}."""
    series, found = every.series[every.series["run_id"] == run["run_id"]], {}
    for name in ("logit_line", "exponential_floor"):
        with suppress(LawError):  # too few rounds, or no errors, for a curve
            drawn = forecast(series, origin, 0.5, name, 60, generator).courses
            later = drawn.accuracy[:, np.minimum(origin + LEADS, drawn.accuracy.shape[1]) - 1]
            found[name.replace("_", " ")] = Said(drawn.collapses - origin, later, drawn.scatter)
    now = series[series["round"] == origin].iloc[-1]
    right, wrong = now["successes"] + 0.5, now["trials"] - now["successes"] + 0.5
    same = generator.beta(right, wrong, (DRAWS, 1)) + np.zeros(len(LEADS))
    return found | {"accuracy as it is": Said(None, same)}


def forecasts(every, learned, run, origin, generator):
    """What every forecaster says of a run after an origin; {name: Said}."""
    asked = run, origin, generator
    found = walks(every, learned, *asked) | survivals(every, learned, *asked) | curves(every, *asked)
    return found | {"five neighbours": neighbours(every, learned, *asked)}


def accuracy_scores(series, origin, said, generator):
    """A row for each lead at which accuracy was measured."""
    later = series[series["round"].isin(origin + LEADS)]
    leads, trials = later["round"].to_numpy() - origin, later["trials"].to_numpy()
    rates = np.clip(said.accuracy[:, np.searchsorted(LEADS, leads)], 1e-6, 1 - 1e-6)
    scatter = np.broadcast_to(said.scatter, len(rates))
    size = 1 / np.maximum(scatter[:, None], 1e-6) - 1
    drawn = generator.binomial(trials, generator.beta(rates * size, (1 - rates) * size)) / trials
    scores = score_counts(rates, scatter, drawn, later["successes"].to_numpy(float), trials * 1.0)
    return scores.assign(lead=leads)


def scored(run, origin, sample, generator):
    """One row of scores: nothing in it depends on how long the run was watched beyond what was planned."""
    n0, planned, digits = run["original_digits"], run["si_rounds"], run["lengths_per_round"]
    rounds = sample + origin
    row = {"median": np.quantile(rounds, 0.5, method="inverted_cdf")}
    for level in (50, 90):
        row[f"low_{level}"], row[f"high_{level}"] = np.quantile(
            rounds, [0.5 - level / 200, 0.5 + level / 200], method="inverted_cdf"
        )
        row[f"inside_{level}"] = (run["censored"] or run["at_least"] >= row[f"low_{level}"]) and run[
            "at_least"
        ] <= row[f"high_{level}"]
    for ahead in AHEAD:
        row[f"p_{ahead}"] = (rounds > origin + ahead).mean()
        known = origin + ahead <= planned
        row[f"alive_{ahead}"] = float(run["at_least"] > origin + ahead) if known else np.nan
    grid = np.arange(origin + 1, planned + 1)  # the score is an integral over ln length up to the planned end
    below, happened = (rounds[:, None] <= grid).mean(0), (grid >= run["at_least"]) & (not run["censored"])
    longer = np.log((n0 + digits * (grid + 1)) / (n0 + digits * grid))
    row["crps"] = float((longer * (below - happened) ** 2).sum())
    off = max(run["at_least"] - row["median"], 0) if run["censored"] else abs(row["median"] - run["at_least"])
    return {**row, "error": off, "close": off <= 2 or digits * off <= 0.1 * (n0 + digits * run["at_least"])}


def deal(fate, generator):
    """A fold for every run, the same for all runs of a condition."""
    names = generator.permutation(sorted(fate["condition"].unique()))
    return fate["condition"].map({name: number % FOLDS for number, name in enumerate(names)})


def score(every, learned, runs, generator):
    """Scores of some runs by what was learned from others: rows on lives, and tables on accuracy."""
    rows, tables = [], []
    for _, run in runs.iterrows():
        series = every.series[every.series["run_id"] == run["run_id"]]
        reached = every.states.loc[every.states["run_id"] == run["run_id"], "round"]
        for origin in (o for o in ORIGINS if o < min(run["at_least"], reached.max())):
            for name, said in forecasts(every, learned, run, origin, generator).items():
                place = {"run_id": run["run_id"], "origin": origin, "forecaster": name}
                if said.collapses is not None:
                    rows.append({**place, **scored(run, origin, said.collapses, generator)})
                if said.accuracy is not None:
                    tables.append(accuracy_scores(series, origin, said, generator).assign(**place))
    return rows, tables


def score_folds(generator):
    """Every run by what was learned from the other folds."""
    every, rows, tables = Everything(SWEEPS, 1), [], []
    fold = deal(every.fate, generator)
    for number in range(FOLDS):
        learned = every.learn(set(every.fate["run_id"][fold != number]))
        found = score(every, learned, every.fate[fold == number], generator)
        rows, tables = rows + found[0], tables + found[1]
        print(f"fold {number + 1} of {FOLDS}", flush=True)
    return rows, tables


def score_held_out(generator):
    """The held-out runs by what was learned from all others."""
    every = Everything([*SWEEPS, "held_out"], 2)
    held_out = every.fate["sweep"] == "held_out"
    learned = every.learn(set(every.fate["run_id"][~held_out]), load_law())
    return score(every, learned, every.fate[held_out], generator)


def averaged(tables):
    """Scores of accuracy by run, lead and forecaster: means over origins 0 and 1, and over later ones."""
    rows = pd.concat(tables)
    rows = rows.assign(late=rows["origin"] >= CURVES_FROM).drop(columns="origin")
    by_run = rows.groupby(["run_id", "lead", "late", "forecaster"])
    return by_run.mean().round(4).assign(origins=by_run.size()).reset_index()


def main():
    """Score everything and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--held_out", action="store_true", help="score the held-out runs instead")
    parser.add_argument("--out", type=Path, help="folder; default: where the runs that are scored are")
    args = parser.parse_args()
    rows, tables = (score_held_out if args.held_out else score_folds)(np.random.default_rng(0))
    out = args.out or results_folder() / ("held_out" if args.held_out else "conditions")
    pd.DataFrame(rows).round(4).to_csv(out / "scores.csv", index=False, lineterminator="\n")
    averaged(tables).to_csv(out / "accuracy.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
