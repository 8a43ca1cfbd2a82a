"""Weights that are kept, and what can be done with them: measure again, ask, go on with other settings."""

import contextlib
import functools
import json
import re
import shutil
import signal

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import si_nb.loop.rounds
from si_nb.cli import main
from si_nb.loop.answers import edit_distance, evaluate_run
from si_nb.loop.branch import run_branch
from si_nb.loop.check import check_folder
from si_nb.loop.evaluate import derive_rng, derive_seed
from si_nb.loop.folder import kept_weights_from, read_facts, write_facts
from si_nb.loop.rounds import run_experiment
from si_nb.loop.settings import ConfigError, make_config, run_name
from si_nb.loop.stored import load_arm, open_stored
from si_nb.loop.workers import Interrupted
from si_nb.model.generate import generate
from si_nb.problems.tasks import TASKS, make_problems
from si_nb.problems.tokenizer import decode, encode
from si_nb.record.storage import remove_sealed, write_sealed
from si_nb.record.table import append_rows, read_table

ROUNDS, VOTERS = 4, 2
SETTINGS = dict(
    task="parity", si_method=("none", "mv_length"), original_digits=3, si_rounds=ROUNDS, n_layer=1, n_head=1,
    n_embd=16, base_samples=500, max_iters=60, batch_size=32, learning_rate=1e-2, loss_on="answer",
    si_iter=6, vote_iter_growth=0, eval_interval=10, eval_samples=20, num_samples=30, voters=VOTERS,
    vote_threshold=1.0, device="cpu",
)  # fmt: skip


def config_of(**changes):
    return make_config(**{**SETTINGS, **changes})


def rounds_kept(folder, arm="none"):
    """The rounds of which an arm's weights are on disk."""
    return sorted({int(path.stem[-3:]) for path in folder.rounds.glob(f"{arm}_voter_*.safetensors")})


def cut(place, last):
    """Let a run have come to a round and no further, as if it had been killed in the next one."""
    table = read_table(place / "measurements.csv")
    remove_sealed(place / "measurements.csv")
    append_rows(place / "measurements.csv", table[table["round"] <= last])
    for path in place.glob(f"*/*_round_{last + 1:03d}.*"):
        path.unlink()


def seal_of(path):
    return path.with_name(f"{path.name}.sha256")


def flip(path):
    """Change the last byte of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that kept the weights of all rounds."""
    return run_experiment(
        config_of(), tmp_path_factory.mktemp("kept") / "run", progress=False, keep_weights=True
    )


@pytest.fixture(scope="module")
def table(folder):
    return read_table(folder.measurements)


@pytest.fixture
def copy(folder, tmp_path):
    """The same run in a folder of its own, which a test may change; the path of that folder."""
    return shutil.copytree(folder.path, tmp_path / "run")


# --- weights of every round


def test_kept_weights_change_nothing_else(folder, tmp_path):
    """With and without them a run has the same name, table and labels, and weights of its last rounds."""
    plain = run_experiment(config_of(), tmp_path / "run", progress=False)
    assert plain.measurements.read_bytes() == folder.measurements.read_bytes()
    assert rounds_kept(plain) == [3, 4] and rounds_kept(folder) == [1, 2, 3, 4]
    for path in (*plain.rounds.glob("*_round_*.safetensors"), *plain.data.glob("*.safetensors")):
        assert path.read_bytes() == (folder.path / path.relative_to(plain.path)).read_bytes()
    assert check_folder(folder.path)[0] == check_folder(plain.path)[0] == []


def test_weights_once_kept_stay(copy):
    """A later command that does not ask for it, of a run that goes on or has ended, removes none of them."""
    cut(copy, ROUNDS - 1)
    again = run_experiment(config_of(), copy, progress=False)
    run_experiment(config_of(), copy, progress=False)
    assert rounds_kept(again) == [1, 2, 3, 4] and kept_weights_from(again) == 1


def test_keeping_may_begin_late(copy):
    """Asked for when three rounds are done, it keeps the last two of them and all that follow."""
    cut(copy, ROUNDS - 1)
    facts = read_facts(copy / "config.json")
    del facts["weights_kept_from"]
    write_facts(copy / "config.json", facts)
    for path in copy.glob("models/*_round_001.safetensors*"):
        path.unlink()
    again = run_experiment(config_of(), copy, progress=False, keep_weights=True)
    assert rounds_kept(again) == [2, 3, 4] and kept_weights_from(again) == 2
    assert check_folder(copy)[0] == []


