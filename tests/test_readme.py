"""What README promises is run: its shell examples and its Python, each as a user would, in an empty folder."""
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT

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
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_shell_examples_run_in_order(user_folder):
    """The block of uses works from top to bottom: quick test, pipeline, base only, rounds only, law, figures."""
    (block,) = [block for block in blocks("bash") if "--skip_si" in block]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(lines) == 6 and all(line[0] == "si_nb" for line in lines)
    said = [run([sys.executable, "-m", *line], user_folder) for line in lines]
    assert "no law" in said[0]  # one round carries none, and the run says so
    assert "forecast" in said[1] and "measured" in said[1]
    assert "base models" in said[2] and "measurements.csv" in said[3]
    assert "collapse" in said[4] and list((user_folder / "pictures").glob("*.png"))


def test_python_example_runs(user_folder):
    """The same experiment in Python prints its forecast and draws its figures."""
    (block,) = blocks("python")
    assert "collapse" in run([sys.executable, "-c", block], user_folder)
    assert list(user_folder.glob("runs/*seed1*/figures/*.png"))
