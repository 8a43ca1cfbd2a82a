"""The command line: what works stays working, and every mistake is one line, exit code 2, nothing written."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import COLLAPSE

import si_nb.cli
import si_nb.loop.memory
from si_nb.cli import main
from si_nb.loop.memory import available_memory, check_memory
from si_nb.loop.settings import ConfigError, make_config
from si_nb.record.table import read_table

SMALL = [
    "--preset",
    "tiny",
    "--original_digits",
    "3",
    "--base_samples",
    "2000",
    "--max_iters",
    "60",
    "--si_iter",
    "10",
    "--eval_samples",
    "64",
    "--num_samples",
    "64",
    "--si_rounds",
    "4",
]
COUNTS = {1: 980, 2: 940, 3: 850, 4: 700, 5: 480, 6: 260, 7: 110, 8: 30}


def refused(arguments, capsys):
    """The single line with which a command refuses its arguments."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    assert code == 2, said
    assert said.err.count("\n") == 1 and said.err.startswith("si_nb: ") and "Traceback" not in said.err, (
        said.err
    )
    assert said.out == ""
    return said.err


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A small finished run."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["run", *SMALL, "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def counts(tmp_path):
    """A table with nothing but rounds and counts, as somebody else might have it."""
    path = tmp_path / "counts.csv"
    path.write_text(
        "round,successes,trials\n" + "".join(f"{number},{right},1000\n" for number, right in COUNTS.items())
    )
    return path


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--task", "division"], "division"),
        (["--si_method", "hope"], "hope"),
        (["--preset", "huge"], "huge"),
        (["--no_such_flag", "1"], "--no_such_flag"),
        (["--n_embd", "100", "--n_head", "6"], "n_head"),
        (["--n_layer", "0"], "n_layer"),
        (["--batch_size", "-4"], "batch_size"),
        (["--si_rounds", "-1"], "si_rounds"),
        (["--n_embd", "wide"], "wide"),
        (["--vote_threshold", "0"], "vote_threshold"),
        (["--vote_threshold", "1.5"], "vote_threshold"),
        (["--threshold", "0"], "threshold"),
        (["--threshold", "1.01"], "threshold"),
        (["--until_round", "-1"], "until_round"),
        (["--stop_before_collapse", "0"], "stop_before_collapse: 0 is out of range"),
        (["--stop_before_collapse", "-3"], "stop_before_collapse: -3 is out of range"),
        (["--stop_before_collapse", "1.5"], "1.5"),
        (["--stop_before_collapse", "soon"], "soon"),
        (["--dropout", "1"], "dropout"),
        (["--learning_rate", "nan"], "learning_rate"),
        (["--noise_kind", "loud"], "loud"),
        (["--noise_round", "6"], "there are 5 rounds"),
        (["--si_stable", "61"], "a round has 60 steps"),
        (["--beta1", "1"], "beta1 is 1.0"),
        (["--newest_share", "0"], "newest_share"),
        (["--length_rule", "longest"], "choose possible, near_longest"),
        (["--positional_encoding", "sinusoidal"], "choose none, rotary, learned"),
        (["--positional_encoding", "rotary", "--n_embd", "10"], "must be even"),
        (["--device", "cuda:7"], "cuda:7"),
        (["--device", "abacus"], "abacus"),
        (["--wandb", "maybe"], "maybe"),
        (["--resume", "perhaps"], "perhaps"),
        (["--block_size", "20"], "block_size 20 is too small"),
        (["--voters", "1"], "voters"),
        (
            ["--seed", "1000000000000000000"],
            "seed is 1000000000000000000: it must be at least 0 and at most 999,999,999,999,999,999",
        ),
        (
            ["--num_samples", "1000000000000"],
            "num_samples is 1000000000000: it must be at least 1 and at most 1,000,000,000",
        ),
        (["--base_samples", str(2**70)], "base_samples is 1180591620717411303424"),
        (["--n_layer", str(2**70)], "n_layer is 1180591620717411303424"),
        (["--until_round", str(2**70)], "--until_round"),
        (["--threshold", "nan"], "--threshold: nan is out of range"),
        (["--checkpoint_minutes", "inf"], "--checkpoint_minutes: inf is out of range"),
        (["--checkpoint_minutes", "-1"], "--checkpoint_minutes: -1 is out of range"),
        (["--models_dir", "/"], "whole file system"),
        (["--run_dir", ""], "path is empty"),
    ],
    ids=lambda value: "_".join(value).strip("-") if isinstance(value, list) else None,
)
def test_bad_settings_are_refused_before_anything_is_written(flags, named, tmp_path, capsys):
    """A setting that cannot work costs one line and leaves no folder behind."""
    error = refused(["run", "--preset", "tiny", "--run_dir", tmp_path / "run", *flags], capsys)
    assert named in error
    assert not (tmp_path / "run").exists()


