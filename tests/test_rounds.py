"""The self-improvement loop: what it stores, what it never looks at."""

import json
import shutil
import signal
import threading
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

import si_nb.loop.evaluate
import si_nb.loop.rounds
import si_nb.loop.training
from si_nb.benchmarks.plain import plain_loss, plain_optimizer
from si_nb.law.length_curves import horizons
from si_nb.law.states import states
from si_nb.loop.bases import load_base_model, save_base_model
from si_nb.loop.branch import run_branch
from si_nb.loop.check import check_folder
from si_nb.loop.checkpoints import load_model, load_tensors, save_tensors
from si_nb.loop.evaluate import derive_rng, derive_seed, next_lengths
from si_nb.loop.export import labels_card, labels_table
from si_nb.loop.folder import locate_run, open_run
from si_nb.loop.rounds import run_experiment
from si_nb.loop.settings import (
    LATER_SETTINGS,
    TRAINING_SETTINGS,
    ConfigError,
    FirstSettings,
    RecipeSettings,
    base_key,
    base_name,
    evaluation_lengths,
    identity,
    make_config,
    run_name,
    stored_config,
)
from si_nb.loop.stored import open_stored
from si_nb.loop.training import base_training, make_base, mix, round_training
from si_nb.loop.voting import KEEP_RULES, KeepRule
from si_nb.loop.workers import Interrupted, side_by_side
from si_nb.model.generate import generate
from si_nb.model.trainer import DivergedError, TrainConfig, learning_rate_at
from si_nb.problems.noise import NOISE_KINDS
from si_nb.problems.tasks import SPLITS, TASKS, is_right, make_problems, problem_class
from si_nb.problems.tokenizer import decode
from si_nb.record.storage import write_sealed
from si_nb.record.table import QUANTITIES, read_table, trajectory

CPU = torch.device("cpu")
ROUNDS, VOTERS = 2, 3
SETTINGS = dict(
    task="copy", si_method=tuple(KEEP_RULES), original_digits=3, si_rounds=ROUNDS, n_layer=2, n_head=2,
    n_embd=32,
    base_samples=3_000, max_iters=400, decay=80, warmup=20, batch_size=64, learning_rate=5e-3, si_iter=20,
    vote_iter_growth=4,
    eval_interval=10, eval_samples=64, num_samples=80, voters=VOTERS, vote_threshold=0.6, device="cpu",
)  # fmt: skip


def config_of(**changes):
    return make_config(**{**SETTINGS, **changes})


def small(**changes):
    """Two arms and few steps, for what does not depend on a good model."""
    return config_of(
        **{
            **dict(
                si_method=("none", "mv_length"), max_iters=40, base_samples=1_000, si_iter=10, num_samples=40
            ),
            **changes,
        }
    )


def contents(folder):
    """Every byte of the table, the kept labels and the weights, by file name."""
    files = [
        folder.measurements,
        *folder.data.glob("*"),
        *folder.models.rglob("*.safetensors"),
        *folder.rounds.glob("*.safetensors"),
    ]
    return {path.name: path.read_bytes() for path in files}


