"""Interrupted, damaged, shared or badly fed, a run ends in the same bytes or says in one line why not.

Started as a program, this file is the nursery: a process that has imported the loop and forks a child for
every order that it reads.
"""

import ast
import errno
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

import si_nb.cli
import si_nb.loop.evaluate
import si_nb.loop.labels
import si_nb.loop.rounds
import si_nb.loop.training
from si_nb.loop.branch import run_branch
from si_nb.loop.checkpoints import load_checkpoint, load_tensors
from si_nb.loop.evaluate import count_right
from si_nb.loop.rounds import run_experiment
from si_nb.loop.settings import ConfigError, identity, make_config
from si_nb.loop.stored import open_stored
from si_nb.loop.workers import Interrupted, Stopped, side_by_side
from si_nb.model.generate import generate
from si_nb.model.trainer import DeviceError, DivergedError
from si_nb.record.storage import (
    DamagedError,
    LockedError,
    StorageError,
    _started,
    hold,
    read_sealed,
    write_sealed,
)
from si_nb.record.table import TableError, read_table

SAID = (
    ConfigError,
    TableError,
    DamagedError,
    DeviceError,
    DivergedError,
    LockedError,
    StorageError,
)  # all have one-line messages
PLACES = {  # where a mishap finds the function that it comes before
    "make_base_data": si_nb.loop.training,
    "train": si_nb.loop.training,
    "generate": si_nb.loop.labels,
    "make_labels": si_nb.loop.labels,
    "count_right": si_nb.loop.evaluate,
    "measure": si_nb.loop.rounds,
    "forget_checkpoints": si_nb.loop.rounds,
    "forget_weights": si_nb.loop.rounds,
}
ROUNDS, VOTERS = 2, 2
SETTINGS = dict(
    task="reverse_addition", si_method=("none", "mv_length"), original_digits=1, si_rounds=ROUNDS, n_layer=1,
    n_head=1, n_embd=16,
    block_size=24, base_samples=300, max_iters=60, decay=12, warmup=6, batch_size=16, learning_rate=3e-2,
    si_iter=10,
    vote_iter_growth=2, eval_interval=7, eval_samples=12, num_samples=30, voters=VOTERS, vote_threshold=0.5,
    seed=5, device="cpu",
)  # fmt: skip
SHORT = dict(max_iters=12, decay=2, warmup=1, si_iter=6, eval_samples=4, num_samples=12)
EVEN = dict(
    max_iters=20, decay=4, warmup=2, eval_samples=100, num_samples=500
)  # all phases take about as long


def go(folder, minutes=5, **changes):
    """The run that everything here is about."""
    return run_experiment(
        make_config(**{**SETTINGS, **changes}), folder, progress=False, checkpoint_minutes=minutes
    )


def contents(folder):
    """Every byte of the table, the kept labels and the weights, by file name;
    checkpoints and seals are left out.
    """
    files = [
        folder / "measurements.csv",
        *(folder / "data").glob("*.safetensors"),
        *(folder / "models").rglob("*.safetensors"),
    ]
    return {path.name: path.read_bytes() for path in files if ".step_" not in path.name}


def base_folder(run):
    """Where a run of this file has its base models."""
    (folder,) = (run / "models").glob("*-base-*")
    return folder


def result(folder):
    """The table, the kept labels and the last round's weights."""
    wanted = rf"measurements\.csv|.*_voter_\d_round_{ROUNDS:03d}\.safetensors|[a-z_]*_round_\d+\.safetensors"
    return {name: content for name, content in contents(folder).items() if re.fullmatch(wanted, name)}


def check_seals(folder):
    """Every file that has a seal is what was sealed, and nothing is half written."""
    for seal in folder.rglob("*.sha256"):
        if seal.with_suffix("").exists():
            read_sealed(seal.with_suffix(""))
    assert not list(folder.rglob(".*-partial"))
    assert not [claim for claim in folder.rglob(".*-claim") if claim.stat().st_size]  # empty: nobody's


def is_one_line(error):
    return isinstance(error, SAID) and bool(str(error)) and "\n" not in str(error)


# --- the nursery


def share(folder, models_dir, start, changes, data_dir=None):
    """A run that keeps its weights, and its labels, with others', begun at a given moment."""
    time.sleep(max(0.0, start - time.time()))
    run_experiment(make_config(**{**SETTINGS, **changes}), folder, models_dir, data_dir, progress=False)


def attempt(folder, minutes, changes, flush=False):
    """A run to its end."""
    if flush:
        os.fsync = plain_fsync
    go(folder, minutes, **changes)


def attempt_branch(folder, parent, changes):
    """A branch from the first round of a run to its end."""
    run_branch(open_stored(parent), 1, folder, changes, progress=False, checkpoint_minutes=0)


plain_fsync = os.fsync


def limit_size(largest):
    """From now on no file can grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))


def vanish(folder):
    shutil.rmtree(folder)


def make_read_only(folder):
    subprocess.run(["mount", "-o", "remount,ro", Path(folder).parent], check=True)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def mishap(folder, minutes, changes, place, event, argument):
    """A run to which something happens at a certain place."""
    if place == "start":
        globals()[event](argument)
    else:
        function, number = place
        before(PLACES[function], function, number, partial(globals()[event], argument))
    go(folder, minutes, **changes)


def before(module, function, number, event):
    """Let something happen just before the call of that number."""
    plain, left = getattr(module, function), [number]

    def replacement(*arguments, **named):
        left[0] -= 1
        if left[0] == 0:
            event()
        return plain(*arguments, **named)

    setattr(module, function, replacement)


def die_in_round_2(folder, changes):
    """Die when every voter has made five steps of round 2 and stored each of them."""
    plain, together = (
        si_nb.loop.training.save_checkpoint,
        threading.Barrier(1 + VOTERS, action=die, timeout=60),
    )

    def save_checkpoint(where, name, state, **about):
        plain(where, name, state, **about)
        if "_2_" in name and state.facts["step"] == 5:
            together.wait()

    si_nb.loop.training.save_checkpoint = save_checkpoint
    go(folder, 0, **changes)


def keep_lock(folder, seconds, start=0.0):
    """Take a folder at a given moment, stay in it, and see whether it is still one's own."""
    time.sleep(max(0.0, start - time.time()))
    with hold(Path(folder)) as check:
        (Path(folder) / f"held_{os.getpid()}").touch()
        time.sleep(seconds)
        check()
        print("held")


def load_in_little_memory(path):
    """Load a file that must be refused, and print how much memory that took, in KiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load_tensors(Path(path))
    except DamagedError as error:
        print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most, str(error)]))


def resident():
    """Memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def many_rounds(folder, changes):
    """Memory at the end of every round, in bytes; all rounds at one length,
    for longer problems take more memory of right.
    """
    sizes, plain = [], si_nb.loop.rounds.run_round
    si_nb.loop.labels.next_lengths = lambda *arguments: [3]
    si_nb.loop.evaluate.evaluation_lengths = lambda *arguments: range(3, 4)

    def run_round(*arguments):
        table = plain(*arguments)
        sizes.append(resident())
        return table

    si_nb.loop.rounds.run_round = run_round
    go(folder, **changes)
    print(json.dumps(sizes))


