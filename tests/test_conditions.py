"""The law of conditions: identities it rests on, limits it must reduce to,
parameters found again in invented runs, and what `predict` says.
"""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from si_nb.law.conditions import MIDDLE, PARAMETERS, TRIES, complete, critical_labels, price
from si_nb.law.learning import (
    CURVE,
    EFFECTS,
    SPREADS,
    Law,
    fit_law,
    fit_parameters,
    load_law,
    save_law,
    transitions,
)
from si_nb.law.prediction import critical, emulate, predict, run_effects, seen_of, walk
from si_nb.law.round_curves import LawError
from si_nb.law.states import fit_states, states
from si_nb.record.table import QUANTITIES, check_table, error_budget

VALUES = {name: parameter.guess for name, parameter in {**PARAMETERS, **CURVE}.items()}
SEEN = {name: [value / 8, value * 8] for name, value in MIDDLE.items() if not isinstance(value, str)}
SEEN |= {
    "task": ["copy", "reverse", "reverse_addition"],
    "si_method": list(TRIES),
    "loss_on": ["all", "answer"],
}
QUIET = Law(VALUES, np.zeros((len(VALUES), len(VALUES))), dict.fromkeys(SPREADS, 0.0), SEEN, 1, 1, 1)
NOISY = replace(
    QUIET, spreads=dict.fromkeys(SPREADS, 0.05) | {"round_gain": 0.015, "round_vote": 0.3, "run_vote": 0.3}
)
PLAIN = {
    **VALUES,
    "flattening": 0.0,
    "flattening_steepness": 0.0,
    "flattening_wrong": 0.0,
    "settling": -30.0,
    "starving": -30.0,
    "examples": -30.0,
}
SURE = {**PLAIN, "half": -60.0}  # however right labels are, a round carries all it can


def walked(settings, parameters=PLAIN, horizon=10.4, steepness=30.0, length=8, rounds=40):
    """One course without any chance."""
    still = {name: np.zeros(1) for name in EFFECTS}
    calm = {name: np.zeros((rounds, 1)) for name in EFFECTS}
    return walk(
        parameters,
        complete(settings),
        (length, np.array([horizon]), np.array([steepness])),
        rounds,
        still,
        calm,
    )


# --- identities


def test_prices_add_up_to_a_ratio_of_lengths():
    """The price of a digit is what ln(h / n) loses:
    over a life it is the logarithm of the ratio of lengths.
    """
    for low, high in ((3, 5), (8, 40), (10, 1_000)):
        assert np.isclose(price(np.arange(low, high)).sum(), np.log(high / low))


def test_states_are_found_where_they_were_put():
    """Horizon and steepness come back from counts, and their standard errors are about the scatter of
    repeats.
    """
    lengths, generator = np.arange(4.0, 30), np.random.default_rng(0)
    rate = expit(15 * np.log(12 / lengths))
    repeats = fit_states(
        lengths, generator.binomial(200, rate, (400, len(lengths))), np.full((400, len(lengths)), 200)
    )
    assert (
        abs(np.log(repeats["horizon"]).mean() - np.log(12)) < 0.003
        and abs(np.log(repeats["steepness"] / 15).mean()) < 0.04
    )
    assert 0.7 < repeats["log_horizon_error"].median() / np.log(repeats["horizon"]).std() < 1.4


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize(
    "reach, half_examples, width, share",
    [(0.0, 0, 0, 1.0), (-0.3, 0, 0, np.exp(-0.3)), (0.5, 6_400, 0, np.exp(0.5) / 3), (0.0, 0, 0.5, 0.5**0.5)],
)
def test_simulation_is_the_closed_form(digits, reach, half_examples, width, share):
    """Where labels decide nothing the horizon moves by a share of what each round asks for. With half as
    many examples as carry half of the most, that share is a third of the most; and it is a power of width.
    """
    settings, rounds = {"si_method": "oracle", "lengths_per_round": digits, "si_iter": 50}, np.arange(1, 41)
    few = {"reach": reach, "examples": np.log(half_examples + 1e-9), "width": width}
    found = walked({**settings, "n_embd": 32}, {**SURE, **few})
    assert found.length[0].tolist() == (8 + digits * rounds).tolist()
    assert np.allclose(found.horizon[0], 10.4 + digits * rounds * share)


@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize("si_method", ["none", "mv_length", "oracle"])
def test_the_critical_labels_part_what_gains_from_what_falls_behind(si_method, digits):
    """The distance from newest length to horizon grows in a round whose labels are a little better than
    critical, and shrinks in one whose labels are a little worse.
    """
    settings = complete({"si_method": si_method, "lengths_per_round": digits})
    strong, asked = {**PLAIN, "reach": 0.1}, 8 + (digits + 1) / 2
    at = float(critical_labels(strong, settings, 8))
    for shift, gains in ((0.05, True), (-0.05, False)):
        horizon = asked * np.exp((at + shift) / 30)
        found = walked(settings, strong, horizon, rounds=1)
        assert (found.horizon[0, 0] - found.length[0, 0] > horizon - 8) == gains


