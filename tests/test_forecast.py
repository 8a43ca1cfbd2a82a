"""Forecasts: collapse defined once, censoring, honest intervals, strict JSON, one line for bad input."""

import json
import sys
from dataclasses import replace
from io import StringIO
from time import process_time

import numpy as np
import pandas as pd
import pytest
from conftest import COLLAPSE, run, series_of
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from si_nb.law import forecasters as F
from si_nb.law import report as R
from si_nb.law import scores as S
from si_nb.law.prediction import predict
from si_nb.law.round_curves import ROUND_CURVES, LawError, crossing_round, first_round_below, simulate_run
from si_nb.record.table import (
    TableError,
    measurement_table,
    read_settings,
    read_table,
    results_folder,
    trajectory,
)

COLLAPSING = [982, 936, 777, 518, 264, 86, 35, 4]
LASTING = [992, 988, 926, 908, 871, 857, 834, 814]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=12), st.sampled_from([0.2, 0.5, 0.9, 1.0]))
def test_collapse_is_two_rounds_running(counts, threshold):
    below = [c < threshold * 100 for c in counts]
    expected = next((i + 1 for i in range(len(below) - 1) if below[i] and below[i + 1]), None)
    found = F.collapse_round(series_of(counts, trials=100), threshold).iloc[0]
    assert found["censored"] == (expected is None)
    if expected is None:
        assert found["at_least"] == len(counts) + (not below[-1])
    else:
        assert found["collapse_round"] == expected == found["at_least"]


def test_the_measured_collapse_lies_in_the_interval_from_four_rounds():
    early = F.forecast(series_of(COLLAPSING), 4)
    assert early.low <= 5 <= early.high <= 6
    late = F.forecast(series_of(LASTING), 4)
    assert late.low >= 5 and late.sustained_probability + late.probability_by_last_round <= 1


def test_later_rounds_are_not_looked_at():
    changed = series_of(COLLAPSING[:4] + [1000] * 4)
    one, two = F.forecast(series_of(COLLAPSING), 4, resamples=50), F.forecast(changed, 4, resamples=50)
    assert (
        np.array_equal(one.courses.accuracy, two.courses.accuracy)
        and one.collapse_round == two.collapse_round
    )


def test_same_generator_same_forecast():
    draws = [
        F.forecast(
            series_of(COLLAPSING), 4, resamples=50, generator=np.random.default_rng(5)
        ).courses.accuracy
        for _ in range(2)
    ]
    assert np.array_equal(*draws)


def test_a_plateau_is_forecast_as_never():
    flat = simulate_run(ROUND_CURVES["gompertz"], [0.05, -0.5], 15, 2000, np.random.default_rng(0))
    found = F.forecast(flat, resamples=100)
    assert found.collapse_round is None and found.high is None and found.sustained_probability > 0.5


def test_a_run_that_has_not_collapsed_cannot_have_collapsed_earlier():
    found = F.forecast(series_of([900, 700, 560, 520]), resamples=100)
    assert found.low >= 5


@pytest.mark.parametrize("law", ["best", "average", *ROUND_CURVES])
def test_every_law_can_be_asked_for(law):
    found = F.forecast(series_of(COLLAPSING), 4, law=law, resamples=40)
    if law not in ("best", "average"):
        assert found.law == law
    scores = S.score_forecast(found, series_of(COLLAPSING))
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
    for ask in (lambda: R.law_report(series_of(COLLAPSING), **options),):
        with pytest.raises(LawError, match=words) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_two_arms_need_a_choice():
    with pytest.raises(LawError, match="one arm"):
        F.forecast(pd.concat([series_of(COLLAPSING), series_of(LASTING, arm="mv")]))


def test_pooled_runs_spread_wider_when_runs_differ():
    alike = pd.concat([series_of(COLLAPSING, f"r{i}", seed=i) for i in range(3)])
    quick, slow = [990, 900, 500, 200, 60, 20, 5, 1], LASTING
    unlike = pd.concat([series_of(c, f"r{i}", seed=i) for i, c in enumerate([quick, COLLAPSING, slow])])
    widths = [
        np.ptp(np.quantile(F.forecast(t, 4, resamples=200).courses.accuracy[:, 5], [0.05, 0.95]))
        for t in (alike, unlike)
    ]
    assert widths[1] > 2 * widths[0]