def test_check_knows_the_kept_weights(copy):
    """One file of an early round missing and one damaged are two lines; no command makes these again."""
    lost, bad = (copy / "models" / f"mv_length_voter_{voter}_round_001.safetensors" for voter in (0, 1))
    lost.unlink()
    flip(bad)
    lines = {finding.path: str(finding) for finding in check_folder(copy)[0]}
    assert "missing; take it from a copy" in lines[lost] and "no command makes it again" in lines[bad]


# --- looking into a run


def call(capsys, *words):
    """Exit code, what is printed and what is said, of a command."""
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def refusal(capsys, *words):
    """The one line that a command is refused with."""
    with contextlib.suppress(SystemExit):
        assert main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1 and said.err.startswith("si_nb: "), said
    return said.err


def test_kept_weights_give_the_measured_table_again(folder, table, capsys):
    """Every arm and voter, after every round and before the first: the counts of the run, to the last one."""
    measured = table[table["quantity"] == "accuracy"].set_index(["arm", "round", "voter", "length"])[
        "successes"
    ]
    for number in range(ROUNDS + 1):
        code, out, _ = call(capsys, "evaluate", folder.path, "--round", number, "--json")
        rows = json.loads(out)
        assert code == 0 and len(rows) == len(measured.xs(number, level="round"))
        for row in rows:
            assert row["right"] == measured[row["arm"], number, row["voter"], row["length"]]
            assert row["low"] <= row["accuracy"] <= row["high"]


def test_means_are_those_of_the_answers(folder):
    """Edit distance, right lengths and first errors, counted again over the same answers."""
    run = open_stored(folder.path)
    ((voter, model),) = load_arm(run, "none", 2, torch.device("cpu")).items()
    seed = derive_seed(run.config.seed, "evaluation", 2)
    problems = make_problems(TASKS["parity"], 4, 30, derive_rng(seed, "evaluate", 4), "evaluate")
    texts = [decode(tokens) for tokens in (generate(model, problems.prompts, 3), problems.answers)]
    pairs = list(zip(*texts, strict=True))
    wrong = [(label, truth) for label, truth in pairs if label != truth]
    first = [next(n for n in range(1, 4) if label[:n] != truth[:n]) for label, truth in wrong]
    distances = [levenshtein(label.removesuffix("$"), truth.removesuffix("$")) for label, truth in pairs]
    (row,) = evaluate_run(run, [4], "none", 2, samples=30).itertuples()
    assert row.edit_distance == pytest.approx(sum(distances) / 30) and 0 < len(wrong) == 30 - row.right
    assert row.right_length == pytest.approx(sum(label.find("$") == 1 for label, _ in pairs) / 30)
    assert row.first_error == pytest.approx(sum(first) / len(first)) and row.voter == voter


@functools.cache
def levenshtein(one, other):
    """The textbook recursion."""
    if not one or not other:
        return len(one) + len(other)
    cost = 0 if one[-1] == other[-1] else 1
    return min(
        levenshtein(one[:-1], other) + 1,
        levenshtein(one, other[:-1]) + 1,
        levenshtein(one[:-1], other[:-1]) + cost,
    )


