"""The benchmark: its table, its JSON, and that what it compares is equal; no wall time is asserted."""

import io
import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from rich.console import Console

from si_nb.benchmarks.benchmark import (
    HOW_TO_GET_LLAMA,
    ROWS,
    Bench,
    BenchError,
    BenchSizes,
    Job,
    has_transformers,
    llama_generate,
    llama_train,
    main,
    make_llama,
    make_pool,
    plain_round_seconds,
    planned_flops,
    print_bench,
    run_bench,
    stacked_right,
    stacked_train,
    time_in_turns,
)
from si_nb.benchmarks.plain import plain_encode, plain_loss
from si_nb.loop.settings import make_config
from si_nb.model.generate import exact_match
from si_nb.model.gpt import GPT, ModelConfig
from si_nb.model.trainer import Mixture, TrainConfig, train
from si_nb.problems.tasks import TASKS, make_problems
from si_nb.problems.tokenizer import decode

CPU = torch.device("cpu")
QUICK = make_config(
    "tiny",
    original_digits=2,
    si_rounds=2,
    base_samples=2_000,
    si_iter=5,
    num_samples=30,
    eval_samples=20,
    n_embd=16,
)
LARGE = make_config(
    "tiny", task="reverse_addition", original_digits=4, si_rounds=2, base_samples=50_000, n_embd=16
)
SIZES = BenchSizes(
    QUICK,
    LARGE,
    paper_batch=8,
    steps=2,
    plain_lines=200,
    encoded_lines=20_000,
    items=20,
    labels=40,
    model_steps=30,
)


@pytest.fixture(scope="module")
def report():
    """Every row, at sizes that take seconds."""
    return run_bench(None, "cpu", 2, SIZES)


def test_every_row_is_measured(report):
    """The report has every row of the registry, in its order, with all repeats."""
    assert list(dict.fromkeys(row["name"] for row in report["rows"])) == list(ROWS)
    for row in report["rows"]:
        assert min(row["ours"]) > 0 and min(row["plain"]) > 0, row["name"]
        assert row["roofline"] > 0 and row["note"], row["name"]
        assert len(row["ours"]) in (1, 2) and (len(row["ours"]) == 2 or row["name"] in ("memory", "round"))


def test_rows_cover_the_experiment():
    """Data, batches, steps of both sizes, accuracy, labels of one and five voters, round and run."""
    sized = {f"{row}_{size}" for row in ("data", "batch", "step") for size in ("quick", "paper")}
    late = {"step_quick_late", "step_paper_late"}
    model = {"accuracy_known", "accuracy_beyond", "labels_1", "labels_5", "voters_accuracy", "voters_step"}
    assert set(ROWS) == sized | late | model | {"memory", "round"}


def test_ratios_are_quotients(report):
    """Each ratio is the quotient of two medians, computed again from the repeats."""
    for row in report["rows"]:
        ours, plain, llama = (
            np.median(row[name]) if row[name] else None for name in ("ours", "plain", "hugging_face")
        )
        assert row["ratio"] == pytest.approx(plain / ours)
        assert row["reached"] == pytest.approx(row["roofline"] / ours)
        assert row["hugging_face_ratio"] == (None if llama is None else pytest.approx(llama / ours))


def test_llama_columns_only_with_transformers(report):
    """Rows that have a Llama time have it if and only if the library is there."""
    rows = {row["name"]: bool(row["hugging_face"]) for row in report["rows"]}
    with_llama = [name for name in ROWS if name.startswith(("step_", "accuracy_", "labels_"))]
    assert all(rows[name] == (has_transformers() and name in with_llama) for name in ROWS)


def test_json_reads_back_and_names_no_machine(report):
    """Plain JSON, with versions, sizes and speeds, without host names or paths."""
    text = json.dumps(report)
    assert json.loads(text) == report and report["repeats"] == 2
    assert report["sizes"]["quick"]["original_digits"] == 2
    assert {"torch", "processor", "threads", "matmul_gflops", "copy_gb_per_s", "commit"} <= set(
        report["machine"]
    )
    assert str(ROOT) not in text and platform.node() not in text.replace('"', "").split()
    assert "/tmp" not in text


def printed(report):
    console = Console(file=io.StringIO(), width=120)
    print_bench(report, console)
    return console.file.getvalue()


