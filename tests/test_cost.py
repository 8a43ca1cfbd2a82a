"""What a run will cost: the plan against what runs do, and estimates that mean something.
Nothing here asserts a duration.
"""

import json
import subprocess
import sys
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from test_rounds import config_of

from si_nb.cli import main
from si_nb.loop import cost, memory
from si_nb.loop.cost import (
    CostError,
    estimate,
    input_tokens,
    mixture_shares,
    plan,
    rehearse,
    training_rows,
)
from si_nb.loop.rounds import run_experiment
from si_nb.loop.settings import PRESETS, RunConfig, make_config
from si_nb.loop.training import mix, training_steps
from si_nb.loop.voting import KEEP_RULES
from si_nb.model.positions import POSITIONAL_ENCODINGS
from si_nb.problems.tasks import TASKS, make_base_data, make_problems
from si_nb.problems.tokenizer import PAD
from si_nb.record.table import read_table

FEW = dict(max_iters=40, si_iter=6, base_samples=1_000, num_samples=40)
WHOLE = ("base training", "round training")


def total(work, phase, column="pieces"):
    """Pieces of a phase, of all jobs and rounds."""
    rows = work[work["phase"] == phase]
    return (rows["jobs"] * rows[column]).sum()


@pytest.fixture(scope="module")
def config():
    return config_of(**FEW)


@pytest.fixture(scope="module")
def table(config, tmp_path_factory):
    """What a run with every rule measured."""
    return read_table(
        run_experiment(config, tmp_path_factory.mktemp("cost") / "run", progress=False).measurements
    )


def test_planned_steps_are_those_of_the_run(config):
    """As many optimiser steps as the run's own progress bar counts."""
    assert sum(total(plan(config), phase) for phase in WHOLE) == training_steps(config)


def test_planned_problems_are_those_of_the_table(config, table):
    """Every trial of an accuracy was planned, round by round."""
    rows = plan(config).query("phase == 'measuring'")
    trials = table[table["quantity"].isin(["accuracy", "accuracy_select"])].groupby("round")["trials"].sum()
    assert (rows["jobs"] * rows["pieces"]).tolist() == trials.tolist()


def test_labels_tried_lie_within_the_planned_bounds(config, table):
    """Each arm's voters tried no fewer labels than the least and no more than the most."""
    rows = plan(config).query("phase == 'labelling'").set_index(["arm", "round"])
    tried = table[table["quantity"] == "label_raw"].groupby(["arm", "round"])["trials"].agg(["size", "max"])
    assert set(rows.index) == set(tried.index)
    joined = rows.join(tried)
    assert (joined["jobs"] == joined["size"]).all()
    assert (joined["max"] <= joined["most"]).all() and (joined["least"] <= joined["pieces"]).all()
    sure = [arm for arm, rule in KEEP_RULES.items() if rule.tries == 1]
    assert (joined.loc[sure, "max"] == joined.loc[sure, "pieces"]).all()
    whole = joined["max"] < joined["least"]  # only an arm that kept enough may have stopped before the least
    kept = table[table["quantity"] == "label_kept"].set_index(["arm", "round"])["trials"]
    assert (kept[whole[whole].index] == config.num_samples).all()


def test_rounds_of_several_lengths_are_planned(tmp_path):
    """Problems measured, labels tried and tokens of a round's rows are those of all its lengths."""
    config = config_of(**FEW, si_method=("none", "mv"), lengths_per_round=2)
    table = read_table(run_experiment(config, tmp_path / "run", progress=False).measurements)
    rows = plan(config).query("phase == 'measuring'")
    trials = table[table["quantity"].isin(["accuracy", "accuracy_select"])].groupby("round")["trials"].sum()
    assert (rows["jobs"] * rows["pieces"]).tolist() == trials.tolist()
    tried = table[(table["quantity"] == "label_raw") & (table["arm"] == "none")].groupby("round")["trials"]
    labels = plan(config).query("phase == 'labelling' and arm == 'none'")
    assert labels["pieces"].tolist() == tried.sum().tolist() and labels["least"].eq(labels["most"]).all()
    width, task = TASKS[config.task].width, config.original_digits
    assert np.unique(input_tokens(training_rows(config, 2, 100))).tolist() == [
        width(task + n) - 1 for n in (3, 4)
    ]
    assert labels["tokens"].tolist() == [width(task + n) + 1 for n in (1, 3)]  # between two widths, 2 apart