def kept_rows(path):
    """The tokens of a file of kept labels."""
    return load_file(path)["rows"].numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with all rules, never interrupted."""
    return run_experiment(
        config_of(), tmp_path_factory.mktemp("whole") / "run", progress=False, workers=VOTERS
    )


@pytest.fixture(scope="module")
def table(folder):
    return read_table(folder.measurements)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory):
    """Base models of the small configuration, and no round."""
    return run_experiment(
        small(), tmp_path_factory.mktemp("base") / "run", progress=False, skip_si=True
    ).models.parent


def base_files(models_dir):
    """The files of all base models in a folder."""
    return sorted(models_dir.glob("*-base-*/voter_*.safetensors"))


# --- what a run stores


def test_every_quantity_is_measured(table):
    """All arms, rounds, voters, lengths and quantities are in the table, and nothing else is."""
    config = config_of()
    assert set(table["arm"]) == set(KEEP_RULES) and set(table["quantity"]) == set(QUANTITIES)
    for arm, rule in KEEP_RULES.items():
        voters = VOTERS if rule.vote else 1
        for number in range(ROUNDS + 1):
            rows = table[(table["arm"] == arm) & (table["round"] == number)]
            counts = rows.groupby("quantity").size().to_dict()
            expected = {"accuracy": voters * len(evaluation_lengths(config)), "accuracy_select": voters}
            if number:
                expected |= {"label_raw": voters, "label_kept": 1, "kept_right": 1, "kept_wrong": 1}
                expected |= {"agree_wrong": 1} if rule.vote else {}
            assert counts == expected
            assert set(rows[rows["quantity"] == "accuracy"]["length"]) == set(range(1, 3 + ROUNDS + 5 + 1))
            assert set(rows[rows["quantity"].str.contains("label|kept|select")]["length"]) == {3 + number}
    pooled = table["quantity"].isin(["label_kept", "kept_right", "kept_wrong", "agree_wrong"])
    assert (table[pooled]["voter"] == -1).all() and (table[~pooled]["voter"] >= 0).all()


def test_kept_labels_are_what_the_counts_say(folder, table):
    """Labels on disk, checked by eye of a plain rule, are as many and as right as the table says,
    and none is for evaluation.
    """
    for arm in KEEP_RULES:
        for number in range(1, ROUNDS + 1):
            rows = kept_rows(folder.kept_labels(arm, number))
            rows_text = decode(rows)
            right = sum(text == f"{text[: 3 + number]}={text[: 3 + number]}$" for text in rows_text)
            (kept,) = table[
                (table["arm"] == arm) & (table["round"] == number) & (table["quantity"] == "label_kept")
            ].itertuples()
            assert (kept.successes, kept.trials) == (right, len(rows)) and len(rows) <= SETTINGS[
                "num_samples"
            ]
            assert (problem_class(rows[:, : 4 + number]) >= SPLITS["train"][0]).all()
            if "length" in arm:
                assert all(text.index("$") == 2 * (3 + number) + 1 for text in rows_text)


def test_counts_of_one_round_agree(table):
    """Kept right and kept wrong make up the kept; right and wrong proposals make up what was tried."""
    counts = (
        table[table["round"] > 0]
        .set_index(["arm", "round", "quantity", "voter"])[["successes", "trials"]]
        .sort_index()
    )
    for arm in KEEP_RULES:
        for number in range(1, ROUNDS + 1):
            kept, right, wrong, raw = (
                counts.loc[(arm, number, name)]
                for name in ("label_kept", "kept_right", "kept_wrong", "label_raw")
            )
            assert kept["trials"].item() == right["successes"].item() + wrong["successes"].item()
            assert kept["successes"].item() == right["successes"].item()
            assert set(raw["trials"]) == {right["trials"].item() + wrong["trials"].item()}


def test_nothing_is_dropped_without_a_filter(table):
    """The arm without a filter keeps as many labels as it was asked for, right and wrong alike."""
    rows = table[(table["arm"] == "none") & (table["quantity"].str.startswith("kept"))]
    assert (rows["successes"] == rows["trials"]).all()
    assert (
        table[(table["arm"] == "none") & (table["quantity"] == "label_kept")]["trials"]
        == SETTINGS["num_samples"]
    ).all()


def test_oracle_keeps_only_right_labels(table):
    """The ceiling: no wrong label is kept and no right one is dropped,
    while other arms do keep wrong ones.
    """
    rates = table.groupby(["arm", "quantity"])[["successes", "trials"]].sum()
    kept, right, wrong = (rates.loc["oracle", name] for name in ("label_kept", "kept_right", "kept_wrong"))
    assert kept["successes"] == kept["trials"] > 0 and right["successes"] == right["trials"]
    assert wrong["successes"] == 0 < wrong["trials"] and rates.loc[("none", "kept_wrong"), "successes"] > 0


def test_truth_made_labels_are_all_right(table):
    """The sanity check: every problem is kept with its true answer, whatever the model answered."""
    rates = table[table["round"] > 0].groupby(["arm", "quantity"])[["successes", "trials"]].sum()
    kept, raw = (rates.loc["truth", name] for name in ("label_kept", "label_raw"))
    assert kept["successes"] == kept["trials"] == ROUNDS * SETTINGS["num_samples"]
    assert raw["successes"] < raw["trials"] and rates.loc[("truth", "kept_wrong"), "trials"] == 0


def test_arms_share_their_base_models(folder, table):
    """One base model per voter, and in round 0 the same voter has the same counts in every arm."""
    assert sorted(path.name for path in folder.models.glob("*.safetensors")) == [
        f"voter_{voter}.safetensors" for voter in range(VOTERS)
    ]
    start = table[(table["round"] == 0) & (table["quantity"] == "accuracy")]
    assert (start.groupby(["voter", "length"])["successes"].nunique() == 1).all()
    assert (
        len(start.groupby("length")["successes"].unique().map(len).pipe(lambda n: n[n > 1])) > 0
    )  # but voters differ


def test_a_single_arm_starts_from_the_best_voter(folder, table):
    """Arms without a vote take the base model that answers most selection problems,
    counted here by decoding them.
    """
    config, task = config_of(), TASKS["copy"]
    seed, scores = derive_seed(config.seed, "best voter"), []
    for voter in range(VOTERS):
        model, right = load_model(folder.base_model(voter), config.model, CPU), 0
        for length in (3, 4):
            problems = make_problems(
                task, length, config.eval_samples, derive_rng(seed, "select", length), "select"
            )
            right += is_right(
                generate(model, problems.prompts, problems.answers.shape[1]), problems.answers
            ).sum()
        scores.append(int(right))
    chosen = table[table["arm"].isin(["none", "length_filter"]) & (table["voter"] >= 0)]["voter"].unique()
    assert chosen.tolist() == [int(np.argmax(scores))] and len(set(scores)) > 1, scores


def test_the_choice_never_sees_the_reported_problems(monkeypatch, models_dir, tmp_path):
    """Models that are the better on selection problems the worse they are on the reported ones:
    selection decides.
    """
    config = small(si_rounds=1)
    sums = [load_model(path, config.model, CPU).head.weight.sum().item() for path in base_files(models_dir)]

    def count_right(model, task, lengths, items, seed, split="evaluate"):
        rank = sorted(sums).index(model.head.weight.sum().item())
        return {length: rank if split == "select" else VOTERS - rank for length in lengths}

    monkeypatch.setattr(si_nb.loop.evaluate, "count_right", count_right)
    monkeypatch.setattr(si_nb.loop.rounds, "run_round", lambda *arguments: None)
    run = run_experiment(config, tmp_path / "run", models_dir=models_dir, progress=False)
    table = read_table(run.measurements)
    assert table[table["arm"] == "none"]["voter"].unique().tolist() == [int(np.argmax(sums))]


def test_weights_of_two_rounds_are_kept(folder):
    """Every base model and the last two rounds of every voter are there; what went before is gone."""
    names = {path.name for path in folder.rounds.glob("*_round_*.safetensors")}
    models = sum(VOTERS if rule.vote else 1 for rule in KEEP_RULES.values())
    assert len(names) == 2 * models and all(f"_round_{number:03d}" in " ".join(names) for number in (1, 2))


# --- the same numbers whatever happens


def test_workers_do_not_show(folder, tmp_path):
    """One worker writes the same bytes as three, from base training to the last count."""
    alone = run_experiment(config_of(), tmp_path / "run", progress=False, workers=1)
    assert contents(alone) == contents(folder)


def test_dropout_does_not_depend_on_workers(tmp_path):
    """With dropout, whose random numbers are the process's own, two runs still agree in every byte."""
    config = small(dropout=0.1, si_rounds=1)
    first, again = (run_experiment(config, tmp_path / name, progress=False) for name in ("a", "b"))
    torch.rand(3)
    assert contents(first) == contents(again)


def test_a_finished_run_is_left_alone(folder):
    """Started again, a finished run changes nothing; asked not to resume, it is refused."""
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.is_file()}
    assert run_experiment(config_of(), folder.path, progress=False) == folder
    with pytest.raises(ConfigError, match="already holds a run"):
        run_experiment(config_of(), folder.path, progress=False, resume="never")
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.is_file()} == before


def test_a_changed_configuration_is_refused(folder):
    """Another configuration in the same folder is one line that names what differs, and touches nothing."""
    before = contents(folder)
    with pytest.raises(ConfigError) as error:
        run_experiment(config_of(si_rounds=3, learning_rate=1e-3), folder.path, progress=False)
    message = str(error.value)
    assert "si_rounds (was 2, now 3)" in message and "learning_rate (was 0.005, now 0.001)" in message
    assert "n_embd" not in message and "\n" not in message and contents(folder) == before


