"""Scores: proper, exact on known distributions, blind to the future, paired fairly; weights are the best."""

import importlib.util
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import series_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit
from scipy.stats import betabinom, norm

from si_nb.law import forecasters as F
from si_nb.law import scores as S
from si_nb.law.round_curves import FOREVER
from si_nb.record.table import RUN, measurement_table

COLLAPSING, TRIALS = [982, 936, 777, 518, 264, 86, 35, 4], 1000
FAST = ("horizon", "error_budget", "logit_line")


def measured(horizons, run_id="r", seed=0, trials=1000):
    """A table of a run whose curve falls through one half at given lengths, newest length 8 + round."""
    rows = [
        (
            run_id,
            "copy",
            "none",
            seed,
            0,
            r,
            n,
            "accuracy",
            int(round(expit(2 * (length - n)) * trials)),
            trials,
        )
        for r, length in enumerate(horizons)
        for n in range(4, 26)
    ]
    for r, before in enumerate(horizons[:-1], 1):
        right = int(round(expit(2 * (before - 8 - r)) * trials))
        counts = {
            "label_raw": (right, trials),
            "label_kept": (right, trials),
            "kept_right": (right, right),
            "kept_wrong": (trials - right, trials - right),
        }
        rows += [
            (run_id, "copy", "none", seed, 0 if name == "label_raw" else -1, r, 8 + r, name, *pair)
            for name, pair in counts.items()
        ]
    return measurement_table([*rows, (run_id, "copy", "none", seed, 0, 0, 8, "accuracy_select", 10, 10)])


def made(collapses, threshold=0.5, until_round=1):
    """A forecast that consists of its collapse rounds."""
    collapses = np.asarray(collapses, float)
    courses = F.Courses(np.full((len(collapses), 8), 0.5), collapses, 0.01)
    return F.Forecast("made", until_round, 8, threshold, TRIALS, courses)


# --- of accuracies


@settings(max_examples=40, deadline=None)
@given(
    rates=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    scatter=st.floats(0, 0.5),
    trials=st.integers(1, 200),
)
def test_log_probabilities_add_up_to_one(rates, scatter, trials):
    counts = np.arange(trials + 1.0)
    draws = np.tile(np.array(rates)[:, None], len(counts))
    found = S.log_probability(
        draws, np.full(len(rates), scatter), counts, np.full(len(counts), float(trials))
    )
    assert np.isclose(np.exp(found).sum(), 1, rtol=1e-5)
    assert (found >= np.log(S.UNIFORM_SHARE / (trials + 1)) - 1e-9).all()


@settings(max_examples=40, deadline=None)
@given(
    rate=st.floats(0.01, 0.99),
    scatter=st.floats(1e-4, 0.4),
    trials=st.integers(1, 500),
    share=st.floats(0, 1),
)
def test_log_probability_of_one_draw_is_scipys_beta_binomial(rate, scatter, trials, share):
    count, size = round(share * trials), 1 / scatter - 1
    expected = (1 - S.UNIFORM_SHARE) * betabinom(trials, rate * size, (1 - rate) * size).pmf(
        count
    ) + S.UNIFORM_SHARE / (trials + 1)
    found = S.log_probability(np.array([[rate]]), np.array([scatter]), np.array([count]), np.array([trials]))
    assert np.isclose(found[0], np.log(expected), atol=1e-6)


def test_log_probability_of_several_draws_is_their_mixture():
    one, two = (
        S.log_probability(np.array([[p]]), np.array([s]), np.array([30]), np.array([100]))
        for p, s in ((0.3, 0.01), (0.6, 0.1))
    )
    both = S.log_probability(np.array([[0.3], [0.6]]), np.array([0.01, 0.1]), np.array([30]), np.array([100]))
    assert np.isclose(np.exp(both), (np.exp(one) + np.exp(two)) / 2)


@settings(max_examples=40, deadline=None)
@given(sample=st.lists(st.floats(-3, 3), min_size=1, max_size=30), outcome=st.floats(-3, 3))
def test_ranked_probability_score_is_its_definition(sample, outcome):
    draws = np.array(sample)
    direct = np.abs(draws - outcome).mean() - np.abs(draws[:, None] - draws).mean() / 2
    places = np.sort(np.r_[draws, outcome])
    share = (draws <= places[:-1, None]).mean(1)
    integral = ((share - (outcome <= places[:-1])) ** 2 * np.diff(places)).sum()
    found = S.ranked_probability_score(draws[:, None], np.array([outcome]))[0]
    assert np.isclose(found, direct, atol=1e-9) and np.isclose(found, integral, atol=1e-9)


