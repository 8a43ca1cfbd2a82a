"""Reports of random tables: what is named lies in its interval, whatever the table; work is bounded;
cells pool repeats.
"""

import json
from io import StringIO
from time import process_time

import numpy as np
import pandas as pd
import pytest
from conftest import series_of
from rich.console import Console

from si_nb.law import forecasters as F
from si_nb.law import round_curves as L
from si_nb.law.report import VERDICTS, _differences, law_report, print_report, verdict, verdict_rows
from si_nb.record.table import (
    COLUMNS,
    TableError,
    measurement_table,
    read_settings,
    read_table,
    results_folder,
    trajectory,
)

HANG = 15  # CPU seconds that no report of a small table takes
FIRST_LENGTH = 8


def course(kind, rounds, generator):
    """Accuracies of rounds 0 to `rounds`."""
    r = np.arange(rounds + 1)
    return {
        "collapsing": np.exp(-((r / generator.uniform(1.5, 30)) ** generator.uniform(0.8, 4))),
        "lasting": generator.uniform(0.6, 0.97) + 0.03 * np.exp(-r / 3),
        "noisy": generator.uniform(0, 1, rounds + 1),
        "flat": np.full(rounds + 1, generator.uniform(0.02, 0.999)),
        "nearly all right": np.where(generator.random(rounds + 1) < 0.15, 0.995, 1.0),
        "nearly all wrong": np.where(generator.random(rounds + 1) < 0.15, 0.01, 0.0),
        "rising": 1 - 0.5 * np.exp(-r / generator.uniform(1, 10)),
        "falling at once": np.where(
            r < generator.integers(1, rounds + 2), generator.uniform(0.8, 1), generator.uniform(0, 0.3)
        ),
    }[kind]


FATES = (
    "collapsing",
    "lasting",
    "noisy",
    "flat",
    "nearly all right",
    "nearly all wrong",
    "rising",
    "falling at once",
)


