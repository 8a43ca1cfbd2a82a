"""One page of a run or a sweep: it holds what was asked, refers to nothing else, and obeys no name."""

import html.parser
import os
import re
import shutil
import subprocess
import sys
from base64 import b64decode

import pandas as pd
import pytest
from conftest import ROOT

from si_nb.cli import main
from si_nb.law.page import MOST_LAWS, draw_page_figures, report_page
from si_nb.law.report import law_report
from si_nb.record.table import measurement_table, read_settings, read_table, results_folder

RUN = results_folder() / "copy" / "seed0"
EVIL = "</td><script>alert('x')</script>\x1b[2J&amp;"


class Reader(html.parser.HTMLParser):
    """Tags, the text of cells and headings, and everything that a browser would fetch."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.fetched, self.inside = [], [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside = tag in ("td", "th", "h1", "h2", "summary")
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, text):
        if self.inside:
            self.texts.append(text)


def is_self_contained(page):
    """No script, no style from elsewhere, no address; pictures are PNG files inside the page."""
    reader = Reader(page)
    pictures = [source.removeprefix("data:image/png;base64,") for source in reader.fetched]
    return (
        not {"script", "link", "iframe", "object", "embed"} & set(reader.tags)
        and not re.search(r"https?:|@import|url\(", page)
        and all(b64decode(data, validate=True).startswith(b"\x89PNG") for data in pictures)
    )


@pytest.fixture(scope="module")
def run_page(tmp_path_factory):
    """The page of a committed run, made by the command where torch cannot be imported."""
    place = tmp_path_factory.mktemp("page")
    shutil.copytree(RUN, place / "run")
    (place / "torch.py").write_text("raise ImportError('there is no torch here')")
    command = [sys.executable, "-W", "error", "-m", "si_nb", "report", "run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, timeout=300)
    assert (done.returncode, done.stderr) == (0, "") and "report.html" in done.stdout
    return (place / "run" / "report.html").read_text(encoding="utf-8")


def test_a_run_is_on_one_page(run_page):
    """Settings, verdict, pictures and tables; the verdict before the pictures, the map before the others;
    nothing is fetched.
    """
    read = Reader(run_page)
    assert is_self_contained(run_page)
    for heading in ("run", "Verdict", "Pictures", "Accuracy at the newest length", "Settings", "Laws"):
        assert heading in read.texts, heading
    row = read.texts.index("none")
    assert read.texts[row : row + 3] == ["none", "horizon", "rounds 1-4"]
    assert "already collapsed" not in read.texts and read.texts.count("hit") == 1
    assert read.tags.count("img") == 7 and run_page.index("Verdict") < run_page.index("alt='map'")
    at = read.texts.index("num_samples")
    assert read.texts[at + 1] == "2000" and "weibull" in read.texts


def test_a_sweep_is_on_one_page(tmp_path):
    """Settings that differ stand by run, the others once; every arm has its verdict,
    the first ones have pictures of their law; a page that was there is overwritten.
    """
    sweep, settings = results_folder() / "sweep", read_settings(results_folder() / "sweep")
    alike = settings.query("task == 'copy' and max_iters == '1500' and si_rounds == '10'")
    chosen = alike.groupby("si_method").head(2)["run_id"]
    table = read_table(sweep).query("run_id in @chosen")
    table.to_csv(tmp_path / "measurements.csv", index=False)
    settings.query("run_id in @chosen").to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "report.html").write_text("an older page")
    assert main(["report", str(tmp_path), "--until_round", "3"]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    read = Reader(page)
    assert is_self_contained(page) and set(table["run_id"]) <= set(read.texts) and len(chosen) > 3
    assert set(table["arm"]) <= set(read.texts) and read.texts.count("n_embd") == 1
    assert set(table["arm"]) > {"none", "mv"} and "rounds 1-3" in read.texts


def test_no_name_is_obeyed():
    """Names of runs, tasks, arms and settings, title and notes are text, whatever they hold."""
    rows = [
        (EVIL + run, EVIL, EVIL + run, 0, 0, r, 8 + r, "accuracy", right, 100)
        for run in "ab"
        for r, right in enumerate((98, 90, 70, 45, 20))
    ]
    table = measurement_table(rows)
    settings = pd.DataFrame({"run_id": [EVIL + "a", EVIL + "b"], EVIL: [EVIL, "x"], "task": EVIL})
    report = law_report(table, 3, law="weibull", resamples=20)
    page = report_page(EVIL, table, report, {EVIL: b"\x89PNG"}, settings)
    lawless = report_page(EVIL, table, {"arms": {}}, {}, settings, note=EVIL)
    for made in (page, lawless):
        assert is_self_contained(made) and "\x1b" not in made and "&lt;/td&gt;&lt;script&gt;" in made
    assert Reader(page).texts.count("no law") == 0 and "no law: &lt;/td&gt;" in lawless


def test_a_sweep_draws_the_laws_of_its_first_arms():
    """Hundreds of pictures would make no page."""
    counts = (980, 900, 700, 450, 200)
    rows = [
        (f"r{arm}", "copy", f"arm{arm}", 0, 0, r, 8 + r, "accuracy", right, 1000)
        for arm in range(MOST_LAWS + 2)
        for r, right in enumerate(counts)
    ]
    table = measurement_table(rows)
    pictures = draw_page_figures(table, law_report(table, 3, law="weibull", resamples=10))
    assert sum(name.startswith("law_") for name in pictures) == MOST_LAWS


@pytest.mark.parametrize("kind", ["folder", "dangling link", "in no folder"])
def test_a_page_goes_into_a_plain_file_only(kind, tmp_path, capsys):
    """What is there and is no plain file is named and left alone."""
    shutil.copytree(RUN, tmp_path / "run")
    places = {
        "folder": tmp_path / "run",
        "dangling link": tmp_path / "link",
        "in no folder": tmp_path / "a" / "b",
    }
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert main(["report", str(tmp_path / "run"), "--out", str(places[kind])]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and str(tmp_path) in said.err and not said.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]
    assert (tmp_path / "link").is_symlink() and not (tmp_path / "nowhere").exists()