def be_nursery():
    """Fork a child for each order on the standard input, or wait for one."""
    os.fsync = lambda descriptor: None  # nothing here is about power cuts, and this is quicker
    print(os.getpid(), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        code = 70
        try:
            said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1), os.dup2(said, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            globals()[order["action"]](*order["arguments"])
            code = 0
        except BaseException as error:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2
            )  # room for what is to be said
            code = 130 if isinstance(error, Interrupted) else 2 if isinstance(error, SAID) else 70
            print(f"{type(error).__name__}: {error}" if code != 70 else traceback.format_exc())
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


class Nursery:
    """Children that need not import anything."""

    def __init__(self):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "error",
            "PYTHONFAULTHANDLER": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.place = Path(tempfile.mkdtemp())
        self._answer()

    def _answer(self):
        return int(self.process.stdout.readline())

    def start(self, action, *arguments):
        """Number of a new process."""
        self.said = self.place / f"said_{time.monotonic_ns()}"
        order = {"action": action, "arguments": arguments, "said": str(self.said)}
        self.process.stdin.write(json.dumps(order, default=str) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def wait(self, pid):
        """Exit code of a process."""
        self.process.stdin.write(json.dumps({"wait": pid}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def call(self, action, *arguments):
        """Exit code and everything that was printed, of a process run to its end."""
        code = self.wait(self.start(action, *arguments))
        return code, self.said.read_text()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)
        shutil.rmtree(self.place)


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    return go(tmp_path_factory.mktemp("whole") / "run").path


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The same with fewer steps."""
    return go(tmp_path_factory.mktemp("short") / "run", **SHORT).path


def show(title, counts):
    """Print a table of counts, for whoever runs pytest with -s."""
    print(f"\n{title}")
    for name, count in counts:
        print(f"  {name:<52} {count}")


# --- kills


def phase(run):
    """What a run was doing when it was killed, as its folder tells."""
    names = {path.name for path in run.rglob("*")} if run.exists() else set()
    if "environment.json" not in names or "config.json" not in names:
        return "starting"
    if any(name.endswith("-partial") for name in names):
        return "writing a file"
    if "measurements.csv" not in names:
        return (
            "base training"
            if len([name for name in names if re.fullmatch(r"voter_\d.safetensors", name)]) < VOTERS
            else "measuring"
        )
    done = read_table(run)["round"].max()
    if done == ROUNDS:
        return "ending"
    if (
        len(
            [
                name
                for name in names
                if name.endswith(f"_round_{done + 1:03d}.safetensors") and "_voter_" not in name
            ]
        )
        < 2
    ):
        return "labels"
    trained = [
        name for name in names if name.endswith(f"_round_{done + 1:03d}.safetensors") and "_voter_" in name
    ]
    return "round training" if len(trained) < 1 + VOTERS else "measuring"


def kill_runs(nursery, place, kills, flush, **changes):
    """Kill runs at random moments; kills by phase."""
    changes = {**EVEN, **changes}
    whole = go(place / "whole", **changes).path
    return kill_at_random(nursery, place, kills, whole, "attempt", 0, changes, flush)


def kill_at_random(nursery, place, kills, whole, action, *arguments):
    """Start an action again and again after SIGKILLs at random moments, and compare each that ends with a
    whole one; kills by phase.
    """
    seed = random.randrange(10**6)
    rng, phases, runs, start = random.Random(seed), Counter(), 0, time.monotonic()
    assert nursery.call(action, place / "timed", *arguments)[0] == 0
    expected = time.monotonic() - start
    while phases.total() < kills:
        run, code = place / f"run_{runs}", None
        while code != 0:
            child = nursery.start(action, run, *arguments)
            if phases.total() < kills:
                time.sleep(rng.uniform(0, expected))
                os.kill(child, signal.SIGKILL)
            code = nursery.wait(child)
            assert code in (0, -signal.SIGKILL), (
                f"seed {seed}, after {phases.total()} kills: {nursery.said.read_text()}"
            )
            phases.update([phase(run)] if code else [])
        assert contents(run) == contents(whole), (
            f"seed {seed}, after {phases.total()} kills: run {runs} ended otherwise"
        )
        check_seals(run)
        runs += 1
    show(
        f"SIGKILL at random moments of a run of {expected:.1f} s: {phases.total()} kills, {runs} "
        "runs, all with identical files",
        phases.most_common(),
    )
    return phases


def test_12_kills_change_nothing(nursery, tmp_path):
    """Killed at 12 random moments and started again each time, runs end in the same table,
    labels and weights.
    """
    assert len(kill_runs(nursery, tmp_path, 12, flush=False)) >= 2


def test_kills_change_nothing_where_a_round_takes_in_several_lengths(nursery, tmp_path):
    """The same with two lengths in each round."""
    assert kill_runs(nursery, tmp_path, 4, flush=False, lengths_per_round=2).total() == 4


def test_kills_change_nothing_in_a_branch(nursery, tmp_path):
    """The same for a branch, whose first round is taken over from another run."""
    parent = run_experiment(
        make_config(**{**SETTINGS, **EVEN}), tmp_path / "parent", progress=False, keep_weights=True
    ).path
    changes = {"si_iter": 14, "num_samples": 400}
    whole = run_branch(open_stored(parent), 1, tmp_path / "whole", changes, progress=False).path
    assert kill_at_random(nursery, tmp_path, 5, whole, "attempt_branch", parent, changes).total() == 5


@pytest.mark.slow(reason="200 kills take minutes")
def test_200_kills_change_nothing(nursery, tmp_path):
    """The same with so many kills that all phases are hit."""
    phases = kill_runs(nursery, tmp_path, 200, flush=True)
    assert {"base training", "labels", "round training", "measuring", "writing a file"} <= set(phases)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_run_in_order(nursery, whole, tmp_path, number):
    """Asked to end in base training and again in a round, a run stores a checkpoint of every voter,
    leaves no lock, and goes on.
    """
    run = tmp_path / "run"
    for function, names in (("report", ("base_0", "base_1")), ("make_labels", ())):
        child = nursery.start("signalled", run, function, number)
        assert nursery.wait(child) == 130, nursery.said.read_text()
        assert not (run / "run.lock").exists() and not list(run.rglob(".*-partial"))
        assert all(list((run / "models").glob(f"{name}.step_*.safetensors")) for name in names)
        assert {phase(run)} <= {"base training" if names else "labels"}
    go(run)
    assert contents(run) == contents(whole)


def signalled(folder, function, number):
    """A run that gets a signal as soon as both voters have reported, or when it makes labels."""
    if function == "report":
        plain, together = (
            si_nb.loop.training.train,
            threading.Barrier(VOTERS, action=partial(os.kill, os.getpid(), number), timeout=60),
        )

        def train(model, mixture, training, rng, report, *rest):
            def report_and_meet(step, loss):
                report(step, loss)
                if step == 2 * SETTINGS["eval_interval"]:
                    together.wait()

            return plain(model, mixture, training, rng, report_and_meet, *rest)

        si_nb.loop.training.train = train
    else:
        before(PLACES[function], function, 1, partial(os.kill, os.getpid(), number))
    go(folder)


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_the_command_line_ends_in_order(whole, tmp_path, number, code):
    """`python -m si_nb run` ends on a signal with one line and the shell's exit code,
    and can be continued.
    """
    settings = {**SETTINGS, "max_iters": 3_000}
    flags = [
        part
        for name, value in settings.items()
        for part in (f"--{name}", ",".join(value) if isinstance(value, tuple) else str(value))
    ]
    run = tmp_path / "run"
    command = [sys.executable, "-m", "si_nb", "run", *flags, "--run_dir", str(run)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    begun = process.stderr.readline()  # training follows at once
    time.sleep(1)
    asked = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code and time.monotonic() - asked < 10, said
    lines = [line for line in re.split(r"[\r\n]+", said) if line.startswith("si_nb:")]
    assert begun.startswith("si_nb: cpu"), begun + said
    assert [line.split()[1] for line in lines] == ["stopped", "interrupted;"] and "Traceback" not in said, (
        said
    )
    assert {path.name.split(".")[0] for path in (run / "models").glob("*.step_*.safetensors")} == {
        "base_0",
        "base_1",
    }


# --- corruption


def flip_bit(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(1, len(content))])


def empty(path, rng):
    path.write_bytes(b"")


def delete(path, rng):
    path.unlink()


DAMAGES = (flip_bit, truncate, empty, delete)


def kind(name):
    """Which files are alike: numbers of voters and steps left out."""
    return re.sub(
        r"step_\d+", "step_N", re.sub(r"voter_\d", "voter_K", re.sub(r"_\d\.step", "_K.step", name))
    )


def one_of_each_kind(paths, rng):
    kinds = {}
    for path in paths:
        kinds.setdefault(kind(path.name), []).append(path)
    return [rng.choice(alike) for alike in kinds.values()]


def table_of(run):
    """The table's bytes, none when it is not there."""
    path = run / "measurements.csv"
    return {path.name: path.read_bytes() if path.exists() else b""}


def outcome(damaged, path, before, whole, case):
    """What became of a damaged run: refused, repaired or unaffected; anything else fails.

    A finished run needs its table only; what else is damaged there may stay so.
    """
    finished = table_of(damaged) == table_of(whole)
    with redirect_stderr(StringIO()) as said:
        try:
            go(damaged, **SHORT)
        except SAID as error:
            assert is_one_line(error) and path.name.removesuffix(".sha256") in str(error), (
                f"{case}: does not name it: {error!r}"
            )
            return "refused"
        except Exception as error:
            raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    compared = table_of if finished else result
    assert compared(damaged) == compared(whole), f"{case}: another result"
    return "repaired" if said.getvalue() or (path.exists() and path.read_bytes() == before) else "unaffected"


def corrupt(nursery, short, tmp_path, quick):
    """Damage files of stopped runs one at a time; (state, kind of file, damage) -> outcomes.

    Quick: one file of each kind, in the fullest folder with two damages, else with one.
    """
    seed, cases = random.randrange(10**6), {}
    rng = random.Random(seed)
    states = {
        "in round 2": ("die_in_round_2", SHORT),
        "between rounds": ("mishap", 5, SHORT, ("make_labels", 3), "die", 0),
    }
    for state, (action, *arguments) in states.items():
        assert nursery.call(action, tmp_path / state, *arguments)[0] == -signal.SIGKILL, (
            nursery.said.read_text()
        )
    shutil.copytree(short, tmp_path / "finished")
    for state in (*states, "finished"):
        original, damaged = tmp_path / state, tmp_path / "damaged"
        paths = sorted(path for path in original.rglob("*") if path.is_file())
        for path in one_of_each_kind(paths, rng) if quick else paths:
            some = rng.sample(DAMAGES, 2 if state == "in round 2" else 1)
            for damage in some if quick else DAMAGES:
                shutil.rmtree(damaged, ignore_errors=True)
                shutil.copytree(original, damaged)
                target = damaged / path.relative_to(original)
                damage(target, rng)
                found = outcome(
                    damaged,
                    target,
                    path.read_bytes(),
                    short,
                    f"seed {seed}, {state}, {damage.__name__} {path.name}",
                )
                cases.setdefault((state, kind(path.name), damage.__name__), []).append(found)
    show_cases(cases)
    return cases


def show_cases(cases):
    """One line per state and kind of file, one column per damage."""
    totals = Counter(found for outcomes in cases.values() for found in outcomes)
    show(f"one file damaged at a time: {totals.total()} cases", totals.most_common())
    print(f"\n  {'':<15} {'':<46}", *(f"{damage.__name__:<11}" for damage in DAMAGES))
    for state, name in dict.fromkeys(key[:2] for key in cases):
        print(
            f"  {state:<15} {name:<46}",
            *(
                f"{'/'.join(sorted(set(cases.get((state, name, damage.__name__), '-')))):<11}"
                for damage in DAMAGES
            ),
        )


@pytest.fixture
def without_flushing(monkeypatch):
    """Nothing here is about power cuts."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_a_damaged_file_never_changes_a_result(nursery, short, tmp_path, without_flushing):
    """One file of each kind flipped, cut, emptied or deleted:
    the same table, labels and weights in the end, or one line naming it.
    """
    cases = corrupt(nursery, short, tmp_path, quick=True)
    assert {state for state, *_ in cases} == {"in round 2", "between rounds", "finished"} and len(cases) > 60


@pytest.mark.slow(reason="every file of three folders, four damages each")
def test_no_damaged_file_changes_a_result(nursery, short, tmp_path, without_flushing):
    """The same for all files."""
    corrupt(nursery, short, tmp_path, quick=False)


def swap(target, source):
    """A file with its seal where another one should be."""
    for suffix in ("", ".sha256"):
        content = Path(f"{source}{suffix}").read_bytes().replace(source.name.encode(), target.name.encode())
        Path(f"{target}{suffix}").write_bytes(content if suffix else source.read_bytes())


def siblings(folder):
    """Pairs of files that lie side by side and hold tensors of the same shapes."""
    files = sorted(folder.rglob("*.safetensors"))
    kinds = {
        path: re.sub(r"step_\d+", "step", re.sub(r"\d+", "", path.name.replace("mv_length", "none")))
        for path in files
    }
    return [
        (target, source)
        for target in files
        for source in files
        if target != source and kinds[target] == kinds[source] and target.parent == source.parent
    ]


def difference(one, other):
    """In how many letters two names differ: another voter of the same arm and round before anything else."""
    return sum(a != b for a, b in zip(one.name, other.name, strict=False)) + abs(
        len(one.name) - len(other.name)
    )


def test_a_file_of_a_sibling_is_found_out(nursery, short, tmp_path, without_flushing):
    """Each tensor file of a stopped run replaced by each of its siblings, seal and all:
    the same result in the end, or a line naming it.
    """
    damaged, found = tmp_path / "damaged", Counter()
    states = {
        "in round 2": ("die_in_round_2", SHORT),
        "between rounds": ("mishap", 5, SHORT, ("make_labels", 3), "die", 0),
    }
    for state, (action, *arguments) in states.items():
        original = tmp_path / state
        assert nursery.call(action, original, *arguments)[0] == -signal.SIGKILL, nursery.said.read_text()
        pairs = [pair for pair in siblings(original) if state == "between rounds" or ".step_" in pair[0].name]
        for target in sorted({target for target, _ in pairs}):
            source = min(
                (source for other, source in pairs if other == target), key=partial(difference, target)
            )
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(original, damaged)
            swap(damaged / target.relative_to(original), damaged / source.relative_to(original))
            case = f"{state}, {source.name} over {target.name}"
            found[
                outcome(damaged, damaged / target.relative_to(original), target.read_bytes(), short, case)
            ] += 1
    show("a sibling's file in a file's place", found.most_common())
    assert found.total() >= 10


def test_a_voter_in_the_place_of_others_is_put_aside(short, tmp_path, capsys):
    """One base model copied over all: the others are trained again, and what lay there is kept and named."""
    run = tmp_path / "run"
    run_experiment(make_config(**{**SETTINGS, **SHORT}), run, progress=False, skip_si=True)
    swap(base_folder(run) / "voter_1.safetensors", base_folder(run) / "voter_0.safetensors")
    with pytest.raises(
        DamagedError, match="voter_1.safetensors: another file in its place .voter 0 instead of 1"
    ):
        run_experiment(
            make_config(**{**SETTINGS, **SHORT}),
            tmp_path / "skip",
            run / "models",
            progress=False,
            skip_base_model_train=True,
        )
    assert contents(go(run, **SHORT).path) == contents(short)
    assert (
        "voter_1.safetensors.damaged" in capsys.readouterr().err
        and (base_folder(run) / "voter_1.safetensors.damaged").exists()
    )


def test_nothing_of_the_users_is_removed(short, tmp_path):
    """Files of any name that a user keeps in and below a run's folders survive a run,
    also those that look half written.
    """
    run = tmp_path / "run"
    names = [
        ".mine.partial", ".mine.csv.4711.partial", ".mine.csv.4711.si_nb-partial", "SUMS.sha256",
        "mine.safetensors.sha256", ".claim",
        "none_voter_x_round_001.safetensors", "none_voter_0_round_001.safetensors.old",
        "base_0.step_x.safetensors",
        "base_0.step_000000001.safetensors.bak", "sub/SUMS.sha256",
        "sub/.measurements.csv.4711.si_nb-partial", "sub/measurements.csv.sha256",
    ]  # fmt: skip
    mine = [run / place / name for place in ("", "models", "data") for name in names]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    for place, name in (
        ("", "measurements.csv"),
        ("models", "none_voter_0_round_001.safetensors"),
        ("data", "none_round_001.safetensors"),
    ):
        (run / place / f".{name}.4711.si_nb-partial").touch()
        (run / place / f"{name}.sha256").touch()
    go(run, **SHORT)
    assert [path for path in mine if not path.is_file() or path.read_text() != "precious"] == []
    assert {path.name for path in run.glob(".*")} == {
        Path(name).name for name in names if name.startswith(".")
    }
    assert table_of(run) == table_of(short)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


NO_FILES = {
    "a pipe": os.mkfifo, "a folder": os.mkdir,
    "a link to nothing": lambda path: path.symlink_to(path.parent / "nothing"),
    "a link to zeros": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a socket": make_socket, "a tebibyte": lambda path: (path.touch(), os.truncate(path, 2**40)),
}  # fmt: skip


def in_time(nursery, action, *arguments, seconds=60):
    """Exit code and what was printed of a process that must not hang."""
    child = nursery.start(action, *arguments)
    guard = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    guard.start()
    try:
        return nursery.wait(child), nursery.said.read_text()
    finally:
        guard.cancel()


def put_in_place(nursery, short, original, path, what):
    """Go on with a stopped run in which something that is no file has taken a file's place."""
    run = original.with_name("run")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(original, run)
    target = run / path.relative_to(original)
    target.unlink(missing_ok=True)
    NO_FILES[what](target)
    code, said = in_time(nursery, "attempt", run, 5, SHORT)
    assert code in (0, 2), f"{what} as {path.name}: {said}"
    lines = [line for line in said.splitlines() if not line.startswith("si_nb:")]
    assert code == 0 or (len(lines) == 1 and path.name.removesuffix(".sha256") in lines[0]), (
        f"{what} as {path.name}: {said}"
    )
    if os.path.lexists(target) and (
        target.is_symlink() or not target.is_file() or target.stat().st_size > 2**20
    ):
        os.rmdir(target) if what == "a folder" else os.unlink(
            target
        )  # not needed any more, and still there; nobody must read it below
    assert code == 2 or result(run) == result(short), f"{what} as {path.name}: another result"
    return "made again" if code == 0 else "refused"


def replace_files(nursery, short, tmp_path, all_kinds):
    """Files of a stopped run, one at a time: each by all that is no file,
    or one of each kind by one of them.
    """
    original, found, rng = tmp_path / "original", Counter(), random.Random(0)
    assert nursery.call("mishap", original, 5, SHORT, ("make_labels", 3), "die", 0)[0] == -signal.SIGKILL
    paths = sorted(path for path in original.rglob("*") if path.is_file())
    for path in paths if all_kinds else one_of_each_kind(paths, rng):
        for what in NO_FILES if all_kinds or path.name == "run.lock" else [rng.choice(list(NO_FILES))]:
            found[put_in_place(nursery, short, original, path, what)] += 1
    show("no file in a file's place", found.most_common())
    return found


def test_what_is_no_file_is_not_waited_for(nursery, short, tmp_path, monkeypatch):
    """A pipe, device, folder, link or endless file in the place of a file of a run is one line or is made
    again, and never a hang.
    """
    monkeypatch.chdir(tmp_path)  # a socket's address must be short
    assert replace_files(nursery, short, tmp_path, all_kinds=False)["refused"] >= len(NO_FILES)


@pytest.mark.slow(reason="every file of a folder, seven times")
def test_nothing_that_is_no_file_is_waited_for(nursery, short, tmp_path, monkeypatch):
    """The same for all files."""
    monkeypatch.chdir(tmp_path)
    replace_files(nursery, short, tmp_path, all_kinds=True)


@pytest.mark.parametrize("what", NO_FILES)
def test_what_is_no_table_is_not_waited_for(nursery, tmp_path, what, monkeypatch):
    """The same for a table that is to be read."""
    monkeypatch.chdir(tmp_path)
    NO_FILES[what](tmp_path / "table.csv")
    code, said = in_time(nursery, "read_any_table", tmp_path / "table.csv")
    assert code == 2 and said.startswith("TableError") and said.count("\n") == 1, said


def read_any_table(path):
    read_table(path)


@pytest.mark.parametrize("damage", [flip_bit, truncate, empty])
def test_a_damaged_table_is_not_read(short, tmp_path, capsys, damage):
    """The table of a finished run with one bit flipped is refused by everything that reads tables,
    in one line that names it.
    """
    seed = random.randrange(10**6)
    run = tmp_path / "run"
    shutil.copytree(short, run)
    damage(run / "measurements.csv", random.Random(seed))
    with pytest.raises(TableError, match="measurements.csv") as error:
        read_table(run)
    assert "\n" not in str(error.value), f"seed {seed}"
    assert si_nb.cli.main(["law", str(run)]) == 2
    said = capsys.readouterr()
    assert "measurements.csv" in said.err and said.err.count("\n") == 1 and not said.out, f"seed {seed}"


def test_damage_is_not_sealed(tmp_path, monkeypatch):
    """A damaged file that could not be replaced, for want of room,
    is still known to be damaged afterwards.
    """
    path = tmp_path / "file"
    write_sealed(path, b"right")
    path.write_bytes(b"wrong")
    plain = os.replace

    def no_room(source, target):
        if Path(target) == path:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(source, target)

    monkeypatch.setattr(os, "replace", no_room)
    with pytest.raises(StorageError):
        write_sealed(path, b"right")
    with pytest.raises(DamagedError, match="file"):
        read_sealed(path)


def test_a_run_without_room_does_not_take_damage_for_good(nursery, short, tmp_path):
    """A damaged base model that is made again when the disk is full does not become valid by that."""
    run = tmp_path / "run"
    assert nursery.call("mishap", run, 5, SHORT, ("measure", 1), "die", 0)[0] == -signal.SIGKILL
    flip_bit(base_folder(run) / "voter_1.safetensors", random.Random(1))
    code, said = nursery.call("mishap", run, 5, SHORT, "start", "limit_size", 3_000)
    assert code == 2 and "StorageError" in said, said
    go(run, **SHORT)
    assert contents(run) == contents(short)


def test_nothing_is_left_lying(nursery, tmp_path, without_flushing):
    """Killed between the last write of a piece and the removal of what it replaces,
    a run still ends without the latter.
    """
    changes = {**SHORT, "si_rounds": 3, "max_iters": 13}
    whole = go(tmp_path / "whole", 0, **changes).path
    for function, number in (("forget_checkpoints", 1), ("forget_weights", 3)):
        run = tmp_path / function
        assert nursery.call("mishap", run, 0, changes, (function, number), "die", 0)[0] == -signal.SIGKILL
        go(run, 0, **changes)
        assert {path.name for path in run.rglob("*")} == {path.name for path in whole.rglob("*")}, function


# --- storage


def fill_up(nursery, short, run, place, event, argument, remedy=lambda: None):
    """A run to which something happens ends with one line, and without it goes on to the same bytes."""
    code, said = nursery.call("mishap", run, 0, SHORT, place, event, argument)
    lines = said.splitlines()
    assert code == 2 and len([line for line in lines if not line.startswith("si_nb:")]) == 1, said
    remedy()
    check_seals(run)
    go(run, **SHORT)
    assert contents(run) == contents(short)
    check_seals(run)
    return lines[-1]


LIMITS = {  # place -> largest file in bytes: weights have 15,000, tables 3,000 to 6,000, labels 400, seals 80
    "settings": ("start", 0), "base models": ("start", 5_000), "labels": (("make_labels", 2), 300),
    "round training": (("train", 4), 10_000), "old table": (("measure", 2), 1_000),
    "new table": (("measure", 3), 4_500),
}  # fmt: skip


@pytest.mark.parametrize("place", LIMITS)
def test_no_room_is_one_line(nursery, short, tmp_path, place):
    """A file that cannot be written for its size ends the run with one line;
    with room again it goes on to the same bytes.
    """
    where, largest = LIMITS[place]
    said = fill_up(nursery, short, tmp_path / "run", where, "limit_size", largest)
    assert re.match(r"(StorageError|ConfigError): .*cannot be written", said), said


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and a function that changes its options."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", disk], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("needs the right to mount a file system")

    def change(options):
        subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)

    yield disk, change
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_is_one_line(nursery, short, small_disk):
    """On a disk too small the run ends with one line, again and again;
    on the same disk made larger it goes on.
    """
    disk, change = small_disk
    for size in (40, 80, 120, 160):
        change(f"size={size}k")
        code, said = nursery.call("attempt", disk / "run", 0, SHORT)
        lines = [line for line in said.splitlines() if not line.startswith("si_nb:")]
        assert code == 2 and len(lines) == 1 and "No space left" in lines[0], f"{size}k: {said}"
    change("size=4m")
    go(disk / "run", **SHORT)
    assert contents(disk / "run") == contents(short)
    check_seals(disk / "run")