def test_scores_are_proper():
    """On average nobody does better than by saying what is true."""
    generator, truth = np.random.default_rng(0), (0.6, 0.02)
    size = 1 / truth[1] - 1
    counts = betabinom(200, truth[0] * size, (1 - truth[0]) * size).rvs(2000, random_state=generator)

    def score(rate, scatter):
        rates, trials = np.full((1, 2000), rate), np.full(2000, 200)
        return S.log_probability(rates, np.array([scatter]), counts, trials).mean()

    others = ((0.57, 0.02), (0.63, 0.02), (0.6, 0.005), (0.6, 0.08))
    assert all(score(*truth) > score(*other) for other in others)
    draws = norm(0, 1).ppf((np.arange(400) + 0.5) / 400)[:, None]
    outcomes = generator.normal(size=3000)

    def ranked(shift, width):
        return S.ranked_probability_score(np.tile(draws * width + shift, 3000), outcomes).mean()

    assert all(ranked(0, 1) < ranked(*other) for other in ((0.3, 1), (-0.3, 1), (0, 0.5), (0, 2)))


def test_only_later_measured_rounds_are_scored():
    early = F.forecast(series_of(COLLAPSING), 4, resamples=50)
    scores = S.score_forecast(early, series_of(COLLAPSING))
    assert scores["round"].tolist() == [5, 6, 7, 8] and scores["lead"].tolist() == [1, 2, 3, 4]
    holes = series_of(COLLAPSING).assign(
        trials=lambda t: t["trials"].where(t["round"] != 6, 0),
        successes=lambda t: t["successes"].where(t["round"] != 6, 0),
    )
    assert S.score_forecast(early, holes)["round"].tolist() == [5, 7, 8]
    assert (scores["inside_50"] <= scores["inside_90"]).all()


# --- of collapse rounds


@pytest.mark.parametrize(
    "counts, at_least, censored", [(COLLAPSING, 5, False), ([900] * 8, 9, True), ([900] * 7 + [100], 8, True)]
)
@pytest.mark.parametrize("guess", [2, 5, 8, 9, 20, np.inf])
def test_errors_of_collapse_rounds(counts, at_least, censored, guess):
    found = S.score_collapse(made([guess] * 10), series_of(counts)).iloc[0]
    said = min(guess, FOREVER)
    assert found["at_least"] == at_least and found["censored"] == censored
    assert found["absolute_error"] == (max(at_least - said, 0) if censored else abs(at_least - said))
    assert found["inside"] == found["inside_50"] == (guess >= at_least if censored else guess == at_least)
    assert found["forecast"] == guess


def test_an_interval_that_ends_before_a_run_did_is_wrong():
    lasting = series_of([900] * 8)
    assert not S.score_collapse(made([5, 6, 7, 8]), lasting)["inside"].iloc[0]
    assert S.score_collapse(made([5, 6, 7, 8, 9, np.inf]), lasting)["inside"].iloc[0]


@settings(max_examples=60, deadline=None)
@given(
    sample=st.lists(st.sampled_from([2.0, 3.0, 4.0, 6.0, 9.0, np.inf]), min_size=1, max_size=20),
    level=st.sampled_from([0.5, 0.8, 0.9]),
)
def test_no_shorter_interval_holds_as_many(sample, level):
    rounds = np.array(sample)

    def held(low, high):
        return ((rounds >= low) & (rounds <= high)).mean()

    def length(low, high):
        return 0.0 if low == high else high - low

    low, high = F.shortest_interval(rounds, level)
    pairs = [pair for pair in product(set(sample), repeat=2) if pair[0] <= pair[1]]
    enough = [pair for pair in pairs if held(*pair) >= level - 1e-9]
    assert (low, high) in enough and length(low, high) == min(length(*pair) for pair in enough)
    most = max(held(*pair) for pair in enough if length(*pair) == length(low, high))
    assert np.isclose(held(low, high), most) or np.isinf(high)


def test_half_intervals_lie_within_wide_ones():
    collapses = np.random.default_rng(0).poisson(6, 200) + 2.0
    for counts in (COLLAPSING, [990, 400, 300], [900] * 12):
        found = S.score_collapse(made(collapses), series_of(counts)).iloc[0]
        assert found["low"] <= found["forecast"] <= found["high"] and found["inside_50"] <= found["inside"]