@pytest.mark.parametrize("task", TASKS)
def test_mean_tokens_are_those_of_drawn_batches(task):
    """The mixture, drawn many times, has as many tokens in a step as the plan says."""
    longest = max(3, TASKS[task].shortest)
    config = config_of(
        **FEW, task=task, batch_size=2048, si_rounds=3, block_size=140, original_digits=longest
    )
    base = training_rows(config, 0, 4_000)
    for number in (0, 3):
        kept = [training_rows(config, earlier, 500) for earlier in range(1, number + 1)]
        sources, shares = [base, *kept], mixture_shares(config, number)
        if kept:
            tokens, _ = mix(config, base, kept, torch.device("cpu")).draw(2**15, np.random.default_rng(0))
            drawn = (tokens.numpy() != PAD).sum(axis=1).mean() - 1
        else:
            drawn = (base != PAD).sum(axis=1).mean() - 1
        row = plan(config).query("phase in @WHOLE and round == @number").iloc[0]
        assert len(shares) == len(sources) and row["tokens"] == pytest.approx(
            config.batch_size * drawn, rel=0.02
        )


@pytest.mark.parametrize(
    "more",
    [
        dict(si_rounds=4),
        dict(batch_size=128),
        dict(n_embd=64),
        dict(voters=5),
        dict(max_iters=80),
        dict(num_samples=80),
        dict(eval_samples=128),
    ],
    ids=str,
)
def test_more_of_anything_is_never_less_work(config, more):
    """A longer or larger experiment has no phase with fewer operations, and more of them altogether."""

    def operations(config):
        work = plan(config)
        return (work["jobs"] * work["pieces"] * work["flops"]).groupby(work["phase"]).sum()

    fewer, larger = operations(config), operations(replace(config, **more))
    assert (larger >= 0.99 * fewer).all() and larger.sum() > fewer.sum()  # tokens are counted in a sample


def test_a_run_without_rounds_has_a_plan():
    """Base models alone, one of them."""
    work = plan(config_of(**FEW | dict(si_rounds=0, si_method=("none",))))
    assert work["phase"].tolist() == ["base data", "base training", "measuring"] and (work["jobs"] == 1).all()


def test_estimates_are_positive_and_complete(config):
    """Every row of the plan gets a finite, positive time; the rounds in between lie between the ends."""
    config = replace(config, si_method=("none", "mv"), si_rounds=3)
    work, done = plan(config), rehearse(config, 0.01)
    work["seconds"] = done["seconds"]
    assert np.isfinite(work["seconds"]).all() and (work["seconds"] > 0).all() and done["memory"] > 1e8
    for _, rows in work[work["phase"] == "labelling"].groupby("arm"):
        ends = rows["seconds"].iloc[[0, -1]]
        assert rows["seconds"].between(0.999 * ends.min(), 1.001 * ends.max()).all()


@pytest.mark.parametrize("changes", [{}, dict(task="maze_by_nodes", original_digits=5, beta1=0.8)])
def test_a_run_without_rounds_has_an_estimate(changes):
    """One training and one measuring, nothing to interpolate; a later form and later settings, too."""
    phases = estimate(config_of(**FEW | dict(si_rounds=0, si_method=("none",)) | changes), 0.01).phases
    assert list(phases.index) == ["base data", "base training", "measuring", "start"] and (phases > 0).all(
        axis=None
    )