@pytest.mark.parametrize("place", ["start", ("train", 4), ("forget_weights", 1)], ids=str)
def test_a_disk_that_turns_read_only_is_one_line(nursery, short, small_disk, place):
    """A folder that can no longer be written to is named in one line, at the start and in the middle;
    afterwards the run goes on.
    """
    disk, change = small_disk
    change("size=4m")
    if place == "start":
        assert (
            nursery.call("mishap", disk / "run", 0, SHORT, ("make_labels", 1), "die", 0)[0] == -signal.SIGKILL
        )
    fill_up(nursery, short, disk / "run", place, "make_read_only", disk / "run", remedy=lambda: change("rw"))


@pytest.mark.parametrize("place", [("train", 1), ("make_labels", 2), ("measure", 3)], ids=str)
def test_a_vanished_folder_is_one_line(nursery, short, tmp_path, place):
    """A run whose folder is removed under its feet says so in one line, and can be made again."""
    said = fill_up(nursery, short, tmp_path / "run", place, "vanish", tmp_path / "run")
    assert str(tmp_path / "run") in said
    assert "another process" not in said, f"blames somebody who is not there: {said}"


def test_a_disk_that_flushes_no_folders_will_do(tmp_path, monkeypatch, short):
    """Where a folder cannot be flushed, as on some mounted drives, files are still written."""
    plain = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert contents(go(tmp_path / "run", **SHORT).path) == contents(short)