# --- limits


def test_without_a_filter_dirty_labels_freeze_the_horizon_and_clean_ones_do_not():
    """The same loop without a filter: a model whose labels are wrong stays where it is,
    one whose labels are right runs on.
    """
    dirty, clean = (
        walked({"si_method": "none"}, horizon=8.2),
        walked({"si_method": "none"}, horizon=12.0, steepness=80.0),
    )
    assert dirty.horizon[0, -1] < 8.2 * 1.1 and dirty.accuracy[0, 10] < 0.01
    assert clean.horizon[0, 9] > 12.0 + 9.5 and clean.wrong[0, 0] < 1e-3


def test_a_strict_vote_starves():
    """When voters are seldom right, the share on which all must agree is too small for the labels wanted, and
    the horizon falls for want of them, although the few are clean.
    """
    weak = {"horizon": 7.6, "length": 8, "steepness": 15.0, "parameters": {**PLAIN, "starving": -2.0}}
    strict, loose = [
        walked({"voters": 5, "vote_threshold": threshold}, rounds=1, **weak) for threshold in (1.0, 0.6)
    ]
    assert strict.labels[0, 0] < 0.5 * loose.labels[0, 0] and strict.wrong[0, 0] < loose.wrong[0, 0]
    assert strict.horizon[0, 0] < min(7.6, loose.horizon[0, 0])


def test_one_vote_is_no_vote():
    """A vote of one voter keeps the model's own labels: the law of the arm without a filter."""
    assert np.allclose(
        walked({"si_method": "mv", "voters": 1, "vote_threshold": 1.0}).horizon,
        walked({"si_method": "none"}).horizon,
    )


def test_lives_scale_with_the_base_length():
    """With the same settings and the same ratio h / n0, clean runs end at the same multiple of n0."""
    ends, slow = [], {**PLAIN, "reach": -0.4}
    for base in (30, 60, 120):
        course = walked(
            {"si_method": "oracle", "original_digits": base}, slow, base * 1.2, 15.0, base, 3 * base
        )
        ends.append(course.length[0, np.argmax(course.horizon[0] < course.length[0])] / base)
    assert np.ptp(ends) < 0.05


# --- learning


@pytest.fixture(scope="module")
def invented():
    """Forty-eight emulated runs over a wide design, and the parameters that they were made with."""
    made_with = {
        **VALUES,
        "reach": 0.2,
        "examples": 6.2,
        "width": 0.2,
        "ease": 0.6,
        "half": 0.5,
        "length": 2.0,
        "purity": 1.0,
        "flattening": 0.02,
        "flattening_wrong": 0.12,
        "vote_step": 2.3,
    }
    law, generator = replace(NOISY, values=made_with), np.random.default_rng(1)
    design = {
        "original_digits": (6, 8, 12, 16),
        "n_embd": (32, 64, 96),
        "max_iters": (2_500, 10_000),
        "si_iter": (25, 100, 400),
        "num_samples": (250, 1_000, 4_000),
        "si_method": ("none", "oracle", "mv_length"),
        "loss_on": ("all", "answer"),
    }
    runs = [{name: generator.choice(levels).item() for name, levels in design.items()} for _ in range(48)]
    made = [
        emulate(law, settings, 14, seed=number, run_id=f"run{number}") for number, settings in enumerate(runs)
    ]
    return (
        pd.concat([table for table, _ in made]),
        pd.concat([row for _, row in made], ignore_index=True),
        made_with,
    )


def test_parameters_are_found_again(invented):
    """From invented tables alone, read as measured ones are, the parameters come back."""
    table, runs, made_with = invented
    found = fit_parameters(transitions(states(table), error_budget(table), runs))
    near = {
        "reach": 0.1,
        "examples": 0.5,
        "width": 0.15,
        "ease": 0.4,
        "half": 0.6,
        "length": 0.8,
        "purity": 0.35,
        "flattening": 0.04,
        "flattening_wrong": 0.1,
        "vote_step": 0.6,
    }
    off = {
        name: round(found[name] - made_with[name], 3)
        for name, allowed in near.items()
        if abs(found[name] - made_with[name]) > allowed
    }
    assert not off


def test_an_interval_is_wider_from_fewer_base_models(invented):
    """The unit is the base model: a third of them leaves the gain less certain."""
    table, runs, _ = invented
    found, steps = states(table), transitions(states(table), error_budget(table), runs)
    few = set(runs["run_id"][::3])
    whole = fit_law(found, steps, runs, 12)
    part = fit_law(
        *[rows[rows["run_id"].isin(few)].reset_index(drop=True) for rows in (found, steps, runs)], 12
    )
    assert part.base_models < whole.base_models and np.trace(part.covariance) > np.trace(whole.covariance)


