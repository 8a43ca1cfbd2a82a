"""What README promises is run: its shell examples and its Python, each as a user would,
in an empty folder. Only the training is cut short: what is tested is that the commands fit together.
"""

import json
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT
from matplotlib import image

from si_nb.benchmarks.benchmark import _quantity
from si_nb.cli import main
from si_nb.law.report import law_report
from si_nb.record.table import read_table

FEWER = {"max_iters": 60, "si_rounds": 4, "si_iter": 10, "num_samples": 100, "eval_samples": 50}
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """Fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.S | re.M)


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory):
    """An empty folder with the committed tables in it, as in a clone."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "results").symlink_to(ROOT / "results")
    return folder


def run(command, folder):
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_shell_examples_run_in_order(user_folder, monkeypatch, capsys):
    """The block of uses works from top to bottom: quick test, base models, rounds, laws, figures, a page,
    cost, prediction.
    """
    (block,) = [block for block in blocks("bash") if "--skip_si" in block]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(lines) == 9 and all(line[0] == "si_nb" for line in lines)
    fewer = [word for name, value in FEWER.items() for word in (f"--{name}", str(value))]
    runs = [[*line[:2], *fewer, *line[2:]] if line[1] == "run" else line for line in lines]
    said = [run([sys.executable, "-m", *line], user_folder) for line in runs[:3]]
    said += in_this_process(runs[3:], user_folder, monkeypatch, capsys)
    assert (
        "no law" in said[0] or "collapse" in said[0]
    )  # one round of next to no training carries a law or says that it carries none
    assert "base models" in said[1]
    assert all(word in said[2] for word in ("measurements.csv", "forecast", "measured"))
    assert "collapse" in said[3] and "by horizon from the base model" in said[4]
    assert list((user_folder / "pictures").glob("*.png"))
    assert "<h2>Verdict</h2>" in (user_folder / "report.html").read_text(encoding="utf-8")
    assert "GB of memory" in said[7] and "probability of lasting" in said[8]
    look_into(user_folder, monkeypatch, capsys)


def in_this_process(lines, folder, monkeypatch, capsys):
    """What commands print that need no process of their own, which is quicker."""
    monkeypatch.chdir(folder)
    said = []
    for line in lines:
        assert main(line[1:]) == 0, line
        said.append(capsys.readouterr().out)
    return said


def look_into(folder, monkeypatch, capsys):
    """The block of commands that look into the first of these runs."""
    (block,) = [block for block in blocks("bash") if "si_nb branch" in block]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    said = in_this_process(lines, folder, monkeypatch, capsys)
    assert "first error" in said[0] and "123456=" in said[1] and "table: second" in said[2]
    assert (folder / "labels.tsv").read_text().startswith("prompt\tlabel\ttruth\t")


def test_python_example_runs(user_folder):
    """The same experiment in Python prints its forecast and draws its figures."""
    (block,) = blocks("python")
    whole = 'make_config("tiny")'
    assert whole in block
    shortened = block.replace(whole, f'make_config("tiny", **{FEWER})')
    assert "collapse" in run([sys.executable, "-c", shortened], user_folder)
    assert list(user_folder.glob("runs/*seed0*/figures/*.png"))


def test_the_verdict_is_that_of_the_committed_run(user_folder):
    """README shows what the command prints."""
    said = run(
        [sys.executable, "-m", "si_nb", "law", "results/quick/seed0", "--until_round", "3"], user_folder
    )
    shown = next(part for part in TEXT.split("```\n") if part.startswith("copy: collapse"))
    lines = [line.rstrip() for line in said.splitlines()]
    assert [line.rstrip() for line in shown.splitlines()] == lines[: len(shown.splitlines())]


def test_pictures_are_those_of_what_is_committed(tmp_path):
    """README's pictures come from the command that is said to make them, small enough to load at once."""
    run([sys.executable, ROOT / "docs" / "picture.py", "--out", tmp_path], tmp_path)
    for name in ("run.png", "carried.png"):
        committed = ROOT / "docs" / name
        shown, drawn = (image.imread(path) for path in (committed, tmp_path / name))
        assert committed.stat().st_size < 150_000 and shown.shape == drawn.shape
        # letters differ a little between versions of the font library
        assert abs(shown - drawn).mean() < 0.01
        assert f"](docs/{name})" in TEXT


def say(number):
    return "never" if number is None else str(number)


def measured_rows():
    """The rows of README's table of results, from the committed tables."""
    rows = []
    for task in ("copy", "reverse_addition"):
        tables = [read_table(path) for path in sorted((ROOT / "results" / task).glob("seed*"))]
        reports = {
            origin: [law_report(table, origin, law="horizon")["arms"] for table in tables]
            for origin in (0, 2)
        }
        for arm in ("none", "mv_length"):
            found = [report[arm]["measured"][0] for report in reports[0]]
            measured = ", ".join(
                f"after {run['last_round']}" if run["censored"] else str(run["collapse_round"])
                for run in found
            )
            calls = {origin: [report[arm]["collapse"] for report in each] for origin, each in reports.items()}
            text = [
                ", ".join(
                    f"{say(call['round'])} ({say(call['low'])} to {say(call['high'])})" for call in each
                )
                for each in calls.values()
            ]
            rows.append(f"| {task} | `{arm}` | {measured} | {text[0]} | {text[1]} |")
    return rows


def test_measured_table_is_that_of_the_committed_runs():
    """No number in README's table of results was typed by hand."""
    assert [
        line for line in TEXT.splitlines() if line.startswith(("| copy |", "| reverse_addition |"))
    ] == measured_rows()


def speed_rows():
    """The rows of README's table of speed, from the committed benchmark."""
    report = json.loads((ROOT / "results" / "benchmark" / "cpu.json").read_text(encoding="utf-8"))
    rows = []
    for row in report["rows"]:
        ours, plain, llama = (
            _quantity(row[key], row["unit"]) for key in ("ours_median", "plain_median", "hugging_face_median")
        )
        llama = f"{llama} ({row['hugging_face_ratio']:.1f}x)" if llama else ""
        rows.append(
            f"| {row['what']} | {ours} | {plain} | {row['ratio']:.1f}x | {row['reached']:.0%} | "
            f"{llama} |".replace("  ", " ")
        )
    return [
        text for row, text in zip(report["rows"], rows, strict=True) if not row["name"].startswith("voters")
    ]


def test_speed_table_is_that_of_the_committed_benchmark():
    """No number in README's table of speed was typed by hand."""
    first = TEXT.index("| part |")
    lines = TEXT[first : TEXT.index("\n\n", first)].splitlines()
    assert lines[2:] == speed_rows()
