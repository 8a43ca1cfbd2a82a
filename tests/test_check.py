"""`si_nb check` finds what is wrong with any file of a run, a sweep or a folder of them,
and changes nothing.
"""

import json
import os
import random
import re
import shutil

import pandas as pd
import pytest

import si_nb.loop.training
from si_nb.cli import main
from si_nb.loop.check import check_folder, table_problem
from si_nb.loop.checkpoints import load_tensors, save_tensors
from si_nb.loop.rounds import run_experiment
from si_nb.loop.settings import make_config
from si_nb.loop.sweep import run_sweep
from si_nb.record.storage import DamagedError, read_sealed, write_sealed
from si_nb.record.table import read_table

SETTINGS = dict(
    task="copy", si_method=("none", "mv_length"), original_digits=2, si_rounds=3, n_layer=1, n_head=1,
    n_embd=16, block_size=24, base_samples=100,
    max_iters=8, decay=2, warmup=1, batch_size=8, si_iter=3, eval_interval=3, eval_samples=6, num_samples=10,
    voters=2, device="cpu",
)  # fmt: skip


def go(folder, **changes):
    return run_experiment(make_config(**{**SETTINGS, **changes}), folder, progress=False)


@pytest.fixture(scope="module", autouse=True)
def without_flushing():
    """Nothing here is about power cuts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return go(tmp_path_factory.mktemp("finished") / "run").path


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was interrupted in the training of round 3, with checkpoints."""
    path, plain = tmp_path_factory.mktemp("stopped") / "run", si_nb.loop.training.save_checkpoint

    def save_checkpoint(folder, name, state, **about):
        plain(folder, name, state, **about)
        if "_3_" in name and state.facts["step"] == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(si_nb.loop.training, "save_checkpoint", save_checkpoint)
        run_experiment(make_config(**SETTINGS), path, progress=False, checkpoint_minutes=0)
    assert list(path.rglob("*.step_*.safetensors"))
    return path


def content(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_all_is_well(state, request, capsys):
    """A run to which nothing happened passes with exit code 0, whether it is finished or not,
    and is left as it was.
    """
    folder = request.getfixturevalue(state)
    before = content(folder)
    assert main(["check", str(folder)]) == 0
    said = capsys.readouterr()
    assert said.out == "2 runs, sweeps or sets of base models checked: all is well\n" and not said.err
    assert content(folder) == before


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size)])


def empty(path, rng):
    path.write_bytes(b"")


def delete(path, rng):
    path.unlink()
    path.with_name(path.name + ".sha256").unlink(missing_ok=True)


def sibling(path, rng):
    """Put the file beside it that is most like it in its place, seal and all."""
    alike = re.sub(r"\d+", "", path.name)
    others = [
        other
        for other in sorted(path.parent.glob(f"*{path.suffix}"))
        if other != path and re.sub(r"\d+", "", other.name) == alike
    ]
    if not others:
        return delete(path, rng)
    other = rng.choice(others)
    write_sealed(path, other.read_bytes())


def to_folder(path, rng):
    path.unlink()
    path.mkdir()


def to_pipe(path, rng):
    path.unlink()
    os.mkfifo(path)


DAMAGES = (flip, cut, empty, delete, sibling, to_folder, to_pipe)


def is_harmless(damage, path, target):
    """A file without a seal is taken as it is, a seal also has what was there before,
    and what a round has made so far need not be there.
    """
    if path.suffix == ".sha256":
        return damage in (delete, sibling) or damage in (flip, cut) and is_known(target.with_suffix(""))
    going_on = any(part.startswith("stopped") for part in path.parts)
    unneeded = "_round_003" in path.name or ".step_" in path.name if going_on else path.name == "previous.csv"
    return damage is sibling and path.suffix != ".safetensors" or damage is delete and unneeded


def is_known(path):
    try:
        return bool(read_sealed(path))
    except DamagedError:
        return False


