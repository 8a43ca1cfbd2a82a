"""Weights & Biases: an offline run is read back from its file, and nothing is sent that nobody asked for."""

import contextlib
import io
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from si_nb.cli import main
from si_nb.loop.rounds import run_experiment
from si_nb.loop.settings import ConfigError, identity, make_config, run_name
from si_nb.loop.tracker import (
    AXES,
    NOTHING,
    Conclusion,
    Mirror,
    allowed_mode,
    check_tracker,
    round_numbers,
    tracked_as,
)
from si_nb.loop.training import Outlook, Watch
from si_nb.record.table import measurement_table, read_table

wandb = pytest.importorskip("wandb", reason="the mirror is optional")

SMALL = dict(
    task="copy", si_method=("none", "mv"), original_digits=3, si_rounds=2, n_layer=1, n_head=1, n_embd=8,
    base_samples=200, max_iters=8, decay=2, warmup=2, batch_size=8, si_iter=4, eval_interval=2,
    eval_samples=8, num_samples=10, voters=2, vote_threshold=0.5, device="cpu",
)  # fmt: skip
BLOCK, HEADER = 32_768, 7  # bytes of a block of the file, and before each part of a record


def records(path):
    """The records of a .wandb file: parts in blocks, each with a checksum, a length and what part it is.

    The format is that of LevelDB's log. Not every version of wandb comes with a reader in Python.
    """
    from wandb.proto import wandb_internal_pb2

    data, place, whole, found = path.read_bytes(), HEADER, b"", []
    assert data[:4] == b":W&B"
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        whole += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found


def items(parts):
    """Key and value of history or summary items; nested keys are joined with a dot."""
    return {part.key or ".".join(part.nested_key): json.loads(part.value_json) for part in parts}


class Read:
    """What a .wandb file holds."""

    def __init__(self, folder):
        (self.path,) = Path(folder).glob("wandb/offline-run-*/*.wandb")
        of_kind = {}
        for record in records(self.path):
            kind = record.WhichOneof("record_type")
            of_kind.setdefault(kind, []).append(getattr(record, kind))
        (self.run,) = of_kind["run"]
        self.config = items(self.run.config.update)
        self.axes = {metric.glob_name or metric.name: metric.step_metric for metric in of_kind["metric"]}
        self.history = [items(record.item) for record in of_kind["history"]]
        self.summary = {}
        for record in of_kind["summary"]:
            self.summary |= items(record.update)
        self.artifacts = {artifact.type: artifact for artifact in of_kind.get("artifact", [])}
        self.exit_code = of_kind["exit"][0].exit_code

    def series(self, key, axis):
        """One number against its axis."""
        return {row[axis]: row[key] for row in self.history if key in row}


def foresee(table):
    """Expect the arm without a filter to collapse at 2, and nothing of the other."""
    return {"none": Outlook(3.5, 2, 2, 4), "mv": Outlook(None, None, None, None)}


def conclude(folder):
    """A summary, a table and a picture, as the command line gives them."""
    picture = folder.path / "map.png"
    import matplotlib.pyplot as plt

    plt.imsave(picture, np.zeros((4, 4)))
    verdict = pd.DataFrame({"arm": ["none", "mv"], "verdict": ["hit", "open"]})
    return Conclusion(
        {"collapse_round/none": 2, "collapse_round/mv": None}, {"verdict": verdict}, {"map": picture}
    )


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """A small run with an offline mirror, and its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")  # says less than the call, and so it is offline
        return run_experiment(
            make_config("tiny", **SMALL), tmp_path_factory.mktemp("mirrored") / "run", progress=False,
            wandb="online", wandb_name="first try", observe=foresee, conclude=conclude,
        )  # fmt: skip


@pytest.fixture(scope="module")
def read(mirrored):
    return Read(mirrored.path)


def test_a_run_is_named_by_its_settings(read):
    """Id, group, tags and configuration are in the file, the name and the project as asked."""
    config = make_config("tiny", **SMALL)
    assert read.run.run_id == run_name(config) and read.run.project == "si_nb"
    assert read.run.display_name == "first try" and list(read.run.tags) == ["copy", "none", "mv"]
    assert read.run.run_group == tracked_as(config)["group"]
    assert {name: read.config[name] for name in identity(config)} == identity(config)
    assert read.exit_code == 0


def test_losses_are_drawn_against_the_steps_of_their_voter(read):
    """Base models first, then each arm's voters, whose steps go on from those of the base."""
    assert read.series("loss/base/voter_1", "training_step").keys() == {2, 4, 6, 8}
    assert read.series("loss/none/voter_0", "training_step").keys() | read.series(
        "loss/none/voter_1", "training_step"
    ).keys() == {10, 12, 14, 16}
    assert read.series("loss/mv/voter_1", "training_step").keys() == {10, 12, 14, 16}
    assert read.axes["loss/*"] == "training_step" and read.axes["training_step"] == ""