# --- rolling origin

FADING = [10.0, 10.6, 11.1, 11.6, 12.0, 12.4, 12.7, 12.9]


@pytest.fixture(scope="module")
def rolled():
    return S.rolling_origin(measured(FADING), FAST, resamples=60)


def test_every_origin_before_the_collapse_is_used(rolled):
    scores, calls, refusals = rolled
    end = calls["at_least"].iloc[0]
    assert not calls["censored"].any() and set(calls["origin"]) == set(range(end))
    assert set(calls[calls["origin"] == 0]["forecaster"]) == {"horizon"}
    asked = pd.concat([calls[["origin", "forecaster"]], refusals[["origin", "forecaster"]]])
    assert len(asked) == len(FAST) * end and not asked.duplicated().any()
    assert (scores["round"] > scores["origin"]).all() and refusals["why"].str.len().gt(10).all()
    assert np.isfinite(scores[["log_score", "crps"]]).all(axis=None)


@pytest.mark.parametrize("cut, later", [(2, 7.0), (3, 20.0)])
def test_calls_never_see_what_comes_later(rolled, cut, later):
    """Whatever happens after an origin, what was said at it stays."""
    said = ["origin", "forecaster", "forecast", "low", "high"]
    _, calls, _ = S.rolling_origin(measured(FADING[: cut + 1] + [later] * (7 - cut)), FAST, resamples=60)
    one, two = (c[c["origin"] <= cut][said] for c in (rolled[1], calls))
    both = one.merge(two, on=said[:2], suffixes=("", "_changed"))
    assert len(both) > cut and len(both) == len(two)  # a run that ends sooner is asked at fewer origins
    assert all(np.array_equal(both[c], both[f"{c}_changed"]) for c in said[2:])


def test_runs_are_forecast_one_by_one(rolled):
    other = measured(np.array(FADING) + 1, "s", 1)
    scores, calls, _ = S.rolling_origin(pd.concat([measured(FADING), other]), FAST, resamples=60)
    for found, alone in zip((scores, calls), rolled[:2], strict=True):
        pd.testing.assert_frame_equal(found[found["run_id"] == "r"].reset_index(drop=True), alone)


@pytest.mark.parametrize(
    "at_least, half, third", [(1, 0, 0), (2, 0, 0), (3, 1, 0), (4, 1, 1), (7, 3, 2), (10, 4, 3), (11, 5, 3)]
)
@pytest.mark.parametrize("censored", [False, True])
def test_shares_pick_the_origins(at_least, half, third, censored):
    calls = pd.DataFrame(
        [
            dict(
                run_id="r",
                origin=o,
                forecaster="f",
                forecast=np.inf,
                absolute_error=0.0,
                at_least=at_least,
                last_round=10,
                censored=censored,
            )
            for o in range(min(at_least, 10))
        ]
    )
    found = S.at_shares(calls).set_index("share")
    assert len(found) == 3 and found["close"].all() and (found["wrongly_called"] != censored).all()
    assert found["origin"].to_dict() == {0.0: 0, 1 / 3: third, 1 / 2: half}


@pytest.mark.parametrize(
    "error, at_least, close",
    [
        (1, 5, [True, True, True]),
        (2, 5, [True, True, False]),
        (3, 5, [False, False, False]),
        (2, 20, [True, True, True]),
        (4, 20, [True, True, False]),
    ],
)
def test_close_is_a_round_or_a_tenth(error, at_least, close):
    calls = pd.DataFrame(
        [
            dict(
                origin=o,
                forecast=at_least + error,
                absolute_error=error,
                at_least=at_least,
                last_round=30,
                censored=False,
            )
            for o in range(at_least)
        ]
    )
    assert S.at_shares(calls)["close"].tolist() == close


# --- comparisons and weights


def scored(columns, runs=12, rounds=3):
    """Scores of forecasters from arrays (runs, rounds)."""
    return pd.DataFrame(
        [
            dict(
                zip(RUN, (f"r{i}", "copy", "none", i), strict=True),
                origin=1,
                round=2 + j,
                forecaster=name,
                log_score=values[i, j],
                crps=-values[i, j],
            )
            for name, values in columns.items()
            for i in range(runs)
            for j in range(rounds)
        ]
    )


