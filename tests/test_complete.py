"""What a run's table must hold: what the loop writes is complete, and no row can go,
come or change sides unnoticed.
"""

import itertools
import random
from dataclasses import replace

import pytest

from si_nb.loop.complete import check_complete
from si_nb.loop.rounds import run_experiment
from si_nb.loop.settings import make_config, run_name
from si_nb.loop.voting import KEEP_RULES
from si_nb.record.table import TableError, check_table, read_table

SMALL = dict(
    task="copy", si_method=tuple(KEEP_RULES), original_digits=2, si_rounds=2, n_layer=1, n_head=1, n_embd=16,
    block_size=40, base_samples=200,
    max_iters=5, batch_size=16, si_iter=2, num_samples=12, eval_samples=9, voters=2, vote_threshold=0.5,
    vote_iter_growth=0, device="cpu",
)  # fmt: skip
VARIANTS = {
    "every arm": {},
    "voters that none votes with": dict(si_method=("none", "oracle"), voters=3, train_multiple_base=True),
    "one base model": dict(si_method=("length_filter",), voters=3),
    "damaged labels": dict(noise_round=1, noise_fraction=0.5),
    "a short block": dict(block_size=10),
    "two lengths a round": dict(lengths_per_round=2),
    "three lengths and a block that ends": dict(lengths_per_round=3, accelerated=True, block_size=18),
    "mazes by nodes": dict(task="maze_by_nodes", original_digits=4, block_size=60),
    "mazes by hops": dict(task="maze_by_hops", lengths_per_round=2, block_size=60),
    "addition": dict(task="reverse_addition", original_digits=1),
    "the base alone": dict(si_rounds=0),
    "one digit": dict(original_digits=1, si_method=("mv",)),
}


def measured(folder, **changes):
    """A run's table, and what is asked about it."""
    config = make_config(**{**SMALL, **changes})
    table = read_table(run_experiment(config, folder, progress=False).measurements)
    return table, config


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_what_a_run_writes_is_complete(changes, tmp_path):
    """The list of rows is written down apart from the loop, and agrees with it for every kind of setting."""
    check_complete(*measured(tmp_path, **changes))


@pytest.mark.parametrize("reached", [2, 3, 5], ids="up to {}".format)
def test_accelerated_lengths_are_read_from_the_table(reached, tmp_path, monkeypatch):
    """An arm that takes in several lengths in a round is complete, whatever the lengths were,
    and evaluated beyond them.
    """

    def longer(experiment, voters, newest, number):
        return list(range(newest + 1, newest + (reached if number == 1 else 1) + 1))

    monkeypatch.setattr("si_nb.loop.labels.next_lengths", longer)
    table, *asked = measured(tmp_path, accelerated=True)
    check_complete(table, *asked)
    with pytest.raises(TableError, match="not the whole table"):
        check_complete(table[table["length"] < table["length"].max()], *asked)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("run"))


def test_no_row_can_be_missing(run):
    """Every single row is missed, and so is every tail of the table."""
    table, *asked = run
    for i in range(len(table)):
        with pytest.raises(TableError, match="lacks") as error:
            check_complete(table.drop(index=i), *asked)
        assert "\n" not in str(error.value)
    for last in random.Random(0).sample(range(1, len(table)), 30):
        with pytest.raises(TableError):
            check_complete(table[:last], *asked)


def test_no_row_can_be_another(run):
    """A row about something else, in any column, is named:
    it is missing where it was, or has no place where it is.
    """
    table, *asked = run
    others = dict(
        run_id="x", task="reverse", arm="none", seed=9, voter=1, round=1, length=3, quantity="label_kept"
    )
    for column, i in itertools.product(others, random.Random(0).sample(range(len(table)), 9)):
        changed = table.copy()
        changed.loc[i, column] = others[column]
        if not changed.equals(table):
            with pytest.raises(TableError):
                check_complete(check_table(changed), *asked)


@pytest.mark.parametrize("change", [("successes", 1), ("trials", 1), ("trials", 7)], ids=str)
def test_label_counts_tie_each_other_down(change, run):
    """The counts of kept labels, and what was tried, cannot be changed one by one."""
    table, *asked = run
    column, by = change
    tied = table["quantity"].isin(
        ["kept_right", "kept_wrong", "label_kept"] + ["label_raw", "accuracy"] * (column == "trials")
    )
    for i in table.index[tied & (table["arm"] != "none")]:
        changed = table.copy()
        changed.loc[i, column] += by
        with pytest.raises(TableError):
            check_complete(changed, *asked)


def test_settings_of_another_run_are_noticed(run):
    """The same table is refused under settings that would have measured something else."""
    table, config = run
    for change in (
        dict(seed=1),
        dict(eval_samples=8),
        dict(voters=3),
        dict(si_rounds=3),
        dict(original_digits=3),
        dict(block_size=10),
        dict(num_samples=3),
    ):
        with pytest.raises(TableError):
            check_complete(table, replace(config, **change), run_id=run_name(config))


def test_a_run_on_its_way_is_complete_as_far_as_it_has_come(run):
    """Last rounds may be given by arm; a longest one decides how far the others were evaluated."""
    table, config = run
    for last in range(2):
        early = table[table["round"] <= last].reset_index(drop=True)
        check_complete(early, config, rounds=dict.fromkeys(config.si_method, last))
    stopped = table[(table["round"] <= 1) | (table["arm"] != "mv")].reset_index(drop=True)
    check_complete(stopped, config, rounds={**dict.fromkeys(config.si_method, 2), "mv": 1})