def test_a_rehearsal_that_fails_says_so_in_one_line(config, monkeypatch):
    """What the other process died of is named, with a remedy."""
    monkeypatch.setattr(cost, "_CHILD", "raise MemoryError('no room')")
    with pytest.raises(CostError, match=r"MemoryError: no room\); try a smaller batch_size") as error:
        estimate(config)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(cost, "_CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(CostError, match="ended by signal 9"):
        estimate(config)


def flags(config):
    """A configuration as the command line has it."""
    given = {setting.name: getattr(config, setting.name) for setting in fields(RunConfig)}
    words = {
        f"--{name}": ",".join(value) if name == "si_method" else str(value)
        for name, value in given.items()
        if not isinstance(value, bool)
    }
    return [word for pair in words.items() for word in pair]


def test_the_command_prints_an_estimate_and_writes_nothing(config, tmp_path, monkeypatch, capsys):
    """Phases, time and memory on one page, and no file; the same as JSON."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        cost, "_rehearse_apart", lambda config, patience: rehearse(config, 0.01) | {"start": 1.0}
    )
    assert main(["cost", *flags(config)]) == 0
    printed = capsys.readouterr().out
    assert (
        all(phase in printed for phase in ("base training", "labelling", "measuring"))
        and "GB of memory" in printed
    )
    assert main(["cost", *flags(replace(config, si_rounds=0)), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["least"] <= report["seconds"] <= report["most"] and report["memory"] > 1e8
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    (["--n_embd", "65"], ["--preset", "huge"], ["--device", "abacus"], ["--patience", "1"]),
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_exit_code_2(wrong, capsys):
    """As everywhere: what is wrong, no rehearsal, code 2."""
    try:
        code = main(["cost", "--preset", "tiny", *wrong])
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and capsys.readouterr().err.count("\n") == 1


def peak_of(job):
    tracemalloc.start()
    try:
        job()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("task", TASKS)
def test_estimated_memory_is_a_lower_bound_of_what_is_taken(task):
    """What is refused for want of memory would really have taken that much:
    data as measured, weights as counted; no less than a third of it.
    """
    config, rng = (
        config_of(
            task=task,
            base_samples=50_000,
            eval_samples=5_000,
            block_size=400,
            original_digits=max(8, TASKS[task].shortest + 3),
        ),
        np.random.default_rng(0),
    )
    estimated = memory._data_memory(config, 1)
    taken = {
        "base_samples": peak_of(
            lambda: make_base_data(TASKS[task], config.original_digits, config.base_samples, rng)
        ),
        "eval_samples": peak_of(
            lambda: make_problems(TASKS[task], config.last_length, config.eval_samples, rng, "evaluate")
        ),
    }
    assert all(estimated[name] <= taken[name] <= 3 * estimated[name] for name in taken), (estimated, taken)


def test_everything_goes_on_where_there_is_no_resource():
    """Without the module that Windows lacks, cost and bench can be imported,
    and say that memory is unknown.
    """
    program = """import sys
sys.modules["resource"] = None
import pandas, si_nb.benchmarks.benchmark, si_nb.cli
from si_nb.loop.cost import Estimate, cost_report, peak_memory, print_cost
times = pandas.DataFrame({"least": [1.0], "seconds": [2.0], "most": [3.0]}, index=["start"])
unknown = Estimate(times, peak_memory(), 0)
assert cost_report(unknown)["memory"] is None
print_cost(unknown)
try:
    si_nb.benchmarks.benchmark.run_bench(["memory"])
except si_nb.benchmarks.benchmark.BenchError as error:
    print(error)"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        "memory unknown on this system" in done.stdout
        and "row memory is unknown: choose data_quick" in done.stdout
    )


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-small")])
def test_small_presets_are_within_an_hour(name):
    """Two cores that do 14 billion operations in a second are done with all of a run within the hour."""
    work = plan(make_config(name))
    assert 1e12 < (work["jobs"] * work["pieces"] * work["flops"]).sum() < 2 * 14e9 * 3_600


@pytest.mark.parametrize("encoding", POSITIONAL_ENCODINGS)
def test_the_plan_knows_positions_and_mixture(encoding):
    """Operations of an encoding and shares of a mixture are in the plan, beside what it says by default."""
    plain, other = config_of(**FEW), config_of(**FEW, positional_encoding=encoding, newest_share=1.0)
    before, after = (plan(config).set_index(["phase", "round", "arm"]) for config in (plain, other))
    labels = after.loc["labelling"]["flops"] - before.loc["labelling"]["flops"]
    assert (labels == 0).all() if encoding == "none" else (labels > 0).all()
    assert (after.loc["round training"]["tokens"] > before.loc["round training"]["tokens"]).all()
