"""Forecasts: collapse defined once, censoring, honest intervals, strict JSON, one line for bad input."""

import json
from io import StringIO
from time import process_time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from si_nb.law import forecasters as F
from si_nb.law import report as R
from si_nb.law import scores as S
from si_nb.law.round_curves import LAWS, LawError, crossing_round, first_round_below, simulate_run
from si_nb.record.table import TableError, measurement_table

COLLAPSING = [982, 936, 777, 518, 264, 86, 35, 4]
LASTING = [992, 988, 926, 908, 871, 857, 834, 814]


def run(counts, run_id="r", arm="none", seed=0, trials=1000):
    r = np.arange(1, len(counts) + 1)
    return pd.DataFrame(
        dict(
            run_id=run_id,
            task="copy",
            arm=arm,
            seed=seed,
            round=r,
            length=8 + r,
            successes=counts,
            trials=trials,
        )
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=12), st.sampled_from([0.2, 0.5, 0.9, 1.0]))
def test_collapse_is_two_rounds_running(counts, threshold):
    below = [c < threshold * 100 for c in counts]
    expected = next((i + 1 for i in range(len(below) - 1) if below[i] and below[i + 1]), None)
    found = F.collapse_round(run(counts, trials=100), threshold).iloc[0]
    assert found["censored"] == (expected is None)
    if expected is None:
        assert found["at_least"] == len(counts) + (not below[-1])
    else:
        assert found["collapse_round"] == expected == found["at_least"]


def test_the_measured_collapse_lies_in_the_interval_from_four_rounds():
    early = F.forecast(run(COLLAPSING), 4)
    assert early.low <= 5 <= early.high <= 6
    late = F.forecast(run(LASTING), 4)
    assert late.low >= 5 and late.sustained_probability + late.probability_by_last_round <= 1


def test_later_rounds_are_not_looked_at():
    changed = run(COLLAPSING[:4] + [1000] * 4)
    one, two = F.forecast(run(COLLAPSING), 4, resamples=50), F.forecast(changed, 4, resamples=50)
    assert np.array_equal(one.draws, two.draws) and one.collapse_round == two.collapse_round


def test_same_generator_same_forecast():
    draws = [
        F.forecast(run(COLLAPSING), 4, resamples=50, generator=np.random.default_rng(5)).draws
        for _ in range(2)
    ]
    assert np.array_equal(*draws)


def test_a_plateau_is_forecast_as_never():
    flat = simulate_run(LAWS["gompertz"], [0.05, -0.5], 15, 2000, np.random.default_rng(0))
    found = F.forecast(flat, resamples=100)
    assert found.collapse_round is None and found.high is None and found.sustained_probability > 0.5


def test_a_run_that_has_not_collapsed_cannot_have_collapsed_earlier():
    found = F.forecast(run([900, 700, 560, 520]), resamples=100)
    assert found.low >= 5


@pytest.mark.parametrize("law", ["best", "average", *LAWS, "last_value", "linear_trend", "logit_line"])
def test_every_law_can_be_asked_for(law):
    found = F.forecast(run(COLLAPSING), 4, law=law, resamples=40)
    if law not in ("best", "average"):
        assert found.law == law
    scores = S.score_forecast(found, run(COLLAPSING))
    assert len(scores) == 4 and np.isfinite(scores[["log_score", "crps"]]).all(axis=None)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(law="linear"), "unknown law"),
        (dict(threshold=0), "outside"),
        (dict(threshold=1.5), "outside"),
        (dict(threshold=-0.5), "outside"),
        (dict(threshold=float("nan")), "outside"),
        (dict(until_round=0), "at least 1"),
        (dict(law="bass", until_round=1), "fewer rounds"),
    ],
)
def test_bad_requests_get_one_line(options, words):
    for ask in (lambda: R.law_report(run(COLLAPSING), **options),):
        with pytest.raises(LawError, match=words) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_two_arms_need_a_choice():
    with pytest.raises(LawError, match="one arm"):
        F.forecast(pd.concat([run(COLLAPSING), run(LASTING, arm="mv")]))