def test_rounds_are_those_of_the_table(read, mirrored):
    """Accuracy, label quality and kept share are the table's counts, round by round."""
    table = read_table(mirrored.measurements)
    for arm in ("none", "mv"):
        rows = table[table["arm"] == arm]
        accuracy = read.series(f"accuracy/{arm}", "round")
        assert accuracy.keys() == {0, 1, 2}
        for number, share in accuracy.items():
            here = (rows["round"] == number) & (rows["length"] == 3 + number)
            counts = rows[here & (rows["quantity"] == "accuracy")][["successes", "trials"]].sum()
            assert share == counts["successes"] / counts["trials"]
        kept = rows[(rows["quantity"] == "label_kept") & (rows["trials"] > 0)].set_index("round")
        quality = (kept["successes"] / kept["trials"]).to_dict()
        assert read.series(f"label_quality/{arm}", "round") == quality
        tried = rows[rows["quantity"] == "label_raw"].groupby("round")["trials"].max()
        shares = (rows[rows["quantity"] == "label_kept"].set_index("round")["trials"] / tried).to_dict()
        assert read.series(f"kept_share/{arm}", "round") == shares
    assert {read.axes[keys] for keys in AXES if keys != "loss/*"} == {"round"}


def test_forecasts_are_there_where_they_are_known(read):
    """Horizon and forecast with both ends of its interval, of the arm that somebody could foresee."""
    rounds = {0, 1, 2}
    assert read.series("horizon/none", "round") == dict.fromkeys(rounds, 3.5)
    for end, at in {"round": 2, "low": 2, "high": 4}.items():
        assert read.series(f"forecast/none/{end}", "round") == dict.fromkeys(rounds, at)
    assert not any("/mv" in key and key.startswith(("horizon", "forecast")) for key in read.summary)


def test_the_end_of_a_run_can_be_sorted_and_looked_at(read, mirrored):
    """Summary, tables, a picture, and the measurement table as a file that is the record's own."""
    assert read.summary["collapse_round/none"] == 2 and read.summary["collapse_round/mv"] is None
    assert read.summary["forecast/none/round"] == 2 and read.summary["horizon/none"] == 3.5
    files = read.path.parent / "files" / "media"
    (verdict,) = files.glob("table/verdict*.json")
    assert json.loads(verdict.read_text())["data"] == [["none", "hit"], ["mv", "open"]]
    (counts,) = files.glob("table/measurements*.json")
    assert len(json.loads(counts.read_text())["data"]) == len(read_table(mirrored.measurements))
    assert list(files.glob("images/map*.png"))
    (entry,) = read.artifacts["measurements"].manifest.contents
    assert entry.path == "measurements.csv" and Path(entry.local_path).samefile(mirrored.measurements)
    assert entry.size == mirrored.measurements.stat().st_size


def test_a_finished_run_does_not_start_a_second(mirrored, monkeypatch):
    """The same call again does nothing, in the mirror either."""
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("a second run"))
    run_experiment(make_config("tiny", **SMALL), mirrored.path, progress=False, wandb="offline")
    assert len(list(mirrored.path.glob("wandb/offline-run-*"))) == 1


def test_the_id_is_that_of_the_settings():
    """The same wherever the run is; another for another seed, which shares the group; safe for any task."""
    one, other = (make_config("tiny", **SMALL, seed=seed) for seed in (0, 1))
    assert tracked_as(one) == tracked_as(make_config("tiny", **SMALL, seed=0))
    assert tracked_as(one)["id"] != tracked_as(other)["id"]
    assert tracked_as(one)["group"] == tracked_as(other)["group"]
    changed = make_config("tiny", **{**SMALL, "si_iter": 5})
    assert tracked_as(changed)["group"] != tracked_as(one)["group"]