def test_table_is_complete_and_fits(report):
    """Every line of the table and every note, within 120 columns."""
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 120
    assert all(text.count(row["what"]) >= 2 for row in report["rows"]) and "roofline" in text
    assert "reached" in text


def test_without_transformers_the_table_says_how_to_get_it(report, monkeypatch):
    """No Llama columns, and one line that says what to install."""
    monkeypatch.setattr("si_nb.benchmarks.benchmark.has_transformers", lambda: False)
    without = run_bench(["batch_quick"], "cpu", 1, SIZES)
    text = printed(without)
    assert "Llama  " not in text and HOW_TO_GET_LLAMA in text
    assert without["machine"]["transformers"] == "not installed"


def test_only_the_rows_asked_for():
    """Rows that others are computed from are measured and not shown; none is measured twice."""
    bench = Bench(CPU, 1, SIZES)
    first = bench.measure("data_quick")
    assert bench.measure("data_quick") is first and list(bench.done) == ["data_quick"]
    names = ["batch_paper", "data_quick"]
    assert [row["name"] for row in run_bench(names, "cpu", 1, SIZES)["rows"]] == names


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--rows", "data_quick,speed"], "row speed is unknown: choose data_quick, data_paper"),
        (["--rows", "batch_quick", "--repeats", "0"], "repeats is 0"),
        (["--device", "abacus"], "device 'abacus' is not available"),
        (["--json", "nowhere/at/all.json"], "no such folder"),
        (["--json", "."], "is a folder"),
        (["--json", "/proc/bench.json"], "/proc: n"),  # nothing can be written; elsewhere: no such folder
    ],
)
def test_mistakes_are_one_line(flags, said, capsys, monkeypatch):
    """A row, number, device or file that cannot be: one line, exit code 2, before anything is measured."""
    monkeypatch.setattr("si_nb.benchmarks.benchmark.time_in_turns", lambda *_: pytest.fail("measured"))
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert "data_quick" in str(pytest.raises(BenchError, run_bench, ["speed"]).value)


@pytest.mark.parametrize("flags", [["--repeats", "many"], ["--speed"]])
def test_unknown_flags_are_one_line(flags, capsys):
    """What cannot be read is one line too, without the usage."""
    assert pytest.raises(SystemExit, main, flags).value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_module_is_the_command(tmp_path):
    """Python -m si_nb.benchmarks.benchmark prints the table and writes the JSON."""
    words = ["--rows", "batch_quick", "--repeats", "1", "--json", str(tmp_path / "bench.json")]
    command = [sys.executable, "-m", "si_nb.benchmarks.benchmark", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert "a batch of 128" in done.stdout
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][0]["name"] == "batch_quick"


