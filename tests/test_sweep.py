"""The sweep: what a grid says, what runs share, and that being killed costs nothing that was finished."""

import dataclasses
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from si_nb.cli import main
from si_nb.loop import executors
from si_nb.loop.bases import recorded_base_models
from si_nb.loop.complete import check_complete
from si_nb.loop.executors import ClusterExecutor, ClusterJob
from si_nb.loop.folder import locate_run, write_facts
from si_nb.loop.grid import LARGEST_GRID, SweepError, read_grid
from si_nb.loop.jobs import check_so_far, over_arms, run_status, sweep_run
from si_nb.loop.rounds import run_experiment
from si_nb.loop.settings import (
    BASE_SETTINGS,
    BASE_TRAINING_SETTINGS,
    LATER_SETTINGS,
    ConfigError,
    RunConfig,
    base_key,
    base_name,
    every_setting,
    identity,
    make_config,
    run_name,
    stored_config,
)
from si_nb.loop.sweep import run_sweep
from si_nb.model.gpt import ModelConfig
from si_nb.record.storage import hold, read_sealed, write_sealed
from si_nb.record.table import TableError, read_table

SETTINGS = """
[settings]
task = "copy"
original_digits = 3
si_rounds = 2
n_layer = 1
n_head = 2
n_embd = 16
base_samples = 500
max_iters = 20
batch_size = 16
si_iter = 4
num_samples = 20
eval_samples = 20
voters = 2
vote_iter_growth = 0
"""
GROUPS = """
[[group]]
name = "filters"
seeds = [0, 1]
grid = {si_method = ["none", "mv"]}

[[group]]
name = "amount"
grid = {num_samples = [20, 30]}
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A grid of five runs, one of them in two groups, on two sets of base models."""
    path = tmp_path_factory.mktemp("grid") / "grid.toml"
    path.write_text(SETTINGS + GROUPS)
    return path