def test_block_size_error_names_the_size_needed(tmp_path, capsys):
    """The remedy is in the message: reversed addition of 10 + 10 digits needs 64 tokens."""
    assert "64" in refused(["run", "--block_size", "63", "--run_dir", tmp_path / "run"], capsys)


@pytest.mark.parametrize(
    "content, named",
    [
        (b"", "empty"),
        (b"name,price\ntea,3\n", "round"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "text"),
        (b"round,successes,trials\n1,5,4\n2,3,4\n", "successes"),
        (b"round,successes,trials\n1,5,10\n1,5,10\n", "line 3"),
        (b"round,successes,trials\n1,990,1000\n2,97", "cut off"),
        (b"round,successes,trials\n1,0,0\n2,0,0\n3,0,0\n", ""),
    ],
    ids=["empty", "foreign", "binary", "impossible", "duplicate", "truncated", "no_trials"],
)
def test_bad_tables_are_refused(content, named, tmp_path, capsys):
    """Whatever is given as a table, the answer is a law or one line that names the file or the reason."""
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    assert named in refused(["law", path], capsys)


def test_missing_table_is_refused(tmp_path, capsys):
    """A path that is not there is named."""
    assert "absent" in refused(["law", tmp_path / "absent"], capsys)


def test_unknown_law_is_refused(counts, capsys):
    """A law that is not in the registry is named, with those that are."""
    assert "weibull" in refused(["law", counts, "--law", "gravity"], capsys)