# --- options


def claims(monkeypatch, longest):
    """Let every model seem perfect up to a length."""

    def count_right(model, task, lengths, items, seed, split="evaluate"):
        return {length: items if length <= longest else 0 for length in lengths}

    monkeypatch.setattr(si_nb.loop.evaluate, "count_right", count_right)


def test_accelerated_rounds_take_in_what_is_mastered(monkeypatch, models_dir, tmp_path):
    """Lengths are added while the models score 99%, all of them are labelled,
    and the newest one is measured.
    """
    claims(monkeypatch, 6)
    config = small(accelerated=True)
    run = run_experiment(config, tmp_path / "run", models_dir=models_dir, progress=False)
    table = read_table(run.measurements)
    lengths = (
        table[table["quantity"] == "label_raw"].groupby("round")["length"].unique().map(sorted).to_dict()
    )
    assert lengths == {1: [4, 5, 6, 7], 2: [8]}
    rows = kept_rows(run.kept_labels("none", 1))
    assert [sum(text.index("=") == length for text in decode(rows)) for length in (4, 5, 6, 7)] == [
        10,
        10,
        10,
        10,
    ]
    assert set(table[(table["round"] == 2) & (table["quantity"] == "accuracy")]["length"]) == set(
        range(1, 8 + 5 + 1)
    )


def test_accelerated_rounds_end_with_the_block(monkeypatch, models_dir, tmp_path):
    """An arm that has come to the end of the block stays there instead of asking for problems that do not
    fit.
    """
    claims(monkeypatch, 99)
    config = small(accelerated=True, block_size=20, si_rounds=2)  # 9 digits take 20 tokens
    run = run_experiment(config, tmp_path / "run", progress=False)
    table = read_table(run.measurements)
    lengths = (
        table[table["quantity"] == "label_raw"].groupby("round")["length"].unique().map(sorted).to_dict()
    )
    assert lengths == {1: [4, 5, 6, 7, 8, 9], 2: [9]} and table["length"].max() == 9


@pytest.mark.parametrize(
    "accuracy, items, expected", [(0.99, 2_048, [4]), (0.98, 100, [4, 5]), (0.96, 50, [4, 5, 6])]
)
def test_what_counts_as_mastered_can_be_set(monkeypatch, accuracy, items, expected):
    """The share of right answers that takes in another length, and how many problems it is told from."""
    asked = []

    def count_right(model, task, lengths, items, *rest):
        asked.append(items)
        return {length: round({4: 0.98, 5: 0.96}.get(length, 0) * items) for length in lengths}

    monkeypatch.setattr(si_nb.loop.evaluate, "count_right", count_right)
    config = small(accelerated=True, accelerated_accuracy=accuracy, accelerated_items=items)
    assert next_lengths(config, [object()], 3, 1) == expected and set(asked) == {items}


def test_acceleration_goes_on_from_the_lengths_of_the_plan(monkeypatch):
    """Several lengths a round and the accelerated schedule: the latter adds to the former."""
    claims(monkeypatch, 6)
    config = small(accelerated=True, lengths_per_round=2)
    assert next_lengths(config, [object()], 3, 1) == [4, 5, 6, 7]
    assert next_lengths(config, [object()], 6, 1) == [7, 8]


def test_the_99_percent_are_counted_over_all_voters(monkeypatch):
    """A length is taken in when the voters' mean reaches 99%, not before."""
    config, models = small(accelerated=True), [object(), object()]
    for right, expected in (((2048, 2008), [4, 5]), ((2048, 2006), [4])):  # 99% of 2 * 2048 is 4055.04
        counts = dict(zip(models, right, strict=True))
        monkeypatch.setattr(
            si_nb.loop.evaluate,
            "count_right",
            lambda model, task, lengths, *rest, counts=counts: {
                n: counts[model] if n == 4 else 0 for n in lengths
            },
        )
        assert next_lengths(config, models, 3, 1) == expected


# --- several lengths in a round


def labelled_lengths(table):
    """Lengths by round at which labels were made, in order."""
    rows = table[table["quantity"] == "label_raw"]
    return rows.groupby("round")["length"].unique().map(sorted).to_dict()


@pytest.fixture(scope="module")
def stretched(models_dir, tmp_path_factory):
    """A run that takes in three lengths in each round, never interrupted."""
    place = tmp_path_factory.mktemp("stretched") / "run"
    return run_experiment(small(lengths_per_round=3), place, models_dir=models_dir, progress=False)


def test_a_round_takes_in_as_many_lengths_as_are_asked_for(stretched):
    """Labels are shared out among the lengths, all of them are stored, and accuracy goes beyond the last."""
    config, table = small(lengths_per_round=3), read_table(stretched.measurements)
    assert config.last_length == 9 and labelled_lengths(table) == {1: [4, 5, 6], 2: [7, 8, 9]}
    for number, lengths in labelled_lengths(table).items():
        texts = decode(kept_rows(stretched.kept_labels("none", number)))
        assert [sum(text.index("=") == length for text in texts) for length in lengths] == [13, 13, 13]
    accuracy = table[table["quantity"] == "accuracy"]
    assert set(accuracy["length"]) == set(range(1, 9 + 5 + 1))
    newest = table[table["quantity"] == "accuracy_select"].groupby("round")["length"].unique()
    assert newest.map(list).to_dict() == {0: [3], 1: [6], 2: [9]}


def test_the_newest_length_is_read_from_the_table(stretched):
    """Trajectory, horizons and states have the largest length of each round, and the base length before."""
    table = read_table(stretched.measurements)
    for read in (trajectory, states, horizons):
        assert read(table).groupby("round")["length"].unique().map(list).to_dict() == {0: [3], 1: [6], 2: [9]}


def interrupt_at(monkeypatch, place, call):
    """Have Ctrl-C pressed when a function of the rounds is called for the so many-th time."""
    plain, calls = getattr(si_nb.loop.rounds, place), []

    def interrupted(*arguments):
        calls.append(place)
        if len(calls) == call:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(si_nb.loop.rounds, place, interrupted)