@pytest.fixture(scope="module")
def finished(grid, tmp_path_factory):
    """A sweep that was never interrupted."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    runs = run_sweep(grid, out, jobs=2)
    assert list(runs["status"]) == ["finished"] * 5, list(runs["reason"])
    return out


def content(out):
    return (out / "measurements.csv").read_bytes()


def line_of(said):
    """What was said on stderr, which must be one line."""
    assert said.err.count("\n") == 1 and "Traceback" not in said.err, said.err
    return said.err


@pytest.fixture
def guard():
    """A hang becomes an error; nothing here takes a tenth of that."""

    def give_up(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def stamps(out):
    """What would change if a file were written again."""
    files = [*out.glob("runs/*/measurements.csv"), *out.glob("bases/*-base-*/*.safetensors")]
    return {path.relative_to(out): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


# --- the sweep


def test_a_sweep_measures_what_its_runs_measure_alone(grid, finished, tmp_path):
    """Shared base models, several jobs and threads change no count:
    the table is that of the runs, each by itself.
    """
    alone = [
        run_experiment(run.config, tmp_path / name, progress=False)
        for name, run in read_grid(grid).runs.items()
    ]
    expected = pd.concat([read_table(folder.measurements) for folder in alone], ignore_index=True)
    pd.testing.assert_frame_equal(read_table(finished), expected)


def test_run_in_two_groups_is_made_once_and_carries_both_names(finished):
    """Rows of runs.csv are runs, not mentions in the grid, with all settings but unchanged later ones."""
    runs = pd.read_csv(finished / "runs.csv", keep_default_na=False)
    assert sorted(runs["groups"]) == ["amount", "filters", "filters", "filters", "filters;amount"]
    assert set(runs["status"]) == {"finished"} and not any(runs["reason"])
    assert (runs["seconds"].astype(float) > 0).all()
    assert {*RunConfig.__dataclass_fields__} - {*LATER_SETTINGS} == {*RunConfig.__dataclass_fields__} & {
        *runs.columns
    }


def test_base_models_are_trained_once_and_shared(finished):
    """Two seeds: two sets of base models, each as large as its most demanding run needs."""
    bases = sorted(finished.glob("bases/*"))
    assert len(bases) == 2
    assert all(len(list(base.glob("voter_*.safetensors"))) == 2 for base in bases)


def test_finished_runs_keep_table_and_settings_only(finished):
    """Weights and labels of a finished run are thrown away; what a reader needs stays."""
    for folder in finished.glob("runs/*"):
        assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} >= {
            "measurements.csv",
            "config.json",
            "environment.json",
        }
        assert not (folder / "data").exists()
    assert not list(finished.glob("bases/*/*/*.safetensors"))
    assert {"grid.toml", "environment.json", "measurements.csv", "runs.csv"} <= {
        path.name for path in finished.iterdir()
    }


def test_a_finished_sweep_does_nothing(grid, finished):
    """The same command again trains nothing and writes the same tables."""
    before, table = stamps(finished), content(finished)
    run_sweep(grid, finished)
    assert stamps(finished) == before and content(finished) == table


def test_a_table_without_working_folders_is_gone_on_with(grid, finished, tmp_path):
    """In a clone only the tables are there: the runs in them are not made again, those missing are."""
    names = list(read_grid(grid).runs)
    table = read_table(finished)
    table[table["run_id"] != names[0]].to_csv(tmp_path / "measurements.csv", index=False)
    assert set(run_sweep(grid, tmp_path)["status"]) == {"finished"}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == names[:1]
    assert content(tmp_path) == content(finished)


def test_a_grid_may_grow(grid, finished, tmp_path):
    """A run that needs a third voter adds one to the base models that are there, and repeats nothing."""
    shutil.copytree(finished, tmp_path / "out")
    before = stamps(tmp_path / "out")
    longer = tmp_path / "longer.toml"
    longer.write_text(
        SETTINGS + GROUPS + '[[group]]\nname = "more voters"\nsettings = {voters = 3, si_method = "mv"}\n'
    )
    assert set(run_sweep(longer, tmp_path / "out")["status"]) == {"finished"}
    after = stamps(tmp_path / "out")
    assert len(after) == len(before) + 2 and {path: after[path] for path in before} == before


def test_failed_runs_are_listed_while_others_finish(tmp_path, capsys):
    """A base that diverges fails its runs with its reason, a folder of another run fails one,
    and the rest goes on.
    """
    path, out = tmp_path / "grid.toml", tmp_path / "out"
    path.write_text(SETTINGS + '[[group]]\nname = "rates"\ngrid = {learning_rate = [1e30, 0.005, 0.001]}\n')
    blocked = list(read_grid(path).runs)[2]
    (out / "runs" / blocked).mkdir(parents=True)
    (out / "runs" / blocked / "config.json").write_text('{"task": "none of this"}')
    assert main(["sweep", str(path), "--out", str(out), "--jobs", "2"]) == 1
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith("failed:")]
    assert (
        len(lines) == 2
        and "learning_rate 1e+30" in lines[0]
        and blocked in lines[1]
        and "another configuration" in lines[1]
    )
    assert "Traceback" not in said.err and read_table(out)["run_id"].nunique() == 1
    (out / "runs" / blocked / "config.json").unlink()
    assert main(["sweep", str(path), "--out", str(out)]) == 1
    assert capsys.readouterr().out.count("failed:") == 1 and read_table(out)["run_id"].nunique() == 2


# --- the sweep's table against the runs' own


def seal_of(path):
    return path.with_name(f"{path.name}.sha256")


def change_a_count(text):
    """One problem more answered right in the first row where that is possible."""
    lines = text.splitlines(keepends=True)
    cells = [line.rstrip().split(",") for line in lines]
    at = next(i for i, row in enumerate(cells) if i and int(row[-2]) < int(row[-1]))
    lines[at] = ",".join([*cells[at][:-2], str(int(cells[at][-2]) + 1), cells[at][-1]]) + "\n"
    return "".join(lines)


def cut_six_lines(text):
    return "".join(text.splitlines(keepends=True)[:-6])


def rewrite(change, keep_seal):
    def damage(path):
        path.write_text(change(path.read_text()))
        if not keep_seal:
            seal_of(path).unlink()

    return damage


def replace_by(make):
    def damage(path):
        path.unlink()
        make(path)

    return damage


DAMAGES = {
    "a changed count": rewrite(change_a_count, True),
    "a changed count without a seal": rewrite(change_a_count, False),
    "six lines cut off": rewrite(cut_six_lines, True),
    "six lines cut off without a seal": rewrite(cut_six_lines, False),
    "half a line": rewrite(lambda text: text[: len(text) // 2], True),
    "empty": rewrite(lambda text: "", True),
    "bytes": lambda path: path.write_bytes(b"\xff\0" * 100),
    "a folder": replace_by(os.mkdir),
    "a pipe": replace_by(os.mkfifo),
    "a link to nowhere": replace_by(lambda path: path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_wrong_table_is_put_together_again_from_the_runs(damage, grid, finished, tmp_path, capsys, guard):
    """Whatever happens to the sweep's table, the runs' own win:
    said in one line, kept aside, nothing measured again.
    """
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    damage(out / "measurements.csv")
    before, damaged = stamps(out).keys(), out / "measurements.csv.damaged"
    assert main(["sweep", str(grid), "--out", str(out)]) == 0
    assert "put together again" in line_of(capsys.readouterr())
    assert content(out) == content(finished) and stamps(out).keys() == before and os.path.lexists(damaged)
    assert main(["sweep", str(grid), "--out", str(out)]) == 0 and capsys.readouterr().err == ""


def clone(finished, out):
    """The tables of a sweep without its working folders."""
    out.mkdir()
    for path in finished.iterdir():
        if path.is_file():
            shutil.copy(path, out)


@pytest.mark.parametrize(
    "damage",
    [d for name, d in DAMAGES.items() if name != "a changed count without a seal"],
    ids=[n for n in DAMAGES if n != "a changed count without a seal"],
)
def test_a_wrong_table_without_runs_is_refused_and_left_alone(
    damage, grid, finished, tmp_path, capsys, guard
):
    """Where the table is all there is, one line says what is wrong with it;
    it stays as it was, and no run is started.
    """
    out = tmp_path / "out"
    clone(finished, out)
    damage(out / "measurements.csv")
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert main(["sweep", str(grid), "--out", str(out)]) == 2
    assert "measurements.csv" in line_of(capsys.readouterr()) and os.path.lexists(out / "measurements.csv")
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before and not (
        out / "runs"
    ).exists()


def test_a_sealed_table_without_runs_is_taken_and_an_unsealed_one_is_named(grid, finished, tmp_path, capsys):
    """A clone goes on from the table alone, in silence if it is sealed;
    without a seal that is said, and it gets one.
    """
    out = tmp_path / "out"
    clone(finished, out)
    assert main(["sweep", str(grid), "--out", str(out)]) == 0 and capsys.readouterr().err == ""
    seal_of(out / "measurements.csv").unlink()
    assert main(["sweep", str(grid), "--out", str(out)]) == 0
    assert "has no seal" in line_of(capsys.readouterr()) and seal_of(out / "measurements.csv").exists()
    assert content(out) == content(finished) and not (out / "runs").exists()


def test_a_clone_keeps_the_wall_times(grid, finished, tmp_path):
    """Without working folders the seconds are those of the runs.csv that was there."""
    clone(finished, tmp_path / "out")
    run_sweep(grid, tmp_path / "out")
    assert (tmp_path / "out" / "runs.csv").read_bytes() == (finished / "runs.csv").read_bytes()


def test_a_committed_sweep_that_is_asked_again_is_left_as_it_is(tmp_path):
    """The tables that come with si_nb are finished sweeps:
    the command of results/README.md changes no byte of them.
    """
    shutil.copytree(ROOT / "results" / "long", tmp_path / "long")
    run_sweep(tmp_path / "long" / "grid.toml", tmp_path / "long")
    files = [
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (ROOT / "results" / "long", tmp_path / "long")
    ]
    assert files[0] == files[1]


def test_a_damaged_table_with_more_than_the_runs_is_refused(grid, finished, tmp_path, capsys):
    """Runs that only the damaged table names are hours of work:
    somebody has to decide, nothing is thrown away.
    """
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    shutil.rmtree(next((out / "runs").iterdir()))
    rewrite(change_a_count, True)(out / "measurements.csv")
    before = content(out)
    assert main(["sweep", str(grid), "--out", str(out)]) == 2
    assert (
        "1 runs in it have no table of their own" in line_of(capsys.readouterr()) and content(out) == before
    )


@pytest.mark.parametrize("copy_there", [True, False], ids=["with the sweep's table", "without it"])
def test_another_runs_table_with_its_seal_is_found_out(copy_there, grid, finished, tmp_path, capsys):
    """A run's folder that holds another run's table, seal and all, is mended:
    from the sweep's table, or by measuring again.
    """
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    first, second = [out / "runs" / name / "measurements.csv" for name in read_grid(grid).runs][:2]
    for path, copy in ((second, first), (seal_of(second), seal_of(first))):
        shutil.copy(path, copy)
    if not copy_there:
        (out / "measurements.csv").unlink()
    assert main(["sweep", str(grid), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert f"{first}: not the table of {first.parent.name}" in said and "Traceback" not in said
    assert (
        content(out) == content(finished)
        and first.with_name("measurements.csv.damaged").read_bytes() == second.read_bytes()
    )
    assert first.exists() != copy_there


def test_another_runs_rows_under_a_runs_name_are_found_out(grid, finished, tmp_path, capsys):
    """Renaming the rows does not help: arm and seed are those of the settings."""
    out = tmp_path / "out"
    clone(finished, out)
    names = list(read_grid(grid).runs)
    table = read_table(out)
    other = table[table["run_id"] == names[1]].assign(run_id=names[0])
    pd.concat([other, table[table["run_id"] != names[0]]]).to_csv(
        out / "measurements.csv", index=False, lineterminator="\n"
    )
    seal_of(out / "measurements.csv").unlink()
    assert main(["sweep", str(grid), "--out", str(out)]) == 2
    assert f"not the table of {names[0]}: arm is mv" in line_of(capsys.readouterr())


def test_a_sealed_copy_beats_a_runs_table_that_lost_its_seal(grid, finished, tmp_path, capsys):
    """What nobody sealed does not overrule what somebody did."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    path = next((out / "runs").iterdir()) / "measurements.csv"
    rewrite(change_a_count, False)(path)
    assert main(["sweep", str(grid), "--out", str(out)]) == 0
    assert "has no seal and differs" in line_of(capsys.readouterr())
    assert (
        content(out) == content(finished)
        and not path.exists()
        and path.with_name("measurements.csv.damaged").exists()
    )


