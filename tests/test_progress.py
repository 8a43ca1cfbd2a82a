"""The start line and the bar: what they say, where they are shown, and how good the time left is."""

import contextlib
import functools
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from si_nb.loop import cost, rounds
from si_nb.loop.cost import plan, reckon
from si_nb.loop.progress import Bar, Lines, Page, Schedule, Terminal, choose_face, start_bar, work_left
from si_nb.loop.rounds import run_experiment
from si_nb.loop.settings import arm_voters, make_config
from si_nb.loop.training import Outlook, Watch, make_base
from si_nb.loop.workers import make_machine
from si_nb.record.table import read_table

SPEED = 5e9  # FLOP per second
SMALL = dict(
    task="copy", si_method=("none", "mv"), original_digits=3, si_rounds=2, n_layer=1, n_head=1, n_embd=8,
    base_samples=200, max_iters=8, decay=2, warmup=2, batch_size=8, si_iter=4, eval_interval=2,
    eval_samples=8, num_samples=10, voters=2, device="cpu",
)  # fmt: skip


class Noting:
    """A face that keeps what it is told."""

    live = True

    def __init__(self):
        self.lines, self.shares = [], []

    def start(self, line):
        self.lines.append(line)

    def show(self, share, line, lasting=False):
        self.shares.append(share)
        self.lines.append(line)

    def close(self, share, line):
        self.show(share, line)


@functools.cache
def planned(config):
    """The plan of a run with the seconds of a machine without overheads."""
    work = plan(config)
    work["seconds"] = work["flops"] / SPEED
    return work


def walk(config, slowness, bar, now):
    """Carry out a run by the clock alone, each kind of work slower than foretold by its own factor.

    The factors are those of base training, round training, labelling and measuring.
    """
    watch = Watch(bar)
    watch.expect(config.base_voters, 0, config.si_rounds, list(config.si_method))
    for row in planned(config).itertuples():
        if row.phase == "base data":
            continue
        parts = 20 if "training" in row.phase else 1
        for part in range(parts):
            now[0] += slowness[row.phase] * row.seconds * row.jobs * row.pieces / parts
            pieces = round(row.jobs * row.pieces / parts) if part < parts - 1 else None
            watch.advance((row.phase, row.round, row.arm), pieces)
            yield bar.schedule.spent(), bar.schedule.seconds_left()


@pytest.mark.parametrize("preset", ["tiny", "quick"])
def test_the_time_left_is_within_a_factor_from_a_tenth_on(preset):
    """A machine up to three times as slow or fast as in the rehearsal, and each kind of work a quarter off
    besides: once a tenth of the time has passed, the whole is estimated within a factor of 1.3.
    """
    config, chance = make_config(preset), np.random.default_rng(0)
    for _ in range(10):
        common, now = 3 ** chance.uniform(-1, 1), [0.0]
        slowness = {phase: common * 1.25 ** chance.uniform(-1, 1) for phase in ("labelling", "measuring")}
        slowness |= {f"{kind} training": common * 1.1 ** chance.uniform(-1, 1) for kind in ("base", "round")}
        bar = Bar(config, planned(config), "here", Noting(), lambda now=now: now[0])
        spent, left = np.array(list(walk(config, slowness, bar, now))).T
        ratios = ((spent + left) / spent[-1])[(spent >= spent[-1] / 10) & (spent < spent[-1])]
        assert len(ratios) > 10 and ratios.min() > 1 / 1.3 and ratios.max() < 1.3


def test_the_bar_never_goes_back_and_ends_full():
    """However wrong the rehearsal was, the share of the bar only grows."""
    config, now, face = make_config("tiny"), [0.0], Noting()
    slowness = {"base training": 0.2, "round training": 4.0, "labelling": 9.0, "measuring": 0.5}
    bar = Bar(config, planned(config), "here", face, lambda: now[0])
    list(walk(config, slowness, bar, now))
    bar.close(finished=True)
    assert face.shares == sorted(face.shares) and face.shares[0] < 0.1 and face.shares[-1] == 1
    assert face.lines[-1].startswith("done after")