# --- locks


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.01)


def left_behind(nursery, folder):
    """A lock of a process that was killed."""
    folder.mkdir(exist_ok=True)
    child = nursery.start("keep_lock", folder, 60)
    wait_for(lambda: list(folder.glob("held_*")))
    os.kill(child, signal.SIGKILL)
    nursery.wait(child)
    (folder / f"held_{child}").unlink()
    return folder / "run.lock"


@pytest.fixture(params=["links", "no links"])
def linking(request, monkeypatch):
    """File systems with links and without."""
    if request.param == "no links":

        def link(source, target):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)


def test_two_at_once(nursery, tmp_path, linking, without_flushing):
    """A second process on the same folder is refused, naming the first;
    when the first is killed, the second gets the folder at once.
    """
    child = nursery.start("keep_lock", tmp_path, 60)
    wait_for(lambda: list(tmp_path.glob("held_*")))
    with pytest.raises(LockedError, match=rf"process {child} on {re.escape(platform.node())} ") as error:
        go(tmp_path, **SHORT)
    assert is_one_line(error.value) and not (tmp_path / "measurements.csv").exists()
    os.kill(child, signal.SIGKILL)
    nursery.wait(child)
    go(tmp_path, **SHORT)
    assert (tmp_path / "measurements.csv").exists() and not (tmp_path / "run.lock").exists()