def test_a_run_with_gaps_is_not_finished(grid, finished, tmp_path):
    """A run whose last round is there, but not all of its rows, sealed or not, is measured again."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "measurements.csv").unlink()
    path = next((out / "runs").iterdir()) / "measurements.csv"
    rewrite(
        lambda text: "".join(line for line in text.splitlines(keepends=True) if "label_raw" not in line),
        False,
    )(path)
    assert set(run_sweep(grid, out)["status"]) == {"finished"}
    assert content(out) == content(finished)


@pytest.mark.parametrize("name", ["sweep", "long"])
def test_the_committed_tables_are_sealed_and_whole(name):
    """The measured tables that come with si_nb hold every count of every run of their grids,
    and carry their seals.
    """
    folder = ROOT / "results" / name
    tables, runs = dict(list(read_table(folder).groupby("run_id"))), read_grid(folder / "grid.toml").runs
    assert tables.keys() == runs.keys() and seal_of(folder / "measurements.csv").exists()
    for run_id, run in runs.items():
        check_complete(tables[run_id].reset_index(drop=True), run.config, run_id)


# --- side files


WEEDS = {
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x80"),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(b"\0" * 1000),
    "other text": lambda path: path.write_text("nan"),
    "brackets": lambda path: path.write_text("[" * 100_000),
    "a folder": replace_by(os.mkdir),
    "a full folder": replace_by(lambda path: (path / "sub").mkdir(parents=True)),
    "a pipe": replace_by(os.mkfifo),
    "a link to nowhere": replace_by(lambda path: path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("weed", WEEDS.values(), ids=WEEDS)
def test_damaged_side_files_cost_a_line_and_nothing_else(weed, grid, finished, tmp_path, capsys, guard):
    """Wall times, machine and lists of runs are remarks:
    whatever is found in their place, the sweep ends well and its table is the same.
    """
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for path in [
        out / "grid.toml",
        out / "runs.csv",
        out / "environment.json",
        *out.glob("runs/*/seconds.txt"),
    ]:
        weed(path)
    assert main(["sweep", str(grid), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "Traceback" not in said.err and "seconds.txt" in said.err and content(out) == content(finished)
    assert (out / "grid.toml").read_text() == grid.read_text()
    assert json.loads((out / "environment.json").read_text()) == json.loads(
        (finished / "environment.json").read_text()
    )
    assert pd.read_csv(out / "runs.csv")["status"].eq("finished").all()


def test_a_run_ends_well_where_its_wall_time_cannot_be_written(grid, finished, tmp_path, capsys):
    """A folder called seconds.txt does not fail a run of hours at its end."""
    name = list(read_grid(grid).runs)[0]
    shutil.copytree(finished / "bases", tmp_path / "out" / "bases")
    (tmp_path / "out" / "runs" / name / "seconds.txt" / "sub").mkdir(parents=True)
    text = (
        grid.read_text().split("[[group]]")[0] + '[[group]]\nname = "one"\nsettings = {si_method = "none"}\n'
    )
    (tmp_path / "one.toml").write_text(text)
    assert main(["sweep", str(tmp_path / "one.toml"), "--out", str(tmp_path / "out")]) == 0
    assert read_table(tmp_path / "out")["run_id"].unique().tolist() == [name]


# --- killed and interrupted


def wait_for(found, process, seconds=120):
    """Wait until something is there while a process runs."""
    end = time.monotonic() + seconds
    while not found() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert found(), process.communicate()


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """A grid whose runs take long enough to be met in the middle, and its table when not interrupted."""
    folder = tmp_path_factory.mktemp("longer")
    path = folder / "grid.toml"
    path.write_text(
        SETTINGS.replace("si_iter = 4", "si_iter = 100")
        + '[[group]]\nname = "amounts"\ngrid = {num_samples = [20, 21, 22, 23, 24, 25]}\n'
    )
    run_sweep(path, folder / "out", jobs=2)
    return path, content(folder / "out")


def finished_in(out):
    """Files of the runs that are finished, with what would change if they were written again."""
    names = [file.parent.name for file in out.glob("runs/*/seconds.txt")]
    return {path: stamp for path, stamp in stamps(out).items() if path.parent.name in names}


def goes_on(path, out, uninterrupted):
    """The same command finishes a sweep that was stopped, and touches no finished run."""
    before = finished_in(out)
    assert 0 < len(before) < 4, "the sweep was not stopped in the middle"
    assert set(run_sweep(path, out, jobs=2)["status"]) == {"finished"}
    after = stamps(out)
    assert {path: after[path] for path in before} == before
    assert content(out) == uninterrupted


def is_there(pid):
    """Whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_sweep_goes_on_and_repeats_nothing(longer, tmp_path):
    """A sweep that is killed with SIGKILL loses nothing that was finished,
    and leaves no job running behind it.
    """
    path, uninterrupted = longer
    command = [sys.executable, "-m", "si_nb", "sweep", str(path), "--out", str(tmp_path), "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: finished_in(tmp_path), process)
    process.kill()
    process.communicate(timeout=100)  # comes back when the last job that could write to its stderr is gone
    assert process.returncode == -signal.SIGKILL
    jobs = [json.loads(lock.read_bytes())["pid"] for lock in tmp_path.rglob("*.lock")]
    end = time.monotonic() + 100
    while any(map(is_there, jobs)) and time.monotonic() < end:  # the system takes them off its list
        time.sleep(0.05)
    goes_on(path, tmp_path, uninterrupted)


# --- workers killed


def parent_of(pid):
    """The process that started another; None when that is gone, or has ended and waits to be noticed."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)


def workers(process, out):
    """{pid: run, or "base models"} of the processes that hold a folder and descend from the sweep's process,
    not being it.
    """
    found = {}
    for lock in sorted(
        out.rglob("run.lock")
    ):  # a process that holds both a run and base models is at work on the run
        try:
            pid = json.loads(lock.read_bytes())["pid"]
        except (OSError, ValueError):  # given back in this moment
            continue
        ancestors = [pid]
        while ancestors[-1] and ancestors[-1] != process.pid:
            ancestors.append(parent_of(ancestors[-1]))
        if ancestors[-1] == process.pid and len(ancestors) > 1:
            found[pid] = lock.parent.name if lock.parent.parent == out / "runs" else "base models"
    return found


def kill(pid):
    """SIGKILL, and wait until it has hit."""
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 30
    while parent_of(pid) is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert parent_of(pid) is None, f"process {pid} has outlived SIGKILL"


def start_sweep(path, out):
    command = [sys.executable, "-m", "si_nb", "sweep", str(path), "--out", str(out), "--jobs", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


needs_proc = pytest.mark.skipif(
    not os.path.exists("/proc/self/stat"), reason="who is whose child is read from /proc"
)


@needs_proc
def test_a_killed_worker_fails_its_run_alone(longer, tmp_path):
    """SIGKILL of a job's process: its run is listed with the reason, the others finish,
    the same command makes up for it.
    """
    path, uninterrupted = longer
    process = start_sweep(path, tmp_path)
    wait_for(
        lambda: [
            name
            for name in workers(process, tmp_path).values()
            if (tmp_path / "runs" / name / "data").exists()
        ],
        process,
    )
    pid, name = next(
        (pid, name) for pid, name in workers(process, tmp_path).items() if (tmp_path / "runs" / name).exists()
    )
    kill(pid)
    assert process.poll() is None and pid != process.pid, "the sweep itself was hit"
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "Traceback" not in said and f"{name}: killed by signal 9" in said
    runs = pd.read_csv(tmp_path / "runs.csv", keep_default_na=False).set_index("run_id")
    assert dict(runs["status"]) == {run: "failed" if run == name else "finished" for run in runs.index}
    assert "killed by signal 9" in runs["reason"][name] and set(read_table(tmp_path)["run_id"]) == set(
        runs.index
    ) - {name}
    assert set(run_sweep(path, tmp_path, jobs=2)["status"]) == {"finished"}
    assert content(tmp_path) == uninterrupted


def end_of(process, pid=None):
    """Exit code of a sweep, after itself or one of its workers was killed."""
    if pid is not None:
        kill(pid)
        code = (
            process.wait(30) if pid == process.pid else process.poll()
        )  # its last thread may end a moment after its first
        assert (code == -signal.SIGKILL) == (pid == process.pid), "another process than the one meant was hit"
    said = process.communicate(timeout=300)[1]
    assert "Traceback" not in said, said
    return process.returncode


def check_stopped(path, out, undisturbed):
    """What is on disk between two commands: no partial truth, every seal right,
    every run in the table as it will be.
    """
    for seal in out.rglob("*.sha256"):
        if seal.with_suffix("").exists():
            read_sealed(seal.with_suffix(""))
    if (out / "measurements.csv").exists():
        table = read_table(out)
        expected = undisturbed[undisturbed["run_id"].isin(table["run_id"])].reset_index(drop=True)
        pd.testing.assert_frame_equal(table, expected)


@needs_proc
@pytest.mark.slow(reason="thirty kills, with a sweep started for each")
def test_thirty_kills_of_workers_and_of_sweeps(tmp_path, capsys):
    """A campaign: the same command, killed at random moments in its jobs or itself,
    always ends with the undisturbed table.
    """
    path, rng, hit, done = (
        tmp_path / "grid.toml",
        random.Random(0),
        {"worker": 0, "base models": 0, "sweep": 0},
        0,
    )
    out = tmp_path / "out"
    text = SETTINGS.replace("si_iter = 4", "si_iter = 40").replace("max_iters = 20", "max_iters = 100")
    path.write_text(text + '[[group]]\nname = "amounts"\nseeds = [0, 1]\ngrid = {num_samples = [20, 21]}\n')
    run_sweep(path, tmp_path / "undisturbed", jobs=2)
    undisturbed = read_table(tmp_path / "undisturbed")
    while sum(hit.values()) < 30 or out.exists():
        process, stage, whom = (
            start_sweep(path, out),
            rng.choice(["", "copy-", "copy-"]),
            rng.choice(["worker", "worker", "sweep"]),
        )
        while (
            not any(name.startswith(stage) for name in workers(process, out).values())
            and process.poll() is None
        ):
            time.sleep(0.01)
        time.sleep(rng.choice([0, rng.random(), 3 * rng.random()]))
        there = workers(process, out)
        pid = process.pid if whom == "sweep" else rng.choice(sorted(there) or [None])
        if pid is None or parent_of(pid) is None or sum(hit.values()) >= 30:
            code = end_of(process)
        else:
            code = end_of(process, pid)
            hit[
                "sweep" if whom == "sweep" else "base models" if there[pid] == "base models" else "worker"
            ] += 1
            check_stopped(path, out, undisturbed)
        if code == 0:
            assert content(out) == content(tmp_path / "undisturbed")
            shutil.rmtree(out)
            done += 1
    with capsys.disabled():
        print(f"\nkills: {hit}; sweeps brought to their end: {done}, all with the undisturbed table")
    assert hit["worker"] and hit["base models"] and hit["sweep"] and done


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_interrupted_sweep_says_how_to_go_on(number, longer, tmp_path, capsys):
    """Ctrl-C and SIGTERM stop all jobs; the table has what was finished, and the same command goes on."""
    path, uninterrupted = longer
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has SIGINT ignored

    def interrupt():
        while not finished_in(tmp_path):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    waiting = threading.Thread(target=interrupt, daemon=True)
    waiting.start()
    assert main(["sweep", str(path), "--out", str(tmp_path), "--jobs", "2"]) == 128 + number
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before and not multiprocessing.active_children()
    assert read_table(tmp_path)["run_id"].nunique() >= 1
    signal.signal(signal.SIGINT, ignored)
    goes_on(path, tmp_path, uninterrupted)


def test_two_sweeps_in_one_folder_are_refused(grid, tmp_path, capsys):
    """The second is told which process is at work there."""
    with hold(tmp_path, "sweep.lock"):
        assert main(["sweep", str(grid), "--out", str(tmp_path)]) == 2
    assert f"process {os.getpid()} on" in capsys.readouterr().err and not (tmp_path / "runs").exists()


# --- grids that are wrong


@pytest.mark.parametrize(
    "text, named",
    [
        ("", "no group"),
        ("preset = 'huge'\n[[group]]\nname = 'a'", "huge"),
        ("[group]\nname = 'a'", "[[group]]"),
        ("[[group]]\nseeds = [1]", "group 1"),
        ("[[group]]\nname = 'a'\n[[group]]\nname = 'a'", "two groups are named 'a'"),
        ("[[group]]\nname = 'a;b'", "a;b"),
        ("[[group]]\nname = 'a'\ncolour = 'blue'", "colour"),
        ("speed = 3\n[[group]]\nname = 'a'", "speed"),
        ("[[group]]\nname = 'a'\nsettings = {n_embed = 3}", "n_embed"),
        ("[[group]]\nname = 'a'\ngrid = {n_embd = ['wide']}", "n_embd is 'wide'"),
        ("[[group]]\nname = 'a'\ngrid = {n_embd = 16}", "n_embd is 16"),
        ("[[group]]\nname = 'a'\ngrid = {n_embd = []}", "n_embd"),
        ("[[group]]\nname = 'a'\ngrid = {n_embd = [12, 12]}", "twice"),
        ("[[group]]\nname = 'a'\ngrid = {si_method = ['hope']}", "hope"),
        ("[[group]]\nname = 'a'\ngrid = {si_method = [[1]]}", "si_method"),
        ("[[group]]\nname = 'a'\nsettings = {bias = 1}", "bias is 1"),
        ("[[group]]\nname = 'a'\nsettings = {dropout = nan}", "dropout"),
        ("[[group]]\nname = 'a'\nseeds = 3", "seeds is 3"),
        ("[[group]]\nname = 'a'\nseeds = [-1]", "seed"),
        ("[[group]]\nname = 'a'\nseeds = [0]\nsettings = {seed = 1}", "seed is given twice"),
        ("[[group]]\nname = 'a'\nsettings = {n_embd = 12}\ngrid = {n_embd = [12]}", "n_embd is given twice"),
        ("[[group]]\nname = 'a'\nsettings = {n_embd = 100, n_head = 3}", "n_head"),
        ("[[group]]\nname = 'a'\n[[group]]\nname = 'b'\nsettings = {device = 'cpu'}", "device"),
        ("[[group]]\nname = 'a'\nsettings = {device = 'abacus'}", "abacus"),
        ("preset = ['quick']\n[[group]]\nname = 'a'", "preset is ['quick']"),
        ("preset = 1979-05-27\n[[group]]\nname = 'a'", "preset is datetime"),
        ("[settings]\npreset = 'quick'\n[[group]]\nname = 'a'", "preset is not a setting"),
        ("[[group]]\nname = 'a'\nsettings = {preset = 'quick'}", "preset is not a setting"),
        ("[[group]]\nname = 'a'\ngrid = {preset = ['quick', 'tiny']}", "preset is not a setting"),
        (
            "[[group]]\nname = 'a'\ngrid = {"
            + ", ".join(f"{name} = {list(range(1, 1001))}" for name in ("seed", "voters", "decay"))
            + "}",
            "1000000000 runs",
        ),
        (
            "[[group]]\nname = 'a'\ngrid = {" + ", ".join(f"x{i} = [1, 2]" for i in range(20_000)) + "}",
            "far more than",
        ),
        ("[[group]]\nname = 'a'\nseeds = [" + "1," * 300_000 + "]", "300000 runs"),
        ("".join(f"[[group]]\nname = 'g{i}'\n" for i in range(10_001)), "10001 runs"),
        ("a = " + "[" * 100_000, "nested"),
        ("a = " + "[" * 100_000 + "]" * 100_000, "nested"),
        ("a = " + "{a = " * 100_000, "nested"),
        (".".join("a" * 100_000) + " = 1", "100 parts"),
        ("[" + ".".join("a" * 100_000) + "]", "100 parts"),
        ("group = " + "[" * 40 + "]" * 40, "group 1"),
        ("group = [1, 2]", "group 1"),
        ("[[group]]\nname = 0x" + "f" * 100_000, "group 1"),
        ("[[group]]\nname = 'a'\nseeds = [0x" + "f" * 100_000 + "]", "seed"),
        ("[[group]]\nname = 'a'\nseeds = [" + "9" * 100 + "]", "18 digits"),
        ("[[group]]\nname = 'a'\nseeds = [" + "9" * 9000 + "]", "not TOML"),
        ("[[group]]\nname = 'a'\nsettings = {learning_rate = " + "9" * 400 + "}", "learning_rate"),
        ("[[group]]\nname = 'a'\nsettings = {learning_rate = inf}", "learning_rate"),
        ("[[group]]\nname = 'a'\nsettings = {vote_threshold = -nan}", "vote_threshold"),
        ("[[group]]\nname = 'a'\nseeds = [1979-05-27T07:32:00Z]", "seed is datetime"),
        ('"a\\nb\\u001b]0;c" = 1', "no such part"),
        ("[[group]]\nname = 'a'\nsettings = {\"a\\nb\\u001b\" = 1}", "no such setting"),
        ("[[group]]\nname = 'a'\nsettings = {task = '" + "t" * 100_000 + "'}", "task"),
        ("#" * 1_000_001, "more than the 1,000,000"),
        ("this is no TOML", "not TOML"),
        ("\ufeffname = 3", "not TOML"),
    ],
)
def test_bad_grids_are_refused_before_anything_is_written(text, named, tmp_path, capsys, guard):
    """One line that names the setting and its group, exit code 2, and no folder."""
    (tmp_path / "grid.toml").write_text(text, encoding="utf-8")
    assert main(["sweep", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert named in line_of(said) and said.out == "" and len(said.err) < 700 and said.err[:-1].isprintable()
    assert "group 'a'" in said.err or named != "n_embd"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--jobs", "0"], "--jobs: 0 is out of range"),
        (["--jobs", "many"], "many"),
        (["--executor", "abacus"], "abacus"),
        (["--out", os.devnull], os.devnull),
    ],
)
def test_bad_flags_are_refused(flags, named, grid, tmp_path, capsys):
    """What is wrong on the command line costs one line too."""
    try:
        code = main(["sweep", str(grid), "--out", str(tmp_path / "out"), *flags])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1 and named in said
    assert not (tmp_path / "out").exists()


def test_missing_grid_is_refused(tmp_path, capsys, guard):
    """A grid that is not there is named, and so is whatever else is in its place:
    a folder, a pipe, a device, other bytes.
    """
    os.mkfifo(tmp_path / "pipe")
    for number, content in enumerate((b"\xff\xfea", "a = 1".encode("utf-16"), b"a = '\xe9'")):
        (tmp_path / f"bytes{number}").write_bytes(content)
    (tmp_path / "link").symlink_to("link")
    for path in (tmp_path / "absent.toml", *tmp_path.iterdir(), tmp_path, "/dev/zero", "x" * 5000):
        assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
        assert str(path)[:200] in line_of(capsys.readouterr()) and not (tmp_path / "out").exists()


numbers = st.one_of(st.integers(-3, 9), st.sampled_from([2**31, 2**63 - 1, 2**64, 2**70, -(2**63)])).map(str)
words = st.text("abz_ .;[]{}#'é\u200b", max_size=6) | st.sampled_from(
    ["copy", "none", "mv", "tiny", "filters"]
)
texts = words.map(lambda word: json.dumps(word, ensure_ascii=False))
values = st.one_of(
    numbers,
    texts,
    st.sampled_from(
        ["true", "nan", "-inf", "1e999", "0.5", "07:32:00", "1979-05-27", "0x" + "f" * 5000, "{}", "[]"]
    ),
)
nested = st.recursive(
    values,
    lambda inner: st.lists(inner, max_size=4).map(lambda parts: f"[{', '.join(parts)}]"),
    max_leaves=12,
)
keys = (
    st.sampled_from(
        [
            "seed",
            "seeds",
            "name",
            "task",
            "n_embd",
            "si_method",
            "voters",
            "dropout",
            "preset",
            "settings",
            "grid",
            "group",
            "slurm",
            "device",
        ]
    )
    | texts
)
pairs = st.lists(st.tuples(keys, nested).map(" = ".join), max_size=4)
tables = pairs.map(lambda lines: f"{{{', '.join(lines)}}}")
entries = st.tuples(
    st.sampled_from(["seeds", "settings", "grid", "name", "preset"]) | keys, nested | tables
).map(" = ".join)
headers = st.sampled_from(
    [
        "[[group]]",
        "[[group]]\nname = 'a'",
        "[[group]]\nname = 'b'",
        "[settings]",
        "[slurm]",
        "[group]",
        "preset = 'tiny'",
    ]
)
files = st.lists(
    st.tuples(headers, st.lists(entries, max_size=3)).map(lambda part: "\n".join([part[0], *part[1]])),
    max_size=4,
).map("\n".join)


def mangle(text, seed):
    """A grid's text with a few pieces left out, doubled or put elsewhere."""
    rng = random.Random(seed)
    for _ in range(rng.randrange(1, 4)):
        start, length, to = rng.randrange(len(text)), rng.randrange(1, 30), rng.randrange(len(text))
        piece = text[start : start + length] * rng.choice([0, 1, 2, 1000])
        text = text[:to] + piece + text[to + rng.choice([0, length]) :]
    return text


mangled = st.integers(0, 10**6).map(lambda seed: mangle(SETTINGS + GROUPS, seed))


@settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(text=files | mangled)
def test_any_text_is_a_grid_or_one_line(text, tmp_path_factory):
    """Whatever is in the file, it is planned or refused in one printable line, and within seconds."""
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, encoding="utf-8")
    start = time.monotonic()
    try:
        planned = read_grid(path)
        assert 0 < len(planned.runs) <= LARGEST_GRID and all(
            isinstance(run.config, RunConfig) for run in planned.runs.values()
        )
    except SweepError as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable() and len(str(error)) < 700
    assert time.monotonic() - start < 20