def test_time_goes_by_between_two_pieces():
    """While a long piece is at work, the seconds left grow fewer, and never fewer than none."""
    config, now = make_config("tiny"), [0.0]
    schedule = Schedule(lambda: now[0])
    schedule.plan(planned(config).dropna())
    before = schedule.seconds_left()
    now[0] += 1.0
    assert schedule.seconds_left() == pytest.approx(before - 1)
    now[0] += 10 * before
    assert schedule.seconds_left() == 0


def test_what_is_left_is_what_the_run_has_to_do():
    """Base models that are there, rounds that are done and arms that have stopped are not waited for."""
    config = make_config("tiny")
    work, (first, second) = planned(config), config.si_method
    everything = work_left(config, work, config.base_voters, 0, config.si_rounds, [first, second])
    assert everything.equals(work[work["phase"] != "base data"])
    assert set(work_left(config, work, 1, 0, 0, [])["phase"]) == {"base training"}
    later = work_left(config, work, 0, 3, config.si_rounds, [second])
    assert later["round"].min() == 3 and first not in set(later["arm"])
    measuring = later[later["phase"] == "measuring"]
    assert (measuring["jobs"] == arm_voters(config, second)).all()


def test_skipped_work_is_neither_waited_for_nor_taken_for_speed():
    """What is found on disk shortens the run and says nothing about the pace."""
    config, now = make_config("tiny"), [0.0]
    schedule = Schedule(lambda: now[0])
    schedule.plan(planned(config).dropna())
    before, base = schedule.seconds_left(), ("base training", 0, "all")
    seconds = schedule.left[base]
    schedule.skip(base)
    assert schedule.seconds_left() == pytest.approx(before - seconds)
    schedule.advance(("labelling", 99, "none"), None)  # not in the plan: nothing happens
    assert schedule.seconds_left() == pytest.approx(before - seconds)


def carried_out(monkeypatch, folder, face, **how):
    """A small run shown by a face; the rehearsal is left out."""
    monkeypatch.setattr(rounds, "start_bar", lambda machine, base, path: Bar(
        machine.config, planned(machine.config), f"cpu, 2 cores, {path}", face
    ))  # fmt: skip
    return run_experiment(make_config("tiny", **SMALL), folder, **how)


def test_a_real_run_counts_down_to_nothing(monkeypatch, tmp_path):
    """Every piece that is foretold is done: at the end no work is left, in the order of the run;
    the line has what was measured and what is expected.
    """
    face, asked = Noting(), []

    def observe(table):
        asked.append(int(table["round"].max()))
        return {"mv": Outlook(3.5, 4, 3, None)}

    run = carried_out(monkeypatch, tmp_path / "run", face, observe=observe)
    assert asked == [0, 1, 2]
    assert face.lines[0].startswith(f"cpu, 2 cores, {tmp_path / 'run'}, about")
    assert face.shares[-1] == 1 and face.lines[-1].startswith("done after")
    doing = list(dict.fromkeys(line.split(", ", 1)[1].split(";")[0] for line in face.lines[1:-1]))
    assert doing == [
        "training base models",
        "measuring base models",
        *(
            f"round {number} of 2, {what}"
            for number in (1, 2)
            for what in ("labels", "training", "measuring")
        ),
    ]
    assert face.lines[-2].startswith("0 s left")
    table = read_table(run.measurements)
    last = table[(table["round"] == 2) & (table["quantity"] == "accuracy") & (table["length"] == 5)]
    counts = last[last["arm"] == "mv"][["successes", "trials"]].sum()
    assert f"mv {counts['successes'] / counts['trials']:.2f}, collapse at 4 (3 to never)" in face.lines[-1]

    again = Noting()
    carried_out(monkeypatch, tmp_path / "run", again)
    assert not again.lines  # a finished run has nothing to show


def test_a_stopped_run_says_so(monkeypatch, tmp_path):
    """A run that fails ends its bar where it was."""
    face = Noting()

    def fail(*_):
        raise KeyError("a fault")

    monkeypatch.setattr(rounds, "label_round", fail)
    with pytest.raises(KeyError):
        carried_out(monkeypatch, tmp_path / "run", face)
    assert face.lines[-1].startswith("stopped after") and face.shares[-1] < 1


