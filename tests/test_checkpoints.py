"""Weights that are kept, and what can be done with them: measure again, ask, go on with other settings."""

import shutil

import pytest

from si_nb.loop.check import check_folder
from si_nb.loop.folder import kept_weights_from, read_facts, write_facts
from si_nb.loop.rounds import run_experiment
from si_nb.loop.settings import make_config
from si_nb.record.storage import remove_sealed
from si_nb.record.table import append_rows, read_table

ROUNDS, VOTERS = 4, 2
SETTINGS = dict(
    task="copy", si_method=("none", "mv_length"), original_digits=3, si_rounds=ROUNDS, n_layer=1, n_head=1,
    n_embd=16, base_samples=500, max_iters=120, batch_size=32, learning_rate=1e-2, loss_on="answer",
    si_iter=6, eval_interval=10, eval_samples=30, num_samples=30, voters=VOTERS, vote_threshold=0.5,
    device="cpu",
)  # fmt: skip


def config_of(**changes):
    return make_config(**{**SETTINGS, **changes})


def rounds_kept(folder, arm="none"):
    """The rounds of which an arm's weights are on disk."""
    return sorted({int(path.stem[-3:]) for path in folder.rounds.glob(f"{arm}_voter_*.safetensors")})


def cut(place, last):
    """Let a run have come to a round and no further, as if it had been killed in the next one."""
    table = read_table(place / "measurements.csv")
    remove_sealed(place / "measurements.csv")
    append_rows(place / "measurements.csv", table[table["round"] <= last])
    for path in place.glob(f"*/*_round_{last + 1:03d}.*"):
        path.unlink()


def flip(path):
    """Change the last byte of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that kept the weights of all rounds."""
    return run_experiment(
        config_of(), tmp_path_factory.mktemp("kept") / "run", progress=False, keep_weights=True
    )


@pytest.fixture(scope="module")
def table(folder):
    return read_table(folder.measurements)


@pytest.fixture
def copy(folder, tmp_path):
    """The same run in a folder of its own, which a test may change; the path of that folder."""
    return shutil.copytree(folder.path, tmp_path / "run")


# --- weights of every round


def test_kept_weights_change_nothing_else(folder, tmp_path):
    """With and without them a run has the same name, table and labels, and weights of its last rounds."""
    plain = run_experiment(config_of(), tmp_path / "run", progress=False)
    assert plain.measurements.read_bytes() == folder.measurements.read_bytes()
    assert rounds_kept(plain) == [3, 4] and rounds_kept(folder) == [1, 2, 3, 4]
    for path in (*plain.rounds.glob("*_round_*.safetensors"), *plain.data.glob("*.safetensors")):
        assert path.read_bytes() == (folder.path / path.relative_to(plain.path)).read_bytes()
    assert check_folder(folder.path)[0] == check_folder(plain.path)[0] == []


def test_weights_once_kept_stay(copy):
    """A later command that does not ask for it, of a run that goes on or has ended, removes none of them."""
    cut(copy, ROUNDS - 1)
    again = run_experiment(config_of(), copy, progress=False)
    run_experiment(config_of(), copy, progress=False)
    assert rounds_kept(again) == [1, 2, 3, 4] and kept_weights_from(again) == 1


def test_keeping_may_begin_late(copy):
    """Asked for when three rounds are done, it keeps the last two of them and all that follow."""
    cut(copy, ROUNDS - 1)
    facts = read_facts(copy / "config.json")
    del facts["weights_kept_from"]
    write_facts(copy / "config.json", facts)
    for path in copy.glob("models/*_round_001.safetensors*"):
        path.unlink()
    again = run_experiment(config_of(), copy, progress=False, keep_weights=True)
    assert rounds_kept(again) == [2, 3, 4] and kept_weights_from(again) == 2
    assert check_folder(copy)[0] == []


def test_check_knows_the_kept_weights(copy):
    """One file of an early round missing and one damaged are two lines; no command makes these again."""
    lost, bad = (copy / "models" / f"mv_length_voter_{voter}_round_001.safetensors" for voter in (0, 1))
    lost.unlink()
    flip(bad)
    lines = {finding.path: str(finding) for finding in check_folder(copy)[0]}
    assert "missing; take it from a copy" in lines[lost] and "no command makes it again" in lines[bad]