def look_for(original, path, damage, place):
    """Damage one file and see that it is named."""
    rng, run = random.Random(f"{path.name} {damage.__name__}"), place / "run"
    shutil.copytree(original, run)
    target = run / path.relative_to(original)
    damage(target, rng)
    found, _ = check_folder(run)
    named = {finding.path.name.removesuffix(".sha256") for finding in found}
    missed = path.name.removesuffix(".sha256") not in named and not is_harmless(damage, path, target)
    assert not missed, f"{damage.__name__} of {path.name} unnoticed: {[str(finding) for finding in found]}"
    assert all("\n" not in str(finding) and finding.repair for finding in found)
    shutil.rmtree(run)


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_damage_does_not_go_unnoticed(state, request, tmp_path):
    """Every file of a run damaged, one at a time and each time in another way: the finding names it;
    a seal's damage is that of its file.
    """
    original = request.getfixturevalue(state)
    for number, path in enumerate(sorted(path for path in original.rglob("*") if path.is_file())):
        look_for(original, path, DAMAGES[number % len(DAMAGES)], tmp_path)


@pytest.mark.slow(reason="every file of two folders, seven damages each")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_no_damage_goes_unnoticed(state, damage, request, tmp_path):
    """The same for every file in every way."""
    original = request.getfixturevalue(state)
    for path in sorted(path for path in original.rglob("*") if path.is_file()):
        look_for(original, path, damage, tmp_path)


def test_counts_are_held_against_the_labels(finished, tmp_path, capsys):
    """Labels that are fewer than their header or the table says are found, though their seals are right;
    so is a changed count in the table.
    """
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / "data" / "none_round_001.safetensors"
    tensors, about = load_tensors(path)
    save_tensors(path, {"rows": tensors["rows"][:-1]}, **about)
    text = (run / "measurements.csv").read_text().splitlines(keepends=True)
    number = next(number for number, line in enumerate(text) if ",2,4,label_kept," in line)
    *key, successes, trials = text[number].rstrip().split(",")
    text[number] = ",".join([*key, successes, str(int(trials) + 1)]) + "\n"
    write_sealed(run / "measurements.csv", "".join(text).encode())
    assert main(["check", str(run)]) == 1
    said = capsys.readouterr().out
    assert (
        "none_round_001.safetensors: 9 labels, but its header counts 10" in said
        and "measurements.csv: labels kept are not the right and the wrong ones together" in said
    )


def test_rows_are_counted(finished):
    """Each row that is taken out of a table or added to it is noticed, by the settings alone."""
    config, table = make_config(**SETTINGS), read_table(finished)
    assert not table_problem(config, table)
    for number in range(len(table)):
        assert "lacks" in table_problem(config, table.drop(number)), table.loc[number].to_dict()
    assert "has no place for" in table_problem(config, pd.concat([table, table[:1].assign(length=99)]))


@pytest.mark.parametrize(
    "changes",
    [
        dict(accelerated=True),
        dict(lengths_per_round=2),
        dict(si_method=("oracle", "mv", "length_filter")),
        dict(noise_round=1, noise_fraction=0.5),
        dict(block_size=12),
        dict(si_rounds=0),
    ],
    ids=str,
)
def test_every_kind_of_run_passes(changes, tmp_path):
    """Settings that change which rows there are, or what is counted, are understood."""
    go(tmp_path / "run", **changes)
    found, _ = check_folder(tmp_path / "run")
    assert not found, [str(finding) for finding in found]


def test_what_a_run_leaves_behind_when_it_is_killed_is_named(finished, tmp_path):
    """Half-written files and seals without a file are named; a user's own files are nobody's business."""
    run = shutil.copytree(finished, tmp_path / "run")
    (run / ".measurements.csv.4711.si_nb-partial").touch()
    (run / "data" / "none_round_009.safetensors.sha256").touch()
    for name in ("notes.txt", ".mine.partial", "mine.sha256"):
        (run / name).touch()
    found, _ = check_folder(run)
    assert sorted(finding.path.name for finding in found) == [
        ".measurements.csv.4711.si_nb-partial",
        "none_round_009.safetensors.sha256",
    ]


def test_weights_and_labels_of_a_finished_run_may_be_gone(finished, tmp_path):
    """Whole folders that somebody has removed to save room are no damage;
    in a run that is to go on they are missed.
    """
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "data"), shutil.rmtree(run / "models")
    assert check_folder(run)[0] == []


