"""The monitor: when it stops a run, when it keeps silent, and that it says the same twice."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from si_nb.law.forecasters import collapse_round
from si_nb.law.monitor import SustainabilityMonitor, forecast_so_far, reason_to_stop, stop_before_collapse
from si_nb.law.round_curves import ROUND_CURVES, LawError, simulate_run
from si_nb.record.table import TableError, measurement_table, read_table, results_folder, trajectory

COLLAPSES = [982, 936, 777, 518, 264, 86, 35, 4]  # of 1,000; below one half at rounds 5 and 6
LASTS = [992, 988, 980, 977, 975, 974, 973, 974]


def rows_of(counts, arm="none", seed=0):
    """A measurement table of accuracies at the newest length."""
    return measurement_table(
        [
            ("run", "copy", arm, seed, 0, r, 8 + r, "accuracy", count, 1000)
            for r, count in enumerate(counts, 1)
        ]
    )


def first_stop(table, within, law="best"):
    """The round at which a run would have been stopped, or None."""
    for number in sorted(table["round"].unique()):
        if reason_to_stop(table[table["round"] <= number], within, law=law):
            return number
    return None


def test_a_collapsing_run_is_stopped_before_it_collapses():
    """The run that collapses at round 5 is stopped before, and earlier the farther one looks ahead."""
    stops = [first_stop(rows_of(COLLAPSES), within) for within in (1, 2, 3)]
    assert all(1 <= stop < 5 for stop in stops) and stops == sorted(stops, reverse=True)


def test_a_lasting_run_is_never_stopped():
    """Errors that level off far above the threshold are no reason to stop."""
    assert first_stop(rows_of(LASTS), 3) is None


@pytest.mark.parametrize("within", [1, 2, 4])
def test_the_rule_is_forecast_round_minus_newest_round(within):
    """Where the forecast is known, the monitor stops exactly when it lies at most so many rounds ahead."""
    decay = simulate_run(
        ROUND_CURVES["constant_hazard"], [0.09], 7, 1000, np.random.default_rng(0)
    )  # below one half at round 8
    table = rows_of(decay["successes"].tolist())
    for number in range(2, 8):
        seen = table[table["round"] <= number]
        ahead = forecast_so_far(seen, law="constant_hazard").collapse_round - number
        assert (reason_to_stop(seen, within, law="constant_hazard") is not None) == (ahead <= within), number


@pytest.mark.parametrize("counts", [[1000] * 5, [1000]], ids=["no error", "one round"])
def test_no_law_is_no_reason(counts):
    """Counts that carry no law say nothing, and silence means to go on."""
    monitor = SustainabilityMonitor(3).add(rows_of(counts))
    assert monitor.forecast() is None and monitor.should_stop() is None


def test_nothing_is_known_before_the_first_round():
    """An empty monitor and one that has seen the base model only answer all questions, with nothing."""
    base = measurement_table([("run", "copy", "none", 0, 0, 0, n, "accuracy", 1000, 1000) for n in (7, 8, 9)])
    for monitor in (SustainabilityMonitor(), SustainabilityMonitor().add(base)):
        assert (
            monitor.should_stop() is None
            and monitor.forecast() is None
            and monitor.reproduction_number()["value"] is None
        )


def test_a_measured_collapse_needs_no_law():
    """A run in which nothing is right has collapsed, whatever can be fitted to it."""
    monitor = SustainabilityMonitor(1).add(rows_of([0, 0, 0]))
    assert monitor.should_stop() == "collapsed below 0.5 at round 1"


def test_the_same_counts_say_the_same():
    """Rounds one by one, all at once, or from a file and in another order:
    the same line to the last digit.
    """
    table = rows_of(COLLAPSES[:4])
    one_by_one = SustainabilityMonitor(2)
    for _, rows in table.groupby("round"):
        one_by_one.add(rows)
    said = one_by_one.should_stop()
    assert said and said == SustainabilityMonitor(2).add(
        table.sample(frac=1, random_state=0)
    ).should_stop() == reason_to_stop(table, 2)


def test_plain_counts_are_enough():
    """Three numbers per round, as dicts or as a frame, give the forecast that a whole table gives."""
    entries = [dict(round=r, successes=count, trials=1000) for r, count in enumerate(COLLAPSES[:4], 1)]
    whole = SustainabilityMonitor(2, law="weibull").add(rows_of(COLLAPSES[:4])).forecast()
    for rows in (entries, pd.DataFrame(entries)):
        found = SustainabilityMonitor(2, law="weibull").add(rows).forecast()
        assert (found.collapse_round, found.low, found.high) == (whole.collapse_round, whole.low, whole.high)


def test_later_rounds_do_not_change_what_was_said():
    """Asked about an earlier state of the table, the function of the loop answers as it did then,
    whatever other arms do.
    """
    both = pd.concat([rows_of(COLLAPSES), rows_of(LASTS, "mv")], ignore_index=True)
    after_round = stop_before_collapse(2, law="weibull")
    stop = min(number for number in range(1, 9) if "none" in after_round(both[both["round"] <= number]))
    ended = both[(both["arm"] != "none") | (both["round"] <= stop)]
    said = after_round(both[both["round"] <= stop])
    assert set(said) == {"none"} and all(
        after_round(ended[ended["round"] <= number]) == said for number in range(stop, 9)
    )


@pytest.mark.parametrize(
    "rows, named",
    [
        (dict(round=1, successes=5, trials=10), "second row"),
        (dict(round=2, successes=11, trials=10), "exceed"),
        (dict(successes=1, trials=10), "missing"),
        (rows_of([1, 2, 3, 4])[3:], "monitor of its own"),
        ([], "no rows"),
        (5, "no table"),
        (None, "no table"),
        ("text", "no table"),
        ([5], "no table"),
        (np.ones((2, 3)), "no table"),
        (pd.DataFrame(), "no rows"),
        (pd.DataFrame(dict(Round=[2], ok=[9], n=[10])), "missing"),
        (pd.DataFrame(dict(round=[2], successes=[0.9], trials=[10])), "whole number"),
        (pd.DataFrame(dict(round=[2], successes=[True], trials=[10])), "whole number"),
        (pd.DataFrame(dict(round=[float("nan")], successes=[9], trials=[10])), "round is missing"),
        (dict(round=[2, 3], successes=[9, 9], trials=[10, 10]), "whole number"),
    ],
    ids=[
        "twice",
        "impossible",
        "no round",
        "another run",
        "nothing",
        "number",
        "none",
        "text",
        "numbers",
        "array",
        "empty",
        "misnamed",
        "rates",
        "truths",
        "nan",
        "lists",
    ],
)
def test_bad_rows_are_refused(rows, named):
    """Rows that cannot be are one line, and the monitor stays as it was."""
    monitor = SustainabilityMonitor().add(dict(round=1, successes=9, trials=10))
    with pytest.raises(TableError, match=named) as error:
        monitor.add(rows)
    assert "\n" not in str(error.value) and len(monitor.table) == 1


NO_NUMBERS = [float("nan"), float("inf"), True, "2", None, [], np.array([1, 2]), object()]


@pytest.mark.parametrize(
    "settings, named",
    [
        (dict(within=0), "within 0 rounds"),
        (dict(within=1.5), "1.5"),
        (dict(threshold=0), "threshold"),
        (dict(threshold=1.1), "threshold"),
        (dict(law="gravity"), "gravity"),
        *((dict(within=wrong), "within") for wrong in NO_NUMBERS),
        *((dict(threshold=wrong), "threshold") for wrong in NO_NUMBERS),
        *((dict(law=wrong), "unknown law") for wrong in NO_NUMBERS),
    ],
)
def test_bad_settings_are_refused_at_once(settings, named):
    """What could never work is said before the first round,
    by the monitor and by the function of the loop.
    """
    for make in (SustainabilityMonitor, stop_before_collapse):
        with pytest.raises(LawError, match=named) as error:
            make(**{"within": 2, **settings})
        assert "\n" not in str(error.value)
    with pytest.raises(LawError, match=named):
        reason_to_stop(rows_of(COLLAPSES[:3]), **{"within": 2, **settings})


def test_frames_of_other_types_say_the_same():
    """Counts as text, as whole floats, as categories or with missing values allowed are the same counts."""
    table = rows_of(COLLAPSES[:4])[["round", "successes", "trials"]]
    said = SustainabilityMonitor(2, law="weibull").add(table).should_stop()
    assert said
    for kind in (str, float, "Int64", "category", "uint16", object):
        assert SustainabilityMonitor(2, law="weibull").add(table.astype(kind)).should_stop() == said, kind


@pytest.mark.parametrize(
    "ask",
    [forecast_so_far, lambda table: reason_to_stop(table, 2), lambda table: stop_before_collapse(2)(table)],
)
def test_what_is_no_table_of_one_run_is_refused(ask):
    """The functions behind the monitor refuse what it refuses; two runs at once are not silence."""
    two = pd.concat([rows_of(COLLAPSES[:3]), rows_of(COLLAPSES[:3]).assign(run_id="other")])
    for wrong in (5, None, "text", [], pd.DataFrame(), two):
        with pytest.raises(TableError) as error:
            ask(wrong)
        assert "\n" not in str(error.value)


def test_measured_runs_of_copying():
    """Of the committed runs of copying, those that collapse are stopped before they do."""
    table = read_table(results_folder() / "copy")
    for seed in (0, 1, 2):
        run = table[(table["arm"] == "none") & (table["seed"] == seed)]
        assert first_stop(run, 2) < collapse_round(trajectory(run))["collapse_round"].iloc[0]


def test_the_monitor_needs_no_torch():
    """It reads counts, and leaves torch alone."""
    code = (
        "from si_nb.law.monitor import SustainabilityMonitor as M; import sys; assert 'torch' not in "
        "sys.modules; "
    )
    code += (
        "print(M().add([dict(round=r, successes=s, trials=100) for r, s in enumerate((98, 90, 70, 40, "
        "20), 1)]).should_stop())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "collapsed below 0.5 at round 4" in done.stdout, done.stderr
