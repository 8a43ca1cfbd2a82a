"""Bad input made from the parser and the schema themselves:
every flag, setting, column and part of a grid with every class of bad
value. Whatever is given, the answer is one line and exit code 2 with nothing written,
or the value is in fact fine.
"""

import contextlib
import csv
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path
from unittest.mock import patch

import pytest

import si_nb.benchmarks.benchmark
import si_nb.law.page
import si_nb.loop.cost
import si_nb.loop.rounds
import si_nb.loop.sweep
from si_nb import cli
from si_nb.cli import main, make_parser
from si_nb.loop.rounds import run_experiment
from si_nb.loop.settings import ConfigError, RunConfig, make_config, run_name
from si_nb.record.table import COLUMNS, append_rows, measurement_table, read_table

resource = pytest.importorskip("resource", reason="limits of memory and FIFOs are those of Linux and macOS")
HANG, BUSY, MEMORY = (
    20,
    60,
    2 * 2**30,
)  # seconds of work, seconds on a busy machine, and further bytes that an answer may take
NUMBERS = {
    "negative": "-3", "zero": "0", "2**70": str(2**70), "-2**70": str(-(2**70)), "trillion": "1e12",
    "nan": "nan", "inf": "inf",
    "1e400": "1e400", "fraction": "0.5", "5,000 digits": "9" * 5_000,
}  # fmt: skip
TEXTS = {
    "empty": "", "text": "nonsense", "non-ASCII": "größe²𝟛", "odd digits": "cpu:²", "line break": "a\nb",
    "markup": "[/x][bold]",
    "control characters": "a\x1b]0;t\x07\x1b[2Jb", "not UTF-8": "a\udcffb", "5,000 characters": "x" * 5_000,
}  # fmt: skip
PLACES = {
    "missing": "missing", "folder": "folder", "FIFO": "fifo", "/dev/zero": "/dev/zero",
    "dangling link": "dangling", "unreadable": "unreadable",
    "binary file": "binary", "/": "/", "inside a file": "binary/x", "inside /proc": "/proc/si_nb/x",
}  # fmt: skip
FREE_TEXT = ("wandb_project", "wandb_name")  # flags that take any text
ANSWERS = Counter()  # (class, answer) -> calls
STORED = {}  # a run that has kept its weights

TABLE = [
    ("r", "copy", "none", 0, 0, number, 3 + number, "accuracy", right, 1_000)
    for number, right in enumerate((990, 950, 850, 650, 400))
]
TABLE += [
    ("r", "copy", "none", 0, 0, number, 3 + number, "label_raw", 1_000 - 100 * number, 1_000)
    for number in (1, 2, 3, 4)
]
GRID = {
    "preset": "tiny", "settings": {"task": "copy"}, "slurm": {"slurm_partition": "gpu"},
    "group": [
        {"name": "filters", "seeds": [0, 1], "settings": {"voters": 3}, "grid": {"num_samples": [50, 100]}}
    ],
}  # fmt: skip
GOOD = {  # a call of each command that passes its checks
    "run": ["--preset", "tiny", "--run_dir", "run"], "cost": ["--preset", "tiny"],
    "predict": ["--preset", "tiny"],
    "sweep": ["grid.toml", "--out", "sweep"],
    "law": ["table.csv"], "figures": ["table.csv", "--out", "figures"],
    "report": ["recorded"], "check": ["recorded"],
    "branch": ["stored", "--round", "1", "--run_dir", "branch"],
    "evaluate": ["stored"], "generate": ["stored", "12="], "labels": ["stored", "--arm", "none"],
}  # fmt: skip


# --- a place, a call and its answer


