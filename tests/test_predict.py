"""`si_nb predict`: what it prints, reads beside a table, refuses, and never imports."""

import json
import subprocess
import sys
from dataclasses import asdict, fields

import pandas as pd
import pytest
from conftest import ROOT

from si_nb.cli import main
from si_nb.law.conditions import ALIKE, MIDDLE
from si_nb.law.forecasters import common_settings
from si_nb.law.learning import load_law
from si_nb.law.monitor import SustainabilityMonitor
from si_nb.law.prediction import emulate, predict, run_effects, seen_of
from si_nb.law.round_curves import LawError
from si_nb.loop.settings import LATER_SETTINGS, RunConfig, make_config
from si_nb.record.table import read_settings, read_table, trajectory

SMALL = ["predict", "--task", "copy", "--original_digits", "8", "--n_embd", "64", "--n_head", "4"]
FIELDS = {"probability_lasting", "collapse_length", "collapse_round", "critical", "outside"}
RUN = sorted(path.parent for path in (ROOT / "results" / "copy").glob("*/config.json"))[0]


def said(capsys, *words):
    """What the command prints as JSON."""
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_has_every_field_and_each_keep_rule(capsys):
    """The fields at the top are those of the keep rule that lasts longest, named; `arms` holds all."""
    found = said(capsys, *SMALL, "--si_method", "none,mv_length", "--critical", "num_samples")
    assert FIELDS | {"si_method", "arms"} <= set(found) and set(found["arms"]) == {"none", "mv_length"}
    best = found["arms"][found["si_method"]]
    assert best["probability_lasting"] == found["probability_lasting"]
    lasting = {arm: answer["probability_lasting"]["20"] for arm, answer in found["arms"].items()}
    assert lasting[found["si_method"]] == max(lasting.values())
    assert found["critical"]["setting"] == "num_samples"


def test_a_configuration_will_do():
    """In Python `predict` takes a run's configuration as it is; one keep rule at a time."""
    config = make_config("quick", si_method=("mv_length",))
    assert predict(config, draws=200) == predict({**asdict(config), "device": "cpu"}, draws=200)
    with pytest.raises(LawError, match="one keep rule at a time"):
        predict(make_config("quick"), draws=200)


def test_the_same_command_says_the_same(capsys):
    """Chance has a seed of its own."""
    assert said(capsys, *SMALL) == said(capsys, *SMALL)


def test_a_setting_outside_of_what_was_measured_is_warned_of(capsys):
    """In words and in JSON, with the distance; never in silence."""
    assert main([*SMALL[:-4], "--n_embd", "384", "--n_head", "6"]) == 0
    assert "warning: outside of what was measured: n_embd 384" in capsys.readouterr().out
    outside = said(capsys, *SMALL[:-4], "--n_embd", "384", "--n_head", "6")["outside"]
    assert {row["setting"]: row["distance"] for row in outside}["n_embd"] == 4


def test_a_setting_that_the_law_does_not_read_is_warned_of_where_it_is_unusual(capsys):
    """Depth, optimiser and the like: nothing is said where they are as in the runs that were measured."""
    assert "n_layer" not in {row["setting"] for row in said(capsys, *SMALL, "--n_layer", "3")["outside"]}
    deep = said(capsys, *SMALL, "--n_layer", "6", "--positional_encoding", "rotary")["outside"]
    seen = {row["setting"]: row["seen"] for row in deep}
    assert seen["n_layer"] == [3, 4] and seen["positional_encoding"] == ["none"]
    assert main([*SMALL, "--n_layer", "6"]) == 0
    told = "warning: outside of what was measured: n_layer 6 (measured: 3 to 4; 1.5 times beyond)"
    assert told in capsys.readouterr().out


def test_two_lengths_a_round_are_forecast_and_warned_of(capsys):
    """Two lengths in each round: lengths count double, lives are shorter, and nothing like it was seen."""
    flags = (
        "--task copy --original_digits 6 --n_embd 32 --n_head 2 --max_iters 2500 --batch_size 64 --si_iter 50"
    )
    weak = ["predict", *flags.split(), "--si_method", "none", "--num_samples", "250", "--lengths_per_round"]
    one, two = (said(capsys, *weak, digits) for digits in "12")
    assert {"setting": "lengths_per_round", "value": 2, "seen": [1], "distance": None} in two["outside"]
    for found, digits in ((one, 1), (two, 2)):
        ends = [(found["collapse_length"][end], found["collapse_round"][end]) for end in ("low", "value")]
        assert [length - 6 for length, _ in ends] == [digits * number for _, number in ends]
    assert two["collapse_round"]["value"] < one["collapse_round"]["value"]