def test_pooled_runs_spread_wider_when_runs_differ():
    alike = pd.concat([run(COLLAPSING, f"r{i}", seed=i) for i in range(3)])
    quick, slow = [990, 900, 500, 200, 60, 20, 5, 1], LASTING
    unlike = pd.concat([run(c, f"r{i}", seed=i) for i, c in enumerate([quick, COLLAPSING, slow])])
    widths = [
        np.ptp(np.quantile(F.forecast(t, 4, resamples=200).draws[:, 5], [0.05, 0.95]))
        for t in (alike, unlike)
    ]
    assert widths[1] > 2 * widths[0]


def test_intervals_hold_on_runs_of_an_unknown_law():
    generator, inside = np.random.default_rng(2), []
    for name, truth in dict(weibull=[9.0, 2.0], bass=[0.02, 0.5]).items():
        half = int(first_round_below(crossing_round(LAWS[name], truth)) // 2)
        for _ in range(8):
            made = simulate_run(LAWS[name], truth, 16, 1000, generator, 0.003)
            inside.append(
                S.score_collapse(F.forecast(made, half, resamples=50, generator=generator), made)[
                    "inside"
                ].iloc[0]
            )
    assert np.mean(inside) >= 0.7


def test_report_is_strict_json_with_the_promised_fields():
    report = R.law_report(
        pd.concat([run(COLLAPSING), run(LASTING, arm="mv_length"), run([1000] * 8, arm="mv")]),
        4,
        resamples=100,
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report["arms"]) == {"none", "mv_length", "mv"}
    arm = report["arms"]["none"]
    assert {"name", "parameters", "log_likelihood", "aicc", "weight"} <= set(arm["laws"][0])
    assert {law["name"] for law in arm["laws"]} >= {
        "constant_hazard",
        "weibull",
        "gompertz",
        "exponential_floor",
    }
    assert {
        "threshold",
        "round",
        "low",
        "high",
        "level",
        "probability_by_last_round",
        "sustained_probability",
    } == set(arm["collapse"])
    assert set(arm["reproduction_number"]) == {"value", "low", "high"}
    assert arm["measured"][0]["collapse_round"] == 5
    assert report["arms"]["mv_length"]["measured"][0]["censored"]
    assert "no sign of collapse" in report["arms"]["mv"]["note"] and report["arms"]["mv"]["chosen"] is None


def test_one_arm_is_read_at_the_top():
    report = R.law_report(run(COLLAPSING)[["round", "successes", "trials"]], resamples=50)
    assert report["chosen"] and report["collapse"]["round"] == 5 and len(report["arms"]) == 1


@pytest.mark.parametrize(
    "counts, words", [([1000] * 4, "no sign of collapse"), ([0] * 4, "nothing to forecast")]
)
def test_no_arm_with_a_law_is_refused(counts, words):
    with pytest.raises(LawError, match=words):
        R.law_report(run(counts))


def test_a_foreign_table_is_refused():
    with pytest.raises(TableError):
        R.law_report(pd.DataFrame(dict(round=[1, 1], successes=[5, 5], trials=[9, 9])))


def test_a_report_prints_laws_forecast_and_measurement():
    out = StringIO()
    R.print_report(
        R.law_report(pd.concat([run(COLLAPSING), run(LASTING, arm="mv_length")]), 4, resamples=100),
        Console(file=out, width=120),
    )
    text = out.getvalue()
    for words in (
        "weibull",
        "gompertz",
        "AICc",
        "collapse below 0.5 forecast at round",
        "measured: collapse at round 5",
        "not before round 9",
        "after the forecast",
    ):
        assert words in text, words


def test_reproduction_number_is_none_without_label_rows():
    rows = [("r", "copy", "none", 0, 0, r, 8 + r, "accuracy", 900 - 50 * r, 1000) for r in range(5)]
    assert R.reproduction_number(measurement_table(rows)) == dict(value=None, low=None, high=None)


def test_all_laws_with_a_thousand_resamples_take_under_five_seconds():
    began = process_time()
    F.forecast(run(COLLAPSING), resamples=1000)
    assert process_time() - began < 5