def test_a_table_of_other_runs_is_not_overwritten(finished, tmp_path, capsys):
    """A grid that has lost runs, or another grid, does not replace what was measured."""
    (tmp_path / "measurements.csv").write_bytes(content(finished))
    (tmp_path / "grid.toml").write_text(SETTINGS + '[[group]]\nname = "other"\nseeds = [7]\n')
    assert main(["sweep", str(tmp_path / "grid.toml"), "--out", str(tmp_path)]) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert content(tmp_path) == content(finished) and not (tmp_path / "runs").exists()


# --- what base models depend on


def test_base_settings_are_those_that_training_depends_on():
    """Neither too few, or runs would share base models that are not theirs, nor too many."""
    assert set(BASE_SETTINGS) == set(BASE_TRAINING_SETTINGS) | set(ModelConfig.__dataclass_fields__) - {
        "vocab_size"
    }


def config_of_row(row):
    """The configuration of a row of a runs.csv, which may be older than some settings."""
    words = {setting: row[setting.name] for setting in dataclasses.fields(RunConfig) if setting.name in row}
    kinds = {bool: lambda text: text == "True", tuple[str, ...]: lambda text: tuple(text.split(","))}
    return RunConfig(
        **{setting.name: kinds.get(setting.type, setting.type)(text) for setting, text in words.items()}
    )