def test_lines_of_a_log_ask_for_no_forecast(monkeypatch, tmp_path, capsys):
    """Where nobody looks, a line per round is printed, and forecasts, which take time, are not asked for."""
    asked = []
    carried_out(monkeypatch, Path(tmp_path) / "run", Lines(), observe=asked.append)
    said = capsys.readouterr().err.splitlines()
    assert not asked and all(line.startswith("si_nb: ") for line in said)
    assert len(said) == 1 + 3 + 1 and "about" in said[0] and "done after" in said[-1]


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_the_face_suits_the_place(monkeypatch):
    """A notebook, a terminal, a file."""
    assert type(choose_face()) is Lines
    with contextlib.redirect_stderr(Tty()):
        assert type(choose_face()) is Terminal
        shell = SimpleNamespace(config={"IPKernelApp": {}})
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
        assert type(choose_face()) is Page


def test_a_terminal_gets_one_bar_that_is_drawn_over():
    """The start line, then one line that is drawn again and again; too long a line is cut, not wrapped."""
    with contextlib.redirect_stderr(Tty()) as screen:
        face = Terminal()
        face.start("cpu, 2 cores")
        for share in (0.25, 0.5):
            face.show(share, "2.5 min left", lasting=True)
        face.show(0.6, "too soon after the last")
        face.close(1.0, "done")
    first, bars = screen.getvalue().split("\n", 1)
    assert first == "si_nb: cpu, 2 cores" and bars.count("\n") == 1 and bars.endswith("\n")
    assert " 25%|" in bars and " 50%|" in bars and " 60%|" not in bars and "100%|" in bars.split("\r")[-1]


def test_a_saved_notebook_keeps_the_text(monkeypatch):
    """Live it is HTML with the text beside it, also from another thread; what is saved is text alone."""
    code = """
import threading, time
from si_nb.loop import progress
progress._EVERY = 0
page = progress.choose_face()
page.start("cpu, 2 cores, runs/a, about 5 s")
def work():
    page.show(0.5, "2.5 s left <of> 5")
thread = threading.Thread(target=work); thread.start(); thread.join()
print(type(page).__name__)
"""
    sources, seen = [code, code + "page.close(1.0, 'done after 5 s')"], {}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    for name, cell in zip(("live", "saved"), notebook.cells, strict=True):
        shown, printed = cell.outputs
        assert printed["text"] == "Page\n"
        seen[name] = shown["data"]
    assert "<progress" in seen["live"]["text/html"] and "&lt;of&gt;" in seen["live"]["text/html"]
    assert seen["live"]["text/plain"] == "cpu, 2 cores, runs/a, about 5 s\n50%, 2.5 s left <of> 5"
    assert seen["saved"] == {"text/plain": "cpu, 2 cores, runs/a, about 5 s\ndone after 5 s"}


def test_the_first_step_is_not_taken_for_the_pace(monkeypatch):
    """The rehearsal takes a step that nobody times before any that it times."""
    order, timed = [], cost.seconds_each
    monkeypatch.setattr(cost, "warm_up", lambda device: order.append("warm up"))
    monkeypatch.setattr(cost, "seconds_each", lambda *job: order.append("time") or timed(*job))
    machine = make_machine(make_config("tiny", **SMALL))
    reckon(machine, make_base(machine.config), 0.001)
    assert order[0] == "warm up" and set(order[1:]) == {"time"}


def test_the_bar_is_rehearsed_and_changes_nothing(tmp_path):
    """A run with a bar and one without end in the same table, and the bar's plan has all its seconds."""
    config = make_config("tiny", **SMALL)
    machine = make_machine(config)
    bar = start_bar(machine, make_base(config), Path("runs/a"))
    assert bar.where.startswith("cpu, ") and bar.where.endswith("runs/a")
    assert (bar.work.dropna()["seconds"] > 0).all() and len(bar.work.dropna()) == len(bar.work) - 1
    shown, silent = (
        run_experiment(config, tmp_path / name, progress=name == "shown") for name in ("shown", "silent")
    )
    assert shown.measurements.read_bytes() == silent.measurements.read_bytes()