@pytest.mark.parametrize(
    "place, call",
    [("label_round", 1), ("label_round", 2), ("train_arms", 1), ("measure", 2), ("label_round", 4)],
)
def test_an_interrupted_stretched_run_ends_in_the_same_bytes(
    place, call, models_dir, stretched, monkeypatch, tmp_path
):
    """Stopped before the labels of an arm, in training or before measuring, and begun again."""
    interrupt_at(monkeypatch, place, call)
    again = dict(models_dir=models_dir, progress=False)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(small(lengths_per_round=3), tmp_path / "run", **again)
    run = run_experiment(small(lengths_per_round=3), tmp_path / "run", **again)
    assert contents(run) == contents(stretched)


def test_older_rounds_weigh_as_many_lengths_as_they_hold():
    """Of the half that is not new, base lengths and older rounds have shares by their numbers of lengths."""
    rows = [np.zeros((1, 2), dtype=np.uint8)] * 3
    for lengths, shares in ((1, [0.375, 0.0625, 0.0625, 0.5]), (3, [0.25, 0.125, 0.125, 0.5])):
        config = small(original_digits=6, lengths_per_round=lengths)
        assert mix(config, rows[0], rows, CPU).shares.tolist() == shares


def test_another_number_of_lengths_is_another_run(stretched, models_dir):
    """A folder of three lengths a round is not gone on with by two, nor by one; base models are shared."""
    for lengths in (1, 2):
        with pytest.raises(ConfigError, match=rf"lengths_per_round \(was 3, now {lengths}\)"):
            run_experiment(small(lengths_per_round=lengths), stretched.path, models_dir=models_dir)
    assert base_key(small(lengths_per_round=3)) == base_key(small())


def test_a_branch_may_change_how_many_lengths_a_round_takes_in(stretched, models_dir, tmp_path):
    """From its stored round on a branch takes in two lengths; check is content with both."""
    run = open_stored(stretched.path, models_dir)
    place = run_branch(run, 1, tmp_path / "run", {"lengths_per_round": 2}, progress=False)
    assert labelled_lengths(read_table(place.measurements)) == {1: [4, 5, 6], 2: [7, 8]}
    assert check_folder(place.path)[0] == []


# --- runs made before a setting was there


def test_runs_keep_their_names_when_settings_are_added():
    """Names, base models and identity of presets and of committed runs are what they were made with."""
    names = {
        None: ("a5b1b574", "b58ee969"), "paper": ("de31be93", "b58ee969"), "quick": ("b9dfc35e", "9ef46768"),
        "tiny": ("a1de9451", "c46929b7"),
    }  # fmt: skip
    for preset, (own, base) in names.items():
        config = make_config(preset)
        assert run_name(config).endswith(own) and base_name(config).endswith(base)
    folder = ROOT / "results" / "quick" / "seed0"
    facts = json.loads((folder / "config.json").read_text())
    config = stored_config(facts)
    assert run_name(config) == read_table(folder)["run_id"].iloc[0] and "lengths_per_round" not in facts
    assert identity(config) == {name: facts[name] for name in identity(config)}


def test_runs_of_a_sweep_keep_their_names():
    """Every row of a committed runs.csv, which has no later setting, still has the name of its settings."""
    rows = pd.read_csv(ROOT / "results" / "conditions" / "runs.csv")
    for row in rows.to_dict("records"):
        facts = {**row, "si_method": [row["si_method"]]}
        assert run_name(stored_config(facts)) == row["run_id"]


def test_an_old_folder_is_gone_on_with(tmp_path, models_dir):
    """A config.json without later settings is that of their defaults, and of nothing else."""
    open_run(small(), tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "config.json").read_text())
    old = {name: value for name, value in facts.items() if name not in LATER_SETTINGS}
    assert stored_config(facts) == stored_config(old) == small() and len(old) == len(fields(FirstSettings))
    write_sealed(tmp_path / "run" / "config.json", json.dumps(old).encode())
    assert locate_run(small(lengths_per_round=1), tmp_path / "run").path == tmp_path / "run"
    with pytest.raises(ConfigError, match=r"accelerated_items \(was 2048, now 9\)"):
        locate_run(small(accelerated_items=9), tmp_path / "run")


NOISE = dict(si_method=("none", "mv"), si_iter=30, num_samples=300)


@pytest.fixture(scope="module")
def without_noise(folder, tmp_path_factory):
    return run_experiment(
        config_of(**NOISE),
        tmp_path_factory.mktemp("noise") / "run",
        models_dir=folder.models.parent,
        progress=False,
    )


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_injected_noise_starts_in_its_round(kind, folder, without_noise, tmp_path):
    """Noise in round 2 leaves round 1 as it was; in round 2 it changes the given fraction of labels,
    no prompt and no raw count.
    """
    config = config_of(**NOISE, noise_round=2, noise_fraction=0.5, noise_kind=kind)
    noisy = run_experiment(config, tmp_path / "noisy", models_dir=folder.models.parent, progress=False)
    for arm in NOISE["si_method"]:
        assert (kept_rows(without_noise.kept_labels(arm, 1)) == kept_rows(noisy.kept_labels(arm, 1))).all()
    before, after = (kept_rows(run.kept_labels("none", 2)) for run in (without_noise, noisy))
    share = 0.4 if kind == "perturbed" else 0.5  # of which a fifth stay as they were
    assert (before[:, :6] == after[:, :6]).all() and abs((before != after).any(axis=1).mean() - share) < 0.1
    tables = [read_table(run.measurements).drop(columns="run_id") for run in (without_noise, noisy)]
    untouched = ["label_raw", "kept_right", "kept_wrong", "agree_wrong"]
    same = [t[(t["round"] < 2) | ((t["round"] == 2) & t["quantity"].isin(untouched))] for t in tables]
    assert same[0].equals(same[1]) and not tables[0].equals(tables[1])
    kept = [
        t[(t["arm"] == "none") & (t["round"] == 2) & (t["quantity"] == "label_kept")]["successes"].item()
        for t in tables
    ]
    assert kept[0] > kept[1] == sum(text[:5] + "=" + text[:5] + "$" == text for text in decode(after))