@pytest.mark.parametrize("digits", [1, 2])
def test_emulated_tables_have_the_schema(digits):
    """An emulated table passes every check that a measured one does, also with several lengths a round."""
    table, row = emulate(NOISY, {"si_method": "mv_length", "lengths_per_round": digits}, 6)
    assert check_table(table).equals(table.reset_index(drop=True)) and set(table["quantity"]) <= set(
        QUANTITIES
    )
    state, first = seen_of(table, row.iloc[0])[0], row["original_digits"].iloc[0]
    assert state["round"] == 6 and state["length"] == first + 6 * digits
    labels = table[table["quantity"] == "label_raw"]
    assert labels.groupby("round").size().eq(digits).all()


# --- predict


def test_prediction_is_what_json_can_hold():
    """All keys are there, everything survives JSON, and what never comes is null."""
    found = predict({"si_method": "oracle", "original_digits": 30}, law=QUIET, critical_of="original_digits")
    assert json.loads(json.dumps(found)) == found and found["collapse_round"]["value"] is None
    assert {"probability_lasting", "collapse_length", "collapse_round", "critical", "outside"} <= set(found)
    assert (
        list(found["probability_lasting"]) == ["5", "10", "20", "50"]
        and found["critical"]["setting"] == "original_digits"
    )


def test_a_setting_beyond_what_was_seen_is_named_with_its_distance():
    """Nothing is said in silence about a width or a task that no run had."""
    found = {
        row["setting"]: row
        for row in predict({"n_embd": 64 * 8 * 3, "task": "sorting"}, law=QUIET)["outside"]
    }
    assert (
        found["n_embd"]["distance"] == 3
        and found["task"]["distance"] is None
        and set(found) == {"n_embd", "task"}
    )


def test_first_rounds_move_the_forecast():
    """A run that gained more than its settings promised is given a longer life than settings alone give
    it.
    """
    fast = replace(
        NOISY, values={**VALUES, "reach": VALUES["reach"] + 0.5}, spreads=dict.fromkeys(SPREADS, 0.0)
    )
    table, row = emulate(fast, {"si_method": "oracle", "original_digits": 8}, 6)
    wide = replace(NOISY, spreads={**NOISY.spreads, "run_gain": 0.5, "round_gain": 0.01})
    state, steps = seen_of(table, row.iloc[0])
    mean, deviation = run_effects(wide, steps)["gain"]
    assert mean > 0.3 and deviation < 0.2
    assert predict(row.iloc[0], table, law=wide)["until_round"] == state["round"]


@pytest.mark.parametrize(
    "settings",
    [
        {"si_method": "wish"},
        {"si_iter": 0},
        {"num_samples": "many"},
        {"n_embd": float("nan")},
        {"loss_on": "prompt"},
        {"si_method": ["none", "mv"]},
    ],
)
def test_impossible_settings_are_refused_in_one_line(settings):
    """What is no setting ends in one line that names it."""
    with pytest.raises(LawError, match=next(iter(settings))) as error:
        predict(settings, law=QUIET)
    assert "\n" not in str(error.value)


def test_a_setting_without_a_number_has_no_critical_value():
    """Asked for the critical task, the law says which settings have one."""
    with pytest.raises(LawError, match="si_iter"):
        critical({}, "task", law=QUIET)


@pytest.mark.parametrize(
    "damage",
    [
        lambda law: {**law, "values": {}},
        lambda law: {**law, "covariance": [[1]]},
        lambda law: [],
        lambda law: {**law, "spreads": dict.fromkeys(SPREADS, -1.0)},
    ],
)
def test_a_damaged_file_is_no_law(tmp_path, damage):
    """A file with other parameters, or numbers that cannot be, is refused in one line that names it."""
    path = save_law(QUIET, tmp_path / "law.json")
    assert load_law(path).seen == QUIET.seen
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(LawError, match="law.json"):
        load_law(path)


def test_neither_torch_nor_the_loop_is_imported():
    """A forecast from settings needs no model."""
    code = (
        "import sys, si_nb.law.prediction; print([name for name in sys.modules if name == 'torch' or "
        "name.startswith(('si_nb.loop', 'si_nb.model'))])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_the_law_that_comes_along_answers():
    """The committed numbers load, know how many base models they rest on, and give a probability."""
    law = load_law()
    assert law.base_models >= 50 and law.runs > law.base_models and law.made
    assert 0 <= predict({"task": "copy", "original_digits": 8})["probability_lasting"]["20"] <= 1