def test_comparisons_are_antisymmetric():
    generator = np.random.default_rng(0)
    table = scored({"one": generator.normal(0.3, 0.4, (12, 3)), "two": generator.normal(0, 0.4, (12, 3))})
    for metric in ("log_score", "crps"):
        there, back = S.compare(table, "one", "two", metric), S.compare(table, "two", "one", metric)
        assert np.isclose(there["advantage"], -back["advantage"])
        assert np.allclose([there["low"], there["high"]], [-back["high"], -back["low"]])
        assert there["better_in"] + back["better_in"] == there["runs"] == 12
        assert np.isclose(there["p"] + back["p"], 1)
        assert (there["verdict"], back["verdict"]) in {("better", "worse"), ("tie", "tie")}


def test_identical_scores_are_a_tie():
    same = np.random.default_rng(0).normal(size=(12, 3))
    found = S.compare(scored({"one": same, "two": same}), "one", "two")
    assert found["verdict"] == "tie" and found["advantage"] == found["low"] == found["high"] == 0
    assert found["p"] == 1 and found["better_in"] == 0


def test_runs_count_not_rounds():
    """A forecaster that is better in one long run and worse in many short ones is not better."""
    gain = pd.concat(
        [
            scored({"one": np.full((1, 50), 1.0), "two": np.zeros((1, 50))}, 1, 50),
            scored({"one": np.full((9, 1), -0.2), "two": np.zeros((9, 1))}, 9, 1).assign(
                run_id=lambda t: "short " + t["run_id"]
            ),
        ]
    )
    found = S.compare(gain, "one", "two")
    assert found["runs"] == 10 and np.isclose(found["advantage"], (1 - 9 * 0.2) / 10)
    assert found["verdict"] != "better"


def test_only_what_both_forecast_is_compared():
    table = scored({"one": np.ones((12, 3)), "two": np.zeros((12, 3))})
    silent = table[(table["forecaster"] == "one") | (table["seed"] < 4)]
    assert S.compare(silent, "one", "two")["runs"] == 4


def test_stacking_finds_the_best_mixture():
    generator = np.random.default_rng(1)
    one, two = generator.normal(0, 1, (12, 3)), generator.normal(0, 1, (12, 3))

    def loss(weight):
        return -np.log(weight * np.exp(one) + (1 - weight) * np.exp(two)).mean()

    best = minimize_scalar(loss, bounds=(0, 1), method="bounded").x
    weights = S.stack(scored({"one": one, "two": two}), ("one", "two"))
    assert np.isclose(weights["one"], best, atol=1e-3) and np.isclose(sum(weights.values()), 1)


def test_stacking_forgets_whoever_is_always_worse():
    generator = np.random.default_rng(2)
    good = generator.normal(0, 1, (12, 3))
    weights = S.stack(scored({"good": good, "bad": good - 2}), ("good", "bad"))
    assert weights["good"] > 0.999


def test_stacking_weighs_a_silent_forecaster_by_where_it_speaks():
    generator = np.random.default_rng(3)
    one, two = generator.normal(0.5, 1, (12, 3)), generator.normal(0, 1, (12, 3))
    full = scored({"one": one, "two": two})
    half_silent = full[(full["forecaster"] == "two") | (full["seed"] % 2 == 0)]

    def loss(weight):
        return -np.log(weight * np.exp(one[::2]) + (1 - weight) * np.exp(two[::2])).mean()

    best = minimize_scalar(loss, bounds=(0, 1), method="bounded").x
    weights = S.stack(half_silent, ("one", "two"))
    assert np.isclose(weights["one"], best, atol=0.01) and np.isclose(sum(weights.values()), 1)
    assert 0.01 < best < 0.99


def test_stacking_agrees_with_a_general_optimiser():
    """Three forecasters, each silent somewhere: the best mixture, a silent one's weight shared out."""
    generator = np.random.default_rng(4)
    values = generator.normal([0.3, 0, 0.1], 1, (12, 4, 3))
    values[:, 0, 1:], values[:4, 1, 0], values[8:, 2, 2] = np.nan, np.nan, np.nan
    table = scored({name: values[..., i] for i, name in enumerate("abc")}, rounds=4).dropna()
    likelihood, speaks = np.nan_to_num(np.exp(values)), np.isfinite(values)

    def loss(free):
        weights = np.exp([*free, 0])
        return -np.log((likelihood @ weights) / (speaks @ weights)).mean()

    best = np.exp([*minimize(loss, [0.0, 0.0]).x, 0])
    weights = S.stack(table, ("a", "b", "c"))
    assert np.allclose(list(weights.values()), best / best.sum(), atol=2e-3) and min(weights.values()) > 0.01