def test_a_rule_that_keeps_nothing_starves_its_arm(monkeypatch, models_dir, tmp_path):
    """An arm without labels is recorded as such, trains nothing, keeps its weights,
    and can take up again later.
    """
    keep = {"never": lambda lengths: False, "later": lambda lengths: 4 not in lengths}
    for name, condition in keep.items():
        rule = KeepRule(
            name,
            "unvoted",
            lambda proposal, lengths, _, condition=condition: np.full(
                len(proposal.votes), condition(lengths)
            ),
            tries=1,
        )
        monkeypatch.setitem(KEEP_RULES, name, rule)
    run = run_experiment(
        small(si_method=("never", "later", "mv")), tmp_path / "run", models_dir=models_dir, progress=False
    )
    table = read_table(run.measurements)
    kept = table[table["quantity"] == "label_kept"].set_index(["arm", "round"])["trials"]
    assert kept["never"].tolist() == [0, 0] and kept["later"].tolist() == [0, 40]
    assert (table[table["quantity"] == "kept_right"].set_index("arm").loc["never", "successes"] == 0).all()
    (voter,) = table[(table["arm"] == "never") & (table["voter"] >= 0)]["voter"].unique()
    base = load_file(run.base_model(voter))
    for arm, number, same in (("never", 2, True), ("later", 1, True), ("later", 2, False)):
        weights = load_file(run.round_model(arm, voter, number))
        assert all(torch.equal(weights[name], base[name]) for name in base) == same, (arm, number)
    assert (
        table[(table["quantity"] == "accuracy") & (table["round"] == 2)]["trials"] == SETTINGS["eval_samples"]
    ).all()


# --- stages, and folders that are shared


def test_base_only_and_rounds_only(models_dir, tmp_path):
    """skip_si stops after the base models; skip_base_model_train starts from them;
    together they are one whole run.
    """
    stamps = {path: path.stat().st_mtime_ns for path in base_files(models_dir)}
    assert len(stamps) == VOTERS and not (models_dir.parent / "measurements.csv").exists()
    parts = run_experiment(
        small(), tmp_path / "parts", models_dir=models_dir, progress=False, skip_base_model_train=True
    )
    whole = run_experiment(small(), tmp_path / "whole", progress=False)
    assert parts.measurements.read_bytes() == whole.measurements.read_bytes()
    assert {path: path.stat().st_mtime_ns for path in base_files(models_dir)} == stamps


def test_absent_base_models_are_named(tmp_path):
    """skip_base_model_train without base models is one line that names the missing file,
    before anything is computed.
    """
    with pytest.raises(ConfigError, match="voter_0.safetensors: no such base model"):
        run_experiment(
            small(),
            tmp_path / "run",
            models_dir=tmp_path / "empty",
            progress=False,
            skip_base_model_train=True,
        )


def test_foreign_base_models_are_refused(models_dir, tmp_path):
    """Base models of other training are used only when asked for; of another task or size, never."""
    for changes, named in (
        (dict(task="reverse"), "task copy instead of reverse"),
        (dict(n_embd=48), "n_embd 32 instead of 48"),
    ):
        with pytest.raises(ConfigError, match=named):
            run_experiment(
                small(**changes),
                tmp_path / "b",
                models_dir=models_dir,
                progress=False,
                skip_base_model_train=True,
            )
    run = run_experiment(
        small(max_iters=50, si_rounds=1),
        tmp_path / "c",
        models_dir=models_dir,
        progress=False,
        skip_base_model_train=True,
    )
    assert read_table(run.measurements)["round"].max() == 1
    assert json.loads(run.config.read_text())["base_models"]["training"]["max_iters"] == 40


def test_runs_of_any_settings_share_a_models_folder(models_dir, tmp_path):
    """Runs of other seeds and training find or train their own base models in one folder,
    and write the tables of runs by themselves.
    """
    for number, changes in enumerate((dict(), dict(seed=1), dict(max_iters=50))):
        shared = run_experiment(
            small(si_rounds=1, **changes), tmp_path / f"shared{number}", tmp_path / "models", progress=False
        )
        alone = run_experiment(small(si_rounds=1, **changes), tmp_path / f"alone{number}", progress=False)
        assert (
            shared.measurements.read_bytes() == alone.measurements.read_bytes()
            and shared.models.parent == tmp_path / "models"
        )


def other_base(tmp_path, **changes):
    """Base models of another seed and training, in a folder of their own."""
    return run_experiment(
        small(**changes), tmp_path / "other", tmp_path / "models", progress=False, skip_si=True
    )


def test_a_run_says_whose_base_models_it_took(tmp_path, capsys):
    """The only base models that fit are taken; a line and config.json say whose they are,
    and another seed's table is not the run's own.
    """
    other = other_base(tmp_path, seed=1, max_iters=30)
    run = run_experiment(
        small(si_rounds=1), tmp_path / "run", tmp_path / "models", progress=False, skip_base_model_train=True
    )
    assert "seed 1 instead of 0, max_iters 30 instead of 40" in capsys.readouterr().err
    recorded = json.loads(run.config.read_text())["base_models"]
    assert (
        recorded["training"]["seed"] == 1
        and len(set(recorded["weights"])) == VOTERS
        and run.models == other.models
    )
    own = run_experiment(small(si_rounds=1), tmp_path / "own", progress=False)
    assert own.measurements.read_bytes() != run.measurements.read_bytes()


def test_a_choice_between_base_models_is_left_to_the_user(tmp_path):
    """Several that fit are refused by name; the folder of one can be given instead of the folder of all."""
    sets = [
        run_experiment(
            small(seed=seed), tmp_path / str(seed), tmp_path / "models", progress=False, skip_si=True
        ).models
        for seed in (1, 2)
    ]
    named = "several base models fit .*copy-seed1-base-.*copy-seed2-base-"
    with pytest.raises(ConfigError, match=named):
        run_experiment(
            small(si_rounds=1),
            tmp_path / "run",
            tmp_path / "models",
            progress=False,
            skip_base_model_train=True,
        )
    run = run_experiment(
        small(si_rounds=1), tmp_path / "run", sets[1], progress=False, skip_base_model_train=True
    )
    assert json.loads(run.config.read_text())["base_models"]["training"]["seed"] == 2


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_run_goes_on_with_the_base_models_that_it_began_with(tmp_path, rounds, monkeypatch):
    """Neither without the flag nor with other base models does a run go on that began with somebody else's;
    with those it does.
    """
    other_base(tmp_path, seed=1)
    place = (tmp_path / "run", tmp_path / "models")
    whole = run_experiment(
        small(), tmp_path / "whole", tmp_path / "models", progress=False, skip_base_model_train=True
    )
    with monkeypatch.context() as patch:
        plain = si_nb.loop.rounds.run_round

        def run_round(*arguments):
            if arguments[-1] > rounds:
                raise KeyboardInterrupt
            return plain(*arguments)

        patch.setattr(si_nb.loop.rounds, "run_round", run_round)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(small(), *place, progress=False, skip_base_model_train=True)
    with pytest.raises(ConfigError, match="other training .*seed 1 instead of 0.*skip_base_model_train"):
        run_experiment(small(), *place, progress=False)
    run_experiment(
        small(seed=2), tmp_path / "third", tmp_path / "models", progress=False, skip_si=True
    )  # two sets fit now
    run_experiment(
        small(), tmp_path / "own", tmp_path / "models", progress=False, skip_si=True
    )  # and the one that the settings name
    run = run_experiment(small(), *place, progress=False, skip_base_model_train=True)
    assert run.measurements.read_bytes() == whole.measurements.read_bytes()