@given(st.lists(st.tuples(st.text("012", max_size=5), st.text("012", max_size=5)), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_edit_distance_is_that_of_the_textbook(pairs):
    """Whole batches of texts of any lengths, with and without an end mark."""
    labels, answers = (encode([f"{pair[place]}$" for pair in pairs]) for place in (0, 1))
    wanted = [levenshtein(*pair) for pair in pairs]
    assert edit_distance(labels, answers).tolist() == wanted
    open_ended = encode([*(pair[0] for pair in pairs), "000000"])[:-1]
    assert edit_distance(open_ended, answers).tolist() == wanted


def test_evaluation_fits_the_terminal(folder, capsys):
    """One table per model, at any lengths and with other problems, in 80 columns."""
    words = ("evaluate", folder.path, "--lengths", "2-3,30", "--samples", "20", "--seed", "7")
    code, out, _ = call(capsys, *words)
    assert code == 0 and out.count("first error") == 3 and "mv_length, round 4, voter 1" in out
    assert max(map(len, out.splitlines())) <= 80 and re.search(r"^ +30 ", out, re.M)


def test_given_weights_are_measured_alike(folder, capsys):
    """A file of weights gives what its round gives; a sibling's file is taken when it is named."""
    path = folder.round_model("mv_length", 1, 3)
    words = ("evaluate", folder.path, "--lengths", "2-4", "--json")
    _, given, _ = call(capsys, *words, "--weights", path)
    _, stored, _ = call(capsys, *words, "--arm", "mv_length", "--round", 3)
    assert json.loads(given) == [row for row in json.loads(stored) if row["voter"] == 1]
    assert "leave out --arm" in refusal(capsys, *words, "--weights", path, "--arm", "none")


def test_a_run_from_another_machine_is_measured_here(copy, capsys):
    """A run that says cuda is refused where there is none; with another device it gives what it did."""
    words = ("evaluate", copy, "--lengths", "2-3", "--arm", "none", "--json")
    _, before, _ = call(capsys, *words)
    facts = json.loads((copy / "config.json").read_text())
    write_sealed(copy / "config.json", json.dumps({**facts, "device": "cuda:63"}).encode())
    assert "cuda:63" in refusal(capsys, *words)
    assert call(capsys, *words, "--device", "cpu")[1] == before
    assert call(capsys, "generate", copy, "12=", "--device", "cpu")[0] == 0
    assert "device 'tpu' is unknown" in refusal(capsys, *words, "--device", "tpu")


def test_the_answers_to_prompts(folder, capsys):
    """The vote's answer is the label that the run's voters gave to a prompt; the truth is beside it."""
    rows = load_file(folder.kept_labels("mv_length", 3))["rows"].numpy()
    for text in decode(rows)[:3]:
        prompt, label = text.removesuffix("$").split("=")
        truth = str(sum(map(int, prompt)) % 2)
        words = ("generate", folder.path, f"{prompt}=", "--arm", "mv_length", "--round", 2)
        code, out, _ = call(capsys, *words)
        line = next(line.split() for line in out.splitlines() if line.startswith(prompt))
        verdict = "right" if label == truth else "wrong"
        assert code == 0 and line == [f"{prompt}=", label, truth, verdict, "2", "of", "2"]


def test_labels_are_those_that_were_learned_from(folder, table, tmp_path, capsys):
    """All that was tried, the kept ones as stored and counted, in text and in a data set."""
    out = tmp_path / "labels.tsv"
    assert call(capsys, "labels", folder.path, "--arm", "mv_length", "--out", out)[0] == 0
    assert call(capsys, "labels", folder.path, "--arm", "mv_length", "--out", tmp_path / "set")[0] == 0
    text = pd.read_csv(out, sep="\t", dtype=str, keep_default_na=False)
    lines = [json.loads(line) for line in (tmp_path / "set" / "labels.jsonl").read_text().splitlines()]
    counts = (
        table[table["arm"] == "mv_length"].groupby(["round", "quantity"])[["successes", "trials"]].first()
    )
    for number in range(1, ROUNDS + 1):
        rows = text[text["round"] == str(number)]
        kept = rows[rows["kept"] == "1"]
        stored = decode(load_file(folder.kept_labels("mv_length", number))["rows"].numpy())
        assert [f"{a}{b}" for a, b in zip(kept["prompt"], kept["label"], strict=True)] == [
            row.removesuffix("$") for row in stored
        ]
        assert tuple(counts.loc[number, "label_kept"]) == ((kept["right"] == "1").sum(), len(kept))
        assert counts.loc[(number, "kept_right"), "trials"] == (rows["right"] == "1").sum()
        assert counts.loc[(number, "label_raw"), "trials"] == len(rows)
    truth = text["prompt"].map(lambda prompt: str(sum(map(int, prompt[:-1])) % 2))
    assert (truth == text["truth"]).all() and {"0", "1"} == set(text["kept"]) == set(text["right"])
    assert [row["label"] for row in lines] == text["label"].tolist()
    assert (tmp_path / "set" / "README.md").read_text().startswith("---\nconfigs:\n")


def test_rejected_labels_need_the_weights(copy, capsys):
    """Without the weights of the round before, what was rejected has its truth and no label."""
    for path in (copy / "models").glob("*-base-*/voter_0*"):
        path.unlink()
    _, out, _ = call(capsys, "labels", copy, "--arm", "mv_length", "--round", 1)
    rows = [line.split("\t") for line in out.splitlines()[1:]]
    assert {row[4] for row in rows} == {"0", "1"} and all(row[2] for row in rows)
    assert all((row[1] != "") == (row[3] != "") == (row[4] == "1") for row in rows)


def test_bad_questions_are_refused_in_one_line(folder, tmp_path, capsys):
    """What is not there, does not fit or is not asked like this; and nothing is written."""
    before = sorted(path for path in tmp_path.rglob("*"))
    run = folder.path
    for words, named in (
        (("evaluate", tmp_path), "no run is here"),
        (("evaluate", run, "--arm", "oracle"), "choose none, mv_length"),
        (("evaluate", run, "--round", 9), "rounds 0 to 4"),
        (("evaluate", run, "--lengths", "3-99"), "room for lengths 1 to"),
        (("evaluate", run, "--lengths", "9-3"), "goes down"),
        (("evaluate", run, "--samples", "0"), "out of range"),
        (("evaluate", run, "--weights", run / "config.json"), "damaged file of tensors"),
        (("evaluate", run, "--weights", folder.kept_labels("none", 1)), "none_round_001"),
        (("generate", run, "12+3="), "asked as in 123="),
        (("generate", run, "12"), "asked as in 123="),
        (("generate", run, "1" * 120 + "="), "tokens"),
        (("labels", run), "--arm"),
        (("labels", run, "--arm", "none", "--round", 0), "labels of rounds 1 to 4"),
        (("labels", run, "--arm", "none", "--out", run), "other files"),
        (("labels", run, "--arm", "none", "--out", tmp_path / "no" / "t.tsv"), "no folder"),
    ):  # fmt: skip
        assert named in refusal(capsys, *words), words
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_damaged_and_foreign_weights_are_refused(copy, capsys):
    """A changed byte, another round's and another voter's weights under this name: no answer is given."""
    place = copy / "models" / "mv_length_voter_1_round_002.safetensors"
    whole = {path: path.read_bytes() for path in (place, seal_of(place))}
    flip(place)
    assert "damaged" in refusal(capsys, "generate", copy, "12=", "--arm", "mv_length", "--round", 2)
    for name in ("mv_length_voter_0_round_002", "mv_length_voter_1_round_003"):
        other = place.with_name(f"{name}.safetensors")
        for path, source in ((place, other), (seal_of(place), seal_of(other))):
            path.write_bytes(source.read_bytes())
        assert "another file in its place" in refusal(capsys, "evaluate", copy, "--round", 2)
    for path, content in whole.items():
        path.write_bytes(content)
    facts = read_facts(copy / "config.json")
    write_facts(copy / "config.json", {**facts, "seed": 1})  # a sibling of the same sizes
    text = read_table(copy / "measurements.csv").assign(run_id=run_name(config_of(seed=1)), seed=1)
    remove_sealed(copy / "measurements.csv")
    append_rows(copy / "measurements.csv", text)
    assert "is of something else (run" in refusal(capsys, "evaluate", copy, "--round", 2)


# --- branches


def rounds_of(path, first=0, last=99):
    """Rows of some rounds of a table, without the run's name."""
    table = read_table(path)
    rows = table[table["round"].between(first, last)].drop(columns="run_id")
    return rows.reset_index(drop=True)


def test_a_branch_with_the_same_settings_repeats_the_run(folder, tmp_path):
    """Every count before and after the stored round; its name is its own, and it says where it is from."""
    run_branch(open_stored(folder.path), 2, tmp_path / "branch", progress=False)
    assert rounds_of(tmp_path / "branch").equals(rounds_of(folder.path))
    facts = read_facts(tmp_path / "branch" / "config.json")
    assert facts["origin"]["round"] == 2 and facts["origin"]["run"] == run_name(config_of())
    assert set(facts["origin"]["weights"]) >= {"mv_length/0", "mv_length/1"}
    names = read_table(tmp_path / "branch")["run_id"].unique()
    assert len(names) == 1 and names[0] != run_name(config_of())
    assert check_folder(tmp_path / "branch")[0] == []


@pytest.fixture(scope="module")
def branch(folder, tmp_path_factory):
    """A branch with other settings and one more round; its changes and its folder."""
    changes = dict(
        si_method=("mv_length",), si_iter=9, si_rounds=5, eval_samples=20, noise_round=3, noise_fraction=0.5
    )
    place = tmp_path_factory.mktemp("branch") / "run"
    return changes, run_branch(open_stored(folder.path), 2, place, changes, progress=False)


def test_a_branch_differs_after_the_stored_round_only(folder, branch):
    """Rounds before are as they were, later ones have the new settings; check is content with both."""
    _, place = branch
    before = rounds_of(folder.path, last=2).query("arm == 'mv_length'").reset_index(drop=True)
    assert rounds_of(place.path, last=2).equals(before)
    after = rounds_of(place.path, first=3)
    assert set(after["arm"]) == {"mv_length"} and after["round"].max() == 5
    assert set(after[after["quantity"] == "accuracy"]["trials"]) == {20}
    assert after["length"].max() == 3 + 5 + 5 and before["length"].max() == 3 + ROUNDS + 5
    assert rounds_kept(place, "mv_length") == [4, 5] and check_folder(place.path)[0] == []


@pytest.mark.parametrize("lost", ["table", "own round", "labels taken over", "settings", "all but settings"])
def test_a_cut_branch_ends_in_the_same_table(folder, branch, lost, tmp_path):
    """Whatever a kill or a damage leaves of a branch, the same call ends in the same bytes."""
    changes, whole = branch
    place = shutil.copytree(whole.path, tmp_path / "run")
    leftovers = {
        "table": ["measurements.csv*", "previous.csv*"],
        "own round": ["models/*_round_00[345]*", "data/*_round_00[45]*"],
        "labels taken over": ["data/*_round_001*"],
        "settings": ["config.json*"],
        "all but settings": ["measurements.csv*", "previous.csv*", "models/*.*", "data/*.*"],
    }
    for path in [path for pattern in leftovers[lost] for path in place.glob(pattern)]:
        path.unlink()
    if lost != "all but settings" and lost != "table":
        cut(place, 3)
    run_branch(open_stored(folder.path), 2, place, changes, progress=False)
    assert (place / "measurements.csv").read_bytes() == whole.measurements.read_bytes()
    assert check_folder(place)[0] == []


def test_a_branch_that_is_interrupted_goes_on(folder, branch, tmp_path, monkeypatch):
    """Stopped by a signal in its first own round, and begun again."""
    changes, whole = branch
    train, calls = si_nb.loop.rounds.train_arms, []

    def stopped(machine, *arguments):
        calls.append(arguments)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return train(machine, *arguments)

    monkeypatch.setattr(si_nb.loop.rounds, "train_arms", stopped)
    run = open_stored(folder.path)
    with pytest.raises(Interrupted):
        run_branch(run, 2, tmp_path / "run", changes, progress=False)
    assert rounds_of(tmp_path / "run")["round"].max() == 2
    again = run_branch(run, 2, tmp_path / "run", changes, progress=False)
    assert again.measurements.read_bytes() == whole.measurements.read_bytes()


def test_a_branch_outlives_the_weights_of_its_run(branch, copy, tmp_path):
    """Once it has begun, the run that it came from may remove weights; one that was made again is refused."""
    changes, whole = branch
    place = shutil.copytree(whole.path, tmp_path / "branch")
    cut(place, 4)
    for path in copy.glob("models/*_round_002*"):
        path.unlink()
    again = run_branch(open_stored(copy), 2, place, changes, progress=False)
    assert again.measurements.read_bytes() == whole.measurements.read_bytes()
    for path in (*place.glob("models/*_round_*"), *place.glob("measurements*"), *place.glob("previous*")):
        path.unlink()
    with pytest.raises(ConfigError, match="--keep_weights"):
        run_branch(open_stored(copy), 2, place, changes, progress=False)


def test_a_branch_takes_the_optimizer_over(tmp_path):
    """A run that carries its optimiser on is repeated by a branch, which carries on what the run had; without
    that the rounds after are others. A block whose places were learned cannot be lengthened.
    """
    carried = dict(carry_optimizer=True, positional_encoding="learned", si_rounds=3, si_method=("none",))
    whole = run_experiment(config_of(**carried), tmp_path / "run", progress=False, keep_weights=True)
    run, losses = open_stored(whole.path), {}
    for name, changes in (("same", {}), ("anew", {"carry_optimizer": False})):
        place = run_branch(run, 1, tmp_path / name, changes, progress=False)
        losses[name] = load_arm(open_stored(place.path), "none", 3, torch.device("cpu"))
        assert check_folder(place.path)[0] == []
    assert rounds_of(tmp_path / "same").equals(rounds_of(whole.path))
    (voter,), (weights, *_) = losses["same"], load_arm(run, "none", 3, torch.device("cpu")).values()
    same, anew = (losses[name][voter].state_dict() for name in ("same", "anew"))
    assert all(torch.equal(weight, same[name]) for name, weight in weights.state_dict().items())
    assert not torch.equal(same["head.weight"], anew["head.weight"])
    with pytest.raises(ConfigError, match="block_size is 100"):
        run_branch(run, 1, tmp_path / "longer", {"block_size": 120}, progress=False)


def test_a_branch_of_a_branch(branch, tmp_path):
    """It takes over the rounds of both, and check knows the settings of each round."""
    _, first = branch
    changes = dict(si_rounds=6, num_samples=10, noise_round=0)
    second = run_branch(open_stored(first.path), 4, tmp_path / "run", changes, progress=False)
    assert rounds_of(second.path, last=4).equals(rounds_of(first.path, last=4))
    assert check_folder(second.path)[0] == []


def test_changes_that_a_branch_cannot_make(folder, branch, tmp_path, capsys):
    """Each is one line that names the setting, and leaves nothing behind."""
    new = ("--run_dir", tmp_path / "new")
    for flags, named in (
        (("--n_embd", 32), "n_embd is 16"),
        (("--n_layer", 2), "n_layer is 1"),
        (("--task", "copy"), "task is 'parity'"),
        (("--original_digits", 4), "original_digits is 3"),
        (("--voters", 3), "voters is 2"),
        (("--seed", 3), "seed is 0"),
        (("--si_method", "oracle"), "no arm of the run"),
        (("--si_rounds", 2), "no round follows"),
        (("--noise_round", 1), "taken over as they were"),
        (("--learning_rate", -1), "learning_rate is -1"),
        (("--positional_encoding", "rotary"), "positional_encoding is 'none'"),
        (("--noise_round", 5), "there are 4 rounds"),
    ):
        assert named in refusal(capsys, "branch", folder.path, "--round", 2, *new, *flags)
    assert "rounds 0 to 4" in refusal(capsys, "branch", folder.path, "--round", 7, *new)
    assert "--keep_weights" in refusal(capsys, "branch", branch[1].path, "--round", 3, *new)
    assert "round 1 or later" in refusal(capsys, "branch", folder.path, "--round", 0, *new)
    assert "no run is here" in refusal(capsys, "branch", tmp_path, "--round", 1, *new)
    assert not (tmp_path / "new").exists()
    used = ("--run_dir", branch[1].path)
    assert "origin (was round 2" in refusal(capsys, "branch", folder.path, "--round", 3, *used)
    assert "belongs to another" in refusal(
        capsys, "branch", folder.path, "--round", 2, "--run_dir", folder.path
    )


def test_a_branch_is_not_resumed_as_a_run(branch):
    """Neither with its settings nor with those of the run that it came from."""
    changes, place = branch
    with pytest.raises(ConfigError, match="origin"):
        run_experiment(config_of(**changes), place.path, progress=False)
    with pytest.raises(ConfigError, match="si_nb branch"):
        run_experiment(open_stored(place.path).config, place.path, progress=False)


def test_a_branch_finds_weights_in_a_shared_folder(tmp_path, copy, capsys, monkeypatch):
    """Weights and labels of the run in folders that the branch shares with it."""
    monkeypatch.setattr("si_nb.cli._report_run", lambda *arguments: None)  # no figures, which take seconds
    name = run_name(config_of())
    shutil.move(copy / "models", tmp_path / "weights" / name)
    shutil.move(copy / "data", tmp_path / "labels" / name)
    shared = ("--models_dir", tmp_path / "weights", "--data_dir", tmp_path / "labels")
    words = ("branch", copy, "--round", 3, "--run_dir", tmp_path / "branch", *shared, "--si_method", "none")
    assert call(capsys, *words)[0] == 0
    wanted = rounds_of(copy).query("arm == 'none'").reset_index(drop=True)
    assert rounds_of(tmp_path / "branch").equals(wanted)
    assert call(capsys, "evaluate", copy, *shared[:2], "--lengths", 2)[0] == 0