def test_the_size_of_products_grows_with_the_root_of_a_place(capsys):
    """A task's own price of a length comes to the law through the command line, here half of a digit's."""
    settings = {"task": "multiplication_by_pairs", "original_digits": 25, "n_embd": 64, "n_head": 4}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    words += ["--si_method", "none", "--si_rounds", "3", "--block_size", "200"]
    found = said(capsys, "predict", *words)["probability_lasting"]
    told = {**asdict(make_config(**settings, si_method=("none",), si_rounds=3, block_size=200))}
    half, whole = (predict({**told, "size_exponent": power})["probability_lasting"] for power in (0.5, 1.0))
    assert found == half != whole and half["20"] > whole["20"]


def test_a_branch_is_read_from_its_stored_round_on(capsys):
    """Rounds made with other settings say nothing of how the run differs, and it begins after them."""
    law, settings = load_law(), {"task": "copy", "si_method": "none", "original_digits": 10}
    table, _ = emulate(law, settings, rounds=6, seed=3)
    branch = {**settings, "branched": "after round 4"}
    for known in (branch, {**settings, "origin": {"round": 4}}):
        assert predict(known, table, 5, draws=200) == predict(branch, table, 5, draws=200)
        with pytest.raises(LawError, match="at least 4, the last one made with other settings"):
            predict(known, table, until_round=3)
    whole, part = (seen_of(table, settings, 6, since)[1] for since in (0, 4))
    assert part["round"].min() == 4 and whole["round"].min() == 0
    assert run_effects(law, part)["gain"][1] > run_effects(law, whole)["gain"][1]  # less is known of it


def test_measured_runs_are_alike_in_what_the_law_does_not_read():
    """Each setting is read by the law, refused, the same in all its runs, or said here to be no matter."""
    no_matter = {
        "seed",
        "n_head",
        "block_size",
        "base_samples",
        "decay",
        "warmup",
        "learning_rate",
        "si_rounds",
        "norm_epsilon",
        "rotary_base",  # there is no rotary encoding among them
    }
    no_matter |= {"eval_interval", "eval_samples", "device", "train_multiple_base"}  # measured, not changed
    no_matter |= {"accelerated_accuracy", "accelerated_items", "noise_round", "noise_kind"}  # parts of others
    named = {setting.name for setting in fields(RunConfig)}
    assert named == {*MIDDLE, *ALIKE, *no_matter}
    assert all(ALIKE[name] == LATER_SETTINGS[name] for name in set(ALIKE) & set(LATER_SETTINGS))
    for sweep in ("sweep", "long", "conditions"):
        runs = pd.read_csv(ROOT / "results" / sweep / "runs.csv")
        runs = runs[(runs["status"] != "unfinished") & (runs["noise_fraction"] == 0)]
        assert all((runs[name] == value).all() for name, value in ALIKE.items() if name in runs)


def test_settings_beside_a_table_fill_in_what_no_flag_says(capsys):
    """A run folder brings its settings; its base model's curve makes the forecast another one."""
    curve = said(capsys, "predict", "--from_base", str(RUN), "--si_method", "none")
    assert set(curve["arms"]) == {"none"} and curve["until_round"] == 0
    later = said(capsys, "predict", "--from_base", str(RUN), "--si_method", "none", "--until_round", "2")
    assert later["until_round"] == 2 and later["collapse_round"] != curve["collapse_round"]
    assert not curve["outside"] or all(row["setting"] != "original_digits" for row in curve["outside"])


def test_a_base_curve_serves_a_keep_rule_that_was_not_measured(capsys):
    """Every keep rule starts from the base model, so its curve is enough."""
    assert "oracle" not in set(read_table(RUN)["arm"])
    found = said(capsys, "predict", "--from_base", str(RUN), "--si_method", "oracle")
    assert found["until_round"] == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--critical", "task"], "task"),
        (["--critical", "wish"], "wish"),
        (["--from_base", "nowhere.csv"], "nowhere.csv"),
        (["--preset", "nothing"], "nothing"),
        (["--si_iter", "-1"], "si_iter"),
        (["--si_method", "wish"], "wish"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys, words, named):
    """One line that names it, exit code 2."""
    try:
        code = main([*SMALL, *words])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2 and not printed.out and named in printed.err and printed.err.count("\n") == 1


def test_no_torch_no_figures():
    """Neither torch nor matplotlib is imported: a prediction is there at once."""
    unwanted = ("torch", "matplotlib", "wandb")
    code = f"import sys; from si_nb.cli import main; main({SMALL}); "
    code += f"print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_advice_goes_on_from_the_rounds_seen():
    """A monitor that knows its settings says what to change; what it says lasts, seen from the same round."""
    table = read_table(RUN).query("arm == 'mv_length' and round <= 2")
    told = common_settings(trajectory(table), read_settings(RUN))
    advice = SustainabilityMonitor(2, settings=told).add(table).advice(20).set_index("setting")["needed"]
    changed = {**told, "si_method": "mv_length", "num_samples": advice["num_samples"]}
    lasting = predict(changed, table)["probability_lasting"]["20"]  # eighteen rounds more
    assert 0.4 < lasting < 0.7
    with pytest.raises(LawError, match="settings of the run are not known"):
        SustainabilityMonitor(2).add(table).advice()
