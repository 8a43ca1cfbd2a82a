"""Laws: recovery of what made a run, agreement with a general optimiser, refusal of counts without a law."""

import subprocess
import sys
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import betabinom

from si_nb.law import round_curves as L

TRUTH = dict(
    constant_hazard=[0.12],
    weibull=[7.0, 2.5],
    gompertz=[0.02, 0.35],
    exponential_floor=[0.6, 0.99, 0.3],
    generalised_growth=[0.02, 0.5, 0.7],
    bass=[0.01, 0.8],
    affine_error_map=[0.01, 0.02, 1.15],
    tipping_point=[3.0, 0.05, 1.4],
)


# slow, typical and fast runs of results/sweep, rounded; the full study is nbs/results/recovery.ipynb
PRACTICE = {
    "constant_hazard": ([0.01], [0.065], [0.7]),
    "weibull": ([31.0, 1.2], [3.5, 2.2], [2.5, 3.9]),
    "gompertz": ([0.042, 0.26], [0.12, 0.42], [0.46, 0.56]),
    "exponential_floor": ([0.48, 0.999, 0.1], [0.01, 0.9999, 0.08], [0.01, 0.9999, 0.7]),
    "generalised_growth": ([0.01, 0.22, 0.6], [0.06, 0.6, 0.73], [0.17, 1.2, 0.9]),
    "bass": ([0.06, 0.38], [0.011, 2.0], [0.0014, 4.7]),
    "affine_error_map": ([0.003, 0.013, 0.92], [0.056, 0.11, 0.92], [0.003, 0.013, 4.5]),
    "tipping_point": ([4.5, 0.5, 0.6], [3.1, 1.0, 0.9], [1.2, 0.5, 1.27]),
}


LAWS = [name for name, law in L.ROUND_CURVES.items() if not law.rival]


def run(counts, trials=1000, run_id="r", seed=0, arm="none"):
    r = np.arange(1, len(counts) + 1)
    return pd.DataFrame(
        dict(
            run_id=run_id, task="copy", arm=arm, seed=seed, round=r, length=r, successes=counts, trials=trials
        )
    )


def test_truths_cover_the_registry():
    assert set(TRUTH) == set(PRACTICE) == set(LAWS)
    assert all(law.name == name for name, law in L.ROUND_CURVES.items())


@pytest.mark.parametrize("name", LAWS)
def test_exact_rates_are_recovered(name):
    law, r = L.ROUND_CURVES[name], np.arange(1, 13)
    counts = np.round(law.accuracy(r, TRUTH[name]) * 10**7)
    fit = L.fit_law(law, L.observed(run(counts.astype(int), 10**7)))
    assert fit.converged
    assert np.abs(law.accuracy(r, fit.parameters) - law.accuracy(r, TRUTH[name])).max() < 1e-4
    assert np.isclose(L.crossing_round(law, fit.parameters), L.crossing_round(law, TRUTH[name]), rtol=0.01)


@pytest.mark.parametrize("name", ["constant_hazard", "weibull", "gompertz", "bass"])
def test_parameters_of_noisy_runs_are_recovered_and_covered(name):
    generator, inside = np.random.default_rng(1), []
    for _ in range(25):
        data = L.observed(L.simulate_run(L.ROUND_CURVES[name], TRUTH[name], 10, 1024, generator, 0.002))
        fit = L.fit_law(L.ROUND_CURVES[name], data, 0.002)
        spread, converged = L.bootstrap(fit, data, 0.002, 200, generator)
        assert converged.mean() > 0.95
        low, high = np.quantile(spread, [0.05, 0.95], axis=0)
        inside.append((low <= TRUTH[name]) & (TRUTH[name] <= high))
    assert (np.mean(inside, 0) >= 0.72).all()