def test_other_weights_under_the_same_settings_are_refused(tmp_path, models_dir):
    """Base models that were replaced by others between two rounds are named, and the table stays as it is."""
    run = run_experiment(small(si_rounds=1), tmp_path / "run", progress=False)
    others = run_experiment(small(seed=1), tmp_path / "other", progress=False, skip_si=True)
    text = run.measurements.read_text().splitlines(keepends=True)
    run.measurements.write_text("".join(line for line in text if line.split(",")[5] != "1"))
    before = run.measurements.read_text()
    for voter in range(VOTERS):
        save_base_model(
            load_model(others.base_model(voter), small().model, CPU), small(), run.base_model(voter), voter
        )
    with pytest.raises(ConfigError, match="began with"):
        run_experiment(small(si_rounds=1), tmp_path / "run", progress=False)
    assert run.measurements.read_text() == before


def test_base_models_of_earlier_versions_are_taken(tmp_path, models_dir):
    """Files that lie flat in models_dir and do not name their voter are used when asked for;
    one of them twice is refused.
    """
    flat = tmp_path / "models"
    flat.mkdir()
    for voter, path in enumerate(base_files(models_dir)):
        weights, about = load_tensors(path)
        del about["voter"]
        save_tensors(flat / f"base_voter_{voter}.safetensors", weights, **about)
    old, new = (
        run_experiment(
            small(si_rounds=1), tmp_path / name, models, progress=False, skip_base_model_train=True
        )
        for name, models in (("old", flat), ("new", models_dir))
    )
    assert old.measurements.read_bytes() == new.measurements.read_bytes()
    for suffix in ("", ".sha256"):
        shutil.copy(flat / f"base_voter_0.safetensors{suffix}", flat / f"base_voter_1.safetensors{suffix}")
    (flat / "base_voter_1.safetensors.sha256").unlink()
    with pytest.raises(ConfigError, match="base_voter_1.safetensors: the same weights as voter 0"):
        run_experiment(
            small(si_rounds=1), tmp_path / "twice", flat, progress=False, skip_base_model_train=True
        )


def test_runs_that_share_folders_stay_apart(models_dir, tmp_path):
    """Two runs with common folders for weights and labels write the same tables as two runs with folders of
    their own.
    """
    for number, config in enumerate((small(), small(si_iter=14))):
        shared = run_experiment(
            config, tmp_path / f"shared{number}", models_dir, tmp_path / "data", progress=False
        )
        own = run_experiment(config, tmp_path / f"own{number}", models_dir=models_dir, progress=False)
        assert shared.measurements.read_bytes() == own.measurements.read_bytes()
        assert (
            shared.data.parent == tmp_path / "data"
            and len(list(shared.data.glob("*.safetensors"))) == 2 * ROUNDS
        )
    assert len(list((tmp_path / "data").iterdir())) == 2


def test_a_table_of_the_last_round_only_needs_its_own_weights(models_dir, tmp_path):
    """A run that is past its first round goes on without its base models, and does not train them again."""
    run = run_experiment(small(si_rounds=2), tmp_path / "run", progress=False)
    text = run.measurements.read_text().splitlines(keepends=True)
    complete = "".join(text)
    run.measurements.write_text("".join(line for line in text if line.split(",")[5] != "2"))
    shutil.rmtree(run.models)
    run_experiment(small(si_rounds=2), tmp_path / "run", progress=False)
    assert run.measurements.read_text() == complete and not run.models.exists()


# --- errors on the way


def test_a_failing_job_stops_the_others():
    """The first error is raised, and the others are told to stop."""
    stop = threading.Event()
    with pytest.raises(KeyError):
        side_by_side([lambda: {}["absent"], lambda: stop.wait(60)], 2, stop)
    assert stop.is_set()


def test_divergence_ends_a_run(tmp_path):
    """A voter that diverges ends the run with its own error,
    and no half-trained weights are left as a base model.
    """
    with pytest.raises(DivergedError, match="learning_rate"):
        run_experiment(small(learning_rate=1e30), tmp_path / "run", progress=False)
    assert not base_files(tmp_path / "run" / "models")


def test_an_open_folder_is_ready(tmp_path):
    """What identifies a run and its surroundings is on disk before anything is computed."""
    run = open_run(small(), tmp_path / "run")
    assert json.loads((run.path / "config.json").read_text())["max_iters"] == 40
    assert {"torch", "device", "commit", "python"} <= set(
        json.loads((run.path / "environment.json").read_text())
    )


# --- arms that stop early

LONGER = dict(si_rounds=4)
ENDS = {"none": 1, "mv_length": 3}


def stop_at(**rounds):
    """Say of each arm that it should stop from a round on, and keep the tables that this was judged by."""

    def after_round(table):
        after_round.tables.append(table)
        last = table.groupby("arm")["round"].max()
        return {arm: "enough" for arm, number in rounds.items() if last[arm] >= number}

    after_round.tables = []
    return after_round


def go(models_dir, run_dir, after_round=None):
    """Run, or go on with, four rounds from given base models,
    with all other weights in the run's own folder.
    """
    if not (run_dir / "models").exists():
        shutil.copytree(
            models_dir,
            run_dir / "models",
            ignore=lambda folder, names: [name for name in names if name.startswith(("none", "mv"))],
        )
    return run_experiment(small(**LONGER), run_dir, progress=False, after_round=after_round)


