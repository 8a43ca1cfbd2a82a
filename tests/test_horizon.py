"""The horizon law: priors that find invented runs, exact updating, honest collapse rounds, no look ahead."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from scipy.stats import multivariate_normal, norm

from si_nb.law import forecasters as F
from si_nb.law import horizon as H
from si_nb.law.round_curves import LawError
from si_nb.loop.voting import KEEP_RULES
from si_nb.record.table import measurement_table, trajectory

CRUISES = {"slow": 0.4, "middle": 0.7, "fast": 1.0}
DRAG, RUN_SPREAD, NOISE = 0.4, 0.1, 0.15
PRIOR = H.Prior((0.6, 0.5), ((0.03, 0.01), (0.01, 0.05)), 0.25)
STEEP = H.Link(tuple(2.0 * np.array(H.KNOTS)), 0.01, 0.005)
PEOPLE = H.Population({H.ANY: {H.ANY: PRIOR}}, {H.ANY: STEEP}, {}, 3)


def invented(generator, runs=30, rounds=8, start=1.0, deviation=0.0):
    """Runs of three tasks as (task, margins, speeds), margins read with an error."""
    found = []
    for task, cruise in CRUISES.items():
        own = generator.normal([cruise, DRAG], RUN_SPREAD, size=(runs, 2))
        path = np.c_[np.full(runs, start), H.simulate_margins(start, own, NOISE, rounds, generator)]
        path = path + generator.normal(scale=deviation, size=path.shape)
        found += [(task, row[:-1][row[:-1] > -0.5], (np.diff(row) + 1)[row[:-1] > -0.5]) for row in path]
    return found


@pytest.fixture(scope="module")
def learned():
    return H.fit_priors(invented(np.random.default_rng(0)))


def measured(
    horizons, run_id="r", arm="none", task="copy", newest=None, lengths=range(4, 22), trials=10**6, seed=0
):
    """A measurement table of a run whose curve falls through one half at given lengths."""
    newest = [8 + r for r in range(len(horizons))] if newest is None else newest
    rows = [
        (run_id, task, arm, seed, 0, r, n, "accuracy", int(round(expit(2 * (length - n)) * trials)), trials)
        for r, length in enumerate(horizons)
        for n in lengths
    ]
    rows += [
        (run_id, task, arm, seed, 0, r, n, "label_raw" if r else "accuracy_select", 5, 10)
        for r, n in enumerate(newest)
    ]
    return measurement_table(rows)


def ask(table, until_round=None, seed=0, **options):
    return F.forecast(
        trajectory(table),
        until_round,
        table=table,
        law="horizon",
        resamples=200,
        generator=np.random.default_rng(seed),
        **options,
    )


FADING = [10.0, 10.6, 11.1, 11.6, 12.0, 12.4, 12.7, 12.9]  # margins 2.0, 1.6, 1.1, 0.6, 0.0, -0.6 ...


# --- priors


def test_priors_find_invented_populations(learned):
    assert set(learned) == {*CRUISES, H.ANY}
    for task, cruise in CRUISES.items():
        assert np.allclose(learned[task].mean, [cruise, DRAG], atol=0.1)
        assert 0.5 < np.sqrt(learned[task].covariance[0][0]) / RUN_SPREAD < 2
        assert abs(learned[task].noise / NOISE - 1) < 0.1
    assert abs(learned[H.ANY].mean[0] - np.mean(list(CRUISES.values()))) < 0.15
    assert (
        learned[H.ANY].covariance[0][0] > 2 * learned["fast"].covariance[0][0]
    )  # a task not seen is less certain


def test_a_group_of_one_run_leans_on_the_others(learned):
    generator = np.random.default_rng(3)
    lone = [("new", *invented(generator, 1)[0][1:])]
    found = H.fit_priors(invented(np.random.default_rng(0), 10) + lone)
    assert found["fast"].covariance[0][0] < found["new"].covariance[0][0] < found[H.ANY].covariance[0][0]


@pytest.mark.parametrize("runs", [0, 2])
def test_too_few_runs_make_no_prior(runs):
    with pytest.raises(LawError, match="three at least") as caught:
        H.fit_priors(invented(np.random.default_rng(0))[:runs] + [("dead", np.array([]), np.array([]))])
    assert "\n" not in str(caught.value)


MARGINS, SPEEDS = np.array([1.8, 1.2, 0.5, -0.1]), np.array([0.5, 0.7, 0.1, 0.2])


def test_the_posterior_is_the_integral():
    c, b = np.meshgrid(np.linspace(-1, 2.2, 801), np.linspace(-1.5, 2.5, 801), indexing="ij")
    places = np.stack([c, b], -1)
    density = multivariate_normal(PRIOR.mean, PRIOR.covariance).logpdf(places)
    for margin, speed in zip(MARGINS, SPEEDS, strict=True):
        density += norm(c - b * max(0, 1 - margin), PRIOR.noise).logpdf(speed)
    weight = np.exp(density - density.max())
    weight, after = weight / weight.sum(), H.posterior(PRIOR, MARGINS, SPEEDS)
    mean = (weight[..., None] * places).sum((0, 1))
    covariance = np.einsum("ij,ijk,ijl->kl", weight, places - mean, places - mean)
    assert np.allclose(after.mean, mean, atol=1e-6) and np.allclose(after.covariance, covariance, atol=1e-6)


def test_one_speed_at_a_time_is_all_at_once():
    after = PRIOR
    for margin, speed in zip(MARGINS[::-1], SPEEDS[::-1], strict=True):
        after = H.posterior(after, [margin], [speed])
    together = H.posterior(PRIOR, MARGINS, SPEEDS)
    assert np.allclose(after.mean, together.mean) and np.allclose(after.covariance, together.covariance)


# --- collapse rounds


def known(margins, read=None, task="invented"):
    """Margins of a run, as they are and as they were read."""
    margins, trials = np.asarray(margins, float), 10**6
    read = margins if read is None else read
    return pd.DataFrame(
        dict(
            task=task,
            arm="invented",
            round=range(len(margins)),
            margin=read,
            speed=[*(np.diff(read) + 1), np.nan],
            successes=STEEP.accuracy(margins) * trials,
            trials=trials,
        )
    )


def first_collapse(below, after):
    """First round from `after` on that is below with the next, or inf; `below` begins with the last seen."""
    both = below[:, :-1] & below[:, 1:]
    return np.where(both.any(1), both.argmax(1) + float(after), np.inf)


@pytest.mark.parametrize("deviation", [0.0, 0.1])
def test_ninety_percent_intervals_hold_nine_in_ten(deviation):
    """Runs of invented populations, forecast with the priors that earlier runs of the same one taught."""
    inside = {0: [], 1: [], 3: []}
    for number in range(3):
        generator = np.random.default_rng(number)
        priors = H.fit_priors(invented(generator, 12, deviation=deviation), deviation)
        for task, cruise in CRUISES.items():
            population = H.Population({H.ANY: {H.ANY: priors[task]}}, {H.ANY: STEEP}, {}, 36)
            own = generator.normal([cruise, DRAG], RUN_SPREAD, size=(25, 2))
            for row in np.c_[np.full(25, 1.8), H.simulate_margins(1.8, own, NOISE, 60, generator)]:
                run = known(row, row + generator.normal(scale=deviation, size=len(row)))
                truth = first_collapse(row[None] < 0, 0)[0]
                for origin in (
                    o for o in inside if truth >= o
                ):  # whoever looks knows that it has not collapsed before
                    found = H.course(run[: origin + 1], population, 60 - origin, 200, generator)
                    below = np.c_[np.full(200, origin > 0 and row[origin] < 0), found.accuracy < 0.5]
                    low, high = np.quantile(
                        first_collapse(below, origin), [0.05, 0.95], method="inverted_cdf"
                    )
                    inside[origin].append(low <= truth <= high)
    for origin, hits in inside.items():
        print(f"deviation {deviation}, origin {origin}: {np.mean(hits):.3f} of {len(hits)}")
        assert len(hits) > 180 and 0.86 <= np.mean(hits) <= 0.98, (
            origin
        )  # whole rounds make intervals a little too wide


def test_measured_scatter_is_true_scatter_and_two_reading_errors():
    prior = H.Prior(PRIOR.mean, PRIOR.covariance, 0.25, 0.1)
    assert np.isclose(prior.scatter**2 + 2 * 0.1**2, 0.25**2) and PRIOR.scatter == PRIOR.noise
    assert (
        0 < H.Prior(PRIOR.mean, PRIOR.covariance, 0.25, 0.9).scatter < 0.25
    )  # an error too large to be true leaves some
    read = H.fit_priors(invented(np.random.default_rng(1), deviation=0.1), 0.1)["slow"]
    assert (
        NOISE - 0.03 < read.scatter < 1.3 * NOISE < read.noise
    )  # a little wide: the error is in the margin too, and drags


def test_a_run_with_a_steeper_curve_is_forecast_on_it():
    """One whose accuracy stands higher at the same margin goes on doing so, once it was trained."""
    usual, steep = known([1.0, 1.0]), known([1.0, 1.0]).assign(successes=980_000)
    for origin, higher in ((0, False), (1, True)):
        one, two = (
            H.course(run[: origin + 1], PEOPLE, 5, 400, np.random.default_rng(0)).accuracy
            for run in (usual, steep)
        )
        alive = one > 0.5
        assert np.array_equal(one > 0.5, two > 0.5) and (two > one)[alive].all() == higher


def test_rounds_left_is_the_scatterless_course():
    sure = H.Population(
        {H.ANY: {H.ANY: H.Prior((0.6, 0.5), ((1e-12, 0), (0, 1e-12)), 1e-9)}}, {H.ANY: STEEP}, {}, 3
    )
    for margin in (0.2, 1.1, 2.5):
        below = H.course(known([margin]), sure, 20, 5, np.random.default_rng(0)).accuracy < 0.5
        assert (below.argmax(1) + 1 == H.rounds_left(margin, (0.6, 0.5))).all()
    assert H.rounds_left(1.5, (1.0, 0.5)) == np.inf


def test_a_higher_threshold_is_crossed_earlier():
    found = [ask(measured(FADING), 2, threshold=threshold) for threshold in (0.2, 0.5, 0.8)]
    assert [f.threshold for f in found] == [0.2, 0.5, 0.8]
    medians = [np.median(f.courses.collapses) for f in found]
    assert medians[0] >= medians[1] >= medians[2] and medians[0] > medians[2]
    assert (found[0].courses.collapses >= found[2].courses.collapses).all()  # same courses, other line


# --- runs at their edges


def test_a_dead_run_stays_dead_and_teaches_nothing():
    dead = measured([10.0, 10.5, 6.0, 5.0, 5.5, 4.5])
    seen = H.margins(dead)
    assert (seen["margin"].iloc[2:] < -0.5).all()
    for origin in (3, 5):
        found = ask(dead, origin)
        assert found.collapse_round == found.low == found.high == 2  # collapsed in what was seen
    _, three, five = (
        H.course(seen[:n], H.load_population(), 5, 50, np.random.default_rng(0)) for n in (2, 4, 6)
    )
    assert three.known == five.known and (three.accuracy < 0.5).all()


@pytest.mark.parametrize("horizon, flag", [(40.0, "above"), (2.0, "below")])
def test_a_horizon_outside_the_measured_lengths_still_gives_a_forecast(horizon, flag):
    table = measured([10.0, 11.0, horizon])
    assert H.margins(table)["flag"].iloc[-1] == flag
    found = ask(table, 2)
    assert found.law == "horizon" and np.isfinite(found.courses.accuracy).all()
    assert ((found.courses.accuracy >= 0) & (found.courses.accuracy <= 1)).all()
    assert found.low >= (3 if flag == "above" else 2) and (flag == "above" or found.high <= 3)


def test_speed_is_per_length_where_several_are_taken_at_once():
    plain = H.margins(measured([10, 11, 12, 13]))
    fast = H.margins(measured([10, 11, 14, 15], newest=[8, 9, 12, 13]))
    assert np.allclose(plain["speed"].iloc[:-1], 1, atol=0.01)
    assert np.allclose(fast["speed"].iloc[:-1], [1, 3 / 3, 1], atol=0.01)
    half = H.margins(measured([10, 11, 12.5], newest=[8, 9, 12]))
    assert np.isclose(half["speed"].iloc[1], 0.5, atol=0.01) and half["speed"].iloc[-1:].isna().all()


# --- what is looked at


@pytest.mark.parametrize("origin", [0, 1, 3])
def test_later_rounds_are_not_looked_at(origin):
    changed = FADING[: origin + 1] + [6.0] * (len(FADING) - origin - 1)
    one, two = ask(measured(FADING), origin), ask(measured(changed), origin)
    assert np.array_equal(one.courses.accuracy, two.courses.accuracy) and np.array_equal(
        one.courses.collapses, two.courses.collapses
    )
    assert one.collapse_round == two.collapse_round and one.until_round == origin


def test_earlier_rounds_are_looked_at():
    slower = [FADING[0], *(np.array(FADING[1:]) - 0.5)]
    slow, usual = (ask(measured(horizons), 2).courses.collapses for horizons in (slower, FADING))
    assert slow.mean() < usual.mean()


def test_same_generator_same_draws():
    one, two, other = (ask(measured(FADING), 2, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(one.courses.accuracy, two.courses.accuracy) and not np.array_equal(
        one.courses.accuracy, other.courses.accuracy
    )


def test_two_runs_of_an_arm_share_the_courses():
    strong, weak = measured(np.array(FADING) + 3, "strong"), measured(np.array(FADING) - 1, "weak", seed=1)
    both = ask(pd.concat([strong, weak]), 1).asked["horizon"]
    assert len(both.collapses) == 200
    alone = [ask(table, 1).asked["horizon"] for table in (strong, weak)]
    first, second = both.collapses[:100], both.collapses[100:]
    assert np.median(first) > np.median(second)
    assert abs(np.median(first) - np.median(alone[0].collapses)) <= 1
    assert abs(np.median(second) - np.median(alone[1].collapses)) <= 1


def test_too_few_lengths_or_no_base_model_is_refused():
    table = measured(FADING)
    few = table[
        (table["quantity"] != "accuracy")
        | table["length"].between(8, 15) & (table["length"] == 8 + table["round"])
    ]
    for wrong in (few, table[table["round"] > 0]):
        with pytest.raises(LawError, match="three lengths") as caught:
            ask(wrong, 3)
        assert "\n" not in str(caught.value)


# --- populations


@pytest.mark.parametrize(
    "task, kind, stands_in",
    [("sorting", "voted", "voted"), ("copy", "sworn", H.ANY), ("sorting", None, H.ANY)],
)
def test_what_is_unknown_falls_back_and_is_said(task, kind, stands_in):
    people = H.load_population()
    assert people.prior(task, kind) == (people.priors[stands_in][H.ANY], people.links[stands_in])
    assert people.prior("copy", "voted")[0] == people.priors["voted"]["copy"]
    lines = people.unknown(task, "mine", kind)
    assert len(lines) == (task == "sorting") + (kind != "voted")
    assert people.unknown("copy", "mine", "voted") == []


def test_an_unknown_task_and_arm_can_be_forecast():
    found = ask(measured(FADING, arm="a new filter", task="multiplication"), 2)
    assert found.low >= 2 and np.isfinite(found.courses.accuracy).all()


def test_kinds_with_too_few_runs_are_left_to_any():
    runs = [
        measured(np.array(FADING) + shift, f"{arm}{i}", arm, seed=i, trials=256)
        for arm, number in (("none", 4), ("mv", 2))
        for i, shift in enumerate(np.linspace(-0.3, 0.3, number))
    ]
    kinds = {"none": "unvoted", "mv": "voted"}
    rows = H.margins(pd.concat(runs)).assign(kind=lambda rows: rows["arm"].map(kinds))
    people = H.fit_population(rows)
    assert set(people.priors) == set(people.links) == {"unvoted", H.ANY} and people.runs == 6
    assert people.prior("copy", "voted")[0] == people.priors[H.ANY][H.ANY] and people.kinds == kinds
    assert "no measured runs of kind 'voted'" in people.unknown("copy", "mv", "voted")[0]


def test_margins_without_kinds_teach_no_population():
    with pytest.raises(LawError, match="without a column kind"):
        H.fit_population(H.margins(measured(FADING)))


def test_runs_of_no_known_kind_teach_what_holds_for_any():
    runs = [measured(np.array(FADING) + i / 5, f"r{i}", seed=i, trials=256) for i in range(4)]
    people = H.fit_population(H.margins(pd.concat(runs)).assign(kind=None))
    assert set(people.priors) == {H.ANY} and people.kinds == {}


def test_a_population_survives_its_file(tmp_path):
    people = H.load_population()
    again = H.load_population(H.save_population(people, tmp_path / "people.json"))
    assert again == people


DAMAGES = {
    "no file": None,
    "empty": lambda text: "",
    "truncated": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[1, 2]",
    "priors of no kind": lambda text: text.replace('"priors": {', '"priors": [], "other": {'),
    "wrong key": lambda text: text.replace('"mean"', '"means"'),
    "no fallback": lambda text: text.replace('"any"', '"some"'),
    "no number of runs": lambda text: text.replace('"runs"', '"walks"'),
    "not a number": lambda text: text.replace('"noise": 0.25', '"noise": NaN'),
    "negative noise": lambda text: text.replace('"noise": 0.25', '"noise": -0.25'),
    "infinite mean": lambda text: text.replace("0.6,", "Infinity,"),
    "no covariance": lambda text: text.replace("0.05", "-0.05"),
    "no kinds": lambda text: text.replace('"kinds"', '"sorts"'),
    "short link": lambda text: text.replace("-8.0,", ""),
    "falling link": lambda text: text.replace("-8.0", "8.0"),
    "impossible scatter": lambda text: text.replace('"overdispersion": 0.01', '"overdispersion": 1.5'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_population_gets_one_line(damage, tmp_path):
    path = tmp_path / "people.json"
    if DAMAGES[damage]:
        text = H.save_population(PEOPLE, path).read_text()
        assert H.load_population(path) == PEOPLE and DAMAGES[damage](text) != text
        path.write_text(DAMAGES[damage](text))
    with pytest.raises(LawError, match="people.json: no population") as caught:
        H.load_population(path)
    assert "\n" not in str(caught.value)


def test_the_committed_population_is_sound():
    people = H.load_population()
    assert set(people.priors) == set(people.links) == {*people.kinds.values(), H.ANY} and people.runs >= 3
    assert people.kinds == {name: rule.kind for name, rule in KEEP_RULES.items() if name in people.kinds}
    assert len(people.kinds) == 5
    assert all(
        task[H.ANY].covariance[0][0] >= max(p.covariance[0][0] for p in task.values())
        for task in people.priors.values()
    )
    json.dumps({kind: list(link.log_odds) for kind, link in people.links.items()}, allow_nan=False)


def test_no_torch_is_imported():
    code = "import sys, si_nb.law.horizon, si_nb.law.forecasters; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
