"""Every task in the loop: what filters keep, what noise leaves alone, and whole runs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from test_rounds import config_of

from si_nb.cli import _pairs_of, main
from si_nb.loop.cost import plan
from si_nb.loop.rounds import run_experiment
from si_nb.loop.settings import ConfigError, base_key, base_name, run_name, stored_config
from si_nb.loop.stored import read_config
from si_nb.loop.training import make_base
from si_nb.loop.voting import KEEP_RULES, propose
from si_nb.problems.noise import NOISE_KINDS, damage_labels
from si_nb.problems.tasks import TASKS, is_right, label_length, make_problems
from si_nb.problems.tokenizer import END, PAD, PLUS, decode
from si_nb.record.table import read_table

MEASURED = ("copy", "reverse", "reverse_addition")  # whose runs other tests make
OTHERS = [name for name in TASKS if name not in MEASURED]
MAZES = [name for name in TASKS if "maze" in name]
LENGTH, RULES = 4, ("none", "length_filter", "mv_length")


def length_of(name):
    """A length that a task has, and at which a label has more tokens than noise damages."""
    return max(LENGTH, TASKS[name].shortest)


def problems_of(name, count=400):
    return make_problems(TASKS[name], length_of(name), count, np.random.default_rng(0))


def with_length(answers, used, change):
    """Labels that end a token earlier (-1) or later (1) than the answers do."""
    labels = np.pad(answers, ((0, 0), (0, 1)), constant_values=PAD)
    columns, end = np.arange(labels.shape[1]), (used + change)[:, None]
    labels = np.where((columns == used[:, None]) & (columns < end), 0, labels)
    return np.where(columns == end, END, np.where(columns > end, PAD, labels)).astype(np.uint8)


@pytest.mark.parametrize("change", [-1, 0, 1])
@pytest.mark.parametrize("name", TASKS)
def test_length_filter_knows_what_is_possible(name, change):
    """A label of a length that the task admits is kept and no other; right labels are always kept."""
    answers, possible = problems_of(name).answers, TASKS[name].answer_lengths(length_of(name))
    used = label_length(answers)
    labels = with_length(answers, used, change)
    assert (label_length(labels) == used + change).all() and (
        is_right(labels, answers) == (change == 0)
    ).all()
    for rule, agreed in (("length_filter", 1), ("mv_length", 3)):
        kept = KEEP_RULES[rule].choose(propose(np.stack([labels] * agreed)), possible, 1.0, answers)
        assert kept.tolist() == [length + change in possible for length in used]


def test_the_unpadded_sum_lets_more_through():
    """A sum of unknown length hides some wrong lengths from the filter; the padded form hides none."""
    kept = {}
    for name in ("forward_addition", "forward_addition_unpadded"):
        answers = problems_of(name).answers
        labels = with_length(answers, label_length(answers), -1)
        seen = propose(labels[None]), TASKS[name].answer_lengths(LENGTH), 1.0, answers
        kept[name] = KEEP_RULES["length_filter"].choose(*seen).mean()
    assert kept["forward_addition"] == 0 and 0.3 < kept["forward_addition_unpadded"] < 0.7


@pytest.mark.parametrize("kind", NOISE_KINDS)
@pytest.mark.parametrize("name", TASKS)
def test_noise_leaves_a_label_a_label(name, kind):
    """Damage changes digits or nodes, or cuts the end off; marks stay, and every label still ends once."""
    answers, symbols = problems_of(name).answers, TASKS[name].symbols
    damaged = damage_labels(answers, 1.0, kind, np.random.default_rng(0), symbols)
    ends = damaged == END
    assert (ends.sum(axis=1) == 1).all() and np.isin(damaged[:, -1], [END, PAD]).all()
    assert np.isin(damaged, [*symbols, PLUS, END, PAD]).all()
    assert (damaged[np.cumsum(ends, axis=1) - ends > 0] == PAD).all()
    marks = damaged == PLUS
    assert (answers[marks] == PLUS).all() and (
        kind.startswith(("dropped", "thinned")) or marks.sum() == (answers == PLUS).sum()
    )
    wrong = ~is_right(damaged, answers)
    one_digit = TASKS[name].answer_lengths(length_of(name)) == (1,)  # nothing can be left out of it
    if one_digit and kind in ("dropped", "thinned"):
        assert wrong.mean() == 0
    else:  # a zero may be right, and a digit that is perturbed may stay
        assert wrong.mean() > (0.2 if one_digit else 0.7)


# runs of the large mazes take no other path than those of the small ones, and five times as long
@pytest.fixture(scope="module", params=[name for name in OTHERS if not name.startswith("large_")])
def finished(request, tmp_path_factory):
    """A run of a task with filters and with noise, and its settings."""
    task = TASKS[request.param]
    config = config_of(
        task=task.name, si_method=RULES, original_digits=task.shortest + 1, max_iters=30, base_samples=600,
        si_iter=4, num_samples=24, eval_samples=24, si_rounds=1, noise_round=1, noise_fraction=0.5,
        noise_kind="moved",
    )  # fmt: skip
    return config, run_experiment(config, tmp_path_factory.mktemp("task") / "run", progress=False)


def test_a_run_counts_what_was_planned(finished):
    """Base models, labels, filters, damage, training and evaluation: the table holds what the plan says."""
    config, folder = finished
    table = read_table(folder.measurements)
    assert set(table["task"]) == {config.task} and set(table["arm"]) == set(RULES)
    measured = table[table["quantity"].isin(["accuracy", "accuracy_select"])]
    planned = plan(config).query("phase == 'measuring'")
    assert (planned["jobs"] * planned["pieces"]).tolist() == measured.groupby("round")[
        "trials"
    ].sum().tolist()
    longest = table.loc[table["quantity"] == "accuracy", "length"].max()
    task = TASKS[config.task]
    assert task.fits(longest, config.block_size)
    assert longest == config.original_digits + 6 or not task.fits(longest + 1, config.block_size)


def test_a_run_is_whole_and_stays_so(finished, capsys):
    """The check finds nothing wrong, and the same call again changes no byte of the table."""
    config, folder = finished
    assert main(["check", str(folder.path)]) == 0, capsys.readouterr()
    before = folder.measurements.read_bytes()
    assert run_experiment(config, folder.path, progress=False).measurements.read_bytes() == before


def test_nothing_of_an_older_form_is_taken_up(tmp_path, monkeypatch, capsys):
    """A task that writes otherwise than before goes on with no run and no base model of that time."""
    config = config_of(
        si_method=("none",), si_rounds=1, max_iters=20, base_samples=600, si_iter=4, num_samples=24
    )
    folders = [(tmp_path / "old", tmp_path / "models"), (tmp_path / "new", tmp_path / "models")]
    old = run_experiment(config, *folders[0], progress=False)
    before, names = old.measurements.read_bytes(), (run_name(config), base_name(config))
    monkeypatch.setitem(TASKS, config.task, replace(TASKS[config.task], form=2))
    assert run_name(config) != names[0] and base_name(config) != names[1]
    with pytest.raises(ConfigError, match=r"forms \(was {}, now {'copy': 2}\); choose another run_dir"):
        run_experiment(config, *folders[0], progress=False)
    with pytest.raises(ConfigError, match="problems of copy had another form"):
        read_config(old.path)
    assert main(["check", str(old.path), "--models_dir", str(folders[0][1])]) == 1
    assert "another form" in (found := capsys.readouterr().out) and "same command" not in found
    assert old.measurements.read_bytes() == before
    shutil.copytree(old.models, old.models.with_name(base_name(config)))  # as one who renames a folder
    new = run_experiment(config, *folders[1], progress=False)
    assert (
        "does not say its forms, as files of earlier versions do not; made again" in capsys.readouterr().err
    )
    assert read_config(new.path) == config
    assert main(["check", str(new.path), "--models_dir", str(folders[1][1])]) == 1
    found = capsys.readouterr().out.splitlines()
    assert (
        len(found) == 2
        and f"{old.models.name}/voter_0.safetensors: trained when problems of copy had" in found[0]
    )


def test_mazes_have_their_second_form():
    """They were told as a list of edges before; the other tasks write as they always did, so names stay."""
    assert {name: task.form for name, task in TASKS.items() if task.form != 1} == dict.fromkeys(MAZES, 2)


def test_forward_addition_from_the_command_line(tmp_path, capsys):
    """The whole job at tiny size, laws and figures included, for a task that no law was fitted to."""
    flags = "--preset tiny --task forward_addition --original_digits 2 --base_samples 600 --max_iters 30"
    flags += " --si_rounds 2 --si_iter 5 --num_samples 30 --eval_samples 30 --si_method none"
    assert main(["run", *flags.split(), "--run_dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("forward_addition: collapse below 0.5, forecast by") and "none " in said
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task"] == "forward_addition"
    assert main(["law", str(tmp_path / "run"), "--until_round", "1"]) == 0


def test_mazes_from_the_command_line(tmp_path, capsys):
    """A run of mazes, then its models at other lengths, their answers to mazes in writing, and its labels."""
    flags = "--preset tiny --task maze_by_nodes --original_digits 5 --base_samples 600 --max_iters 30"
    flags += " --si_rounds 2 --si_iter 5 --num_samples 30 --eval_samples 30 --si_method none --keep_weights"
    run = str(tmp_path / "run")
    assert main(["run", *flags.split(), "--lengths_per_round", "2", "--run_dir", run]) == 0
    said = capsys.readouterr().out
    assert said.startswith("maze_by_nodes: collapse below 0.5")
    labelled = read_table(run).query("quantity == 'label_raw'").groupby("round")["length"].unique()
    assert labelled.map(list).to_dict() == {1: [6, 7], 2: [8, 9]}
    assert main(["evaluate", run, "--lengths", "4,12", "--samples", "20", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["length"] for row in rows] == [4, 12] and all(row["edit_distance"] > 0 for row in rows)
    assert main(["generate", run, "ad+bac+ab+dc+cbd=", "ad+ea+abe+bac+cbd+dc="]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines if "+" in line] == ["abcd", "abcd"]
    assert main(["labels", run, "--arm", "none", "--out", str(tmp_path / "labels.tsv")]) == 0
    capsys.readouterr()
    for wrong in ("123=", "ad+bc=", "ad+abc+bad+cad+dbc="):
        assert main(["generate", run, wrong]) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1 and "maze_by_nodes is asked" in said.err and not said.out
    assert main(["evaluate", run, "--lengths", "3"]) == 2
    assert "room for lengths 4 to 23" in capsys.readouterr().err


def test_pairs_of_lengths_from_the_command_line(tmp_path, capsys):
    """Base data of all pairs up to two by two digits, then a pair and its mirror image in each round."""
    flags = (
        "--preset tiny --task multiplication_by_pairs --original_digits 4 --base_samples 600 --max_iters 30"
    )
    flags += " --si_rounds 2 --si_iter 5 --num_samples 30 --eval_samples 30 --si_method length_filter"
    run = str(tmp_path / "run")
    assert main(["run", *flags.split(), "--lengths_per_round", "2", "--run_dir", run]) == 0
    capsys.readouterr()
    assert main(["labels", run, "--arm", "length_filter", "--out", str(tmp_path / "labels.tsv")]) == 0
    assert main(["evaluate", run, "--lengths", "1-9", "--samples", "20", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert [row["length"] for row in rows] == [*range(1, 10)]
    labelled = read_table(run).query("quantity == 'label_raw'").groupby("round")["length"].unique()
    pairs = [[TASKS["multiplication_by_pairs"].operand_lengths(place) for place in r] for r in labelled]
    assert pairs == [[(1, 3), (3, 1)], [(2, 3), (3, 2)]]
    assert (tmp_path / "run" / "figures" / "pairs_length_filter.png").exists()
    assert set(read_table(run).query("quantity == 'accuracy'")["length"]) == {*range(1, 14)}
    cells = _pairs_of(read_table(run), TASKS["multiplication_by_pairs"])
    trained = cells[cells["trained"]].groupby("round")[["first", "second"]].apply(lambda c: len(c))
    assert trained.to_dict() == {0: 4, 1: 6, 2: 8} and cells["accuracy"].between(0, 1).all()


def test_base_data_of_several_tasks(tmp_path, capsys):
    """Other tasks in equal parts in the base data, their symbols in the model; rounds stay with one task."""
    flags = "--preset tiny --base_samples 600 --max_iters 30 --si_rounds 1 --si_iter 5 --num_samples 30"
    flags += " --eval_samples 30 --si_method none"
    run, others = str(tmp_path / "run"), ["--base_tasks", "maze_by_nodes+reverse_addition"]
    assert main(["run", *flags.split(), *others, "--run_dir", run]) == 0
    config = stored_config(json.loads((tmp_path / "run" / "config.json").read_text()))
    marks = [row[: row.index("=")].count("+") for row in decode(make_base(config))]
    assert marks[:200] == [0] * 200 and set(marks[200:400]) == {4, 5, 6} and marks[400:] == [1] * 200
    assert config.model.vocab_size == 40 and config.base_lengths == 6 + 3 + 6
    alone = replace(config, base_tasks="none")
    assert base_key(alone) != base_key(config) and (make_base(alone)[:, :1] < 10).all()
    assert set(read_table(run)["task"]) == {"copy"} and main(["check", run]) == 0
    capsys.readouterr()
    assert main(["generate", run, "123="]) == 0 and main(["evaluate", run, "--lengths", "2"]) == 0


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ("reverse", "ask in the same way"),
        ("copy", "ask in the same way"),
        ("division", "is unknown: choose"),
        ("multiplication", "that fit block_size"),
        ("maze_by_hops+", "'' is unknown"),
        ("", "'' is unknown"),
        ("maze_by_hops", None),
    ],
)
def test_base_tasks_that_cannot_be(tmp_path, capsys, others, reason):
    """Tasks that ask alike, do not exist or do not fit are refused in one line, before any work."""
    flags = [
        "--preset",
        "tiny",
        "--skip_si",
        "--max_iters",
        "1",
        "--base_samples",
        "60",
        "--eval_samples",
        "9",
    ]
    code = main(["run", *flags, "--base_tasks", others, "--run_dir", str(tmp_path / "run")])
    said = capsys.readouterr().err
    if reason is None:
        assert code == 0
    else:
        assert code == 2 and said.count("\n") == 1 and reason in said and not (tmp_path / "run").exists()


def test_a_maze_stays_as_large_as_it_can_be(tmp_path, capsys):
    """Base lengths that a maze does not have, and rounds beyond its longest path, are refused in one line."""
    for flags, reason in (
        ("--task maze_by_nodes --original_digits 3", "have length 4"),
        ("--task maze_by_hops --original_digits 9 --si_rounds 3", "goes to length 11, and round 3 to 12"),
        ("--task maze_by_hops --original_digits 5 --si_rounds 3 --lengths_per_round 3", "round 3 to 14"),
    ):
        assert main(["run", "--preset", "tiny", *flags.split(), "--run_dir", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and reason in said and not (tmp_path / "run").exists()


def test_what_does_not_fit_is_refused_before_any_work(tmp_path, capsys):
    """A chain of thought that outgrows the block is one line that names the block, and no folder is made."""
    code = main(["run", "--preset", "tiny", "--task", "multiplication", "--run_dir", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and "block_size" in said and "multiplication" in said
    assert not (tmp_path / "run").exists()