@pytest.fixture(scope="module")
def never_stopped(models_dir, tmp_path_factory):
    return go(models_dir, tmp_path_factory.mktemp("never") / "run")


@pytest.fixture(scope="module")
def stopped(models_dir, tmp_path_factory):
    """Two arms that were stopped after different rounds."""
    return go(models_dir, tmp_path_factory.mktemp("stopped") / "run", stop_at(**ENDS))


def test_a_stopped_arm_has_the_rows_it_had(never_stopped, stopped):
    """Up to its end an arm writes the rows of a run that nobody stops;
    the end of another arm does not show in them.
    """
    whole, short = (read_table(run.measurements) for run in (never_stopped, stopped))
    assert short.groupby("arm")["round"].max().to_dict() == ENDS
    assert short.equals(whole[whole["round"] <= whole["arm"].map(ENDS)].reset_index(drop=True))


def test_a_stopped_arm_keeps_its_newest_weights(never_stopped, stopped):
    """However far the others go, the last two rounds of every arm are there, and nothing of later ones."""
    found = {
        (path.name.split("_voter_")[0], int(path.stem[-3:]))
        for path in stopped.rounds.glob("*_round_*.safetensors")
    }
    assert found == {("none", 1), ("mv_length", 2), ("mv_length", 3)}
    assert len(list(stopped.data.glob("*.safetensors"))) == sum(ENDS.values())


def test_whoever_may_stop_arms_sees_every_round(models_dir, never_stopped, tmp_path, capsys):
    """The table so far is shown after the base measurement and every round but the last;
    who stops nothing changes no byte.
    """
    after_round = stop_at()
    run = go(models_dir, tmp_path / "run", after_round)
    assert contents(run) == contents(never_stopped) and [
        table["round"].max() for table in after_round.tables
    ] == [0, 1, 2, 3]
    assert (
        after_round.tables[-1].equals(read_table(run.measurements).query("round <= 3"))
        and "stopped" not in capsys.readouterr().err
    )


INTERRUPTIONS = [
    ("stored_labels", 4),
    ("label_round", 4),
    ("train_arms", 2),
    ("measure", 3),
    ("append_table", 3),
    ("forget_weights", 1),
    ("forget_weights", 2),
    ("_stop_arms", 2),
]


@pytest.mark.parametrize("place, call", INTERRUPTIONS)
def test_a_stopped_arm_stays_stopped_after_an_interruption(
    place, call, models_dir, stopped, monkeypatch, tmp_path
):
    """Interrupted before, at and after the end of an arm, a run goes on to the same bytes."""
    interrupt_at(monkeypatch, place, call)
    with pytest.raises(KeyboardInterrupt):
        go(models_dir, tmp_path / "run", stop_at(**ENDS))
    assert contents(go(models_dir, tmp_path / "run", stop_at(**ENDS))) == contents(stopped)


@pytest.mark.parametrize(
    "lost", ["mv_length_voter_0_round_003", "mv_length_voter_0_round_00?", "none_voter_?_round_001"]
)
def test_weights_of_stopped_arms_are_not_missed(lost, models_dir, stopped, never_stopped, tmp_path):
    """A run that goes on needs the weights of the arms that go on, makes those again,
    and ends in the same table.
    """
    copy = shutil.copytree(stopped.path, tmp_path / "run")
    for path in copy.rglob(f"{lost}.safetensors"):
        path.unlink()
    run = go(models_dir, copy, stop_at(none=1))
    rows, whole = read_table(run.measurements), read_table(never_stopped.measurements)
    assert rows.equals(
        whole[whole["round"] <= whole["arm"].map({"none": 1, "mv_length": 4})].reset_index(drop=True)
    )


def test_a_stopped_run_is_finished(models_dir, stopped, capsys):
    """Asked again, it says why its arms stopped and touches nothing."""
    before = {path: path.stat().st_mtime_ns for path in stopped.path.rglob("*") if path.is_file()}
    go(models_dir, stopped.path, stop_at(**ENDS))
    assert {path: path.stat().st_mtime_ns for path in stopped.path.rglob("*") if path.is_file()} == before
    said = capsys.readouterr().err.splitlines()
    assert sorted(said) == [
        f"si_nb: arm {arm} stopped after round {ENDS[arm]}: enough" for arm in ("mv_length", "none")
    ]


@pytest.mark.parametrize("after_round", [None, stop_at(mv_length=3)], ids=["nobody", "another"])
def test_arms_that_ended_apart_are_refused(after_round, models_dir, stopped):
    """When nobody says that the shorter arm was to stop, one line names it and the remedies,
    and nothing is touched.
    """
    before = contents(stopped)
    with pytest.raises(ConfigError) as error:
        go(models_dir, stopped.path, after_round)
    message = str(error.value)
    assert (
        "arm none ends at round 1, others at round 3" in message
        and "--stop_before_collapse" in message
        and "another run_dir" in message
    )
    assert "\n" not in message and contents(stopped) == before


@pytest.mark.parametrize("number", [0, 2])
def test_arms_that_ended_together_can_go_on(number, models_dir, never_stopped, tmp_path):
    """A run whose arms all stopped after one round is a run that was interrupted there:
    the same call without the function finishes it.
    """
    run = go(models_dir, tmp_path / "run", stop_at(none=number, mv_length=number))
    assert read_table(run.measurements)["round"].max() == number
    assert contents(go(models_dir, tmp_path / "run")) == contents(never_stopped)


def test_stopping_an_arm_that_is_not_there_is_refused(models_dir, tmp_path):
    """A name that no arm has is a mistake, not a wish to go on."""
    with pytest.raises(ConfigError, match="after_round stops mv, but the arms are none, mv_length"):
        go(models_dir, tmp_path / "run", lambda table: {"mv": "?"})


# --- the recipe