def test_stacking_survives_scores_far_apart():
    table = scored({"sure": np.full((12, 3), -2000.0), "wrong": np.full((12, 3), -9000.0)})
    weights = S.stack(table, ("sure", "wrong"), 50)
    assert np.isfinite(list(weights.values())).all() and weights["sure"] > 0.99


def test_the_judge_of_the_committed_forecasts_works():
    """results/judge.py, which made results/forecasts, scores a run at the rounds ahead that it promises."""
    path = Path(__file__).parents[1] / "results" / "judge.py"
    spec = importlib.util.spec_from_file_location("judge", path)
    judge = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judge)
    table, _ = judge.load("test")
    one = table[table["run_id"] == table["run_id"].iloc[0]]
    scores, calls = judge.judge_one((one, None), ("horizon",))
    assert set(scores["lead"]) <= set(judge.LEADS)
    assert calls["origin"].tolist() == list(range(len(calls)))
    committed = pd.read_csv(path.parent / "forecasts" / "calls.csv").query("forecaster == 'horizon'")
    committed = committed[committed["run_id"] == one["run_id"].iloc[0]].set_index("origin")
    assert (
        np.abs(
            committed["absolute_error"].clip(upper=10)
            - calls.set_index("origin")["absolute_error"].clip(upper=10)
        )
        <= 1
    ).all()


# --- by base model, from fixed rounds


def test_base_models_count_not_runs():
    """Many good runs of one base model do not outvote the runs of all others."""
    found = S.clustered(np.r_[np.full(50, 1.0), np.full(9, -0.2)], np.r_[np.zeros(50), 1:10])
    assert found["clusters"] == 10 and np.isclose(found["difference"], -0.08) and found["verdict"] == "tie"


@pytest.mark.parametrize(
    ("shift", "verdict", "sure"), [(1, "better", True), (-1, "worse", True), (0, "tie", False)]
)
def test_verdicts_follow_the_interval(shift, verdict, sure):
    difference = np.random.default_rng(0).normal(0, 0.5, 60) + shift
    found = S.clustered(difference - (0 if shift else difference.mean()), np.arange(60) % 20)
    assert found["verdict"] == verdict and (found["p"] < 0.05) == sure
    assert found["low"] <= found["difference"] <= found["high"]


def test_forecasts_of_one_alone_are_not_compared():
    scores = pd.DataFrame(
        [
            {"base": str(base), "run_id": str(base), "origin": 0, "forecaster": name, "crps": value}
            for base in range(6)
            for name, value in (("one", 0.1), ("two", 0.3))
            if name == "one" or base < 4
        ]
    )
    found = S.duel(scores, "one", "two")
    assert found["clusters"] == 4 and np.isclose(found["difference"], 0.2) and found["verdict"] == "better"


@pytest.mark.parametrize("slope", [0.5, 1, 2])
def test_calibration_slope_is_that_of_what_was_forecast(slope):
    generator = np.random.default_rng(0)
    log_odds = generator.normal(0, 2, 40_000)
    happened = generator.random(40_000) < 1 / (1 + np.exp(-slope * log_odds))
    found = S.calibration_slope(1 / (1 + np.exp(-log_odds)), happened, np.ones(40_000))
    assert abs(found - slope) < 0.05


def test_calibration_counts_every_base_model_once():
    """A thousand runs of one base model weigh no more than one of another."""
    rows = [{"base": "much", "p_10": 0.9, "alive_10": 0.0}] * 1_000
    rows += [
        {"base": str(i), "p_10": [0.2, 0.8][i % 2], "alive_10": float((i % 2) ^ (i % 10 < 2))}
        for i in range(200)
    ]
    found = S.calibration(pd.DataFrame(rows), 10, resamples=20)
    assert found["base models"] == 201 and 0.8 < found["slope"] < 1.05


def test_alike_forecasts_that_all_come_true_have_a_finite_slope():
    found = S.calibration_slope(np.array([0.1, 0.9]), np.array([0.0, 1.0]), np.ones(2))
    assert np.isfinite(found) and found > 1
