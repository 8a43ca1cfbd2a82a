"""Tables of counts: what is kept, what is refused, and that a refusal leaves the file alone."""

import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from si_nb.record import table as m


def rows(rounds=3, run_id="r", arm="none", voters=2, trials=100, labels=True):
    made = []
    for r in range(rounds + 1):
        for voter in range(voters):
            made += [
                (run_id, "copy", arm, 0, voter, r, n, "accuracy", trials - r * (n - 6), trials)
                for n in (7, 8, 9, 10, 11)
            ]
        if labels and r:
            made += [
                (run_id, "copy", arm, 0, v, r, 8 + r, "label_raw", 90 - r, trials) for v in range(voters)
            ]
            made += [(run_id, "copy", arm, 0, -1, r, 8 + r, "label_kept", 80, 80 + r)]
            made += [(run_id, "copy", arm, 0, -1, r, 8 + r, "kept_right", 80, 90)]
            made += [(run_id, "copy", arm, 0, -1, r, 8 + r, "kept_wrong", r, 10)]
    return made


counts = st.integers(0, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(max_examples=25, deadline=None)
@given(st.lists(counts, min_size=1, max_size=20))
def test_what_is_written_is_read_back(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("table") / "measurements.csv"
    table = m.measurement_table(
        [("r", "copy", "none", 1, 0, i, 9 + i, "accuracy", s, n) for i, (s, n) in enumerate(pairs)]
    )
    half = len(table) // 2
    for part in (table.iloc[:half], table.iloc[half:]):
        if len(part):
            m.append_rows(path, part)
    pd.testing.assert_frame_equal(m.read_table(path), table)


@settings(max_examples=50, deadline=None)
@given(counts, st.sampled_from([0.5, 0.9, 0.95]))
def test_intervals_hold_the_estimate(pair, level):
    successes, trials = pair
    low, high = m.binomial_interval(successes, trials, level)
    assert 0 <= low <= high <= 1
    if trials:
        assert low <= successes / trials <= high


WHOLE = m.measurement_table(rows()).to_csv(index=False, lineterminator="\n").encode()
HEADER = ",".join(m.COLUMNS).encode() + b"\n"
GOOD = b"r,copy,none,0,0,1,9,accuracy,50,100\n"
BROKEN = {
    "empty": (b"", "empty"),
    "header only": (HEADER, "no rows"),
    "binary": (bytes(range(256)), "not a text file"),
    "zeros": (b"\0" * 100, "not a text file"),
    "cut inside a number": (WHOLE[:-2], "cut off"),
    "cut inside a row": (WHOLE[: WHOLE.rindex(b"label_") + 4], "cut off"),
    "foreign": (b"sepal,petal\n1,2\n", "not a measurement table"),
    "a column less": (HEADER.replace(b",trials", b"") + GOOD.replace(b",100", b""), "trials are missing"),
    "a column more": (HEADER.replace(b"\n", b",note\n") + GOOD.replace(b"\n", b",x\n"), "extra"),
    "a field more": (HEADER + GOOD.replace(b"\n", b",7\n"), "line 2: 11 fields for 10 columns"),
    "a field more further down": (
        HEADER + GOOD + GOOD.replace(b",1,9", b",2,9").replace(b"100", b"1,000"),
        "line 3: 11 fields",
    ),
    "a comma in a short count": (b"round,successes,trials\n1,1,1,024\n", "line 2: 4 fields for 3 columns"),
    "a comma at the end": (b"round,successes,trials\n1,1,2,\n", "line 2: 4 fields"),
    "a quoted line break": (HEADER + GOOD.replace(b"r,", b'"r\nr",'), "goes on in the next line"),
    "quotes that do not end": (HEADER + GOOD.replace(b"r,", b'"r,') + GOOD, "goes on in the next line"),
    "a field without end": (HEADER + GOOD.replace(b"r,", b"r" * 200_000 + b","), "field limit"),
    "a round of a time stamp": (HEADER + GOOD.replace(b",1,9", b",1000000000,9"), "round is above 1,000"),
    "a length of a time stamp": (
        HEADER + GOOD.replace(b",1,9", b",1,1000000000"),
        "length is above 1,000,000",
    ),
    "a voter of a time stamp": (
        HEADER + GOOD.replace(b",0,1,9", b",1000000000,1,9"),
        "voter is above 1,000,000",
    ),
    "counts beyond a number": (HEADER + GOOD.replace(b"100", b"900000000000000000"), "add up to more than"),
    "counts that add up to more": (
        HEADER
        + GOOD.replace(b"100", b"600000000000000")
        + GOOD.replace(b",1,9", b",2,9").replace(b"100", b"600000000000000"),
        "line 3: trials add up",
    ),
    "a seed of 19 digits": (
        HEADER + GOOD.replace(b"none,0", b"none,1000000000000000000"),
        "at most 18 digits",
    ),
    "a field less": (HEADER + GOOD.replace(b",100", b""), "trials is missing"),
    "rate for count": (HEADER + GOOD.replace(b"50,", b"0.5,"), "successes is '0.5'"),
    "word for number": (HEADER + GOOD.replace(b"50,", b"many,"), "successes is 'many'"),
    "more right than tried": (HEADER + GOOD.replace(b"50,", b"101,"), "exceed"),
    "negative successes": (HEADER + GOOD.replace(b"50,", b"-1,"), "negative"),
    "negative round": (HEADER + GOOD.replace(b",1,9", b",-1,9"), "negative"),
    "unknown voter": (HEADER + GOOD.replace(b",0,1,9", b",-2,1,9"), "below -1"),
    "unknown quantity": (HEADER + GOOD.replace(b"accuracy", b"loss"), "unknown quantity"),
    "twice": (HEADER + GOOD + GOOD, "second row"),
    "no run": (HEADER + GOOD[1:], "must not be empty"),
    "blank line": (HEADER + GOOD + b"\n" + GOOD.replace(b",1,9", b",2,9"), "missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_get_one_line(name, tmp_path):
    content, words = BROKEN[name]
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(m.TableError) as caught:
        m.read_table(path)
    message = str(caught.value)
    assert "\n" not in message and "table.csv" in message and words in message
    with pytest.raises(m.TableError):
        m.append_rows(path, m.measurement_table(rows(run_id="new")))
    assert path.read_bytes() == content


@pytest.mark.parametrize("column", ["round", "length", "voter", "trials", "seed"])
def test_the_largest_numbers_are_taken_and_no_larger(column):
    """A bound itself is a number like any other; the line that refuses the next one says which row it is."""
    table = m.measurement_table([("r", "copy", "none", 0, 0, 1, 9, "accuracy", 50, 100)])
    assert m.check_table(table.assign(**{column: m.LARGEST[column]}))[column].tolist() == [m.LARGEST[column]]
    with pytest.raises(m.TableError, match=f"row 0: {column}"):
        m.check_table(table.assign(**{column: m.LARGEST[column] + 1}))


def test_unsigned_numbers_do_not_wrap_around():
    """The largest unsigned number is no -1."""
    table = m.measurement_table([("r", "copy", "none", 0, 0, 1, 9, "accuracy", 50, 100)])
    with pytest.raises(m.TableError, match="voter is '18446744073709551615'"):
        m.check_table(table.assign(voter=np.array([2**64 - 1], dtype="uint64")))


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\0b", "a\ud800b"])
def test_a_name_that_a_file_cannot_hold_is_refused_before_it_is_written(name, tmp_path):
    """No table is written that could not be read back."""
    with pytest.raises(m.TableError, match="must not hold"):
        m.append_rows(tmp_path / "measurements.csv", m.measurement_table(rows()).assign(arm=name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a,b", 'a "quoted" b', "a\tb", "\x1b[1m", "a\u2028b", "'", "é"])
def test_any_other_name_is_read_back(name, tmp_path):
    """What is written under a strange name is read back under it."""
    table = m.measurement_table(rows(arm=name))
    pd.testing.assert_frame_equal(m.read_table(m.append_rows(tmp_path / "measurements.csv", table)), table)


def test_line_numbers_are_those_of_the_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(HEADER + GOOD + GOOD.replace(b",1,9", b",2,9").replace(b"50,100", b"5,4"))
    with pytest.raises(m.TableError, match="line 3"):
        m.read_table(path)


def test_missing_paths_and_folders_without_tables(tmp_path):
    for path in (tmp_path / "nothing.csv", tmp_path):
        with pytest.raises(m.TableError, match=str(path)):
            m.read_table(path)
    with pytest.raises(m.TableError, match="no table given"):
        m.read_table()


@pytest.mark.parametrize("path", ["x" * 5_000, "x/" * 2_500, ""], ids=["long name", "long path", "empty"])
def test_paths_that_no_file_can_have(path):
    """One short line, and not the current folder."""
    with pytest.raises(m.TableError) as caught:
        m.read_table(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= m.LONGEST_LINE


def test_a_search_ends(tmp_path, monkeypatch):
    """A folder with more below it than can be looked through is refused in one line,
    whether or not it holds a table.
    """
    monkeypatch.setattr(m, "MOST_FILES", 20)
    m.append_rows(tmp_path / "measurements.csv", m.measurement_table(rows()))
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        folder.mkdir()
        for number in range(30):
            (folder / f"{number}.txt").touch()
    assert len(m.read_table(tmp_path))  # a folder that has a table stands for it
    (tmp_path / "measurements.csv").rename(tmp_path / "a" / "b" / "measurements.csv")
    with pytest.raises(m.TableError, match="more than 20 files"):
        m.read_table(tmp_path)


def test_the_whole_machine_is_not_searched():
    """Naming the root folder, or one whose files come and go, is one line."""
    for folder in ("/", "/proc"):
        if os.path.isdir(folder):
            with pytest.raises(m.TableError) as caught:
                m.read_table(folder)
            assert "\n" not in str(caught.value) and folder in str(caught.value)


def test_a_table_below_a_table_is_not_counted_twice(tmp_path):
    """A folder of sweeps has the table of each sweep, and not those of its runs once more."""
    for sweep in ("one", "two"):
        (tmp_path / sweep / "runs" / "r").mkdir(parents=True)
        for folder in (tmp_path / sweep, tmp_path / sweep / "runs" / "r"):
            m.append_rows(folder / "measurements.csv", m.measurement_table(rows(run_id=sweep)))
    assert len(m.read_table(tmp_path)) == 2 * len(rows())


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    """A run that cannot be seen would be missing from the answer,
    so the search names the folder and stops.
    """
    (tmp_path / "secret").mkdir()
    (tmp_path / "run").mkdir()
    m.append_rows(tmp_path / "run" / "measurements.csv", m.measurement_table(rows()))
    scan = os.scandir

    def guarded(folder):
        if str(folder).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(m.TableError, match="secret: cannot be read"):
        m.read_table(tmp_path)


def test_byte_order_mark_windows_lines_and_column_order(tmp_path):
    table = m.measurement_table(rows())
    path = tmp_path / "table.csv"
    shuffled = table[list(reversed(m.COLUMNS))]
    path.write_bytes(b"\xef\xbb\xbf" + shuffled.to_csv(index=False, lineterminator="\r\n").encode())
    pd.testing.assert_frame_equal(m.read_table(path), table)


def test_a_crash_while_writing_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "measurements.csv"
    table = m.measurement_table(rows())
    m.append_rows(path, table[table["round"] < 2])
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError):
        m.append_rows(path, table[table["round"] >= 2])
    monkeypatch.undo()
    assert path.read_bytes() == before
    m.append_rows(path, table[table["round"] >= 2])
    assert len(m.read_table(path)) == len(table)


def test_trajectory_follows_the_newest_length_and_pools_voters():
    series = m.trajectory(m.measurement_table(rows(voters=2)))
    assert series["length"].tolist() == [8, 9, 10, 11]
    assert series["trials"].tolist() == [200] * 4
    assert series["successes"].tolist() == [200, 2 * 97, 2 * 92, 2 * 85]


def test_accelerated_rounds_use_the_largest_length():
    extra = [("r", "copy", "none", 0, 0, 1, 10, "label_raw", 80, 100)]
    series = m.trajectory(m.measurement_table(rows() + extra))
    assert series["length"].tolist() == [8, 10, 10, 11]


def test_two_arms_of_one_run_are_two_trajectories():
    table = m.measurement_table(rows() + rows(arm="mv_length"))
    assert m.trajectory(table).groupby("arm").size().to_dict() == {"none": 4, "mv_length": 4}


def test_a_round_without_its_accuracy_is_named():
    kept = [row for row in rows() if not (row[5] == 2 and row[6] == 10 and row[7] == "accuracy")]
    with pytest.raises(m.TableError, match="round 2 has no accuracy at its newest length 10"):
        m.trajectory(m.measurement_table(kept))


def test_error_budget_is_bayes_and_counts_add_up():
    budget = m.error_budget(m.measurement_table(rows())).set_index(["quantity", "round"])
    counts = budget["successes"].unstack(0), budget["trials"].unstack(0)
    assert (counts[0]["label_proposed"].dropna() == 90).all() and (
        counts[1]["kept_share"].dropna() == 100
    ).all()
    assert np.allclose(budget.loc["tau", "estimate"].to_numpy(), [0.89, 0.88 / 0.97, 0.87 / 0.92])
    assert "agree_wrong" not in budget.index.get_level_values(0)


def test_nothing_kept_is_no_number_and_no_crash():
    table = m.measurement_table(rows() + [("r", "copy", "none", 0, -1, 3, 11, "agree_wrong", 0, 0)])
    row = m.error_budget(table).query("quantity == 'agree_wrong'").iloc[0]
    assert np.isnan(row["estimate"]) and (row["low"], row["high"]) == (0, 1)