RECIPE = dict(
    positional_encoding="rotary", beta1=0.8, beta2=0.95, epsilon=1e-4, weight_decay=0.3, gradient_clip=0.5,
    learning_rate_floor=0.1, si_stable=4, carry_optimizer=True, newest_share=0.6, older_weight=0.5,
    own_labels=True, length_rule="near_longest", voters=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def cooked(tmp_path_factory):
    """A run in which no part of the recipe is the default."""
    recipe = {setting.name for setting in fields(RecipeSettings)} - {
        setting.name for setting in fields(FirstSettings)
    }
    assert recipe and not {name for name in recipe if RECIPE[name] == LATER_SETTINGS[name]}
    return run_experiment(small(**RECIPE), tmp_path_factory.mktemp("recipe") / "run", progress=False)


def test_every_part_of_the_recipe_reaches_training():
    """Base models and rounds are trained with the settings, and with what was fixed before by default."""
    for config in (small(), small(**RECIPE)):
        for training in (base_training(config), round_training(config, "mv_length", 2)):
            assert {name: getattr(training, name) for name in TRAINING_SETTINGS} == {
                name: getattr(config, name) for name in TRAINING_SETTINGS
            }
    fixed = TrainConfig(14, 0, 14, 64, 5e-3)
    assert round_training(small(), "mv_length", 2) == fixed
    assert round_training(small(**RECIPE), "mv_length", 2).decay == 14 - 4
    slower = small(si_learning_rate=1e-5)
    assert round_training(slower, "mv_length", 2) == replace(fixed, learning_rate=1e-5)
    assert base_training(slower) == base_training(small()) and base_key(slower) == base_key(small())


def test_the_optimizer_is_carried_on(cooked):
    """Two rounds, stepped plainly by torch's own class that lives through both, end in the stored weights."""
    config = small(**RECIPE)
    rounds = [load_file(cooked.kept_labels("none", number))["rows"].numpy() for number in (1, 2)]
    (voter,) = {int(path.name.split("_")[2]) for path in cooked.rounds.glob("none_voter_*")}
    model = load_base_model(config, cooked, voter, CPU)
    training = round_training(config, "none", 1)
    usual = plain_optimizer(model, training)
    for number in (1, 2):
        mixture, rng = (
            mix(config, make_base(config), rounds[:number], CPU),
            derive_rng(0, "none", number, voter),
        )
        for step in range(training.steps):
            for group in usual.param_groups:
                group["lr"] = learning_rate_at(step, training)
            usual.zero_grad()
            plain_loss(model, mixture.draw(64, rng)[0], config.loss_on).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            usual.step()
        stored = load_file(cooked.round_model("none", voter, number))
        assert stored["optimizer.0.step"] == number * 10
        assert all(
            torch.allclose(weight, stored[name], atol=2e-5) for name, weight in model.state_dict().items()
        )


@pytest.mark.parametrize("number", [1, 2])
def test_a_carried_optimizer_survives_a_kill(cooked, number, tmp_path, monkeypatch):
    """Stopped after five steps of a round and begun again, a run ends in the same bytes."""
    save, calls = si_nb.loop.training.save_checkpoint, []

    def stop_at_five(folder, name, state, **about):
        calls.append(name)
        if calls.count(f"none_{number}_{name[-1]}") == 5:
            signal.raise_signal(signal.SIGINT)
        save(folder, name, state, **about)

    monkeypatch.setattr(si_nb.loop.training, "save_checkpoint", stop_at_five)
    go = partial(run_experiment, small(**RECIPE), tmp_path / "run", progress=False, workers=1)
    with pytest.raises(Interrupted):
        go(checkpoint_minutes=0)
    assert contents(go()) == contents(cooked)


def test_own_labels_are_each_voters_answers(models_dir, tmp_path):
    """Every voter learns from its own answers to the problems that the vote keeps: what it answers to their
    prompts. Problems and counts are those of shared labels; a voter that was never outvoted ends as there.
    """
    settings = dict(si_method=("mv",), si_rounds=1, voters=3, vote_threshold=0.6)
    runs = {}
    for own in (False, True):
        config, place = small(**settings, own_labels=own), tmp_path / f"{own}" / "run"
        runs[own] = run_experiment(
            config, place, models_dir=models_dir, progress=False, skip_base_model_train=True
        )
    stored = {own: load_file(run.kept_labels("mv", 1)) for own, run in runs.items()}
    rows, separate = stored[True]["rows"], stored[True]["own"].numpy()
    assert torch.equal(rows, stored[False]["rows"]) and "own" not in stored[False]
    width = TASKS["copy"].prompt_width(4)
    for voter in range(3):
        model = load_base_model(small(**settings), runs[True], voter, CPU)
        answers = generate(model, rows.numpy()[:, :width], rows.shape[1] - width)
        assert (separate[voter][:, width:] == answers).all()
        assert (separate[voter][:, :width] == rows.numpy()[:, :width]).all()
        weights = [load_file(runs[own].round_model("mv", voter, 1)) for own in (False, True)]
        same = all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
        assert same == (separate[voter] == rows.numpy()).all()
    assert (separate != rows.numpy()).any()
    exported = labels_table(open_stored(runs[True].path, models_dir), "mv")
    kept = exported[exported["kept"]]
    for voter in range(3):
        learned = (kept["prompt"] + kept[f"own_{voter}"]).tolist()
        assert learned == [row.removesuffix("$") for row in decode(separate[voter])]
        assert exported[f"own_{voter}"].count() == len(kept)
    assert "own_0" not in labels_table(open_stored(runs[False].path, models_dir), "mv")
    card = labels_card(open_stored(runs[True].path), "mv", exported)
    assert "| own_2 | the answer that voter 2 learned from |" in card


def test_what_can_be_set_of_a_mixture():
    """The newest have their share; the rest is shared out by weight, older rounds against base lengths."""
    rows = np.zeros((2, 3), dtype=np.uint8)
    shares = mix(small(newest_share=0.6, older_weight=0.5), rows, [rows] * 3, CPU).shares
    assert np.allclose(shares, [0.4 * 3 / 4, 0.4 / 8, 0.4 / 8, 0.6])
    assert np.allclose(mix(small(older_weight=0), rows, [rows] * 2, CPU).shares, [0.5, 0, 0.5])
    assert np.allclose(mix(small(newest_share=1.0), rows, [rows] * 2, CPU).shares, [0, 0, 1])
    for rounds in range(1, 6):  # the default is what was fixed before, bit for bit
        past = [3 / (3 + rounds - 1)] + [1 / (3 + rounds - 1)] * (rounds - 1)
        before = np.array([*past, 1.0]) / sum([*past, 1.0])
        assert (mix(small(), rows, [rows] * rounds, CPU).shares == before).all()