@pytest.mark.parametrize("name", LAWS)
def test_curves_of_practice_are_recovered_and_covered(name):
    """Eight rounds, rho estimated: no bias, fits converge, the 90% interval of round 9 holds as it says."""
    law, generator, seen, rows = L.ROUND_CURVES[name], np.random.default_rng(6), np.arange(1, 9), []
    for truth in PRACTICE[name] * 6:
        data = L.observed(L.simulate_run(law, truth, 8, 768, generator, 0.003))
        fit = L.fit_law(law, data, L.PRIOR_OVERDISPERSION)
        rho = L.estimate_overdispersion(fit, data)
        spread, converged = L.bootstrap(fit, data, rho, 100, generator)
        low, high = np.quantile(law.accuracy([9], spread)[:, 0], [0.05, 0.95])
        error = law.accuracy(seen, fit.parameters) - law.accuracy(seen, truth)
        rows.append(
            (fit.converged, converged.mean(), low <= law.accuracy([9], truth)[0] <= high, error.mean())
        )
    fitted, refitted, inside, bias = np.mean(rows, 0)
    assert fitted > 0.95 and refitted > 0.95 and abs(bias) < 0.015
    assert inside >= 12 / 18  # at a true 0.9: fewer than 12 once in a thousand


@pytest.mark.parametrize(
    "name", ["weibull", "gompertz", "exponential_floor", "bass", "affine_error_map", "tipping_point"]
)
def test_batched_refits_equal_scipy(name):
    law, r, n = L.ROUND_CURVES[name], np.arange(1.0, 9), 1024
    scales = [L.SCALES[p.scale] for p in law.parameters]
    box = [(s[0](p.low), s[0](p.high)) for p, s in zip(law.parameters, scales, strict=True)]
    counts = L.beta_binomial(
        np.tile(law.accuracy(r, TRUTH[name]), (6, 1)), n, 0.002, np.random.default_rng(3)
    ).astype(float)
    _, value, converged = L.fit_batch(law, r, counts, np.full(8, n), np.ones(8), np.tile(TRUTH[name], (6, 1)))
    assert converged.all()

    def goal(w, s):
        H = law(r, [f[1](x) for f, x in zip(scales, w, strict=True)])
        return -(-s * H + (n - s) * np.log(-np.expm1(-H))).sum()

    start = [f[0](x) for f, x in zip(scales, TRUTH[name], strict=True)]
    for s, ours in zip(counts, value, strict=True):
        theirs = -minimize(
            goal, start, (s,), bounds=box, method="L-BFGS-B", options=dict(ftol=1e-14, maxiter=1000)
        ).fun
        assert ours > theirs - 1e-3


@pytest.mark.parametrize("name", L.ROUND_CURVES)
def test_crossings_cross_and_batches_agree_with_single_sets(name):
    law = L.ROUND_CURVES[name]
    grid = np.array(list(product(*[p.starts for p in law.parameters])))
    rounds = np.arange(1, 9)
    assert np.allclose(law(rounds, grid), [law(rounds, p) for p in grid])
    for threshold in (0.9, 0.5):
        found = L.crossing_round(law, grid, threshold)
        for r, p in zip(found, grid, strict=True):
            if np.isinf(r):
                assert (
                    law.accuracy([200.0], p)[0] > threshold - 1e-9
                    or law.accuracy([900.0], p)[0] > threshold - 1e-9
                )
            elif 1 < r < 300:
                assert np.isclose(law.accuracy([r], p)[0], threshold, atol=0.01)


def test_tipping_point_is_the_linear_recurrence_and_contains_the_straight_line():
    law, r = L.ROUND_CURVES["tipping_point"], np.arange(1, 9)
    for z, fixed, factor in ((2.0, 2.5, 1.3), (3.0, 0.5, 0.7), (1.0, 0.5, 1.2)):
        d, path = (factor - 1) * (fixed - z), [z]
        for _ in r[1:]:
            path.append(fixed + factor * (path[-1] - fixed))
        assert np.allclose(law.accuracy(r, [z, d, factor]), expit(path))
    line = L.ROUND_CURVES["logit_line"]
    for near in (1 - 1e-7, 1.0, 1 + 1e-7):
        assert np.allclose(law.accuracy(r, [3.0, 0.5, near]), line.accuracy(r, [3.5, 0.5]), atol=1e-6)
        assert np.isclose(
            L.crossing_round(law, [3.0, 0.5, near]), L.crossing_round(line, [3.5, 0.5]), atol=1e-4
        )