def test_a_lock_from_elsewhere_is_respected_for_ten_minutes(nursery, tmp_path, linking):
    """The lock of another host is in force until that host has been silent for ten minutes."""
    lock = left_behind(nursery, tmp_path)
    owner = {**json.loads(lock.read_bytes()), "host": "far-away", "place": "far-away"}
    lock.write_text(json.dumps(owner))
    for silent, refused in ((0, True), (570, True), (630, False)):
        os.utime(lock, (time.time() - silent,) * 2)
        if refused:
            with pytest.raises(LockedError, match=rf"process {owner['pid']} on far-away "):
                hold(tmp_path).__enter__()
        else:
            with hold(tmp_path) as check:
                check()


def test_a_process_number_used_again_is_seen(nursery, tmp_path):
    """A lock whose process number now belongs to a younger process counts as left behind."""
    lock = left_behind(nursery, tmp_path)
    owner = json.loads(lock.read_bytes())
    lock.write_text(json.dumps({**owner, "pid": os.getpid()}))
    assert owner["started"]
    with hold(tmp_path) as check:
        check()


def test_claims_of_the_dead_are_cleared(nursery, tmp_path):
    """Killed while it asked for a lock, a process leaves a claim, which the next one clears away. One of a
    living process stays, and so does one of another host until it is ten minutes old.
    """
    lock = left_behind(nursery, tmp_path)
    dead = json.loads(lock.read_bytes())
    owners = {
        "dead": dead,
        "living": {**dead, "pid": os.getpid(), "started": _started(os.getpid())},
        "elsewhere": {**dead, "host": "far-away", "place": "far-away"},
        "silent": {**dead, "host": "far-away", "place": "far-away"},
    }
    claims = {name: tmp_path / f".run.lock.{name}.si_nb-claim" for name in owners}
    for name, owner in owners.items():
        claims[name].write_text(json.dumps(owner))
    os.utime(claims["silent"], (time.time() - 630,) * 2)
    with hold(tmp_path):
        assert {name for name, claim in claims.items() if claim.exists()} == {"living", "elsewhere"}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"pid": 1}', b"\xff\xfe", b"0" * 5000], ids=range(6)
)
def test_an_unreadable_lock_is_respected_for_a_minute(tmp_path, content):
    """A lock that nobody can read is refused while it is fresh, and taken over later."""
    lock = tmp_path / "run.lock"
    lock.write_bytes(content)
    with pytest.raises(LockedError, match=r"run\.lock"):
        hold(tmp_path).__enter__()
    os.utime(lock, (time.time() - 90,) * 2)
    with hold(tmp_path) as check:
        check()