def test_intervals_hold_on_runs_of_an_unknown_law():
    generator, inside = np.random.default_rng(2), []
    for name, truth in dict(weibull=[9.0, 2.0], bass=[0.02, 0.5]).items():
        half = int(first_round_below(crossing_round(ROUND_CURVES[name], truth)) // 2)
        for _ in range(8):
            made = simulate_run(ROUND_CURVES[name], truth, 16, 1000, generator, 0.003)
            inside.append(
                S.score_collapse(F.forecast(made, half, resamples=50, generator=generator), made)[
                    "inside"
                ].iloc[0]
            )
    assert np.mean(inside) >= 0.7


def test_report_is_strict_json_with_the_promised_fields():
    report = R.law_report(
        pd.concat(
            [series_of(COLLAPSING), series_of(LASTING, arm="mv_length"), series_of([1000] * 8, arm="mv")]
        ),
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
    assert set(arm["collapse"]) == COLLAPSE
    assert set(arm["reproduction_number"]) == {"value", "low", "high"}
    assert arm["measured"][0]["collapse_round"] == 5
    assert report["arms"]["mv_length"]["measured"][0]["censored"]
    assert "no sign of collapse" in report["arms"]["mv"]["note"] and report["arms"]["mv"]["chosen"] is None


def test_one_arm_is_read_at_the_top():
    report = R.law_report(series_of(COLLAPSING)[["round", "successes", "trials"]], resamples=50)
    assert report["chosen"] and report["collapse"]["round"] == 5 and len(report["arms"]) == 1


@pytest.mark.parametrize(
    "counts, words", [([1000] * 4, "no sign of collapse"), ([0] * 4, "nothing to forecast")]
)
def test_no_arm_with_a_law_is_refused(counts, words):
    with pytest.raises(LawError, match=words):
        R.law_report(series_of(counts))


def test_a_foreign_table_is_refused():
    with pytest.raises(TableError):
        R.law_report(pd.DataFrame(dict(round=[1, 1], successes=[5, 5], trials=[9, 9])))


def test_a_report_prints_laws_forecast_and_measurement():
    out = StringIO()
    R.print_report(
        R.law_report(
            pd.concat([series_of(COLLAPSING), series_of(LASTING, arm="mv_length")]), 4, resamples=100
        ),
        Console(file=out, width=120),
        laws=True,
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
    F.forecast(series_of(COLLAPSING), resamples=1000)
    assert process_time() - began < 5


# --- the registry


def still(seen, rounds, draws, generator):
    """Courses that stay at one half and a bit."""
    return F.carry_on(seen, np.full((draws, 60), 0.6), rounds)


@pytest.fixture
def registered():
    """Register a forecaster for one test."""
    before = dict(F.FORECASTERS)
    yield F.register_forecaster
    for name in set(F.FORECASTERS) - set(before):
        del F.FORECASTERS[name]


def test_a_registered_forecaster_is_known_everywhere_at_once(registered):
    """Forecast, report, scores and choices see it without a new import; rank 0 makes it the best."""
    registered(F.Forecaster("still", "a' = 0.6", ("rounds",), still, rank=0))
    found = F.forecast(series_of(COLLAPSING), 3, resamples=20)
    assert found.law == "still" and found.collapse_round is None and "weibull" in found.asked
    assert (
        R.law_report(series_of(COLLAPSING), 3, law="still", resamples=20)["laws"][0]["formula"] == "a' = 0.6"
    )
    rows = [("r", "copy", "none", 0, 0, r, 8 + r, "accuracy", c, 1000) for r, c in enumerate(COLLAPSING, 1)]
    _, calls, _ = S.rolling_origin(measurement_table(rows), resamples=20)
    assert "still" in set(calls["forecaster"]) and F.ranked()[0] == ("still",)


def test_a_registered_curve_joins_the_curves(registered):
    law = replace(ROUND_CURVES["weibull"], name="mine")
    registered(F.curve_forecaster(law, rank=2))
    found = F.forecast(series_of(COLLAPSING), 6, resamples=40)
    assert np.isclose(found.fits.fits["mine"].aicc, found.fits.fits["weibull"].aicc, atol=1e-3)
    assert np.isclose(sum(fit.weight for fit in found.fits.fits.values()), 1)


@pytest.mark.parametrize("need", F.NEEDS)
def test_what_is_needed_and_missing_is_said(registered, need):
    registered(F.Forecaster("still", "a' = 0.6", (need,), still))
    bare = series_of(COLLAPSING).assign(round=lambda rows: rows["round"] - 1)
    if need == "population":
        assert F.forecast(bare, 0, law="still", resamples=20).law == "still"
        return
    with pytest.raises(LawError) as caught:
        F.forecast(bare, 0, law="still", resamples=20)
    assert str(caught.value) == F.NEEDS[need]


@pytest.mark.parametrize(
    "sample, words",
    [
        (lambda *_: 1 / 0, "ended with ZeroDivisionError"),
        (lambda *_: None, "gave no courses"),
        (
            lambda seen, rounds, draws, _: F.carry_on(seen, np.full((draws, 1), 0.6), rounds),
            "gave no courses",
        ),
        (
            lambda seen, rounds, draws, _: F.carry_on(seen, np.full((draws, 60), 1.6), rounds),
            "outside 0 to 1",
        ),
    ],
)
def test_what_goes_wrong_in_a_users_forecaster_is_one_line(registered, sample, words):
    registered(F.Forecaster("mine", "", ("rounds",), sample))
    with pytest.raises(LawError, match=words) as caught:
        F.forecast(series_of(COLLAPSING), 3, law="mine", resamples=20)
    assert "\n" not in str(caught.value)


def test_settings_reach_a_forecaster(registered):
    """Only those in which all runs of the arm agree, and none where one run has none."""
    got = []

    def look(seen, rounds, draws, generator):
        got.append(dict(seen.settings))
        return still(seen, rounds, draws, generator)

    registered(F.Forecaster("look", "", ("settings",), look))
    runs = pd.concat([series_of(COLLAPSING, f"r{i}", seed=i) for i in range(2)])
    known = pd.DataFrame(dict(run_id=["r0", "r1"], seed=["0", "1"], num_samples=["500", "500"]))
    R.law_report(runs, 3, law="look", resamples=20, settings=known)
    assert got == [{"num_samples": 500}]
    assert F.common_settings(runs, known.iloc[:1]) == {}


LAW_PLUGIN = """
from si_nb.law.forecasters import Forecaster, carry_on, register_forecaster
import numpy as np


def decay(seen, rounds, draws, generator):
    lost = 30 / float(seen.settings["num_samples"]) * generator.gamma(4, 0.25, (draws, 1))
    last = seen.series.iloc[-1]
    paths = last["successes"] / last["trials"] * np.exp(-lost * np.arange(1, 60))
    return carry_on(seen, paths, rounds)


register_forecaster(Forecaster("decay", "a' = a exp(-30 / N)", ("rounds", "settings"), decay))
"""


def test_a_law_from_a_users_file(tmp_path):
    """`si_nb law --plugin` forecasts with it, hands it the run's settings, and refuses a bad name."""
    (tmp_path / "mine.py").write_text(LAW_PLUGIN)
    command = [
        "-m",
        "si_nb",
        "law",
        results_folder() / "copy",
        "--until_round",
        "3",
        "--plugin",
        tmp_path / "mine.py",
    ]
    report = json.loads(run(sys.executable, *command, "--law", "decay", "--json"))
    for arm in report["arms"].values():
        assert arm["chosen"] == "decay" and arm["laws"][0]["formula"] == "a' = a exp(-30 / N)"
        assert arm["warnings"] == [] and arm["collapse"]["round"] is not None
    said = run(sys.executable, *command, "--law", "decay")
    assert "by decay from rounds 1-3" in said
    with pytest.raises(AssertionError, match="unknown law 'decline'; use best, average, .*, decay"):
        run(sys.executable, *command, "--law", "decline")


# --- what nothing is known of


@pytest.mark.parametrize(
    "arm, task, kinds, words",
    [
        ("mine", "copy", None, ["the kind of keep rule 'mine' is not known"]),
        ("mine", "copy", {"mine": "voted"}, []),
        ("mine", "copy", {"mine": "sworn"}, ["no measured runs of kind 'sworn'"]),
        ("mv", "sorting", None, ["no measured runs of task 'sorting'"]),
        ("mine", "sorting", None, ["the kind of keep rule 'mine'", "no measured runs of task 'sorting'"]),
        ("mv", "copy", None, []),
    ],
)
def test_an_unknown_task_or_kind_is_said(arm, task, kinds, words):
    """In the report and on the terminal, one line each; nothing is said where nothing is unknown."""
    table = read_table(results_folder() / "copy").query("seed == 0 and arm == 'none'")
    report = R.law_report(table.assign(arm=arm, task=task), 2, resamples=50, kinds=kinds)
    assert report["chosen"] == "horizon" and len(report["warnings"]) == len(words)
    for line, word in zip(report["warnings"], words, strict=True):
        assert word in line and "\n" not in line
    out = StringIO()
    R.print_report(report, Console(file=out, width=120))
    assert out.getvalue().count("warning: ") == len(words)


def test_the_kind_of_a_users_keep_rule_comes_with_the_rule(tmp_path):
    """The command line tells the law wing, so a rule from a plugin is forecast as others of its kind."""
    (tmp_path / "rule.py").write_text(
        "from si_nb.loop.voting import KeepRule, register_keep_rule\n"
        "register_keep_rule(\n"
        "    KeepRule('mine', 'unvoted', lambda proposal, lengths, threshold: proposal.votes > 0)\n"
        ")\n"
    )
    table = read_table(results_folder() / "copy").query("seed == 0 and arm == 'none'")
    table.to_csv(tmp_path / "none.csv", index=False)
    table.assign(arm="mine").to_csv(tmp_path / "mine.csv", index=False)
    law = [sys.executable, "-m", "si_nb", "law", "--json", "--until_round", "2"]
    usual = json.loads(run(*law, tmp_path / "none.csv"))
    told = json.loads(run(*law, tmp_path / "mine.csv", "--plugin", tmp_path / "rule.py"))
    blind = json.loads(run(*law, tmp_path / "mine.csv"))
    assert told["collapse"] == usual["collapse"] and told["warnings"] == []
    assert len(blind["warnings"]) == 1 and blind["collapse"] != usual["collapse"]


def test_the_law_of_conditions_is_one_of_the_forecasters():
    """Asked by name it says what `predict` says of the same run at the same round; it needs the settings, and
    the report has them as numbers.
    """
    long, told = read_table(results_folder() / "long"), read_settings(results_folder() / "long")
    wanted = told[told["si_method"] == "mv_length"].iloc[0]
    run = long[long["run_id"] == wanted["run_id"]]
    known = F.common_settings(trajectory(run), told)
    assert known["num_samples"] == float(wanted["num_samples"]) and known["si_method"] == "mv_length"
    found = F.forecast(trajectory(run), 5, law="conditions", table=run, settings=known)
    answer = predict(known, run, 5)
    dying = (found.courses.collapses <= 20).mean()
    assert abs(dying - (1 - answer["probability_lasting"]["20"])) < 0.07
    with pytest.raises(LawError, match="settings of the runs are not known"):
        F.forecast(trajectory(run), 5, law="conditions", table=run)
    with pytest.raises(LawError, match="keep rule"):
        F.forecast(
            trajectory(run.assign(arm="mine")),
            5,
            law="conditions",
            table=run.assign(arm="mine"),
            settings=known,
        )