@pytest.mark.parametrize("sweep", ["conditions", "sweep", "long"])
def test_runs_of_earlier_versions_keep_their_names(sweep):
    """Every run of the committed sweeps, made before there was a recipe to set, is named as it was."""
    rows = pd.read_csv(ROOT / "results" / sweep / "runs.csv", dtype=str).to_dict("records")
    assert rows and "beta1" not in rows[0]
    assert [run_name(config_of_row(row)) for row in rows] == [row["run_id"] for row in rows]


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """Its config.json, which lacks the recipe, is that of the same settings now, whose name, folder and base
    models are the same; a changed recipe is refused by name, and would have base models of its own.
    """
    old = ROOT / "results" / "quick" / "seed0"
    facts, table = json.loads((old / "config.json").read_text()), read_table(old)
    assert not set(facts) & set(LATER_SETTINGS) and set(LATER_SETTINGS) < set(
        every_setting(stored_config(facts))
    )
    config = make_config("quick", seed=0)
    assert stored_config(facts) == config and set(table["run_id"]) == {run_name(config)}
    assert base_name(config) == "copy-seed0-base-9ef46768"  # as the version before had it
    write_facts(tmp_path / "config.json", facts)
    folder = locate_run(config, tmp_path)
    assert recorded_base_models(folder).differing(config) == ""
    changed = make_config("quick", seed=0, beta1=0.8)
    with pytest.raises(ConfigError, match=r"beta1 \(was 0\.9, now 0\.8\)"):
        locate_run(changed, tmp_path)
    assert "beta1 0.9 instead of 0.8" in recorded_base_models(folder).differing(changed)
    assert base_key(changed) != base_key(config) and run_name(changed) != run_name(config)


