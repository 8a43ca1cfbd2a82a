"""Names from tables may hold anything: they are shown and not obeyed, drawn and not parsed,
and never lead a file elsewhere.
"""

import contextlib
import csv
import io
import json
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

import si_nb.cli
from si_nb.law.figures import arms_figure, drawable, save_figures
from si_nb.law.report import law_report, print_report
from si_nb.law.round_curves import LawError, observed
from si_nb.loop.folder import open_run, recover_table
from si_nb.loop.settings import ConfigError, make_config
from si_nb.record.table import (
    COLUMNS,
    LONGEST_LINE,
    LONGEST_NAME,
    TableError,
    file_name,
    measurement_table,
    printable,
    read_table,
    trajectory,
)

few = settings(
    max_examples=5, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
many = settings(few, max_examples=150)
STRANGE = [
    "[/x]", "[bold red]loud", ":smile:", "\x1b]0;title\x07", "\x1b[2J", "\x9b1m", "a\tb", "$x^$", "$", "\\$",
    "$\\frac{$", "_", "_hidden", "a_b^c",
    "..", "../../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "CON", "nul", "a:b", "*?", "~", "-rf",
    "n" * 300, "\u202eabc", "\u200f", "a\u0301" * 40,
    "\U0001f600\u200d\U0001f33e", "猫" * 60, "a\u2028b", "é", "A", "a", " ", "%s{}", "'; --", '"quoted"', "#",
]  # fmt: skip
names = st.one_of(
    st.sampled_from(STRANGE), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
)
COUNTS = (98, 90, 70, 45, 20)


def rows_of(run_id, task, arm, lengths=(0,)):
    return [
        (run_id, task, arm, 0, 0, r, 8 + r + d, "accuracy", c - d, 100)
        for r, c in enumerate(COUNTS, 1)
        for d in lengths
    ]


def is_clean(text):
    """Nothing in a text that a terminal would obey."""
    return all(c.isprintable() or c == "\n" for c in text)


def quick_report(table, until_round=None, threshold=0.5, law="best", settings=None, kinds=None):
    return law_report(table, until_round, threshold, "weibull", 20)


def call(*arguments):
    """Exit code, output and errors of the command line; of the laws one, of the resamples few."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr("si_nb.law.report.law_report", quick_report)
        code = si_nb.cli.main(list(arguments))
    return code, out.getvalue(), err.getvalue()


@many
@given(st.text(max_size=200) | st.sampled_from(STRANGE), st.integers(10, 700))
def test_what_is_shown_is_a_short_printable_line(text, longest):
    """No text, half characters included, breaks a line or is obeyed;
    what is printable and short is shown as it is.
    """
    shown = printable(text, longest)
    assert shown.isprintable() and len(shown) <= longest and printable(shown, longest) == shown
    assert shown == text or not text.isprintable() or len(text) > longest


@many
@given(st.lists(names, min_size=1, max_size=2), st.lists(names, min_size=1, max_size=2))
@example(["a", "b_c"], ["a_b", "c"])
@example(["A"], ["a"])
@example(["a.b"], ["a", "b"])
@example(["é"], ["e\u0301"])
@example(["n" * 300], ["n" * 301])
def test_names_that_differ_never_share_a_file(one, other):
    """File names are safe on every system, short, and different for different names,
    even where a drive takes A for a.
    """
    for kind in ("law", "arms"):
        mine, yours = file_name(kind, *one), file_name(kind, *other)
        assert re.fullmatch(r"[A-Za-z0-9._~-]{1,160}", mine) and mine.startswith(f"{kind}_")
        assert (mine.lower() == yours.lower()) == (one == other)


def test_plain_names_keep_their_file_names():
    """What keep rules and runs are called is seen in the name of the file."""
    assert [file_name("law", name) for name in ("none", "mv_length", "copy-seed0-4a92f838")] == [
        "law_none",
        "law_mv_length",
        "law_copy-seed0-4a92f838",
    ]


@pytest.mark.parametrize("arm", STRANGE)
def test_a_report_shows_any_name(arm):
    """Laws, notes and titles of an arm of any name, on a page of 80 columns, without markup,
    emoji codes or control characters.
    """
    tables = measurement_table(rows_of(arm, arm, arm.strip() or "x")) if arm.strip() else None
    if tables is None:
        with pytest.raises(TableError, match="empty"):
            measurement_table(rows_of(arm, arm, arm))
        return
    report = quick_report(tables)
    page = io.StringIO()
    print_report(report, Console(file=page, width=80, force_terminal=False), laws=True)
    assert is_clean(page.getvalue()) and report["arm"] == arm.strip()
    assert "".join(printable(arm.strip()).split()) in "".join(page.getvalue().split())
    assert all(
        len(line) <= 80 for line in page.getvalue().splitlines() if line.startswith(("┃", "│", "┏", "└"))
    )


@pytest.mark.parametrize("arm", [arm for arm in STRANGE if arm.strip()])
def test_a_verdict_shows_any_name_unbroken(arm):
    """Beside an arm of many settings, a name stands in one line of the verdict, and no line is too long."""
    rows = [*rows_of("r", "copy", arm), *rows_of("s", "copy", "none, num_samples 500, base_samples 2000")]
    page = io.StringIO()
    print_report(quick_report(measurement_table(rows)), Console(file=page, width=80, force_terminal=False))
    lines = page.getvalue().splitlines()
    assert is_clean(page.getvalue()) and max(map(cell_len, lines)) <= 80
    assert printable(arm, 26) in page.getvalue() or printable(arm, 13) in page.getvalue()
    assert any(line.startswith("num_samples 500,") for line in lines)


def test_a_terminal_obeys_no_name():
    """On a terminal, where rich writes escapes of its own, those of a name are still not among them."""
    page = io.StringIO()
    print_report(
        quick_report(measurement_table(rows_of("r", "[red]", "\x1b]0;title\x07 [/x]"))),
        Console(file=page, width=80, force_terminal=True),
    )
    assert "\x1b]0" not in page.getvalue() and "\x07" not in page.getvalue() and "[red]" in page.getvalue()


def test_an_arm_without_a_law_is_named_in_its_note():
    """The line about an arm that carries no law shows the arm's name."""
    perfect = [(*row[:8], 100, 100) for row in rows_of("p", "copy", "[/x]\x07")]
    page = io.StringIO()
    print_report(
        quick_report(measurement_table(rows_of("r", "copy", "none") + perfect)), Console(file=page, width=80)
    )
    assert r"[/x]\x07: no error in 500 trials" in page.getvalue() and is_clean(page.getvalue())


@pytest.mark.parametrize("name", ["\x1b[1m[/x]\x07", "n" * 300, "\u202eabc"])
def test_complaints_show_names(name, tmp_path):
    """One printable line of bounded length, whatever is in the names,
    the cells and the path that it quotes.
    """
    path = tmp_path / "name\nwith\x1b[1m.csv"
    path.write_text(
        f"{','.join(COLUMNS)}\n{name},copy,none,0,0,1,9,{name},1,2\n{name},copy,none,0,0,{name},9,accuracy,1,2\n",
        encoding="utf-8",
    )
    two_lengths = [row for row in rows_of(name, "copy", name, (0, 1)) if row[5] != 3]
    gap = trajectory(measurement_table(rows_of(name, "copy", name)))[lambda rows: rows["round"] != 3]
    for action, kind in (
        (lambda: read_table(path), TableError), (lambda: read_table(tmp_path / name), TableError),
        (lambda: trajectory(measurement_table(two_lengths)), TableError), (lambda: observed(gap), LawError),
        (lambda: law_report(gap, resamples=20), LawError),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            action()
        assert str(caught.value).isprintable() and len(str(caught.value)) <= LONGEST_LINE


def test_the_table_of_another_run_is_named_without_being_obeyed(tmp_path):
    """A run folder with somebody else's table says whose it is, in one line."""
    config = make_config(
        task="copy",
        original_digits=2,
        si_rounds=2,
        n_layer=1,
        n_head=1,
        n_embd=16,
        block_size=40,
        device="cpu",
    )
    folder = open_run(config, tmp_path / "run")
    folder.measurements.write_text(
        measurement_table(rows_of("\x1b]0;t\x07", "copy", "none")).to_csv(index=False, lineterminator="\n")
    )
    with pytest.raises(ConfigError, match=r"table of \\x1b\]0;t\\x07"):
        recover_table(config, folder)


@pytest.mark.parametrize("name", STRANGE)
def test_a_figure_draws_any_name(name):
    """No formula is parsed, no letter is a box (a warning, and warnings are errors here),
    and the legend leaves no arm out.
    """
    figure = arms_figure(
        measurement_table(rows_of("r", "copy", name if name.strip() else "x") + rows_of("s", "copy", "other"))
    )
    assert figure.png().startswith(b"\x89PNG") and len(figure.axes[0].get_legend().texts) == 2
    assert drawable(name).isprintable() and len(drawable(name)) <= 2 * LONGEST_NAME


@pytest.mark.filterwarnings("error")
def test_every_arm_has_a_figure_of_its_own(tmp_path):
    """Arms whose names differ in a slash, a case or the three hundredth letter do not overwrite each
    other.
    """
    arms = ["a/b", "a_b", "A/b", "n" * 299, "n" * 300]
    table = measurement_table(
        [row for arm in arms for row in rows_of(f"run {arm}", "copy", arm, (0, 1))]
        + [
            (f"run {arm}", "copy", arm, 0, 0, r, 8 + r, "label_raw", 9, 10)
            for arm in arms
            for r in range(1, 6)
        ]
    )
    files = save_figures(table, quick_report(table), tmp_path / "out")
    assert len({path.name.lower() for path in files}) == len(files) == 2 * len(arms) + 2
    assert sorted(tmp_path.rglob("*.png")) == sorted(files) and {path.parent for path in files} == {
        tmp_path / "out"
    }


def test_json_has_the_true_names(tmp_path):
    """For a program nothing is escaped but what JSON escapes."""
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows_of("r", "t", "\x1b[1m[/x] é")])
    code, out, _ = call("law", "--json", str(tmp_path / "t.csv"))
    assert code == 0 and is_clean(out) and json.loads(out)["arm"] == "\x1b[1m[/x] é"