@pytest.mark.parametrize("rho", [1e-5, 0.003, 0.1])
def test_likelihood_is_scipys_beta_binomial(rho):
    s, n, H = np.array([0.0, 1, 380, 767, 768]), 768.0, np.array([3.0, 0.7, 0.5, 0.01, 1e-4])
    size = 1 / rho - 1
    expected = betabinom.logpmf(s, n, np.exp(-H) * size, -np.expm1(-H) * size)
    assert np.allclose(L.log_likelihood(H, s, n, rho), expected, rtol=1e-6, atol=1e-6)
    assert np.allclose(L.log_likelihood(H, s, n, 1e-9), L.log_likelihood(H, s, n), rtol=1e-3)


@pytest.mark.parametrize("rho", [0.001, 0.004, 0.02])
def test_overdispersion_is_not_biased_by_the_bend_of_the_curve(rho):
    """On 12 rounds the median estimate lies within a factor of two, between its prior and the truth."""
    generator, found = np.random.default_rng(5), []
    for _ in range(40):
        data = L.observed(L.simulate_run(L.ROUND_CURVES["weibull"], [6.0, 2.0], 12, 768, generator, rho))
        found.append(L.estimate_overdispersion(L.fit_law(L.ROUND_CURVES["weibull"], data), data))
    assert rho / 2 < np.median(found) < 2 * rho


def siblings(spread, runs, rounds, generator):
    """Runs of one arm whose hazards differ by a constant factor each."""
    weibull, r = L.ROUND_CURVES["weibull"], np.arange(1, rounds + 1)
    rates = np.exp(-weibull(r, [6.0, 2.5]) * np.exp(spread * generator.standard_normal((runs, 1))))
    counts = L.beta_binomial(rates, 768, 0.003, generator)
    return pd.concat([run(c, 768, f"r{i}", seed=i) for i, c in enumerate(counts)])


def test_run_effects_are_found_and_take_the_blame():
    frame = siblings(0.7, 12, 8, np.random.default_rng(2))
    fits = L.fit_laws(frame, laws={"weibull": L.ROUND_CURVES["weibull"]})
    alike = L.fit_law(L.ROUND_CURVES["weibull"], fits.data, fits.overdispersion)
    assert 0.45 < fits.run_spread < 1.0
    assert fits.overdispersion < 0.01 < L.estimate_overdispersion(alike, fits.data)
    assert fits.best.log_likelihood > alike.log_likelihood + 10 and len(fits.best.run_effects) == 12
    assert abs(fits.best.parameters[1] - 2.5) < 0.2
    single = L.fit_laws(frame.query("seed == 0"))
    assert single.run_spread == 0 and single.best.run_effects is None


def test_intervals_of_pooled_runs_hold_the_typical_run():
    """Three seeds, s = 0.7: the 90% interval of the exponent and of the crossing round, 40 times."""
    generator, inside, law = np.random.default_rng(4), [], L.ROUND_CURVES["weibull"]
    truth = L.crossing_round(law, [6.0, 2.5])
    for _ in range(40):
        fits = L.fit_laws(siblings(0.7, 3, 8, generator), laws={"weibull": law})
        spread, converged = L.bootstrap(fits.best, fits.data, fits.overdispersion, 200, generator)
        assert converged.mean() > 0.95
        crossing, exponent = L.crossing_round(law, spread), spread[:, 1]
        inside.append(
            [
                np.quantile(x, 0.05) <= t <= np.quantile(x, 0.95)
                for x, t in ((crossing, truth), (exponent, 2.5))
            ]
        )
    assert (np.mean(inside, 0) >= 0.72).all()


def test_beta_binomial_is_the_distribution_of_that_name():
    draws = L.beta_binomial(np.full(40000, 0.8), 50, 0.05, np.random.default_rng(0))
    expected = betabinom(50, 0.8 * 19, 0.2 * 19)
    assert abs(draws.mean() - expected.mean()) < 0.15 and abs(draws.var() / expected.var() - 1) < 0.05