def toml(value):
    """A value as TOML; text is as in JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return (
        value.raw
        if isinstance(value, Raw)
        else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    )


class Raw:
    """Text that goes into a grid as it is."""

    def __init__(self, raw):
        self.raw = raw


def grid_text(grid):
    return "".join(f"{key} = {toml(value)}\n" for key, value in grid.items()).encode(errors="surrogateescape")


def table_text(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    return text.getvalue().encode(errors="surrogateescape")


def furnish(folder):
    """An empty folder with a good table, a good grid,
    and one of everything that is no good as a file or a folder.
    """
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (folder / "folder").mkdir()
    (folder / "recorded").mkdir()
    (folder / "recorded" / "measurements.csv").write_bytes(table_text(TABLE))
    (folder / "stored").symlink_to(STORED["run"])
    os.mkfifo(folder / "fifo")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "unreadable").write_bytes(b"secret")
    (folder / "unreadable").chmod(0)
    (folder / "table.csv").write_bytes(table_text(TABLE))
    (folder / "grid.toml").write_bytes(grid_text(GRID))


def listing(folder):
    """All that is below a folder, by kind and size, and the names at the top of the file system."""
    below = {str(path): (path.lstat().st_mode, path.lstat().st_size) for path in folder.rglob("*")}
    return below | dict.fromkeys(os.listdir("/"))


class Passed(BaseException):
    """All checks are passed: what would begin now is work."""


class Hang(BaseException):
    """No answer in time."""


def pass_on(*arguments, **settings):
    raise Passed


def ring(number, frame):
    raise Hang


WORK = (
    (si_nb.loop.rounds, "make_base"),
    (si_nb.loop.cost, "plan"),
    (si_nb.loop.sweep, "_work"),
    (si_nb.benchmarks.benchmark, "Bench"),
)


@contextlib.contextmanager
def guarded():
    """Checks are real, the work after them is not done; hangs and greed end."""
    limits, before = (
        resource.getrlimit(resource.RLIMIT_AS),
        {number: signal.signal(number, ring) for number in (signal.SIGALRM, signal.SIGPROF)},
    )
    sizes = Path("/proc/self/statm")
    with contextlib.ExitStack() as stack:
        for module, name in WORK:
            stack.enter_context(patch.object(module, name, pass_on))
        stack.enter_context(patch.object(si_nb.law.page, "draw_page_figures", lambda *_: {}))
        try:
            if sizes.exists():
                resource.setrlimit(
                    resource.RLIMIT_AS,
                    (int(sizes.read_text().split()[0]) * resource.getpagesize() + MEMORY, limits[1]),
                )
            signal.alarm(BUSY)
            signal.setitimer(signal.ITIMER_PROF, HANG)
            yield
        finally:
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            for number, handler in before.items():
                signal.signal(number, handler)
            resource.setrlimit(resource.RLIMIT_AS, limits)


def call(arguments):
    """Exit code, or what went wrong; what was said on the error stream; what was printed."""
    with (
        contextlib.redirect_stderr(io.StringIO()) as said,
        contextlib.redirect_stdout(io.StringIO()) as printed,
        guarded(),
    ):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
        except Passed:
            code = 0
        except Hang:
            code = "hang"
        except Exception as error:
            code = f"traceback: {type(error).__name__}: {str(error)[:100]!r}"
    return code, said.getvalue(), printed.getvalue()


def is_one_line(said):
    return said.startswith("si_nb: ") and said.endswith("\n") and said[:-1].isprintable()


def judge(kind, arguments, place, before, may_be_fine):
    """What is wrong with the answer to a call; nothing if it is one line, or fine where it may be."""
    code, said, printed = call(arguments)
    fine, refused = (
        code == 0 and may_be_fine and re.sub(r"[\n\t]", "", printed).isprintable(),
        code == 2 and is_one_line(said),
    )
    changed = [] if fine else sorted(str(path) for path, _ in listing(place).items() ^ before.items())
    ANSWERS[kind, "fine" if fine else "refused" if refused and not changed else "bad"] += 1
    what = (
        f"{kind}: si_nb {' '.join(map(repr, arguments))[:200]}: code {code}, said {said[-300:]!r}, "
        f"printed {printed[-100:]!r}"
    )
    return [] if (fine or refused) and not changed else [f"{what}, changed {changed[:3]}"]


def all_are_answered(calls, place, edit=None):
    """Judge many calls, (class, arguments, whether they may be fine[, what edit gets]),
    each in a place as new.
    """
    problems, before = [], None
    for kind, arguments, may_be_fine, *more in calls:
        if before is None or listing(place).items() ^ before.items():
            furnish(place)
        if edit is not None:
            edit(*more)
        before = listing(place)
        problems += judge(kind, arguments, place, before, may_be_fine)
    assert not problems, "\n" + "\n".join(problems[:10])


@pytest.fixture(scope="module", autouse=True)
def stored(tmp_path_factory):
    """The smallest run, for the commands that look into one."""
    config = make_config(
        "tiny", original_digits=2, si_rounds=2, n_layer=1, n_embd=16, base_samples=50, max_iters=2, si_iter=1,
        num_samples=5, eval_samples=5, si_method=("none",), device="cpu",
    )  # fmt: skip
    place = tmp_path_factory.mktemp("stored") / "run"
    STORED["run"] = run_experiment(config, place, progress=False, keep_weights=True).path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder in which calls are made."""
    (tmp_path / "start").mkdir()
    furnish(tmp_path / "start")
    monkeypatch.chdir(tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture(scope="module", autouse=True)
def counted():
    """With -s, how many calls of each class were refused and how many were fine."""
    yield
    for kind in dict.fromkeys(kind for kind, _ in ANSWERS):
        print(
            f"\n{kind}: "
            + ", ".join(f"{ANSWERS[kind, answer]} {answer}" for answer in ("refused", "fine", "bad")),
            end="",
        )
    totals = Counter()
    for (_, answer), count in ANSWERS.items():
        totals[answer] += count
    print(f"\n{sum(totals.values())} calls: {dict(totals)}")


# --- flags


def commands():
    """Command -> its flags and positional arguments, as the parser has them."""
    subparsers = next(action for action in make_parser(None)._actions if action.dest == "command")
    return {
        name: [a for a in parser._actions if a.dest != "help"] for name, parser in subparsers.choices.items()
    }


FLAGS = [(command, action) for command, actions in commands().items() for action in actions]
SETTINGS = {setting.name: setting for setting in fields(RunConfig)}
WITHIN = {
    "least": lambda value, limit: value >= limit,
    "above": lambda value, limit: value > limit,
    "most": lambda value, limit: value <= limit,
    "below": lambda value, limit: value < limit,
}


def bounds_of(action):
    """Bounds of a number, from its type or from the setting that it is made from;
    None for what is no number.
    """
    if hasattr(action.type, "least"):
        return {"least": action.type.least, "most": action.type.most}
    if action.type in (int, float):
        return {bound: limit for bound, limit in SETTINGS[action.dest].metadata.items() if bound in WITHIN}
    return None


def lies_within(text, action):
    try:
        value = getattr(action.type, "kind", action.type)(text)
    except ValueError:
        return False
    return all(WITHIN[bound](value, limit) for bound, limit in bounds_of(action).items())


def values_of(action):
    """(class, value, whether it may be fine) for one flag."""
    if action.nargs == 0:
        return [(kind, text, False) for kind, text in TEXTS.items()]
    if bounds_of(action) is not None:
        return [(kind, text, lies_within(text, action)) for kind, text in {**NUMBERS, **TEXTS}.items()]
    if action.type not in (cli.path_name, cli.folder_name):
        return [(kind, text, action.dest in FREE_TEXT) for kind, text in TEXTS.items()]
    usable = {"missing", "unreadable", *TEXTS} - {"empty", "5,000 characters"}
    usable |= {"folder"} if action.type is cli.folder_name else {"binary file"}
    return [
        (kind, text, bool(action.option_strings) and kind in usable)
        for kind, text in {**PLACES, **TEXTS}.items()
    ]


def with_flag(command, action, value):
    """A good call with one value of one argument changed."""
    good = list(GOOD[command])
    if not action.option_strings:
        return [command, value, *good[1:]]
    flag = action.option_strings[0]
    if flag in good:
        del good[good.index(flag) : good.index(flag) + 2]
    return [command, *good, f"{flag}={value}"]


def is_setting_of_a_branch(command, action):
    """Whether a flag is a setting that `branch` takes as `run` does, by the same checks."""
    return command == "branch" and action.dest in SETTINGS


@pytest.mark.parametrize("command", commands())
def test_a_good_call_is_fine(command, place):
    """What the bad calls differ from by one value passes all checks."""
    assert call([command, *GOOD[command]])[0] == 0


@pytest.mark.parametrize(
    "command, action",
    [pair for pair in FLAGS if pair[0] != "figures" and not is_setting_of_a_branch(*pair)],
    ids=lambda value: getattr(value, "dest", value),
)
def test_flags(command, action, place):
    """Every flag with every class of bad value."""
    all_are_answered(
        [(kind, with_flag(command, action, value), fine) for kind, value, fine in values_of(action)], place
    )


@pytest.mark.parametrize("command, action", FLAGS, ids=lambda value: getattr(value, "dest", value))
def test_every_number_states_its_range(command, action):
    """A new number, setting or flag, must say from where to where it goes."""
    bounds = bounds_of(action)
    if bounds is not None:
        assert {"least", "above"} & set(bounds) and {"most", "below"} & set(bounds), (
            f"{command} --{action.dest} has no range"
        )
        assert all(math.isfinite(limit) for limit in bounds.values())


# --- settings

ODD = {
    "empty": "", "text": "nonsense", "negative": -3, "zero": 0, "2**70": 2**70, "-2**70": -(2**70),
    "nan": math.nan, "inf": math.inf, "-inf": -math.inf,
    "10**400": 10**400, "10**5000": 10**5_000, "trillion": 1e12, "fraction": 0.5, "None": None, "true": True,
    "list": [1], "empty list": [],
    "nested": [[]], "table": {"a": 1}, "bytes": b"x", "object": object(), "non-ASCII": "größe",
    "line break": "a\nb", "control": "\x1b]0;t\x07",
    "not UTF-8": "\udcff", "5,000 characters": "x" * 5_000, "5,000 values": ["none"] * 5_000,
    "text of a number": "10",
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name):
    """Every setting with every class of bad value: a documented line,
    or a value of its type within its range.
    """
    for kind, value in ODD.items():
        try:
            taken = getattr(make_config("tiny", **{name: value}), name)
        except ConfigError as error:
            ANSWERS[kind, "refused"] += 1
            assert "\n" not in str(error) and len(str(error)) < 400 and name in str(error), error
        else:
            ANSWERS[kind, "fine"] += 1
            bounds = {bound: limit for bound, limit in SETTINGS[name].metadata.items() if bound in WITHIN}
            assert all(WITHIN[bound](taken, limit) for bound, limit in bounds.items()), (name, value)
            assert isinstance(value, bool) == (SETTINGS[name].type is bool) and (
                bounds or isinstance(value, (bool, str, list))
            ), (name, value)


@pytest.mark.parametrize("preset", ODD.values(), ids=ODD)
def test_presets(preset):
    """A preset is one of those there are, or refused in a documented line."""
    if preset is not None:
        message = str(pytest.raises(ConfigError, make_config, preset).value)
        assert "\n" not in message and len(message) < 400


def test_the_greatest_seed_survives_the_table(tmp_path):
    """What a run is allowed to be called can be read back from its table."""
    seed = SETTINGS["seed"].metadata["most"]
    rows = measurement_table(
        [(run_name(make_config("tiny", seed=seed)), "copy", "none", seed, 0, 0, 6, "accuracy", 9, 10)]
    )
    append_rows(tmp_path / "measurements.csv", rows)
    assert read_table(tmp_path)["seed"].tolist() == [seed]
    with pytest.raises(ConfigError, match="seed is"):
        make_config("tiny", seed=seed + 1)


# --- tables

NAMES = {
    "run_id": True,
    "task": True,
    "arm": True,
    "quantity": False,
}  # columns of text; whether any name may be fine


def bad_cells(column):
    """(class, cell, whether a table with it may be fine)."""
    if column in NAMES:
        return [
            (kind, text, NAMES[column] and kind != "empty")
            for kind, text in {**TEXTS, "300 characters": "y" * 300}.items()
        ]
    whole = re.compile(r"-?\d{1,18}(\.0*)?")
    return [
        (kind, text, bool(whole.fullmatch(text)))
        for kind, text in {**NUMBERS, **TEXTS, "10**9": str(10**9), "18 digits": "9" * 18}.items()
    ]


def put_cell(column, text):
    """The good table with one bad cell; a name or a seed in all rows,
    since it says which run they belong to.
    """
    place = COLUMNS.index(column)
    rows = [list(row) for row in TABLE]
    for row in rows if column in NAMES or column == "seed" else rows[-1:]:
        row[place] = text
    Path("table.csv").write_bytes(table_text(rows))


def table_calls(command, column, *more):
    return [
        (kind, [command, *GOOD[command], *more], fine, column, text) for kind, text, fine in bad_cells(column)
    ]


@pytest.mark.parametrize("column", COLUMNS)
def test_tables_for_law(column, place):
    """Every column with every class of bad cell."""
    all_are_answered(table_calls("law", column, "--law", "constant_hazard"), place, put_cell)


FILES = {
    "empty file": b"", "only a header": table_text([]),
    "a row too long": table_text([*TABLE[:-1], (*TABLE[-1], 24)]),
    "a row too short": table_text([*TABLE[:-1], TABLE[-1][:-1]]),
    "a row twice": table_text([*TABLE, TABLE[0]]), "no last line break": table_text(TABLE)[:-1],
    "another header": table_text(TABLE).replace(b"round", b"turn"),
    "NUL": table_text(TABLE).replace(b"copy", b"co\0py"),
    "UTF-16": table_text(TABLE).decode().encode("utf-16"),
}  # fmt: skip


def put_file(name, content):
    Path(name).write_bytes(content)


def test_files_for_law(place):
    """Every kind of file that is no table."""
    all_are_answered(
        [(kind, ["law", "table.csv"], False, "table.csv", content) for kind, content in FILES.items()],
        place,
        put_file,
    )


# --- grids

PARTS = {
    "preset": ("preset",), "settings": ("settings",), "slurm": ("slurm",), "group": ("group",),
    "a group": ("group", 0), "name": ("group", 0, "name"),
    "seeds": ("group", 0, "seeds"), "a seed": ("group", 0, "seeds", 0),
    "a group's settings": ("group", 0, "settings"), "a group's grid": ("group", 0, "grid"),
    "values": ("group", 0, "grid", "num_samples"), "a value": ("group", 0, "grid", "num_samples", 0),
}  # fmt: skip
PARTS |= {f"setting {name}": ("settings", name) for name in SETTINGS}
DEEP = Raw("[" * 100_000 + "]" * 100_000)
VALUES = {
    **TEXTS, "negative": -3, "zero": 0, "2**70": 2**70, "-2**70": -(2**70), "5,000 digits": Raw("9" * 5_000),
    "nan": Raw("nan"), "inf": Raw("inf"),
    "1e400": Raw("1e400"), "fraction": 0.5, "true": True, "date": Raw("1979-05-27"), "list": ["quick"],
    "empty list": [], "twice": [1, 1], "nested": [[]],
    "deep": DEEP, "table": {"a": 1}, "empty table": {}, "no value": Raw(""), "list of tables": [{"a": 1}],
}  # fmt: skip


def put_part(path, value):
    """The good grid with one part replaced."""
    inner = grid = json.loads(json.dumps(GRID))
    if path[0] == "settings":
        grid["group"] = [{"name": "filters"}]  # which sets nothing itself
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    Path("grid.toml").write_bytes(grid_text(grid))


def grid_is_sound(path, value):
    """Whether a grid with that part may be carried out."""
    if isinstance(value, Raw) or (isinstance(value, str) and not value.isprintable()):
        return False
    if path[0] == "settings" and len(path) == 2 and path[1] in SETTINGS:
        try:
            make_config(
                "tiny",
                **{
                    path[1]: tuple(value)
                    if isinstance(value, list)
                    else [value]
                    if path[1] == "si_method"
                    else value
                },
            )
        except (ConfigError, TypeError):
            return False
        return isinstance(value, bool) == (SETTINGS[path[1]].type is bool)
    if path[-1] == "name":
        return isinstance(value, str) and bool(value.strip())
    if path[-1] in ("settings", "slurm"):
        return value == {} or path[-1] == "slurm" and isinstance(value, dict)
    return (path[-2:] == ("seeds", 0) and value == 0) or (path[-1] == "grid" and value == {})


@pytest.mark.parametrize("part", PARTS)
def test_grids(part, place):
    """Every part of a grid with every class of bad value."""
    path = PARTS[part]
    calls = [
        (kind, ["sweep", *GOOD["sweep"]], grid_is_sound(path, value), path, value)
        for kind, value in VALUES.items()
    ]
    all_are_answered(calls, place, put_part)


THOUSANDS = {name: list(range(1, 1001)) for name in ("num_samples", "max_iters", "si_iter")}
ABSURD = {
    "10**9 combinations": {**GRID, "group": [{"name": "x", "grid": THOUSANDS}]},
    "10**5 groups of one name": {**GRID, "group": [{"name": "x"}] * 10**5}, "no group": {"preset": "tiny"},
    "an unknown part": {**GRID, "color": "red"},
    "an unknown setting": {**GRID, "settings": {"color": "red"}},
    "preset in settings": {**GRID, "settings": {"preset": "quick"}},
    "config_class in settings": {**GRID, "settings": {"self": 1}},
    "device of nowhere": {**GRID, "settings": {"device": "abacus"}},
}  # fmt: skip


@pytest.mark.parametrize("kind", ABSURD)
def test_absurd_grids(kind, place):
    """Grids that no single value makes absurd."""
    all_are_answered(
        [(kind, ["sweep", *GOOD["sweep"]], False, "grid.toml", grid_text(ABSURD[kind]))], place, put_file
    )


# --- the rest takes minutes


@pytest.mark.slow(reason="every picture takes seconds")
@pytest.mark.parametrize("action", commands()["figures"], ids=lambda action: action.dest)
def test_flags_of_figures(action, place):
    """The same for the command that draws."""
    all_are_answered(
        [(kind, with_flag("figures", action, value), fine) for kind, value, fine in values_of(action)], place
    )


@pytest.mark.slow(reason="every picture takes seconds")
@pytest.mark.parametrize("column", COLUMNS)
def test_tables_for_figures(column, place):
    """The same tables, drawn."""
    all_are_answered(table_calls("figures", column), place, put_cell)


def from_the_shell(arguments, place):
    """Exit code and what was said, of the real command."""
    command = [sys.executable, "-m", "si_nb", *arguments]
    try:
        done = subprocess.run(
            command, cwd=place, capture_output=True, timeout=BUSY, errors="surrogateescape", check=False
        )
    except subprocess.TimeoutExpired:
        return "hang", ""
    return done.returncode, done.stderr


def sample(share):
    """Flags with values that are never fine, one in so many."""
    calls = [
        (kind, with_flag(command, action, value))
        for command, action in FLAGS
        for kind, value, fine in values_of(action)
        if not fine
    ]
    return calls[::share]


def judge_from_the_shell(calls, place):
    before, problems = listing(place), []
    for kind, arguments in calls:
        code, said = from_the_shell(arguments, place)
        wrong = code != 2 or not is_one_line(said) or listing(place) != before
        ANSWERS[kind, "bad" if wrong else "refused"] += 1
        problems += [
            f"{kind}: si_nb {' '.join(map(repr, arguments))[:200]}\n    code {code}, said {said[-300:]!r}"
        ] * wrong
    return problems


def test_from_the_shell(place):
    """The real command, a few times."""
    problems = judge_from_the_shell(
        [
            ("2**70", ["run", *GOOD["run"], "--seed", str(2**70)]),
            ("control characters", ["law", "a\x1b]0;t\x07\nb"]),
        ],
        place,
    )
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.slow(reason="a process for each call")
def test_many_from_the_shell(place):
    """The real command, for one bad call in 47."""
    problems = judge_from_the_shell(sample(47), place)
    assert not problems, "\n" + "\n".join(problems)