@pytest.mark.parametrize("name, value", [("newest_share", 0.7), ("carry_optimizer", True), ("si_stable", 5)])
def test_a_later_setting_counts_when_it_is_changed(name, value, tmp_path):
    """It changes the name, is in config.json and comes back from there; base models know only their own."""
    plain, changed = make_config("tiny"), make_config("tiny", **{name: value})
    assert run_name(changed) != run_name(plain) and base_key(changed) == base_key(plain)
    assert json.loads(json.dumps(every_setting(changed)))[name] == value
    assert stored_config(json.loads(json.dumps(identity(changed) | {"device": "auto"}))) == changed


def test_runs_share_a_base_unless_a_base_setting_differs(tmp_path):
    """Filter, labels and noise come after the base; seed and steps do not."""
    config = make_config("tiny")
    assert base_key(
        make_config("tiny", si_method=("mv",), num_samples=7, noise_round=1, voters=7)
    ) == base_key(config)
    assert (
        base_key(make_config("tiny", seed=1))
        != base_key(config)
        != base_key(make_config("tiny", max_iters=7))
    )
    assert sweep_run(config, tmp_path).models == tmp_path / "bases" / base_name(config)


# --- submitit


def test_cluster_without_submitit_says_what_to_install(monkeypatch, tmp_path):
    """The extra is named."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SweepError, match=r"si_nb\[cluster\]"):
        ClusterExecutor("local", tmp_path, {})


def test_slurm_where_there_is_none_is_refused(grid, tmp_path, capsys, monkeypatch):
    """One line, before anything is written."""
    pytest.importorskip("submitit", reason="the cluster extra is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["sweep", str(grid), "--out", str(tmp_path / "out"), "--executor", "slurm"]) == 2
    assert "no Slurm on this machine" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_unknown_cluster_parameters_are_refused(tmp_path, capsys):
    """What submitit does not know is named before anything is written."""
    pytest.importorskip("submitit", reason="the cluster extra is not installed")
    (tmp_path / "grid.toml").write_text(SETTINGS + GROUPS + "[slurm]\nspeed = 9\n")
    assert (
        main(["sweep", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "out"), "--executor", "submitit"])
        == 2
    )
    assert "speed" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_submitit_gives_the_same_counts(finished, tmp_path):
    """The cluster's way of running jobs, tried with submitit's own local executor, changes no count."""
    pytest.importorskip("submitit", reason="the cluster extra is not installed")
    (tmp_path / "grid.toml").write_text(SETTINGS + '[[group]]\nname = "one"\n[slurm]\ntimeout_min = 5\n')
    runs = run_sweep(tmp_path / "grid.toml", tmp_path / "out", "submitit")
    assert list(runs["status"]) == ["finished"], list(runs["reason"])
    everything = read_table(finished)
    same = everything[everything["run_id"] == runs["run_id"][0]].reset_index(drop=True)
    pd.testing.assert_frame_equal(read_table(tmp_path / "out"), same)


def test_cluster_job_without_a_result_says_where_its_log_is(monkeypatch, tmp_path):
    """A job that has left the queue without a result has ended, accounting or not;
    one in the queue has not.
    """
    paths = SimpleNamespace(result_pickle=tmp_path / "absent", stderr=tmp_path / "log")
    job = ClusterJob(SimpleNamespace(done=lambda: False, job_id="7", paths=paths), queued=True)
    monkeypatch.setattr(executors, "_RESULT_SEEN_WITHIN", 0)
    monkeypatch.setattr(executors, "_queue", lambda when: {"7"})
    assert not job.done()
    job.since -= 3600
    assert not job.done()
    for queue, over in ((None, False), ({"8"}, True)):
        monkeypatch.setattr(executors, "_queue", lambda when, queue=queue: queue)
        assert job.done() == over
    assert "job 7" in job.reason() and str(paths.stderr) in job.reason()


def test_a_task_of_ones_own_reaches_every_job(tmp_path):
    """A plugin named on the command line is loaded where grids are read and in the process of every job;
    a bad one is one line.
    """
    plugin = tmp_path / "shift.py"
    plugin.write_text(
        "import numpy as np\nfrom si_nb.problems.tasks import register_task, string_task\n"
        "register_task(string_task('shift', lambda digits: np.roll(digits, -1, axis=1)))\n"
    )
    (tmp_path / "grid.toml").write_text(
        SETTINGS.replace('"copy"', '"shift"') + "[[group]]\nname = 'one'\nsettings = {si_method = 'none'}\n"
    )
    command = [sys.executable, "-m", "si_nb", "sweep", tmp_path / "grid.toml", "--out", tmp_path / "out"]
    done = subprocess.run([*command, "--plugin", plugin], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert set(read_table(tmp_path / "out")["task"]) == {"shift"}
    plugin.write_text("1 / 0")
    done = subprocess.run([*command, "--plugin", plugin], capture_output=True, text=True, timeout=300)
    assert (
        done.returncode == 2
        and done.stderr.startswith("si_nb: ")
        and done.stderr.count("\n") == 1
        and "ZeroDivisionError" in done.stderr
    )


# --- runs that are over


OVER = (
    "stop_when_over = true\n"
    + SETTINGS.replace("si_rounds = 2", "si_rounds = 4")
    + """