REFUSED = {
    "gap": (run([900, 800, 700, 600]).query("round != 2"), "round 2 is missing"),
    "late start": (run([900, 800, 700]).query("round > 1"), "round 1 is missing"),
    "repeated row": (
        pd.concat([run([900, 800, 700]), run([900, 800, 700]).tail(1)]),
        "round 3 appears twice",
    ),
    "gap in one of two runs": (
        pd.concat([run([900, 800]), run([900, 800, 700], run_id="s", seed=1).query("round != 2")]),
        "run s .* round 2 is missing",
    ),
    "no trials at all": (run([0, 0, 0], 0), "has no trials"),
    "repeat": (pd.concat([run([900, 800, 700])] * 2), "appears twice"),
    "no trials": (run([900, 0, 700]).assign(trials=[1000, 0, 1000]), "round 2 has no trials"),
    "all right": (run([1000] * 5), "no sign of collapse"),
    "all wrong": (run([0] * 5), "not one right answer"),
    "only the base": (run([990]).assign(round=0), "no round after the base"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_counts_without_a_law_get_one_line(name):
    frame, words = REFUSED[name]
    with pytest.raises(L.LawError, match=words) as caught:
        L.fit_laws(frame)
    assert "\n" not in str(caught.value)


def test_laws_with_too_many_parameters_are_left_out_by_name():
    short = L.fit_laws(run([900, 700]))
    assert set(short.left_out) == {
        n for n, law in L.ROUND_CURVES.items() if not law.rival and len(law.parameters) == 3
    }
    two = {n: L.ROUND_CURVES[n] for n in ("weibull", "gompertz")}
    with pytest.raises(L.LawError, match="weibull, gompertz"):
        L.fit_laws(run([900]), laws=two)


def test_weights_sum_to_one_and_follow_aicc():
    fits = list(L.fit_laws(run([982, 936, 777, 518, 264, 86, 35, 4])).fits.values())
    assert np.isclose(sum(f.weight for f in fits), 1)
    assert [f.aicc for f in fits] == sorted(f.aicc for f in fits)
    assert "runaway" in fits[0].law.regimes


def test_perfect_rounds_before_an_error_are_no_obstacle():
    fits = L.fit_laws(run([1000, 1000, 999, 1000, 998]))
    assert all(np.isfinite(f.log_likelihood) for f in fits.fits.values())
    spread, _ = L.bootstrap(fits.best, fits.data, fits.overdispersion, 100, np.random.default_rng(0))
    assert np.isfinite(spread).all() and np.ptp(spread, 0).max() > 0


def test_runs_are_pooled_by_adding_log_likelihoods():
    one, two = run([950, 850, 700, 500]), run([940, 860, 690, 520], run_id="s", seed=1)
    fit = L.fit_law(L.ROUND_CURVES["weibull"], L.observed(pd.concat([one, two])))
    added = sum(
        L.log_likelihood(fit.law(d.rounds, fit.parameters), d.successes, d.trials).sum()
        for d in map(L.observed, (one, two))
    )
    assert np.isclose(fit.log_likelihood, added) and fit.points == 8


BLOCK_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch": raise ImportError("torch is not installed")
sys.meta_path.insert(0, NoTorch())
import si_nb.law.round_curves, si_nb.law.forecasters, si_nb.law.figures, si_nb.record.table
assert "torch" not in sys.modules
"""
TIME_IMPORT = (
    "import sys; from time import perf_counter as now; import scipy.optimize, scipy.stats; began = now(); "
    "import si_nb.law.round_curves; print(now() - began, *sys.modules)"
)


def test_law_needs_no_torch():
    done = subprocess.run([sys.executable, "-c", BLOCK_TORCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_law_imports_little_beside_scipy_and_pandas():
    """Imports in under a second (printed); its cause is asserted, since a busy machine may take any time."""
    done = subprocess.run([sys.executable, "-c", TIME_IMPORT], capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.split(maxsplit=1)
    print(f"import si_nb.law.round_curves after scipy: {float(seconds):.2f} s")
    assert not {"torch", "matplotlib", "IPython", "statsmodels", "rich", "wandb"} & set(loaded.split())