def rows_of(arm, seed, accuracy, trials, lengths, labels, generator):
    """Measurements of one run: `lengths` of them a round, with or without counts of labels."""
    run, rows = f"{arm}-{seed}", []
    for r, rate in enumerate(accuracy):
        newest = FIRST_LENGTH + r
        for n in range(newest - lengths // 2, newest + (lengths + 1) // 2):
            near = np.clip(rate, 1e-9, 1 - 1e-9)
            share = rate if n == newest else 1 / (1 + np.exp(1.5 * (n - newest)) * (1 - near) / near)
            rows.append(
                (run, "copy", arm, seed, 0, r, n, "accuracy", generator.binomial(trials, share), trials)
            )
        if r == 0 or not (labels or lengths > 1):
            continue
        right = generator.binomial(trials, accuracy[r - 1] * 0.95)
        kept, bad = generator.binomial(right, 0.9), generator.binomial(trials - right, 0.4)
        counts = dict(
            label_raw=(right, trials),
            label_kept=(kept, kept + bad),
            kept_right=(kept, right),
            kept_wrong=(bad, trials - right),
        )
        for name in counts if labels else ["label_raw"]:
            rows.append(
                (run, "copy", arm, seed, 0 if name == "label_raw" else -1, r, newest, name, *counts[name])
            )
    return rows


def random_table(number, most_rounds=14):
    """A table and what is asked of it."""
    generator = np.random.default_rng([11, number])
    rounds, seeds, trials = (
        generator.integers(1, most_rounds + 1),
        generator.integers(1, 6),
        generator.choice([1, 5, 30, 256, 20_000]),
    )
    lengths, labels, rows = generator.choice([1, 1, 6]), generator.random() < 0.5, []
    for arm in generator.choice(
        ["none", "mv", "mv_length", "own"], size=generator.integers(1, 3), replace=False
    ):
        kind = generator.choice(FATES)
        for seed in range(seeds):
            rows += rows_of(
                str(arm), seed, course(kind, rounds, generator), trials, lengths, labels, generator
            )
    options = dict(
        until_round=None if generator.random() < 0.6 else int(generator.integers(0, rounds + 1)),
        threshold=float(generator.choice([0.5, 0.5, 0.9, 0.2])),
        law=str(generator.choice(["best", "best", "average", "weibull", "last_value"])),
    )
    return measurement_table(
        [tuple(x.item() if isinstance(x, np.generic) else x for x in row) for row in rows]
    ), options


def never(value):
    return np.inf if value is None else value


def outside(arm):
    """Everything named in an arm's report that lies outside its own interval."""
    c, found = arm["collapse"], []
    if not never(c["low"]) <= never(c["round"]) <= never(c["high"]):
        found.append(("collapse", c))
    for law in arm["laws"]:
        found += [
            (law["name"], name, p)
            for name, p in law["parameters"].items()
            if not p["low"] <= p["value"] <= p["high"]
        ]
    found += [("band", r) for r in arm["rounds"] if not 0 <= r["low"] <= r["accuracy"] <= r["high"] <= 1]
    number = arm["reproduction_number"]
    return found + (
        [("R", number)]
        if number["value"] is not None and not number["low"] <= number["value"] <= number["high"]
        else []
    )


@pytest.mark.parametrize("number", range(40))
def test_what_is_named_lies_in_its_interval(number):
    """Random tables, as small and as odd as they come:
    no exception but the documented, strict JSON, no point outside its interval.
    """
    table, options = random_table(number)
    began = process_time()
    try:
        report = law_report(table, **options, resamples=100)
    except (L.LawError, TableError) as error:
        assert "\n" not in str(error)
        return
    assert process_time() - began < HANG
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for arm in report["arms"].values():
        assert arm["note"] or arm["chosen"]
        assert not ([] if arm["note"] else outside(arm))


def test_a_long_table_of_many_seeds_is_no_hang():
    """Sixty rounds, five seeds, all laws: about two seconds of CPU time."""
    generator = np.random.default_rng(0)
    rows = [
        row
        for seed in range(5)
        for row in rows_of("none", seed, course("falling at once", 60, generator), 256, 6, True, generator)
    ]
    began = process_time()
    report = law_report(
        measurement_table([tuple(x.item() if isinstance(x, np.generic) else x for x in row) for row in rows])
    )
    assert process_time() - began < HANG and not outside(report)


# --- the verdict


def arm_of(named, low, high, until_round):
    """The part of an arm's report that a verdict needs."""
    return dict(note=None, until_round=until_round, collapse=dict(round=named, low=low, high=high))


@pytest.mark.parametrize(
    "call, at, last, expected",
    [
        ((5, 4, 7, 3), 5, 9, "hit"),
        ((5, 4, 7, 3), 4, 9, "hit"),  # ends belong to the interval
        ((5, 4, 7, 3), 8, 9, "miss"),
        ((5, 4, 7, 3), 3, 9, "miss"),  # round 4 was not seen, so nobody could know
        ((5, 4, 7, 3), 2, 9, "already collapsed"),  # rounds 2 and 3 were
        ((5, 4, 7, 0), 1, 9, "miss"),
        ((None, 9, None, 3), 9, 10, "hit"),
        ((None, None, None, 3), 9, 10, "miss"),
        ((5, 4, 7, 3), None, 9, "miss"),  # alive after the whole interval
        ((5, 4, 7, 3), None, 7, "miss"),  # alive in its last round
        ((5, 4, 7, 3), None, 6, "open"),
        ((5, 4, 7, 3), None, 4, "hit so far"),
        ((5, 4, 7, 3), None, 3, "open"),  # nothing was measured afterwards
        ((None, 4, None, 3), None, 9, "hit so far"),
        ((None, None, None, 3), None, 9, "hit so far"),
    ],
)
def test_a_verdict_is_honest_about_what_was_watched(call, at, last, expected):
    """A measured round is in the interval or not; a run that still lives is a hit only as long as its
    named round lies ahead.
    """
    run = dict(censored=at is None, collapse_round=at, at_least=at or last + 1, last_round=last)
    assert verdict(arm_of(*call), run) == expected and expected in VERDICTS


def test_the_verdict_comes_first_and_laws_when_asked_for():
    """Without the flag a page of 80 columns and a dozen lines; with it the same lines, then the laws."""
    report = law_report(
        pd.concat(
            [series_of([982, 936, 777, 518, 264, 86]), series_of([992, 988, 926, 908, 871, 857], arm="mv")]
        ),
        3,
        resamples=50,
    )
    pages = {laws: StringIO() for laws in (False, True)}
    for laws, page in pages.items():
        print_report(report, Console(file=page, width=80), laws)
    short, long = (page.getvalue() for page in pages.values())
    assert long.startswith(short) and "AICc" in long and "AICc" not in short
    assert short.count("\n") <= 12 and max(map(len, short.splitlines())) <= 80
    rows = {row["arm"]: row for row in verdict_rows(report)}
    assert rows["none"]["measured"] == "5" and rows["mv"]["measured"] == "none by 6"
    for row in rows.values():
        assert any(
            line.split() == f"{row['arm']} {row['forecast']} {row['measured']} {row['verdict']}".split()
            for line in short.splitlines()
        )


def test_runs_of_an_arm_are_counted_in_the_verdict():
    """Three seeds, of which one has collapsed in the rounds seen."""
    counts = [982, 936, 777, 318, 264, 86]
    runs = [series_of(counts, f"r{seed}", seed=seed) for seed in range(2)]
    report = law_report(
        pd.concat([*runs, series_of([900, 400, 300, 200, 90, 9], "r2", seed=2)]), 3, resamples=50
    )
    (row,) = verdict_rows(report)
    assert row["measured"] == "4 (2x), 2 (1x)" and row["verdict"].endswith("1 already collapsed")
    assert row["forecast"] != "already collapsed"


# --- where the numbers come from


def test_named_are_medians_of_the_sample():
    found = F.forecast(series_of([982, 936, 777, 518]), resamples=300)
    assert found.collapse_round == F.median_round(found.courses.collapses)
    one = found.asked[found.law]
    assert one.point == F.median_round(one.collapses) and np.array_equal(
        one.centre, np.median(one.accuracy, 0)
    )


def test_rounds_without_a_right_answer_do_not_pull_the_refits():
    """One rate, then nothing for forty rounds: refits lie about the estimate, not at half of it."""
    counts = np.r_[[110, 12, 1], np.zeros(40, int)]
    fits = L.fit_laws(series_of(counts), laws={"constant_hazard": L.ROUND_CURVES["constant_hazard"]})
    refits, converged = L.bootstrap(fits.best, fits.data, fits.overdispersion, 300, np.random.default_rng(0))
    low, high = np.quantile(refits[:, 0], [0.25, 0.75])
    assert converged.all() and low < fits.best.parameters[0] < high


def test_an_estimate_at_its_bound_lies_in_its_interval():
    shown = F.describe_parameters({"k": "1"}, np.linspace(2, 6, 100)[:, None], [12.0])["k"]
    assert shown["value"] == shown["high"] == 12 and 2 < shown["low"] < 3


def test_a_rival_of_the_last_round_sets_nothing():
    """Its likelihood is of one round: it must not lead the others, nor weigh beside them,
    and several runs must not stop it.
    """
    runs = pd.concat([series_of([980, 900, 700, 400], "a"), series_of([970, 880, 720, 350], "b", seed=1)])
    fits = L.fit_laws(runs, laws=L.ROUND_CURVES)
    assert list(fits.fits)[-1] == "last_value" and fits.fits["last_value"].weight == 0
    assert np.isclose(sum(f.weight for f in fits.fits.values()), 1)
    assert F.forecast(runs, law="average", resamples=50).law == "average"


def test_fewer_refits_for_many_points_carry_as_many_courses():
    """The quantiles of a bounded number of refits are those of a thousand,
    to a few of their standard errors.
    """
    generator, law = np.random.default_rng(3), L.ROUND_CURVES["weibull"]
    series = pd.concat(
        [
            series_of(
                L.beta_binomial(law.accuracy(np.arange(1, 41), [15 + i, 2.0]), 1000, 0.003, generator),
                f"r{i}",
                seed=i,
            )
            for i in range(4)
        ]
    )
    fits = L.fit_laws(series, laws={"weibull": law})
    many, _ = L.bootstrap(fits.best, fits.data, fits.overdispersion, 1000, np.random.default_rng(0))
    few, _, sample, effects = F._refits(
        fits.best, fits.data, fits.overdispersion, 1000, np.random.default_rng(1)
    )
    assert len(few) == 200 and len(sample) == len(effects) == 1000
    spread = many.std(0)
    for share in (0.05, 0.5, 0.95):
        assert (
            np.abs(np.quantile(few, share, axis=0) - np.quantile(many, share, axis=0)) < 0.6 * spread
        ).all()


def test_run_effects_are_parameters_like_others():
    """The batch with run effects climbs as high as a general optimiser on the same penalised likelihood."""
    from scipy.optimize import minimize

    law, rho, spread = L.ROUND_CURVES["weibull"], 0.003, 0.7
    data = L.observed(
        pd.concat(
            [
                series_of(c, f"r{i}", seed=i)
                for i, c in enumerate([[990, 940, 830, 640], [970, 850, 600, 300], [995, 980, 930, 820]])
            ]
        )
    )
    fit = L.fit_law(law, data, rho, run_spread=spread)
    weights = L._point_weights(data, rho)

    def goal(work):
        hazard = law(data.rounds, np.exp(work[:2])) * np.exp(work[2:][data.runs])
        return (
            -(
                weights
                * (-data.successes * hazard + (data.trials - data.successes) * np.log(-np.expm1(-hazard)))
            ).sum()
            + (work[2:] ** 2).sum() / spread**2 / 2
        )

    ours = np.r_[np.log(fit.parameters), fit.run_effects]
    theirs = minimize(goal, np.r_[np.log([4.0, 2.0]), 0, 0, 0], method="BFGS", options=dict(gtol=1e-6))
    assert goal(ours) < theirs.fun + 1e-4 and np.allclose(ours, theirs.x, atol=0.01)


def test_generalised_growth_is_its_own_inverse():
    """H(r) against the closed form of r(H), over all parameters that a fit may visit."""
    from scipy.special import hyp2f1

    generator, rounds = np.random.default_rng(0), np.array([1.0, 3, 8, 25, 60])
    h, c, p = (
        10 ** generator.uniform(-5, 0, (500, 1)),
        10 ** generator.uniform(-5, 0.7, (500, 1)),
        generator.uniform(0.02, 1, (500, 1)),
    )
    hazard = L.ROUND_CURVES["generalised_growth"](rounds, np.concatenate([h, c, p], -1))
    back = hazard / h * hyp2f1(1, 1 / p, 1 + 1 / p, -c * hazard**p / h)
    assert np.abs(back / rounds - 1)[hazard < 600].max() < 1e-3


# --- what is fitted together


def test_runs_of_a_cell_are_repeats():
    runs = pd.concat(
        [series_of([980, 900, 700, 400], f"{n}-{seed}", seed=seed) for n in (500, 2000) for seed in range(2)]
    )
    settings = pd.DataFrame(
        [
            dict(run_id=f"{n}-{seed}", task="copy", si_method="none", seed=str(seed), num_samples=str(n))
            for n in (500, 2000)
            for seed in range(2)
        ]
    )
    pooled, apart = (
        law_report(runs, resamples=20, settings=settings)["arms"],
        law_report(runs, resamples=20)["arms"],
    )
    assert {name: arm["runs"] for name, arm in pooled.items()} == {
        "none, num_samples 500": 2,
        "none": 2,
    } or set(pooled) == {"none", "none, num_samples 2000"}
    assert set(apart) == set(settings["run_id"]) and all(arm["runs"] == 1 for arm in apart.values())
    partly = law_report(runs, resamples=20, settings=settings[settings["num_samples"] == "500"])["arms"]
    assert sorted(arm["runs"] for arm in partly.values()) == [2, 2]


def test_settings_that_only_the_seed_tells_apart_change_nothing():
    runs = pd.concat([series_of([980, 900, 700, 400], f"r{seed}", seed=seed) for seed in range(3)])
    settings = pd.DataFrame([dict(run_id=f"r{seed}", seed=str(seed), num_samples="500") for seed in range(3)])
    assert law_report(runs, resamples=20, settings=settings) == law_report(runs, resamples=20)


def test_runs_that_differ_in_their_seed_are_fitted_together():
    """What a run notes of its own base models is no setting: seeds in their own folders are one arm."""
    quick = results_folder() / "quick"
    report = law_report(read_table(quick), 4, settings=read_settings(quick))
    assert {name: arm["arm"] for name, arm in report["arms"].items()} == {
        "none": "none",
        "mv_length": "mv_length",
    }
    assert all(len(arm["measured"]) == 3 for arm in report["arms"].values())


def test_settings_of_a_sweep_and_of_a_run_folder(tmp_path):
    sweep = read_settings(results_folder() / "sweep")
    assert len(sweep) == 277 and not {"seconds", "status", "groups", "reason"} & set(sweep)
    table = measurement_table([("a", "copy", "none", 0, 0, r, 8 + r, "accuracy", 9, 10) for r in range(3)])
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "measurements.csv").write_text(table.to_csv(index=False))
    assert read_settings(folder) is None
    (folder / "config.json").write_text(
        '{"si_method": ["none", "mv"], "seed": 0, "bias": false, "learning_rate": 0.003}'
    )
    found = read_settings(tmp_path)
    assert found.iloc[0].to_dict() == {
        "si_method": "none,mv",
        "seed": "0",
        "bias": "False",
        "learning_rate": "0.003",
        "run_id": "a",
    }
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(TableError, match="config.json: no settings") as caught:
        read_settings(folder)
    assert "\n" not in str(caught.value)