[[group]]
name = "all"
grid = {si_method = [["none", "mv"], "oracle"]}
"""
)


@pytest.fixture(scope="module")
def over(tmp_path_factory):
    """A sweep whose runs, with models that can do nothing, are over after two rounds of four."""
    place = tmp_path_factory.mktemp("over")
    (place / "grid.toml").write_text(OVER)
    runs = run_sweep(place / "grid.toml", place / "out", jobs=2)
    assert list(runs["status"]) == ["over"] * 2, list(runs["reason"])
    return place / "out"


def test_runs_end_when_they_are_over(over, tmp_path, capsys):
    """A run that is over ends, is named with its reason, has the whole run's rows so far, and is sealed."""
    table, runs = read_table(over), pd.read_csv(over / "runs.csv")
    assert set(table["round"]) == {0, 1, 2} and runs["reason"].str.contains("rounds 1 to 2").all()
    (tmp_path / "grid.toml").write_text(OVER.removeprefix("stop_when_over = true\n"))
    assert main(["sweep", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "whole")]) == 0
    whole = read_table(tmp_path / "whole")
    assert whole["round"].max() == 4 and table.equals(whole[whole["round"] <= 2].reset_index(drop=True))
    assert read_sealed(over / "measurements.csv") and not list(over.rglob("none_round_*.safetensors"))
    capsys.readouterr()
    assert main(["check", str(over)]) == 0, capsys.readouterr().out