@pytest.mark.parametrize(
    "field, value",
    [("pid", 10**30), ("pid", -1), ("pid", 0), ("pid", 1e999), ("started", [1]), ("host", None)],
)
def test_an_absurd_lock_is_no_crash(nursery, tmp_path, field, value):
    """Whatever a lock says, it is refused in one line or taken over."""
    lock = left_behind(nursery, tmp_path)
    lock.write_text(json.dumps({**json.loads(lock.read_bytes()), field: value}))
    try:
        with hold(tmp_path) as check:
            check()
    except LockedError as error:
        assert is_one_line(error)


def test_a_lock_that_is_gone_counts_as_taken_over(tmp_path):
    """Whoever took a folder over may have ended: the first one still writes nothing more, and says why."""
    with pytest.raises(LockedError, match="taken over"), hold(tmp_path) as check:
        (tmp_path / "run.lock").unlink()
        check()


def race(nursery, folder, stale, racers=10):
    """Let ten processes run for one folder; what each of them said."""
    folder.mkdir()
    if stale:
        left_behind(nursery, folder)
    start, children = time.time() + 0.3, {}
    for _ in range(racers):
        child = nursery.start("keep_lock", folder, 0.6, start)
        children[child] = nursery.said
    codes = {child: nursery.wait(child) for child in children}
    return [(codes[child], said.read_text().strip()) for child, said in children.items()]


@pytest.mark.parametrize("stale", [False, True], ids=["nobody there", "a dead one there"])
def test_only_one_of_ten_gets_a_folder(nursery, tmp_path, stale):
    """Ten processes start for one folder in the same moment:
    one gets it, nine are refused, whatever lay there before.
    """
    for number in range(3):
        said = race(nursery, tmp_path / str(number), stale)
        assert sorted(code for code, _ in said) == [0] + 9 * [2], said
        assert all(text.startswith("LockedError") for code, text in said if code), said
        assert not list((tmp_path / str(number)).glob("*.lock"))


# --- runs that share


def test_two_seeds_at_once_in_one_models_folder(nursery, tmp_path, without_flushing):
    """Two processes with different seeds and one folder for weights, begun in the same moment,
    write the tables that they write alone.
    """
    alone = {seed: go(tmp_path / f"alone{seed}", seed=seed, **SHORT).path for seed in (0, 1)}
    for number in range(2):
        start, place, children = time.time() + 0.3, tmp_path / str(number), {}
        for seed in alone:
            child = nursery.start(
                "share", place / str(seed), place / "models", start, {**SHORT, "seed": seed}
            )
            children[seed] = child, nursery.said
        codes = {seed: nursery.wait(child) for seed, (child, _) in children.items()}
        assert set(codes.values()) == {0}, [said.read_text() for _, said in children.values()]
        for seed, path in alone.items():
            assert table_of(place / str(seed)) == table_of(path), (
                f"seed {seed} is another table beside seed {1 - seed}"
            )


@pytest.mark.parametrize("same", ["base models", "run"])
def test_who_is_at_work_is_named(nursery, tmp_path, same):
    """A second process that would train the same base models, or make the same run elsewhere,
    is told who does, and goes on afterwards.
    """
    models, long = tmp_path / "models", {**SHORT, "max_iters": 10**6}
    child = nursery.start("share", tmp_path / "first", models, 0, long)
    wait_for(lambda: list(models.glob("*-base-*/run.lock")))
    changes = {**long, "num_samples": 13} if same == "base models" else long
    with pytest.raises(
        LockedError, match=rf"{'-base-' if same == 'base models' else 'models'}.*process {child} on "
    ) as error:
        run_experiment(make_config(**{**SETTINGS, **changes}), tmp_path / "second", models, progress=False)
    assert is_one_line(error.value) and not list(tmp_path.rglob("voter_*"))
    os.kill(child, signal.SIGKILL)
    nursery.wait(child)


# who shares folders; the third has the base models of the first, the fourth is the first in another run_dir
CROWD = {
    "seed 0": {"seed": 0},
    "seed 1": {"seed": 1},
    "seed 0, fewer labels": {"seed": 0, "num_samples": 9},
    "seed 0 again": {"seed": 0},
}


def jostle(nursery, place, names, rng, seconds, most_kills, answers):
    """Runs with one folder for weights and one for labels, at once,
    killed at random and begun again until all have ended.
    """
    open_, kills = set(names), 0
    while open_:
        start, children = time.time() + 0.05, {}
        for name in sorted(open_):
            where = (place / name, place / "models", start, {**SHORT, **CROWD[name]}, place / "data")
            children[name] = nursery.start("share", *where), nursery.said
        time.sleep(rng.uniform(0, seconds))
        for name in rng.sample(sorted(open_), rng.randint(0, len(open_))) if kills < most_kills else []:
            os.kill(children[name][0], signal.SIGKILL)
            kills += 1
        for name, (child, said) in children.items():
            code, text = nursery.wait(child), said.read_text()
            assert code in (0, -signal.SIGKILL) or text.startswith("LockedError"), f"{name}: {text}"
            answers[{0: "ended", -signal.SIGKILL: "killed"}.get(code, "refused by name, begun again")] += 1
            open_ -= {name} if code == 0 else set()