def test_folders_elsewhere_are_looked_at(tmp_path, capsys):
    """Weights and labels that are kept elsewhere are checked when their folders are named."""
    places = dict(models_dir=tmp_path / "models", data_dir=tmp_path / "data")
    run = run_experiment(make_config(**SETTINGS), tmp_path / "run", **places, progress=False)
    flags = [part for name, place in places.items() for part in (f"--{name}", str(place))]
    assert main(["check", str(run.path), *flags]) == 0
    run.kept_labels("none", 1).unlink(), run.base_model(0).write_bytes(b"")
    capsys.readouterr()
    assert main(["check", str(run.path), *flags]) == 1
    said = capsys.readouterr().out
    assert f"{run.kept_labels('none', 1)}: missing" in said and f"{run.base_model(0)}: damaged" in said


GRID = """
preset = "tiny"
[settings]
original_digits = 2
si_rounds = 2
n_layer = 1
n_embd = 16
base_samples = 100
max_iters = 8
si_iter = 3
num_samples = 10
eval_samples = 6
voters = 2
[[group]]
name = "all"
seeds = [0, 1]
"""


def test_a_sweep_is_held_against_its_runs(tmp_path, capsys):
    """A sweep passes; a count changed, a run's rows missing, another run's table,
    or a damaged base model in it do not.
    """
    (tmp_path / "grid.toml").write_text(GRID)
    out = tmp_path / "out"
    run_sweep(tmp_path / "grid.toml", out)
    assert main(["check", str(tmp_path)]) == 0, capsys.readouterr().out
    table = out / "measurements.csv"
    text = table.read_bytes()
    lines, names = (
        text.decode().splitlines(keepends=True),
        sorted(path.name for path in (out / "runs").iterdir()),
    )
    changed = next(number for number, line in enumerate(lines) if re.search(r"accuracy,[0-5],6$", line))
    *key, successes, trials = lines[changed].split(",")
    for said, content in (
        (
            "not as in its own table",
            "".join(
                [*lines[:changed], ",".join([*key, str(int(successes) + 1), trials]), *lines[changed + 1 :]]
            ),
        ),
        ("it lacks", "".join(lines[:-3])),
        ("missing, but finished", "".join(line for line in lines if names[0] not in line)),
        ("not in the grid", text.decode().replace("copy-seed0-", "copy-seed7-")),
    ):
        write_sealed(table, content.encode())
        capsys.readouterr()
        assert main(["check", str(out)]) == 1
        assert said in capsys.readouterr().out, said
    write_sealed(table, text)
    base = next((out / "bases").glob("*-base-*/voter_1.safetensors"))
    base.write_bytes(base.read_bytes()[:-1])
    assert main(["check", str(out)]) == 1 and base.name in capsys.readouterr().out


def test_a_table_alone_is_read(finished, tmp_path, capsys):
    """A folder that keeps nothing but a table is checked as far as that goes."""
    shutil.copy(finished / "measurements.csv", tmp_path)
    assert main(["check", str(tmp_path)]) == 0
    (tmp_path / "measurements.csv").write_text("round,successes\n")
    assert (
        main(["check", str(tmp_path)]) == 1
        and "measurements.csv: not a measurement table" in capsys.readouterr().out
    )


@pytest.mark.parametrize("name", ["absent", "file", "empty", ""])
def test_a_bad_call_is_one_line(name, tmp_path, capsys):
    """A folder that is none, or has nothing to check, is exit code 2."""
    (tmp_path / "file").touch(), (tmp_path / "empty").mkdir()
    assert main(["check", str(tmp_path / name)]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and str(tmp_path) in said.err and not said.out


def test_names_from_the_disk_cannot_drive_the_terminal(finished, tmp_path, capsys):
    """Control characters in names are shown, not obeyed."""
    run = shutil.copytree(finished, tmp_path / "\x1b]0;title\x07")
    (run / "config.json").write_bytes(json.dumps({"task": "\x1b[2J"}).encode())
    assert main(["check", str(run)]) == 1
    assert "\x1b" not in capsys.readouterr().out