def test_readings_of_a_part_are_those_of_its_own_table():
    """Margins and counts cut out of a whole sweep equal those of the runs alone,
    and a forecast does not know the difference.
    """
    table = read_table(results_folder() / "copy")
    whole = F.Readings(table)
    for _, runs in trajectory(table).groupby("arm"):
        part = whole.of(runs)
        assert len(part.table.columns) == len(COLUMNS)
        alone = F.Readings(part.table)
        pd.testing.assert_frame_equal(part.margins, alone.margins)
        pd.testing.assert_frame_equal(part.counts, alone.counts, check_like=True)
        ask = [
            F.forecast(runs, table=rows, resamples=50, generator=np.random.default_rng(0))
            for rows in (part, part.table)
        ]
        assert np.array_equal(ask[0].courses.collapses, ask[1].courses.collapses) and ask[0].law == ask[1].law


def test_no_two_fits_share_a_name():
    """Every fit stands in the report: arms of runs that cannot be pooled,
    and names that look alike when put together.
    """
    rounds = [(r, 1000 - 20 * r * r) for r in range(1, 6)]

    def rows(run, task, arm):
        return [(run, task, arm, 0, -1, r, 5 + r, "accuracy", right, 1000) for r, right in rounds]

    twice = measurement_table(
        [row for run in ("one", "two") for arm in ("none", "mv") for row in rows(run, "copy", arm)]
    )
    assert len(law_report(twice, resamples=20)["arms"]) == 4
    alike = measurement_table([*rows("one", "a", "b/c"), *rows("two", "a/b", "c")])
    assert len(law_report(alike, resamples=20)["arms"]) == 2