def test_jobs_take_turns_and_shares_scale():
    """Jobs alternate; a job that does half of the work has its time doubled."""
    clock, order = iter(range(100)), []
    jobs = {
        name: Job(lambda name=name: order.append(name), share)
        for name, share in (("whole", 1), ("half", 0.5), ("twice", 2))
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("si_nb.benchmarks.benchmark.time.perf_counter", lambda: float(next(clock)))
        seconds = time_in_turns(jobs, 3, CPU)
    assert order == ["whole", "half", "twice"] * 3
    assert seconds == {"whole": [1.0] * 3, "half": [2.0] * 3, "twice": [0.5] * 3}


# --- what is compared is the same


def test_pool_is_the_same_for_all_sides():
    """All sides hold the same examples; at the last round half of what is drawn is of the newest length."""
    for late in (False, True):
        pool = make_pool(QUICK, late, CPU)
        assert set(decode(pool.rows)) <= set(pool.lines)
        newest = 2 * (QUICK.last_length + 1)  # tokens of a newest copy problem
        share = np.mean([len(line) == newest for line in pool.lines])
        assert share == (pytest.approx(0.5, abs=0.03) if late else 0)


def test_one_program_gives_what_each_voter_gives():
    """All voters in one pass find right what each finds right by itself."""
    config, task = ModelConfig(n_layer=2, n_head=2, n_embd=32), TASKS["copy"]
    pool = make_pool(QUICK, False, CPU)
    models = [GPT(config, torch.Generator().manual_seed(seed)) for seed in range(3)]
    for seed, model in enumerate(models):
        train(
            model, pool.mixture, TrainConfig(150 + 50 * seed, 10, 10, 64, 1e-2), np.random.default_rng(seed)
        )
    problems = make_problems(task, 3, 200, np.random.default_rng(0), "evaluate")
    right = stacked_right(models, problems)
    assert (right == [exact_match(model, problems)[0] for model in models]).all()
    assert 0.05 < right.mean() < 0.99


def test_one_program_trains_each_voter_by_itself():
    """Several steps on the same rows: each voter's weights go where they go alone, clipping included."""
    config = ModelConfig(n_layer=2, n_head=2, n_embd=32)
    row = make_pool(QUICK, False, CPU).rows[:1]
    steps = TrainConfig(3, 0, 0, 4, 1e-3, epsilon=1e-4, gradient_clip=0.5)
    together, alone = (
        [GPT(config, torch.Generator().manual_seed(seed)) for seed in (0, 1)] for _ in range(2)
    )
    before = plain_loss(alone[0], plain_encode(decode(row), row.shape[1], CPU)).item()
    losses = stacked_train(together, row, steps, np.random.default_rng(0))
    for one, two in zip(together, alone, strict=True):
        train(two, Mixture([row], [1], CPU), steps, np.random.default_rng(0))
        assert all(
            torch.allclose(p, q, atol=1e-6) for p, q in zip(one.parameters(), two.parameters(), strict=True)
        )
    assert losses.shape == (2,) and losses[0] < before


def test_llama_has_our_sizes_and_answers():
    """Hugging Face's: as many weights as ours but for the norms, one loss per real token, greedy answers."""
    pytest.importorskip("transformers", reason="the extra bench is not installed")
    config = ModelConfig(n_layer=2, n_head=2, n_embd=32)
    llama, ours = make_llama(config, CPU), GPT(config, torch.Generator().manual_seed(0))
    count = [sum(p.numel() for p in model.parameters() if p.dim() > 1) for model in (llama, ours)]
    assert count[0] == count[1]
    rows = make_pool(QUICK, False, CPU).rows
    losses = [
        llama_train(llama, rows, TrainConfig(steps, 0, 0, 32, 3e-3), np.random.default_rng(0))
        for steps in (1, 40)
    ]
    assert losses[1] < 0.8 * losses[0]
    problems = make_problems(TASKS["copy"], 2, 10, np.random.default_rng(0))
    answers = llama_generate(llama, problems.prompts, 3, batch_size=4)
    tokens = torch.as_tensor(problems.prompts).long()
    for column in range(3):
        with torch.inference_mode():
            assert (llama(tokens).logits[:, -1].argmax(-1).numpy() == answers[:, column]).all()
        tokens = torch.cat([tokens, torch.as_tensor(answers[:, column : column + 1])], dim=1)


def test_round_is_the_sum_of_its_parts():
    """Plain time of a round: labels of every voter, steps of every voter, and evaluations at every length."""
    config = make_config(
        "tiny", si_method=("none", "mv_length"), voters=3, num_samples=10, eval_samples=7, si_iter=5
    )
    lengths = (
        config.last_length + 5 - (config.original_digits - 2) + 1 + 1
    )  # all evaluated ones, and the newest again
    seconds = plain_round_seconds(
        config, 2, {"none": 10, "mv_length": 20}, 2.0, lambda length: np.ones_like(length, dtype=float)
    )
    assert seconds == (1 * 10 + 3 * 20) + 4 * 5 * 2.0 + 4 * 7 * lengths


def test_planned_operations_grow():
    """The base models take most, and later rounds more than earlier ones."""
    config = make_config("quick")
    flops = planned_flops(config)
    assert len(flops) == config.si_rounds + 1 and flops[0] > flops[1] and (np.diff(flops[1:]) > 0).all()


@pytest.mark.cuda(reason="the same rows on a GPU")
def test_every_row_is_measured_on_cuda():
    """Nothing in the benchmark needs a CPU."""
    report = run_bench(None, "cuda", 1, SIZES)
    assert list(dict.fromkeys(row["name"] for row in report["rows"])) == list(ROWS)
    assert "cuda" in report["machine"]["device"]