def test_laws_with_too_many_parameters_are_left_out_by_name(counts, capsys):
    """Two rounds carry no law of three parameters, and the report says which were left out."""
    assert main(["law", str(counts), "--until_round", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "exponential_floor" in report["left_out"] and "constant_hazard" in {
        law["name"] for law in report["laws"]
    }


def test_law_json_is_strict_and_complete(counts, capsys):
    """Programs read this: the fields, and no NaN or infinity, which JSON does not have."""
    assert main(["law", str(counts), "--json"]) == 0
    report = json.loads(
        capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )
    assert {"laws", "chosen", "collapse", "reproduction_number"} <= set(report)
    assert set(report["collapse"]) >= COLLAPSE
    assert report["collapse"]["low"] <= report["collapse"]["round"] <= report["collapse"]["high"]
    assert report["collapse"]["round"] == 5  # the first round below one half


def test_law_needs_no_torch(counts, tmp_path):
    """Reading tables works on machines without torch."""
    (tmp_path / "torch.py").write_text("raise ImportError('there is no torch here')")
    command = [sys.executable, "-m", "si_nb", "law", str(counts)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert "collapse" in done.stdout


def test_run_reports_and_draws(run_dir, capsys):
    """A finished run prints its report again, changes nothing and keeps its figures."""
    before = (run_dir / "measurements.csv").read_bytes()
    assert main(["run", *SMALL, "--run_dir", str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert "measurements.csv" in said and "figures" in said and "AICc" not in said
    assert said.startswith("copy: collapse below 0.5") and said.index("forecast") < said.index("table:")
    assert (run_dir / "measurements.csv").read_bytes() == before
    assert list((run_dir / "figures").glob("*.png"))


def test_a_hopeless_run_is_stopped(tmp_path, capsys):
    """Arms that collapse at once do not get their four rounds;
    the report is made all the same, and again by the same command.
    """
    command = ["run", *SMALL, "--stop_before_collapse", "2", "--run_dir", str(tmp_path / "run")]
    assert main(command) == 0
    first, table = capsys.readouterr(), (tmp_path / "run" / "measurements.csv").read_bytes()
    assert read_table(tmp_path / "run")["round"].max() < 4 and all(
        f"arm {arm} stopped after round" in first.err for arm in ("none", "mv_length")
    )
    assert main(command) == 0
    again = capsys.readouterr()
    assert (
        again.out == first.out
        and "stopped after round" in again.err
        and (tmp_path / "run" / "measurements.csv").read_bytes() == table
    )


@pytest.mark.parametrize(
    "ends", [dict(none=1, mv_length=3), dict(none=0, mv_length=3), dict(none=0, mv_length=0)], ids=str
)
def test_arms_that_end_apart_are_reported(ends, monkeypatch, run_dir, tmp_path, capsys):
    """Arms of different length, even one that never began, have their report and figures;
    without the flag such a run is refused.
    """

    def stop_before_collapse(within, threshold, kinds, settings):
        assert settings["task"] == "copy" and settings["si_method"] == ("none", "mv_length")
        return lambda table: {
            arm: "enough" for arm, rows in table.groupby("arm") if rows["round"].max() >= ends[arm]
        }

    monkeypatch.setattr("si_nb.law.monitor.stop_before_collapse", stop_before_collapse)
    command = ["run", *SMALL, "--run_dir", str(tmp_path / "run"), "--models_dir", str(run_dir / "models")]
    assert main([*command, "--stop_before_collapse", "1"]) == 0
    assert read_table(tmp_path / "run").groupby("arm")["round"].max().to_dict() == ends
    said, drawn = capsys.readouterr().out, (tmp_path / "run" / "figures" / "arms.png").exists()
    assert ("none: stopped before its first round" in said) == (ends["none"] == 0) and drawn == (
        "figures:" in said
    ) == (max(ends.values()) > 0)
    if len(set(ends.values())) > 1:
        assert "--stop_before_collapse" in refused(command, capsys)


def test_a_switch_can_be_turned_off():
    """A branch of a run with a switch on may turn it off; a switch that is not named stays as it is."""
    parse = si_nb.cli.make_parser("branch").parse_args
    for flags, given in (([], {}), (["--bias"], {"bias": True}), (["--no-bias"], {"bias": False})):
        words = ["branch", "runs/first", "--round", "1", "--run_dir", "runs/second", *flags]
        assert si_nb.cli._given_settings(parse(words)) == given


def test_another_configuration_is_refused(run_dir, capsys):
    """A folder that holds another experiment is named with the setting that differs, and stays as it is."""
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    assert "seed" in refused(["run", *SMALL, "--seed", "5", "--run_dir", run_dir], capsys)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()} == before


def test_resume_never_refuses_a_used_folder(run_dir, capsys):
    """--resume never protects a finished run."""
    assert "already holds a run" in refused(
        ["run", *SMALL, "--resume", "never", "--run_dir", run_dir], capsys
    )


def test_run_dir_that_is_a_file(tmp_path, capsys):
    """A file where the run folder should be is named and left alone."""
    path = tmp_path / "file"
    path.write_text("precious")
    assert str(path) in refused(["run", *SMALL, "--run_dir", path], capsys)
    assert path.read_text() == "precious"


def test_run_dir_that_cannot_be_made(capsys):
    """A folder that the system does not let us make is named."""
    assert "/proc/" in refused(["run", *SMALL, "--run_dir", "/proc/si_nb_run"], capsys)


def test_missing_base_model_is_named(tmp_path, capsys):
    """Self-improvement without a base model names the file it looked for."""
    error = refused(
        [
            "run",
            *SMALL,
            "--skip_base_model_train",
            "--models_dir",
            tmp_path / "models",
            "--run_dir",
            tmp_path / "run",
        ],
        capsys,
    )
    assert "voter_0.safetensors" in error


@pytest.mark.parametrize("damage", ["truncated", "other_shape"])
def test_unusable_weights_are_refused(damage, run_dir, tmp_path, capsys):
    """A weights file that is cut or belongs to another model is named, not loaded."""
    models = tmp_path / "models"
    for path in (run_dir / "models").glob("*-base-*/*.safetensors"):
        content, copy = path.read_bytes(), models / path.relative_to(run_dir / "models")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
    sizes = ["--n_embd", "48"] if damage == "other_shape" else []
    arguments = [
        "run",
        *SMALL,
        *sizes,
        "--skip_base_model_train",
        "--models_dir",
        models,
        "--run_dir",
        tmp_path / "run",
    ]
    assert "voter_0.safetensors" in refused(arguments, capsys)


def test_base_only_then_rounds_only(tmp_path, capsys):
    """--skip_si and --skip_base_model_train are the two halves of a run, through --models_dir."""
    models = ["--models_dir", str(tmp_path / "models")]
    assert main(["run", *SMALL, "--skip_si", *models, "--run_dir", str(tmp_path / "base")]) == 0
    assert not (tmp_path / "base" / "measurements.csv").exists()
    assert len(list((tmp_path / "models").glob("*-base-*/*.safetensors"))) == 3
    assert (
        main(["run", *SMALL, "--skip_base_model_train", *models, "--run_dir", str(tmp_path / "rounds")]) == 0
    )
    assert (tmp_path / "rounds" / "measurements.csv").exists()


def test_no_filter_is_another_name_for_none(tmp_path):
    """The name that the unfiltered arm has elsewhere works here."""
    assert (
        main(
            [
                "run",
                *SMALL,
                "--si_method",
                "no_filter",
                "--si_rounds",
                "1",
                "--run_dir",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "run" / "config.json").read_text())["si_method"] == ["none"]


def mirrored(mode, folder):
    """The command of a short run with a mirror, in a process of its own."""
    flags = ["--si_rounds", "1", "--wandb", mode, "--run_dir", str(folder)]
    return [sys.executable, "-m", "si_nb", "run", *SMALL, *flags]


def test_wandb_offline_writes_inside_the_run_folder(tmp_path):
    """The mirror works without a network and leaves nothing beside the run folder."""
    pytest.importorskip("wandb", reason="the mirror is optional")
    command = mirrored("offline", tmp_path / "run")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and list(
        (tmp_path / "run" / "wandb").iterdir()
    )


def test_wandb_without_a_key_goes_on(tmp_path):
    """Online without a key: said once, never asked, and the run is complete."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment.update(HOME=str(tmp_path), WANDB_BASE_URL="http://localhost:9")
    command = mirrored("online", tmp_path / "run")
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Weights & Biases is not available") == 1
    assert (tmp_path / "run" / "measurements.csv").exists()


def test_module_and_command_are_the_same():
    """Python -m si_nb is si_nb."""
    done = subprocess.run([sys.executable, "-m", "si_nb", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(
        command in done.stdout for command in ("run", "sweep", "law", "figures")
    )


RECIPE = dict(
    beta1=0.8, beta2=0.95, epsilon=1e-8, weight_decay=0.2, gradient_clip=0.5, learning_rate_floor=0.1,
    si_stable=4, newest_share=0.6, older_weight=0.5, length_rule="near_longest", si_method="mv_length,truth",
)  # fmt: skip


def test_the_recipe_from_the_command_line(tmp_path, capsys):
    """Every switch of the recipe, and the rule that writes the truth, in one small run; check is content."""
    given = {
        **RECIPE,
        "positional_encoding": "learned",
        "max_iters": 20,
        "si_iter": 6,
        "si_rounds": 2,
        "seed": 3,
    }
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    flags += ["--carry_optimizer", "--own_labels", "--run_dir", str(tmp_path / "run")]
    assert main(["run", *SMALL, *flags]) == 0 and main(["check", str(tmp_path / "run")]) == 0
    facts = json.loads((tmp_path / "run" / "config.json").read_text())
    assert facts["carry_optimizer"] and facts["own_labels"] and facts["positional_encoding"] == "learned"
    assert all(facts[name] == value for name, value in RECIPE.items() if name != "si_method")
    kept = read_table(tmp_path / "run").query("arm == 'truth' and quantity == 'label_kept'")
    assert (kept["successes"] == kept["trials"]).all() and len(kept) == 2


def test_every_documented_flag_exists(capsys):
    """People have these flags in their notebooks."""
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    said = capsys.readouterr().out
    flags = [
        "n_embd",
        "n_head",
        "n_layer",
        "dropout",
        "bias",
        "batch_size",
        "block_size",
        "max_iters",
        "eval_interval",
        "si_rounds",
        "si_iter",
        "decay",
        "si_method",
        "original_digits",
        "num_samples",
        "data_dir",
        "models_dir",
        "seed",
        "device",
        "skip_base_model_train",
        "skip_si",
        "train_multiple_base",
        "wandb_project",
        "wandb_name",
        "task",
        "preset",
        "voters",
        "vote_threshold",
        "run_dir",
        "resume",
        "wandb",
        "stop_before_collapse",
    ]
    assert [flag for flag in flags if f"--{flag}" not in said] == []


def test_help_of_sweep_shows_an_example(capsys):
    """A grid can be written from the help alone."""
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    said = capsys.readouterr().out
    assert all(
        word in said
        for word in (
            "--out",
            "--executor",
            "--jobs",
            "[[group]]",
            "seeds = ",
            "grid = {",
            "si_nb sweep grid.toml",
        )
    )


def test_example_of_sweep_help_is_a_grid(tmp_path, capsys):
    """The grid in the help is read as it stands, and names its runs."""
    from si_nb.loop.grid import read_grid

    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    lines = capsys.readouterr().out.split("a file grid.toml:\n")[1].split("\n\n")[0].splitlines()
    (tmp_path / "grid.toml").write_text("\n".join(lines))
    grid = read_grid(tmp_path / "grid.toml")
    assert len(grid.runs) == 12 and grid.slurm


# --- what nobody foresaw


@pytest.mark.parametrize(
    "error, line",
    [
        (
            OSError(5, "Input/output error", "disk"),
            "si_nb: OSError: [Errno 5] Input/output error: 'disk'; --debug shows where\n",
        ),
        (MemoryError(), "si_nb: MemoryError: nothing more is known; --debug shows where\n"),
        (OverflowError("int too large"), "si_nb: OverflowError: int too large; --debug shows where\n"),
        (
            RecursionError("too\ndeep \x1b[2J"),
            "si_nb: RecursionError: too\\ndeep \\x1b[2J; --debug shows where\n",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_mishaps_end_in_one_line(error, line, monkeypatch, counts, capsys):
    """Whatever a full disk, want of memory or a monstrous file raises where nobody foresaw it:
    one line, exit code 2; --debug shows where.
    """

    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr("si_nb.law.report.law_report", fail)
    assert main(["law", str(counts)]) == 2
    assert capsys.readouterr().err == line
    for words in (
        ["--debug", "law", str(counts)],
        ["law", "--debug", str(counts)],
        ["law", str(counts), "--debug"],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("Traceback") and said.endswith(line)


def test_debug_shows_where_a_foreseen_mistake_was_found(tmp_path, capsys):
    """The flag serves for every error, also for those that have a line of their own."""
    assert main(["law", str(tmp_path / "absent.csv"), "--debug"]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("Traceback")
        and said.splitlines()[-1].startswith("si_nb: ")
        and "absent.csv" in said.splitlines()[-1]
    )


@pytest.mark.parametrize(
    "bug",
    [KeyError("x"), AssertionError("x"), TypeError("x"), ValueError("x"), ZeroDivisionError("x")],
    ids=lambda bug: type(bug).__name__,
)
def test_bugs_keep_their_traceback(bug, monkeypatch, counts):
    """A fault of the program is not dressed up as one of its user."""

    def fail(*arguments, **settings):
        raise bug

    monkeypatch.setattr("si_nb.law.report.law_report", fail)
    with pytest.raises(type(bug)):
        main(["law", str(counts)])


def test_debug_before_law_needs_no_torch(counts, tmp_path):
    """A flag before the command does not make the program load what the command does not need."""
    (tmp_path / "torch.py").write_text("raise ImportError('there is no torch here')")
    command = [sys.executable, "-m", "si_nb", "--debug", "law", str(counts), "--law", "constant_hazard"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert done.returncode == 0, done.stderr


# --- memory


@pytest.fixture
def little_memory(monkeypatch):
    """A machine with a tenth of a gigabyte."""
    monkeypatch.setattr(si_nb.loop.memory, "available_memory", lambda: 10**8)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--base_samples", "10_000_000"], "base_samples is 10000000: it takes 0.1 of the"),
        (["--num_samples", "2_000_000"], "num_samples is 2000000: it takes"),
        (["--eval_samples", "1_000_000"], "eval_samples is 1000000: it takes"),
        (["--batch_size", "200_000"], "batch_size is 200000: it takes"),
        (["--n_embd", "2048"], "n_embd is 2048: it takes"),
        (["--n_layer", "900"], "n_layer is 900: it takes"),
        (["--voters", "900"], "voters is 900: it takes"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else None,
)
def test_want_of_memory_is_seen_before_any_work(flags, named, little_memory, tmp_path, monkeypatch, capsys):
    """What does not fit is refused by run and by cost, in the same words,
    which name the setting that takes most; nothing is written.
    """
    monkeypatch.chdir(tmp_path)
    lines = [refused([command, "--preset", "tiny", *flags], capsys) for command in ("run", "cost")]
    assert (
        lines[0] == lines[1]
        and named in lines[0]
        and "0.1 GB are free; lower it, or take a larger machine" in lines[0]
    )
    assert not list(tmp_path.iterdir())


def test_a_finished_run_needs_no_memory(run_dir, little_memory, monkeypatch, capsys):
    """A table can be reported on a machine on which it could not have been measured."""
    monkeypatch.setattr(si_nb.loop.memory, "available_memory", lambda: 1)
    assert main(["run", *SMALL, "--run_dir", str(run_dir)]) == 0


def test_unknown_memory_refuses_nothing(monkeypatch):
    """Where the system does not say what it has, that is no reason to refuse."""
    monkeypatch.setattr(si_nb.loop.memory, "available_memory", lambda: None)
    check_memory(make_config("tiny", n_embd=100_000), torch.device("cpu"))


def test_memory_of_a_device_is_its_own(monkeypatch):
    """On an accelerator the models are held against its memory, and the data against the machine's."""
    monkeypatch.setattr(si_nb.loop.memory, "available_memory", lambda: 10**9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**8, 10**9))
    with pytest.raises(ConfigError, match="n_embd is 2048: .* GB of memory of cuda"):
        check_memory(make_config("tiny", n_embd=2048), torch.device("cuda"))
    with pytest.raises(ConfigError, match="base_samples is 900000000: .* GB of memory that"):
        check_memory(make_config("tiny", base_samples=900_000_000), torch.device("cuda"))


@pytest.mark.parametrize(
    "groups, limit",
    [
        ("0::/a/b\n", "sys/fs/cgroup/a/memory.max"),
        ("5:cpu:/x\n4:memory:/c/d\n0::/\n", "sys/fs/cgroup/memory/c/d/memory.limit_in_bytes"),
    ],
)
def test_limits_of_containers_count(groups, limit, tmp_path):
    """The memory of a control group, old or new, of its parents too, is all that there is."""
    for name, text in {
        "proc/meminfo": "MemAvailable: 1000 kB\n",
        "proc/self/cgroup": groups,
        limit: "max\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path) == 1_024_000
    (tmp_path / limit).write_text("5000\n")
    assert available_memory(tmp_path) == 5_000


def test_the_four_commands_of_the_seed_project_share_a_folder(tmp_path, monkeypatch, capsys):
    """As its README writes them, in its order, made small: base models of other settings lie side by side,
    rounds are made from those of the first command, and a name for a mirror that is off is not ignored in
    silence.
    """
    monkeypatch.chdir(tmp_path)
    small = (
        "--task copy --base_samples 300 --num_samples 30 --eval_samples 20 --n_layer 1 --n_head 2 --n_embd 32"
    )
    small += " --batch_size 16 --device cpu"
    shared = ["run", *small.split(), "--data_dir", "drive/data", "--models_dir", "drive/models", "--bias"]
    commands = {
        "full_experiment": "--max_iters 50 --si_rounds 3 --si_iter 15",
        "base_model_training": "--max_iters 50 --skip_si",
        "self_improvement_only": "--skip_base_model_train --si_rounds 3 --si_iter 15",
        "test_run": "--max_iters 10 --si_rounds 1 --si_iter 10",
    }
    said = {}
    for name, flags in commands.items():
        assert main([*shared, *flags.split(), "--wandb_name", name]) == 0, name
        said[name] = capsys.readouterr()
        assert said[name].err.startswith("wandb_name not used: wandb is off")
    runs = [path.parent for path in sorted(tmp_path.glob("runs/*/config.json"))]
    facts = [json.loads((run / "config.json").read_text()) for run in runs]
    assert len(list(tmp_path.glob("drive/models/*-base-*"))) == 2  # of 50 steps, which three share, and of 10
    later = next(each for each in facts if each["max_iters"] == 10_000)
    assert later["base_models"]["training"]["max_iters"] == 50  # what is recorded is what was trained
    tables = [
        read_table(run) for run in runs if json.loads((run / "config.json").read_text())["si_rounds"] == 3
    ]
    accuracy = [table.query("quantity == 'accuracy'")["successes"].tolist() for table in tables]
    assert len(accuracy) == 2 and accuracy[0] == accuracy[1]  # the same rounds from the same base models