def test_a_sweep_of_runs_that_are_over_can_be_asked_again(over, tmp_path):
    """Nothing is made again; what was lost of a run, or of all of them, is made again to the same bytes."""
    out = shutil.copytree(over, tmp_path / "out")
    before = stamps(out)
    assert list(run_sweep(out / "grid.toml", out)["status"]) == ["over"] * 2 and stamps(out) == before
    run = next((out / "runs").iterdir())
    for name in ("measurements.csv", "measurements.csv.sha256"):
        (run / name).unlink(), (out / name).unlink()
    assert list(run_sweep(out / "grid.toml", out)["status"]) == ["over"] * 2
    assert content(out) == content(over)


def test_a_run_cannot_be_called_over_before_it_is(over, tmp_path, capsys):
    """Rows that are missing, or counts by which a run would have gone on, are noticed in both tables."""
    out, config = over, next(iter(read_grid(over / "grid.toml").runs.values())).config
    table = read_table(over)
    table = table[table["run_id"] == table["run_id"][0]].reset_index(drop=True)
    assert run_status(table, config, True) == "over" and run_status(table, config, False) == "unfinished"
    check_so_far(table, config, "table", True)
    alive = table.assign(successes=table["trials"].where(table["arm"] == "mv", table["successes"]))
    assert set(over_arms(alive)) == {"none"} and run_status(alive, config, True) == "unfinished"
    shorter = table[(table["arm"] == "none") | (table["round"] < 2)]
    for stop in (True, False):
        with pytest.raises(TableError, match="lacks"):
            check_so_far(shorter, config, "table", stop)
    ahead = table[(table["arm"] == "mv") | (table["round"] < 2)].assign(
        successes=lambda rows: rows["trials"].where(rows["quantity"].eq("accuracy"), rows["successes"])
    )
    with pytest.raises(TableError, match="lacks .* of arm none"):
        check_so_far(ahead, config, "table", True)
    out = shutil.copytree(over, tmp_path / "out")
    cut = read_table(out)
    write_sealed(
        out / "measurements.csv", cut[cut["round"] < 2].to_csv(index=False, lineterminator="\n").encode()
    )
    assert main(["check", str(out)]) == 1 and "not to its end" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["1", '"yes"', "[]"])
def test_stop_when_over_is_true_or_false(value, tmp_path):
    """Anything else is one line."""
    (tmp_path / "grid.toml").write_text(f"stop_when_over = {value}\n{SETTINGS}{GROUPS}")
    with pytest.raises(SweepError, match="stop_when_over is .*: write true or false"):
        read_grid(tmp_path / "grid.toml")