def crowd(nursery, place, rounds):
    """Two to four runs on shared folders, round after round; every table is that of the run alone."""
    alone = {
        name: table_of(go(place / "alone" / name, **{**SHORT, **changes}).path)
        for name, changes in CROWD.items()
    }
    begun = time.monotonic()
    assert nursery.call("share", place / "timed", place / "timed_models", 0, SHORT)[0] == 0
    seconds, seed, answers = time.monotonic() - begun, random.randrange(10**6), Counter()
    rng = random.Random(seed)
    for number in range(rounds):
        names, here = rng.sample(sorted(CROWD), rng.randint(2, len(CROWD))), place / str(number)
        jostle(nursery, here, names, rng, seconds, 6, answers)
        for name in names:
            assert table_of(here / name) == alone[name], (
                f"seed {seed}, round {number}: {name} beside {names} is another table"
            )
        shutil.rmtree(here)
    show(
        f"{rounds} rounds of two to four processes on shared folders: all tables are those of the runs alone",
        answers.most_common(),
    )
    return answers


def test_a_crowd_mixes_nothing(nursery, tmp_path, without_flushing):
    """Runs that share folders for weights and labels, killed at random moments,
    end in the tables that they write alone.
    """
    assert crowd(nursery, tmp_path, 3)["ended"] >= 6


@pytest.mark.slow(reason="100 rounds of up to four processes take minutes")
def test_a_crowd_mixes_nothing_in_100_rounds(nursery, tmp_path, without_flushing):
    """The same for long, so that processes meet in every phase."""
    answers = crowd(nursery, tmp_path, 100)
    assert answers["ended"] >= 200 and min(answers["killed"], answers["refused by name, begun again"]) > 20


# --- files from elsewhere

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "jsonpickle",
}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "np.load", "numpy.load", "pd.read_pickle",
    "pd.eval", "os.system", "os.popen",
    "yaml.load", "pickle.load", "pickle.loads",
}  # fmt: skip


def dangerous(text):
    """Imports and calls in a source by which a file that is read could run code."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            yield node.module
        elif isinstance(node, ast.ImportFrom):
            yield from (
                f"{node.module}.{alias.name}"
                for alias in node.names
                if f"{node.module}.{alias.name}" in FORBIDDEN_CALLS
            )
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS:
            yield ast.unparse(node.func)
        elif (
            isinstance(node, ast.keyword)
            and node.arg in ("allow_pickle", "shell")
            and ast.unparse(node.value) != "False"
        ):
            yield node.arg


def test_nothing_that_is_loaded_can_run_code():
    """No pickle and none of its relatives anywhere in the library, however it may be spelt."""
    examples = (
        "import pickle",
        "from torch import load",
        "import torch\ntorch.load(p)",
        "np.load(p, allow_pickle=True)",
        "eval(t)",
        "import yaml",
    )
    assert all(list(dangerous(text)) for text in examples) and not list(
        dangerous("json.loads(text); model.eval()")
    )
    found = {
        path.name: list(dangerous(path.read_text(encoding="utf-8"))) for path in (ROOT / "si_nb").glob("*.py")
    }
    assert found and not any(found.values()), found


def tensors_file(header, data=b"", announced=None):
    """A safetensors file with any header."""
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return (len(text) if announced is None else announced).to_bytes(8, "little") + text + data


ABOUT = {"__metadata__": {"about": "{}"}}
ABSURD = {
    "a header of 4 EiB": tensors_file(ABOUT, announced=2**62),
    "a header of 90 MB": tensors_file(ABOUT, announced=90_000_000),
    "a tensor of 4 PiB": tensors_file(
        {**ABOUT, "x": {"dtype": "F32", "shape": [2**50], "data_offsets": [0, 2**52]}}
    ),
    "a size beyond 64 bits": tensors_file(
        {**ABOUT, "x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"1234"
    ),
    "more than the file has": tensors_file(
        {**ABOUT, "x": {"dtype": "F32", "shape": [100_000_000], "data_offsets": [0, 400_000_000]}}, b"12"
    ),
    "offsets backwards": tensors_file(
        {**ABOUT, "x": {"dtype": "U8", "shape": [2], "data_offsets": [4, 2]}}, b"1234"
    ),
    "an empty tensor with absurd sides": tensors_file(
        {**ABOUT, "x": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}
    ),
    "nothing but nesting": tensors_file(b'{"x":' * 50_000 + b"1" + b"}" * 50_000),
    "metadata that nest": tensors_file({"__metadata__": {"about": "[" * 100_000}}),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_sizes_take_no_memory(nursery, tmp_path, name):
    """A file that announces more than it holds is refused in one line before memory is taken."""
    path = tmp_path / "absurd.safetensors"
    path.write_bytes(ABSURD[name])
    code, said = nursery.call("load_in_little_memory", path)
    assert code == 0 and said, said
    taken, message = json.loads(said)
    assert taken < 20_000 and message.startswith(str(path)) and "\n" not in message, (taken, message)


@pytest.mark.parametrize("name", ["../../x", "..", "", "/", "copy/../x", "none\0"])
def test_a_config_cannot_leave_its_folder(tmp_path, name):
    """Names that go into paths are those of registries and no others;
    what a folder holds cannot change that.
    """
    with pytest.raises(ConfigError, match="task"):
        make_config(**{**SETTINGS, "task": name})
    with pytest.raises(ConfigError, match="si_method"):
        make_config(**{**SETTINGS, "si_method": (name,)})
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(
        json.dumps({**identity(make_config(**SETTINGS)), "task": name, "si_method": [name]})
    )
    with pytest.raises(ConfigError, match="another configuration"):
        go(run)
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "config.json"]


# --- numbers


def test_divergence_names_step_voter_and_checkpoint(monkeypatch, tmp_path, whole, without_flushing):
    """A loss that is not finite stops a round at that step, naming training and last good checkpoint;
    the others' work is on disk.
    """
    plain, run = si_nb.model.trainer._step, tmp_path / "run"
    poisoned = [None]

    def step(model, tokens, packing, config, optimizer, scaler, rate):
        loss, norm = plain(model, tokens, packing, config, optimizer, scaler, rate)
        if (
            config.steps == 12
            and poisoned[0] in (None, model)
            and rate < si_nb.model.trainer.learning_rate_at(6, config)
        ):
            poisoned[0] = model  # one voter of the voting arm, in its eighth step of round 2
            return loss * float("nan"), norm
        return loss, norm

    with monkeypatch.context() as patch:
        patch.setattr(si_nb.model.trainer, "_step", step)
        with pytest.raises(DivergedError) as error:
            go(run, 0)
    found = re.match(
        r"round 2 of 2, training (mv_length_2_\d): .*not finite at step 8\b.*last good checkpoint: (.*)$",
        str(error.value),
    )
    assert found, error.value
    path = Path(found[2])
    assert path.exists() and path.name == f"{found[1]}.step_000000007.safetensors"
    assert load_checkpoint(path.parent, found[1]).facts["step"] == 7
    go(run)
    assert contents(run) == contents(whole)


def test_divergence_in_the_base_names_its_step(tmp_path):
    """A learning rate beyond all measure is found in the first steps of base training,
    without a base model being stored.
    """
    with pytest.raises(
        DivergedError,
        match=r"base models, training base_\d: .*step \d\b.*learning_rate 1e\+30.*last good checkpoint: ",
    ) as error:
        go(tmp_path / "run", learning_rate=1e30)
    assert is_one_line(error.value) and not list((tmp_path / "run" / "models").rglob("voter_*"))


NO_MEMORY = {
    "cuda": torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried "
        "to allocate 4 bytes"
    ),
    "python": MemoryError(),
}


@pytest.mark.parametrize("where", NO_MEMORY)
def test_out_of_memory_names_the_batch_to_try(monkeypatch, tmp_path, where):
    """Out of memory in training is one line with the training's name and the batch size to try."""

    def train(*arguments):
        raise NO_MEMORY[where]

    monkeypatch.setattr(si_nb.loop.training, "train", train)
    with pytest.raises(
        ConfigError, match=r"training base_\d: out of memory with batch_size 16; try batch_size 8\b"
    ) as error:
        go(tmp_path / "run")
    assert is_one_line(error.value)


