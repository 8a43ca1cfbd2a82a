"""Length curves: horizons of known curves, what noise and order may change, recovery, one-line refusals."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression
from scipy.special import expit

from si_nb.law import length_curves as C
from si_nb.record.table import RUN, TableError, trajectory

N = np.arange(6.0, 26)
TRUTH = dict(
    constant_error=[0.05],
    weibull=[14, 3],
    log_logistic=[14, 6],
    logistic=[14, 1.5],
    accumulated_noise=[0.006, 8],
    slips_and_reach=[0.02, 14, 0.6],
)
curves = st.lists(st.integers(0, 64), min_size=2, max_size=12)


def table(horizon_of_round, rounds=5, run_id="r", lengths=range(6, 20), trials=10**6):
    rows = [
        (
            run_id,
            "copy",
            "none",
            0,
            0,
            r,
            n,
            "accuracy",
            int(round(expit(1.7 * (horizon_of_round(r) - n)) * trials)),
            trials,
        )
        for r in range(rounds + 1)
        for n in lengths
    ]
    rows += [(run_id, "copy", "none", 0, 0, r, 8 + r, "label_raw", 5, 10) for r in range(1, rounds + 1)]
    return pd.DataFrame(rows, columns=[*RUN, "voter", "round", "length", "quantity", "successes", "trials"])


def refused(call, *words, error=C.CurveError):
    with pytest.raises(error) as found:
        call()
    assert "\n" not in str(found.value) and all(word in str(found.value) for word in words), str(found.value)


# --- horizon


@given(counts=curves, trials=st.integers(64, 300))
def test_falling_is_scipys_isotonic_regression(counts, trials):
    weights = trials + np.arange(len(counts), dtype=float)
    rates = np.array(counts) / weights
    assert np.allclose(
        C.falling(rates, weights), isotonic_regression(rates, weights=weights, increasing=False).x
    )


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("name", TRUTH)
def test_horizon_of_an_exact_curve_is_its_crossing(name, threshold):
    lengths, curve = np.arange(1.0, 60), C.LENGTH_CURVES[name]
    length, deviation, flag = C.horizon(lengths, curve.accuracy(lengths, TRUTH[name]) * 1e8, 1e8, threshold)
    assert flag == "crossed" and deviation < 0.01
    assert np.isclose(length, C.crossing_length(curve, TRUTH[name], threshold), atol=0.1)


@settings(max_examples=200)
@given(counts=curves, more=st.lists(st.integers(0, 30), min_size=12, max_size=12))
def test_more_right_answers_never_shorten_the_horizon(counts, more):
    counts, lengths = np.array(counts), np.arange(3.0, 3 + len(counts))
    better = np.minimum(counts + more[: len(counts)], 64)
    (low, _, low_flag), (high, _, high_flag) = C.horizon(lengths, counts, 64), C.horizon(lengths, better, 64)
    order = ["below", "crossed", "above"]
    assert high >= low - 1e-9 and order.index(high_flag) >= order.index(low_flag)


@settings(max_examples=200)
@given(counts=curves, threshold=st.floats(0.1, 0.8))
def test_a_higher_threshold_never_lengthens_the_horizon(counts, threshold):
    lengths = np.arange(3.0, 3 + len(counts))
    assert (
        C.horizon(lengths, counts, 64, threshold)[0]
        >= C.horizon(lengths, counts, 64, threshold + 0.15)[0] - 1e-9
    )


@given(counts=curves)
def test_flags_say_where_the_horizon_lies(counts):
    lengths = np.arange(3.0, 3 + len(counts))
    length, deviation, flag = C.horizon(lengths, counts, 64)
    inside = {
        "below": 0 < length <= lengths[0],
        "crossed": lengths[0] <= length <= lengths[-1],
        "above": length == lengths[-1],
    }
    assert inside[str(flag)]
    assert np.isnan(deviation) if flag == "above" else deviation > 0


def test_many_curves_at_once_equal_one_by_one():
    counts = np.random.default_rng(0).integers(0, 257, (40, len(N)))
    together = C.horizon(N, counts, 256)
    for i, row in enumerate(counts):
        one = C.horizon(N, row, 256)
        assert np.allclose(together[0][i], one[0]) and np.allclose(together[1][i], one[1], equal_nan=True)
        assert together[2][i] == one[2]


@pytest.mark.parametrize("name", ["weibull", "logistic", "slips_and_reach"])
def test_deviation_is_the_scatter_of_redrawn_counts(name):
    rates = C.LENGTH_CURVES[name].accuracy(N, TRUTH[name])
    length, deviation, _ = C.horizon(N, np.random.default_rng(2).binomial(256, rates, (2000, len(N))), 256)
    assert 0.8 < deviation.mean() / length.std() < 1.25


@pytest.mark.parametrize(
    "right, flag, low, high", [(250, "above", 7, 7), (20, "below", 0.5, 7), (127, "below", 6.8, 7)]
)
def test_one_length_alone(right, flag, low, high):
    length, _, found = C.horizon([7], [right], [256])
    assert found == flag and low <= length <= high


# --- tables


def test_horizons_of_a_table():
    found = C.horizons(table(lambda r: 10.4 + 0.5 * r))
    assert list(found.columns) == RUN + ["round", "length", "horizon", "deviation", "margin", "flag"]
    assert (found["length"] == 8 + found["round"]).all() and (found["flag"] == "crossed").all()
    assert np.allclose(found["margin"], 2.4 - 0.5 * found["round"], atol=0.01)


def test_runs_at_different_lengths_share_a_table():
    parts = [
        table(lambda r: 10.4 + 0.5 * r),
        table(lambda r: 10.4 + 0.2 * r, run_id="s", lengths=range(7, 17)),
    ]
    together = C.horizons(pd.concat(parts))
    assert np.allclose(together["horizon"], np.concatenate([C.horizons(part)["horizon"] for part in parts]))


def test_voters_are_pooled_and_empty_rows_left_out():
    one = table(lambda r: 10.4 + 0.5 * r)
    other = one[one["quantity"] == "accuracy"].assign(voter=1)
    gone = one[one["quantity"] == "accuracy"].head(1).assign(length=40, successes=0, trials=0)
    assert np.allclose(
        C.horizons(pd.concat([one, other, gone]))["horizon"], C.horizons(one)["horizon"], atol=1e-5
    )


def test_a_table_of_round_successes_trials_has_one_length_a_round():
    found = C.horizons(pd.DataFrame(dict(round=[1, 2, 3], successes=[90, 70, 20], trials=100)))
    assert list(found["flag"]) == ["above", "above", "below"]
    assert (found["margin"] >= 0).tolist() == [True, True, False]


def test_the_margin_is_negative_exactly_when_the_newest_length_is_below_the_threshold():
    made = table(lambda r: 10.45 + 0.3 * r, rounds=8)
    series = trajectory(made)
    assert ((C.horizons(made)["margin"] < 0) == (series["successes"] / series["trials"] < 0.5)).all()


# --- formulas


def test_truths_cover_the_registry():
    assert set(TRUTH) == set(C.LENGTH_CURVES)
    assert all(curve.name == name for name, curve in C.LENGTH_CURVES.items())


@pytest.mark.parametrize("name", TRUTH)
def test_curves_fall_and_cross_where_they_say(name):
    curve, lengths = C.LENGTH_CURVES[name], np.geomspace(0.5, 500, 300)
    assert (np.diff(curve.accuracy(lengths, TRUTH[name])) <= 0).all()
    for threshold in (0.1, 0.5, 0.95):
        at = C.crossing_length(curve, TRUTH[name], threshold)
        assert np.isclose(curve.accuracy(np.array([at]), TRUTH[name])[0], threshold, atol=1e-6)


@pytest.mark.parametrize("name", TRUTH)
def test_exact_curves_are_recovered(name):
    curve = C.LENGTH_CURVES[name]
    found, converged = C.fit_curve(curve, N, curve.accuracy(N, TRUTH[name]) * 10**7, 10**7)
    assert converged and np.allclose(found, TRUTH[name], rtol=1e-3)


@pytest.mark.parametrize("name", TRUTH)
def test_noisy_curves_are_recovered_all_at_once(name):
    curve = C.LENGTH_CURVES[name]
    counts = np.random.default_rng(1).binomial(256, curve.accuracy(N, TRUTH[name]), (2, 200, len(N)))
    found, converged = C.fit_curve(curve, N, counts, 256)
    assert found.shape == (2, 200, len(curve.parameters)) and converged.mean() > 0.98
    assert np.allclose(np.median(found, (0, 1)), TRUTH[name], rtol=0.1)
    assert np.abs(curve.accuracy(N, found) - curve.accuracy(N, TRUTH[name])).mean() < 0.015


def test_published_values_of_accumulated_noise():
    found = C.LENGTH_CURVES["accumulated_noise"].accuracy(np.array([30.0, 50, 80]), (2.67e-4, 4.2))
    assert np.allclose(found, [0.998, 0.803, 0.318], atol=6e-4)


def test_lengths_not_measured_do_not_matter():
    curve, counts = C.LENGTH_CURVES["logistic"], C.LENGTH_CURVES["logistic"].accuracy(N, (14, 1.5)) * 256
    holes = np.where(N % 3 == 0, 0, 256)
    some = C.fit_curve(curve, N, np.where(holes, counts, 0), holes)[0]
    assert np.allclose(some, C.fit_curve(curve, N[N % 3 != 0], counts[N % 3 != 0], 256)[0], rtol=1e-4)


@pytest.mark.parametrize("count", [0, 256])
@pytest.mark.parametrize("name", TRUTH)
def test_curves_without_errors_or_without_right_answers_still_fit(name, count):
    curve = C.LENGTH_CURVES[name]
    found, _ = C.fit_curve(curve, N, np.full(len(N), count), 256)
    at = C.crossing_length(curve, found)
    assert np.abs(curve.accuracy(N, found) - count / 256).max() < 0.01
    assert at > N[-1] if count else at < N[0]


@pytest.mark.parametrize("name", ["log_logistic", "weibull", "slips_and_reach"])
def test_the_formula_that_made_the_counts_is_preferred(name):
    curve = C.LENGTH_CURVES[name]
    counts = np.random.default_rng(4).binomial(256, curve.accuracy(N, TRUTH[name]), (60, len(N)))
    compared = C.compare_curves(N, counts, 256)
    assert compared.index[0] == name and np.isclose(compared["wins"].sum(), 1)
    assert (compared["error"] <= compared["error_left_out"]).all()


# --- refusals


@pytest.mark.parametrize(
    "arguments, words",
    [
        (([], [], []), ["no length"]),
        (([3, 3], [1, 1], [2, 2]), ["lengths", "sort"]),
        (([4, 3], [1, 1], [2, 2]), ["lengths", "sort"]),
        (([3, 4], [1], [2]), ["one count per length"]),
        (([3, 4], [1, 1], [2, 0]), ["no trials"]),
        (([3, 4], [3, 1], [2, 2]), ["successes"]),
        (([3, 4], [-1, 1], [2, 2]), ["successes"]),
        (([3, 4], [np.nan, 1], [2, 2]), ["successes"]),
        (([3, 4], [1, 1], [2, 2], 0.0), ["threshold"]),
        (([3, 4], [1, 1], [2, 2], 1.5), ["threshold"]),
    ],
)
def test_horizon_refuses_in_one_line(arguments, words):
    refused(lambda: C.horizon(*arguments), *words)


def test_too_few_lengths_for_a_curve_are_refused():
    refused(
        lambda: C.fit_curve(C.LENGTH_CURVES["slips_and_reach"], [3, 4], [9, 5], 10),
        "slips_and_reach",
        "3 parameters",
        "2 lengths",
    )
    refused(lambda: C.left_out(C.LENGTH_CURVES["logistic"], [3, 4], [9, 5], 10), "logistic", "too few")


def test_tables_without_accuracy_are_refused():
    made = table(lambda r: 10.0)
    refused(lambda: C.counts_by_length(made[made["quantity"] == "label_raw"]), "no accuracy")
    refused(lambda: C.horizons(made[made["round"] == 0]), "no run has a round", error=TableError)
    refused(lambda: C.horizons(made, 1.0), "threshold")


def test_no_torch_is_imported():
    code = "import sys, si_nb.law.length_curves; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