@few
@given(st.lists(st.tuples(names, names, names), min_size=1, max_size=2))
@example([("\x1b]0;title\x07", "[/x]", "$x^$"), ("..", "../../x", "a/b")])
@example([("n" * 300, "n" * 300, "n" * 300), ("_", "_", "_")])
@example([("line\nbreak", "t", "a")])
@example([("r", "t", "cr\rhere")])
@example([("r", "t", "zero\0byte")])
def test_tables_with_any_names(tmp_path_factory, runs):
    """`law` and `figures` end well, or with one line and exit code 2;
    they print no control character and write into their folder only.
    """
    place = tmp_path_factory.mktemp("names")
    with open(place / "table.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [COLUMNS, *(row for run in runs for row in rows_of(*run))]
        )
    for arguments in (["law"], ["figures", "--out", str(place / "out")]):
        code, out, err = call(*arguments, str(place / "table.csv"))
        assert is_clean(out) and is_clean(err) and (code, err.count("\n")) in ((0, 0), (2, 1)), (code, err)
        assert code == 0 or not out
    drawn = list((place / "out").iterdir()) if (place / "out").exists() else []
    assert {path.name for path in place.iterdir()} <= {"table.csv", "out"} and all(
        path.is_file() and path.suffix == ".png" for path in drawn
    )
    assert bool(drawn) == (code == 0)


def test_a_terminal_with_few_letters_is_no_reason_to_fail(tmp_path, monkeypatch):
    """Where the output cannot write a letter of a name, it gets an escape."""
    (tmp_path / "t.csv").write_text(
        measurement_table(rows_of("r", "t", "猫")).to_csv(index=False, lineterminator="\n"), encoding="utf-8"
    )
    page = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("si_nb.law.report.law_report", quick_report)
    with contextlib.redirect_stdout(page):
        assert si_nb.cli.main(["law", str(tmp_path / "t.csv")]) == 0
        page.flush()
    assert rb"\u732b" in page.buffer.getvalue()
