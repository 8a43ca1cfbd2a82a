"""The sweep: what a grid says, what runs share, and that being killed costs nothing that was finished."""
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pandas as pd
import pytest

from si_nb import runs, sweep
from si_nb.cli import main
from si_nb.measurements import read_table
from si_nb.model import ModelConfig
from si_nb.rounds import run_experiment
from si_nb.runs import RunConfig, make_config
from si_nb.storage import hold
from si_nb.sweep import BASE_SETTINGS, ClusterExecutor, ClusterJob, SweepError, base_key, base_name, read_grid, run_sweep, sweep_run

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


def stamps(out):
    """What would change if a file were written again."""
    files = [*out.glob("runs/*/measurements.csv"), *out.glob("bases/*-base-*/*.safetensors")]
    return {path.relative_to(out): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


# --- the sweep


def test_a_sweep_measures_what_its_runs_measure_alone(grid, finished, tmp_path):
    """Shared base models, several jobs and threads change no count: the table is that of the runs, each by itself."""
    alone = [run_experiment(run.config, tmp_path / name, progress=False) for name, run in read_grid(grid).runs.items()]
    expected = pd.concat([read_table(folder.measurements) for folder in alone], ignore_index=True)
    pd.testing.assert_frame_equal(read_table(finished), expected)


def test_run_in_two_groups_is_made_once_and_carries_both_names(finished):
    """Rows of runs.csv are runs, not mentions in the grid; every setting is a column."""
    runs = pd.read_csv(finished / "runs.csv", keep_default_na=False)
    assert sorted(runs["groups"]) == ["amount", "filters", "filters", "filters", "filters;amount"]
    assert set(runs["status"]) == {"finished"} and not any(runs["reason"])
    assert (runs["seconds"].astype(float) > 0).all()
    assert set(RunConfig.__dataclass_fields__) <= set(runs.columns)


def test_base_models_are_trained_once_and_shared(finished):
    """Two seeds: two sets of base models, each as large as its most demanding run needs."""
    bases = sorted(finished.glob("bases/*"))
    assert len(bases) == 2
    assert all(len(list(base.glob("voter_*.safetensors"))) == 2 for base in bases)


def test_finished_runs_keep_table_and_settings_only(finished):
    """Weights and labels of a finished run are thrown away; what a reader needs stays."""
    for folder in finished.glob("runs/*"):
        assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} >= {"measurements.csv", "config.json", "environment.json"}
        assert not (folder / "data").exists()
    assert not list(finished.glob("bases/*/*/*.safetensors"))
    assert {"grid.toml", "environment.json", "measurements.csv", "runs.csv"} <= {path.name for path in finished.iterdir()}


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
    longer.write_text(SETTINGS + GROUPS + '[[group]]\nname = "more voters"\nsettings = {voters = 3, si_method = "mv"}\n')
    assert set(run_sweep(longer, tmp_path / "out")["status"]) == {"finished"}
    after = stamps(tmp_path / "out")
    assert len(after) == len(before) + 2 and {path: after[path] for path in before} == before


def test_failed_runs_are_listed_while_others_finish(tmp_path, capsys):
    """A base that diverges fails its runs with its reason, a folder of another run fails one, and the rest goes on."""
    path, out = tmp_path / "grid.toml", tmp_path / "out"
    path.write_text(SETTINGS + '[[group]]\nname = "rates"\ngrid = {learning_rate = [1e30, 0.005, 0.001]}\n')
    blocked = list(read_grid(path).runs)[2]
    (out / "runs" / blocked).mkdir(parents=True)
    (out / "runs" / blocked / "config.json").write_text('{"task": "none of this"}')
    assert main(["sweep", str(path), "--out", str(out), "--jobs", "2"]) == 1
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith("failed:")]
    assert len(lines) == 2 and "learning_rate 1e+30" in lines[0] and blocked in lines[1] and "another configuration" in lines[1]
    assert "Traceback" not in said.err and read_table(out)["run_id"].nunique() == 1
    (out / "runs" / blocked / "config.json").unlink()
    assert main(["sweep", str(path), "--out", str(out)]) == 1
    assert capsys.readouterr().out.count("failed:") == 1 and read_table(out)["run_id"].nunique() == 2


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
    path.write_text(SETTINGS.replace("si_iter = 4", "si_iter = 40") + '[[group]]\nname = "amounts"\ngrid = {num_samples = [20, 21, 22, 23]}\n')
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
    """A sweep that is killed with SIGKILL loses nothing that was finished, and leaves no job running behind it."""
    path, uninterrupted = longer
    command = [sys.executable, "-m", "si_nb", "sweep", str(path), "--out", str(tmp_path), "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: finished_in(tmp_path), process)
    process.kill()
    process.communicate(timeout=10)  # comes back when the last job that could write to its stderr is gone
    assert process.returncode == -signal.SIGKILL
    jobs = [json.loads(lock.read_bytes())["pid"] for lock in tmp_path.rglob("*.lock")]
    end = time.monotonic() + 10
    while any(map(is_there, jobs)) and time.monotonic() < end:  # the system takes them off its list
        time.sleep(0.05)
    goes_on(path, tmp_path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_interrupted_sweep_says_how_to_go_on(number, longer, tmp_path, capsys):
    """Ctrl-C and SIGTERM stop all jobs; the table has what was finished, and the same command goes on."""
    path, uninterrupted = longer

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
        ("this is no TOML", "not TOML"),
        ("\ufeffname = 3", "not TOML"),
    ],
)
def test_bad_grids_are_refused_before_anything_is_written(text, named, tmp_path, capsys):
    """One line that names the setting and its group, exit code 2, and no folder."""
    (tmp_path / "grid.toml").write_text(text, encoding="utf-8")
    assert main(["sweep", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and named in said.err and said.out == ""
    assert "group 'a'" in said.err or named != "n_embd"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--jobs", "0"], "jobs is 0"),
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


def test_missing_grid_is_refused(tmp_path, capsys):
    """A grid that is not there is named, and so is a folder in its place."""
    for path in (tmp_path / "absent.toml", tmp_path):
        assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
        assert str(path) in capsys.readouterr().err


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
    assert set(BASE_SETTINGS) == set(runs.BASE_TRAINING_SETTINGS) | set(ModelConfig.__dataclass_fields__) - {"vocab_size"}


def test_runs_share_a_base_unless_a_base_setting_differs(tmp_path):
    """Filter, labels and noise come after the base; seed and steps do not."""
    config = make_config("tiny")
    assert base_key(make_config("tiny", si_method=("mv",), num_samples=7, noise_round=1, voters=7)) == base_key(config)
    assert base_key(make_config("tiny", seed=1)) != base_key(config) != base_key(make_config("tiny", max_iters=7))
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
    assert main(["sweep", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "out"), "--executor", "submitit"]) == 2
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
    """A job that has left the queue without a result has ended, accounting or not; one in the queue has not."""
    paths = SimpleNamespace(result_pickle=tmp_path / "absent", stderr=tmp_path / "log")
    job = ClusterJob(SimpleNamespace(done=lambda: False, job_id="7", paths=paths), queued=True)
    monkeypatch.setattr(sweep, "_RESULT_SEEN_WITHIN", 0)
    monkeypatch.setattr(sweep, "_queue", lambda when: {"7"})
    assert not job.done()
    job.since -= 3600
    assert not job.done()
    for queue, over in ((None, False), ({"8"}, True)):
        monkeypatch.setattr(sweep, "_queue", lambda when, queue=queue: queue)
        assert job.done() == over
    assert "job 7" in job.reason() and str(paths.stderr) in job.reason()