@pytest.mark.parametrize("function", ["make_base_data", "generate", "count_right"])
def test_out_of_memory_elsewhere_is_one_line_too(monkeypatch, tmp_path, function):
    """Out of memory while making data, labelling or measuring is one line as well."""

    def fail(*arguments, **named):
        raise NO_MEMORY["cpu"]

    monkeypatch.setattr(PLACES[function], function, fail)
    with pytest.raises(SAID) as error:
        go(tmp_path / "run", **SHORT)
    assert is_one_line(error.value) and "memory" in str(error.value)


@pytest.mark.parametrize("workers", [1, 3])
def test_one_failing_voter_loses_nobody_elses_work(monkeypatch, tmp_path, whole, workers):
    """Whatever one voter fails of, the others have finished or have a checkpoint on disk,
    and the run goes on to the same bytes.
    """
    run, plain = tmp_path / "run", si_nb.loop.training.save_checkpoint

    def save_checkpoint(folder, name, state, **about):
        if name == "base_1" and state.facts["step"] == 20:
            raise RuntimeError("this voter's device is gone")
        plain(folder, name, state, **about)

    with monkeypatch.context() as patch:
        patch.setattr(si_nb.loop.training, "save_checkpoint", save_checkpoint)
        with pytest.raises(RuntimeError, match="device is gone"):
            run_experiment(
                make_config(**SETTINGS), run, progress=False, checkpoint_minutes=0, workers=workers
            )
    models = run / "models"
    assert list(models.glob("*/voter_0.safetensors")) or list(models.glob("base_0.step_*.safetensors"))
    assert load_checkpoint(models, "base_1").facts["step"] == 19
    go(run)
    assert contents(run) == contents(whole)


def test_the_first_error_is_the_one_that_is_told():
    """A job that stops because another failed does not hide the failure."""
    stop = threading.Event()

    def failing():
        raise KeyError("cause")

    def following():
        stop.wait(30)
        raise Stopped

    with pytest.raises(KeyError, match="cause"):
        side_by_side([following, failing], 2, stop)


# --- the same numbers whatever the circumstances


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(whole, tmp_path, workers):
    """One worker or three: the same bytes."""
    run = run_experiment(make_config(**SETTINGS), tmp_path / "run", progress=False, workers=workers)
    assert contents(run.path) == contents(whole)


@pytest.mark.parametrize("size", [1, 5])
def test_batches_of_labels_and_evaluation_change_nothing(monkeypatch, whole, tmp_path, size):
    """Problems answered one by one, five at a time or all together: the same bytes."""
    monkeypatch.setattr(si_nb.loop.labels, "generate", partial(generate, batch_size=size))
    monkeypatch.setattr(si_nb.loop.evaluate, "count_right", partial(count_right, batch_size=size))
    assert contents(go(tmp_path / "run").path) == contents(whole)


@pytest.mark.parametrize("mirror", ["works", "fails later", "fails at once"])
def test_the_mirror_changes_nothing(monkeypatch, whole, tmp_path, mirror):
    """Whatever Weights & Biases does with the numbers, the run is the same."""
    seen = []

    def log(numbers):
        seen.append(numbers)
        if mirror == "fails later":
            raise OSError("connection lost")

    def init(**named):
        torch.rand(3), random.random()
        if mirror == "fails at once":
            raise OSError("no connection")
        return SimpleNamespace(
            id="mirrored", log=log, define_metric=lambda *_, **__: None, finish=lambda exit_code: None
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=SimpleNamespace))
    run = run_experiment(make_config(**SETTINGS), tmp_path / "run", progress=False, wandb="offline")
    assert contents(run.path) == contents(whole)
    assert {"works": len(seen) > 20, "fails later": len(seen) == 1, "fails at once": not seen}[mirror], len(
        seen
    )


def test_checkpoints_change_nothing(whole, tmp_path):
    """A run that stores every step ends in the same bytes as one that stores none."""
    assert contents(go(tmp_path / "run", 0).path) == contents(whole)


# --- long runs


def long_run(rounds):
    """Settings of many short rounds."""
    return dict(
        si_method=("none",), task="copy", si_rounds=rounds, block_size=2 * (rounds + 7), max_iters=3,
        si_iter=1, num_samples=10,
        eval_samples=1, base_samples=50, voters=1, batch_size=4,
    )  # fmt: skip


def check_growth(nursery, run, rounds, first):
    """Memory at the end of a run against that after its first rounds, beside what the kept labels weigh."""
    code, said = nursery.call("many_rounds", run, long_run(rounds))
    assert code == 0, said
    sizes = json.loads(said.splitlines()[-1])
    growth, labels = (
        sizes[-1] - sizes[first - 1],
        sum(path.stat().st_size for path in (run / "data").glob("*.safetensors")),
    )
    sentence = (
        f"{rounds} rounds: {sizes[first - 1] / 2**20:.1f} MiB after round {first}, "
        f"{sizes[-1] / 2**20:.1f} MiB in the end"
    )
    show(f"{sentence}; kept labels {labels / 2**20:.2f} MiB", [("MiB grown", round(growth / 2**20, 2))])
    assert len(sizes) == rounds and growth < labels + 4 * 2**20, (
        sizes
    )  # labels, and what an allocator may keep back


def test_memory_does_not_grow(nursery, tmp_path):
    """Between round 10 and round 30 a process takes no more than its labels and the allocator's slack."""
    check_growth(nursery, tmp_path / "run", 30, 10)


@pytest.mark.slow(reason="200 rounds take minutes")
def test_memory_does_not_grow_over_200_rounds(nursery, tmp_path):
    """Between round 50 and round 200 neither."""
    check_growth(nursery, tmp_path / "run", 200, 50)


def test_the_table_can_always_be_read(tmp_path, without_flushing):
    """While a run adds to its table, whoever reads it sees whole rounds, and never fewer than before."""
    run, done, seen, failed = tmp_path / "run", threading.Event(), [], []

    def read():
        while not done.is_set():
            if (run / "measurements.csv").exists():
                try:
                    table = read_table(run)
                    seen.append((int(table["round"].max()), len(table)))
                except Exception as error:
                    failed.append(error)
                    return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        go(run, **long_run(12))
    finally:
        done.set()
        reader.join()
    assert not failed, failed
    assert (
        seen == sorted(seen) and len(set(seen)) > 5 and len({number for number, _ in seen}) == len(set(seen))
    )


if __name__ == "__main__":
    be_nursery()