class Recording:
    """What wandb.init was told, and a run that takes everything."""

    def __init__(self):
        self.inits, self.rows = [], []

    def init(self, **told):
        self.inits.append(told)
        return self

    def log(self, row):
        self.rows.append(row)

    def define_metric(self, *_, **__):
        """Take it."""

    def finish(self, exit_code):
        self.exit_code = exit_code


def test_a_run_that_goes_on_has_the_same_id(monkeypatch, tmp_path):
    """An interrupted run is told to be one that did not finish; taken up again, it goes on under its id."""
    recording, measured = Recording(), []
    monkeypatch.setattr(wandb, "init", recording.init)

    def fail(table):
        measured.append(int(table["round"].max()))
        if measured == [0, 1]:
            raise OSError("the disk is gone")
        return {}

    config = make_config("tiny", **SMALL)
    how = dict(progress=False, wandb="offline", conclude=lambda folder: NOTHING)
    with pytest.raises(OSError):
        run_experiment(config, tmp_path / "run", after_round=fail, **how)
    assert recording.exit_code == 1
    run_experiment(config, tmp_path / "run", **how)
    first, second = recording.inits
    assert first["id"] == second["id"] and first["resume"] == second["resume"] == "allow"
    rounds = [row["round"] for row in recording.rows if "round" in row]
    assert sorted(set(rounds)) == [0, 1, 2] and len(rounds) <= 4


@pytest.mark.parametrize("asked", ["", "offline", "OFFLINE", "dryrun", "disabled", "online", "run"])
@pytest.mark.parametrize("mode", ["off", "offline", "online"])
def test_the_environment_may_only_say_less(monkeypatch, mode, asked):
    """WANDB_MODE never turns a mirror on, and never sends what was to stay here."""
    monkeypatch.setenv("WANDB_MODE", asked)
    order = ["off", "offline", "online"]
    assert order.index(allowed_mode(mode)) <= order.index(mode)
    least = {"offline": 1, "dryrun": 1, "disabled": 0}.get(asked.lower(), 2)
    assert allowed_mode(mode) == order[min(order.index(mode), least)]


def test_an_unknown_mode_is_refused(tmp_path, monkeypatch):
    """One line, exit code 2, nothing written, and wandb is not even asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("started"))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main(["run", "--preset", "tiny", "--wandb", "of"]) == 2
    assert said.getvalue().count("\n") == 1 and "wandb" in said.getvalue() and not list(tmp_path.iterdir())


def test_off_means_off(monkeypatch, tmp_path, capsys):
    """A run that did not ask for a mirror never imports wandb, whatever the environment says."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setitem(sys.modules, "wandb", None)  # whoever imports it fails
    config = make_config("tiny", **SMALL | {"si_rounds": 1})
    run = run_experiment(config, tmp_path / "run", progress=False, observe=lambda table: pytest.fail("asked"))
    assert capsys.readouterr().err == "" and not (run.path / "wandb").exists()


def test_a_mirror_that_breaks_is_silent_afterwards(capsys):
    """Whatever fails first, logging, the end or the conclusion, one line is said."""
    for broken in ("log", "finish"):
        recording = Recording()
        monkey = {broken: lambda *_, **__: 1 / 0}
        for name, method in monkey.items():
            setattr(recording, name, method)
        mirror = Mirror(recording)
        Watch(mirror).loss("mv", 0, 1, 0.5)
        mirror.conclude(NOTHING, Path("no such table"))
        mirror.finish(finished=True)
        assert capsys.readouterr().err.count("\n") == 1 and mirror.run is None


def test_unknown_numbers_are_not_sent():
    """No labels, no kept label, no forecast: no key, rather than a number that means nothing."""
    row = ("r", "copy", "mv", 0)
    starved = measurement_table(
        [(*row, 0, 1, 4, "accuracy", 3, 10), (*row, 0, 1, 4, "label_raw", 2, 10)]
        + [(*row, -1, 1, 4, "label_kept", 0, 0)]
    )
    numbers = round_numbers(starved, {"mv": 4}, {"mv": Outlook(None, None, 7, None)})
    assert numbers == {"round": 1, "accuracy/mv": 0.3, "kept_share/mv": 0.0, "forecast/mv/low": 7}
    gone = round_numbers(starved, {}, {})
    assert gone == {"round": 1}
    with pytest.raises(ConfigError, match="choose off"):
        check_tracker("sometimes")