def test_a_short_curve_says_too_little():
    """Two rounds of a published curve name a round, and the report says that it is worth nothing."""
    curve = pd.DataFrame(dict(round=[0, 1, 2], successes=[990, 985, 970], trials=1000))
    out = StringIO()
    print_report(law_report(curve, resamples=100), Console(file=out, width=80))
    assert "too little to say: " in out.getvalue() and "to never)" in out.getvalue()
    falling = pd.DataFrame(dict(round=range(6), successes=[990, 960, 900, 790, 620, 430], trials=1000))
    out = StringIO()
    print_report(law_report(falling, resamples=100), Console(file=out, width=80))
    assert "too little to say" not in out.getvalue()


def test_a_run_that_does_not_tell_a_setting_is_set_apart():
    """Runs made before there was a setting are not pooled with those that tell it; the usual is not named."""
    runs = pd.DataFrame({"run_id": list("abcd"), "task": "copy", "arm": "none", "seed": [0, 1, 2, 3]})
    settings = pd.DataFrame(
        {"run_id": list("abc"), "si_iter": ["80", "80", "90"], "lengths_per_round": ["2", "2", np.nan]}
    )
    said = ["", "", "si_iter 90, lengths_per_round not told", "settings not known"]
    assert list(_differences(runs, settings)) == said
    alike = settings.assign(lengths_per_round=np.nan)
    assert list(_differences(runs, alike)) == ["", "", "si_iter 90", "settings not known"]
