"""Whatever is in a file or a setting, reading it ends in something checked or in one documented line;
it never crashes or hangs.
"""

import json
import math
import random
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import si_nb.record.storage
from si_nb.law.figures import save_figures
from si_nb.law.forecasters import forecast
from si_nb.law.monitor import SustainabilityMonitor
from si_nb.law.report import law_report
from si_nb.law.round_curves import LawError
from si_nb.loop.checkpoints import load_checkpoint, load_tensors, save_tensors
from si_nb.loop.folder import locate_run, open_run
from si_nb.loop.settings import ConfigError, RunConfig, identity, make_config, run_name
from si_nb.problems.tokenizer import PAD, SYMBOLS, VOCAB_SIZE, decode, encode
from si_nb.record.storage import (
    DamagedError,
    LockedError,
    StorageError,
    hold,
    read_sealed,
    write_sealed,
)
from si_nb.record.table import (
    COLUMNS,
    MINIMAL,
    QUANTITIES,
    TableError,
    accuracy_by_length,
    check_table,
    check_trajectory,
    error_budget,
    measurement_table,  # fmt: skip
    read_table,
    trajectory,
)

fuzz = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
SMALL = dict(
    task="copy", original_digits=2, si_rounds=2, n_layer=1, n_head=1, n_embd=16, block_size=40, device="cpu"
)
CONFIG = make_config(**SMALL)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def say_one_line(action, *expected):
    """The result of an action, or None if it raises one of the expected errors,
    with a message of one line.
    """
    try:
        return action()
    except expected as error:
        assert type(error) in expected and str(error).strip() and "\n" not in str(error), repr(error)
        return None


def mutate(content, seed):
    """A few bytes of a file changed, left out, doubled or moved."""
    rng, content = random.Random(seed), bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        piece = rng.choice(
            [
                bytes([rng.randrange(256)]),
                b"\n",
                b",",
                b'"',
                b"\r",
                b"-1",
                b"nan",
                b"1e9",
                b"9" * 30,
                b"\0",
                b"{",
                b"\xff",
            ]
        )
        length = rng.choice([0, 1, len(piece), rng.randrange(1, 60)])
        content[at : at + length] = rng.choice([piece, b"", bytes(content[at : at + length]) * 2])
    return bytes(content)


# --- the table


def table_text():
    rows = [
        ("r", "copy", arm, 0, v, r, 3 + r, q, 5, 9)
        for arm in ("none", "mv")
        for r in range(3)
        for v in (0, 1)
        for q in ("accuracy", "label_raw")
    ]
    return measurement_table(rows).to_csv(index=False, lineterminator="\n").encode()


TABLE = table_text()
cells = st.one_of(
    st.sampled_from(["r", "copy", "none", *QUANTITIES]),
    st.integers(-2, 10).map(str),
    st.text(max_size=6),
    st.floats().map(str),
)
written = st.lists(st.lists(cells, min_size=3, max_size=11).map(",".join), max_size=5).map("\n".join)


def read_any(place, content):
    """A table from any bytes, checked again from scratch, or None when it was refused."""
    path = place / "measurements.csv"
    path.write_bytes(content)
    table = say_one_line(lambda: read_table(path), TableError)
    if table is not None:
        assert list(table.columns) == list(COLUMNS) and len(table) and not table.isna().any().any()
        assert (table["successes"] <= table["trials"]).all() and (table["successes"] >= 0).all()
        assert table["quantity"].isin(list(QUANTITIES)).all() and check_table(table).equals(table)
    return table


@fuzz
@given(st.binary(max_size=300))
@example(b"\xef\xbb\xbf")
@example(b"round,successes,trials\r1,2,3\r")
@example(b'round,successes,trials\n"1,2,3\n')
@example(b"round,successes,trials\n1,2," + b"9" * 400 + b"\n")
@example("round,successes,trials\n\u0663,1,2\n".encode())
def test_any_bytes_as_table(place, content):
    """Arbitrary bytes are a checked table or refused in one line."""
    read_any(place, content)


@fuzz
@given(
    st.sampled_from([",".join(COLUMNS), ",".join(MINIMAL), ",".join(MINIMAL[::-1])]), written, st.booleans()
)
def test_any_cells_under_a_true_header(place, header, text, ended):
    """The same under a header that is right."""
    read_any(place, f"{header}\n{text}{chr(10) * ended}".encode("utf-8", "surrogatepass"))


@settings(fuzz, max_examples=150)
@given(st.integers(0, 2**32))
def test_any_mutated_table(place, seed):
    """The same for a true table in which a few bytes are changed;
    what is accepted has no fewer complete rows than lines.
    """
    content = mutate(TABLE, seed)
    table = read_any(place, content)
    assert table is None or len(table) <= content.count(b"\n") + content.count(b"\r")


def test_the_unmutated_table_is_read(place):
    """What the mutations start from is itself accepted."""
    assert len(read_any(place, TABLE)) == 24


# --- calls with anything

COUNTS = pd.DataFrame(dict(round=[1, 2, 3, 4], successes=[95, 80, 50, 20], trials=[100] * 4))
SERIES = trajectory(COUNTS)
REPORT = law_report(COUNTS, law="weibull", resamples=20)
no_tables = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    json_values,
    st.just(object()),
    st.sampled_from(
        [
            np.arange(3),
            np.zeros((2, 3)),
            pd.Series([1]),
            pd.DataFrame(),
            COUNTS.T,
            COUNTS.set_index("round"),
            COUNTS.astype(complex),
            pd.concat([COUNTS, COUNTS], axis=1),
            COUNTS.assign(extra=1),
            COUNTS.set_axis([0, 1, 2], axis=1),
            COUNTS.assign(trials=math.inf),
            COUNTS.assign(successes=True),
            COUNTS.assign(round=pd.NaT),
            COUNTS.assign(round=[[1]] * 4),
            COUNTS.assign(trials=2.0**70),
        ]
    ),
)
no_numbers = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [math.nan, math.inf, -math.inf, -1, 0, 2**70, 0.5 + 1j, "1", b"1", pd.NA, np.bool_(True)]
    ),
    st.text(max_size=4),
    st.just(()),
    st.just([1]),
    st.just({}),
    st.just(np.array([1, 2])),
    st.just(COUNTS),
    st.just(object()),
)
TAKES_A_TABLE = {
    "check_table": check_table, "measurement_table": measurement_table,
    "accuracy_by_length": accuracy_by_length, "trajectory": trajectory,
    "error_budget": error_budget, "check_trajectory": check_trajectory,
    "add": lambda table: SustainabilityMonitor().add(table),
    "law_report": lambda table: law_report(table, law="weibull", resamples=20),
    "forecast": lambda table: forecast(table, law="weibull", resamples=20),
    "table of a forecast": lambda table: (
        None if table is None else forecast(SERIES, law="weibull", resamples=20, table=table)
    ),
    "save_figures": lambda table: save_figures(table, {"arms": {}}, "never made"),
    "report of save_figures": lambda table: save_figures(COUNTS, table, "never made"),
}  # fmt: skip
TAKES_A_NUMBER = {
    "within": lambda value: SustainabilityMonitor(value),
    "threshold": lambda value: SustainabilityMonitor(threshold=value),
    "law": lambda value: SustainabilityMonitor(law=value),
    "threshold of law_report": lambda value: law_report(COUNTS, threshold=value, law="weibull", resamples=20),
    "law of law_report": lambda value: law_report(COUNTS, law=value),
    "until_round": lambda value: law_report(COUNTS, until_round=value, law="weibull", resamples=20),
    "seed": lambda value: law_report(COUNTS, law="weibull", resamples=20, seed=value),
    "resamples": lambda value: forecast(SERIES, law="weibull", resamples=value),
    "level": lambda value: accuracy_by_length(COUNTS, value),
    "level of error_budget": lambda value: error_budget(COUNTS, value), "path": read_table,
    "folder": lambda value: None if isinstance(value, (str, bytes)) else save_figures(COUNTS, REPORT, value),
    "threshold of save_figures": lambda value: save_figures(COUNTS, REPORT, "never made", value),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKES_A_TABLE)
def test_anything_as_table(name, place, monkeypatch):
    """What is no table, report or trajectory raises the documented errors, in one line,
    wherever one is taken.
    """
    monkeypatch.chdir(place)

    @settings(fuzz, max_examples=40)
    @given(no_tables)
    def try_tables(value):
        say_one_line(lambda: TAKES_A_TABLE[name](value), TableError, LawError)

    try_tables()
    assert not (place / "never made").exists()


@pytest.mark.parametrize("name", TAKES_A_NUMBER)
def test_anything_as_setting_of_a_law(name, place, monkeypatch):
    """The same for what should be a number, a name or a path."""
    monkeypatch.chdir(place)

    @settings(fuzz, max_examples=40)
    @given(no_numbers)
    def try_numbers(value):
        say_one_line(lambda: TAKES_A_NUMBER[name](value), TableError, LawError, StorageError)

    try_numbers()
    assert not (place / "never made").exists()


# --- the settings of a run folder


@pytest.fixture(scope="module")
def run_folder(place):
    return open_run(CONFIG, place / "run").path


def reopen(run_folder, content):
    """A run folder with any config.json is refused or opened, and then holds the right settings."""
    stored = run_folder / "config.json"
    stored.write_bytes(content)
    Path(f"{stored}.sha256").unlink(missing_ok=True)
    located = say_one_line(lambda: locate_run(CONFIG, run_folder), ConfigError)
    opened = say_one_line(lambda: open_run(CONFIG, run_folder), ConfigError, StorageError)
    assert (located is None) == (opened is None)
    if opened is not None:
        kept = dict(json.loads(read_sealed(stored)))
        assert {name: kept.get(name) for name in identity(CONFIG)} == identity(CONFIG)
        assert opened.path == run_folder and all(
            run_folder in path.parents for path in (opened.models, opened.data)
        )


@fuzz
@given(st.binary(max_size=200))
@example(b"")
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"9" * 10_000)
@example(b"\xff\xfe{\x00}\x00")
@example(b'"\\ud800"')
def test_any_bytes_as_settings(run_folder, content):
    """Arbitrary bytes as config.json are written anew or refused in one line."""
    reopen(run_folder, content)


@fuzz
@given(json_values)
def test_any_json_as_settings(run_folder, value):
    """The same for arbitrary JSON."""
    reopen(run_folder, json.dumps(value).encode())


@fuzz
@given(st.dictionaries(st.sampled_from(list(identity(CONFIG))), json_values, max_size=4), st.booleans())
def test_any_values_as_settings(run_folder, changes, whole):
    """The same for settings of which some have arbitrary values."""
    reopen(run_folder, json.dumps({**(identity(CONFIG) if whole else {}), **changes}).encode())


@fuzz
@given(st.integers(0, 2**32))
def test_any_mutated_settings(run_folder, seed):
    """The same for true settings in which a few bytes are changed."""
    reopen(run_folder, mutate(json.dumps(identity(CONFIG)).encode(), seed))


# --- settings from anywhere

odd = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([10**9, 2**63, 10**40, -(10**40)]),
    st.floats(), st.text(max_size=4),
    st.binary(max_size=2), st.lists(st.integers(), max_size=2), st.just(()), st.just({}), st.just([[]]),
    st.just(("none", "none")), st.just(([],)),
    st.sampled_from(["10", "1e3", "nan", "copy", "none"]), st.just(np.int64(3)), st.just(np.array([1, 2])),
    st.just(object()),
)  # fmt: skip
NAMES = [field.name for field in fields(RunConfig)]


def is_sound(config):
    """Every setting has the type of its default, and no number that is not one."""
    for field in fields(RunConfig):
        value, default = getattr(config, field.name), field.default
        whole = isinstance(default, int) and not isinstance(default, bool)
        wanted = (
            (int, np.integer)
            if whole
            else (float, int, np.number)
            if isinstance(default, float)
            else type(default)
        )
        wrong = isinstance(value, bool) != isinstance(default, bool) or not isinstance(
            value, (list, tuple) if wanted is tuple else wanted
        )
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            return f"{field.name}={value!r}"
    return ""


def check_settings(**changes):
    config = say_one_line(lambda: make_config(**{**SMALL, **changes}), ConfigError)
    assert config is None or not is_sound(config), f"accepted: {is_sound(config)}"
    assert config is None or run_name(config).count("/") == 0


@pytest.mark.parametrize("name", NAMES)
def test_any_value_of_a_setting(name):
    """Each setting takes what it is meant to take, and refuses everything else in one line."""

    @settings(fuzz, max_examples=25)
    @given(odd)
    @example(None)
    @example("10")
    @example(float("nan"))
    @example(1.5)
    @example([1])
    @example(-1)
    def try_values(value):
        check_settings(**{name: value})

    try_values()


@fuzz
@given(st.dictionaries(st.sampled_from(NAMES), odd, min_size=1, max_size=5))
def test_any_values_of_several_settings(changes):
    """The same for several at once."""
    check_settings(**changes)


@fuzz
@given(st.text(max_size=8), odd)
def test_any_name_of_a_setting(name, value):
    """Unknown settings and presets are refused in one line."""
    if name and name not in NAMES and name != "preset":
        with pytest.raises(ConfigError):
            make_config(**{name: value})
    assert say_one_line(lambda: make_config(preset=name or "?"), ConfigError) is None


# --- the tokenizer


@fuzz
@given(st.lists(st.text(max_size=12), max_size=4))
@example(["\ud800"])
@example(["\0", "1+1=2$"])
@example(["\u0661"])
@example([""])
@example([])
def test_any_text_to_tokens(texts):
    """Text of other symbols is refused naming them; everything else comes back as it was."""
    tokens = say_one_line(lambda: encode(texts), ValueError)
    assert (tokens is None) == bool(set("".join(texts)) - set(SYMBOLS[:PAD]))
    assert tokens is None or decode(tokens) == texts


@fuzz
@given(st.lists(st.text(alphabet=SYMBOLS[:PAD], max_size=30), max_size=5))
def test_text_comes_back(texts):
    """Decoding is the inverse of encoding."""
    tokens = encode(texts)
    assert (
        tokens.dtype == np.uint8
        and tokens.shape == (len(texts), max(map(len, texts), default=0))
        and decode(tokens) == texts
    )


@fuzz
@given(st.integers(0, 4), st.integers(0, 6), st.integers(0, 2**32))
def test_any_tokens_to_text(rows, width, seed):
    """All tokens have a text, whatever their number and order."""
    tokens = np.random.default_rng(seed).integers(0, VOCAB_SIZE, (rows, width), dtype=np.uint8)
    texts = decode(tokens)
    assert len(texts) == rows and all(len(text) <= width and set(text) <= set(SYMBOLS) for text in texts)
    assert [text.ljust(width, SYMBOLS[PAD]) for text in texts] == [
        "".join(SYMBOLS[token] for token in row) for row in tokens
    ]


# --- files of tensors


def tensors_content(place):
    path = place / "true.safetensors"
    save_tensors(
        path,
        {
            "a": torch.arange(6).reshape(2, 3),
            "b": torch.zeros(0, 4),
            "c": torch.ones(2, dtype=torch.bfloat16),
        },
        run="x",
        round=3,
    )
    return path.read_bytes()


def load_any(place, content):
    """Tensors from any bytes that have no seal, or None when they are refused."""
    path = place / "any.safetensors"
    path.write_bytes(content)
    return say_one_line(lambda: load_tensors(path), DamagedError, ConfigError)


def with_header(header, data=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


sizes = st.sampled_from(
    [0, 1, 2, 4, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1, 1.5, "2", None]
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(
            ["F32", "U8", "BF16", "I64", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "U64", "U16", "x", None]
        ),
        "shape": st.lists(sizes, max_size=4),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2),
    }
)
SHORT_LIVED = {"__metadata__": {"about": "{}"}}


@fuzz
@given(st.binary(max_size=200))
@example(b"")
@example(b"\x02" + b"\0" * 7 + b"{}")
@example((2**64 - 1).to_bytes(8, "little"))
def test_any_bytes_as_tensors(place, content):
    """Arbitrary bytes are refused in one line."""
    assert load_any(place, content) is None


@settings(fuzz, max_examples=200)
@given(st.dictionaries(st.text(max_size=3), entries, max_size=2), st.binary(max_size=8))
@example({"x": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, b"")
@example({"x": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}, b"")
@example({"x": {"dtype": "C64", "shape": [0], "data_offsets": [0, 0]}}, b"")
@example({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"1")
def test_any_header_of_tensors(place, header, data):
    """Headers that announce any type and size are accepted if they are true, else refused in one line."""
    found = load_any(place, with_header({**SHORT_LIVED, **header}, data))
    assert found is None or sum(tensor.numel() for tensor in found[0].values()) <= 8 * len(data)


@fuzz
@given(json_values)
@example({"about": "[[]]"})
@example({"about": "[" * 50_000})
@example({"about": "null"})
@example({"about": "9" * 5_000})
def test_any_metadata_of_tensors(place, value):
    """What a header says besides is a dictionary, or the file is refused in one line."""
    found = load_any(place, with_header({"__metadata__": value}))
    assert found is None or isinstance(found[1], dict)


@settings(fuzz, max_examples=150)
@given(st.integers(0, 2**32))
def test_any_mutated_tensors(place, seed):
    """The same for a true file in which a few bytes are changed."""
    load_any(place, mutate(tensors_content(place), seed))


@fuzz
@given(st.integers(0, 2**32))
def test_a_seal_finds_every_change(place, seed):
    """With its seal beside it, no change of a file goes unnoticed."""
    content = tensors_content(place)
    changed = mutate(content, seed)
    (place / "true.safetensors").write_bytes(changed)
    loaded = say_one_line(lambda: load_tensors(place / "true.safetensors"), DamagedError)
    assert (loaded is not None) == (changed == content)


@fuzz
@given(st.dictionaries(st.sampled_from(["facts", "run", "training", "x"]), json_values))
@example({})
@example({"facts": {}})
def test_any_checkpoint(place, about):
    """A checkpoint whose header says anything is used, passed over or refused in one line."""
    folder = Path(tempfile.mkdtemp(dir=place))
    save_tensors(folder / "base_0.step_000000001.safetensors", {"x": torch.zeros(1)}, **about)
    say_one_line(lambda: load_checkpoint(folder, "base_0"), DamagedError, ConfigError)


@fuzz
@given(st.binary(max_size=200), st.binary(max_size=50))
@example(b"\xff" * 64, b"x")
@example(b"", b"")
def test_any_seal(place, seal, content):
    """Whatever a seal holds, the file beside it is refused, unless the seal has its digest."""
    path = place / "sealed"
    write_sealed(path, b"other" + content)
    path.write_bytes(content)
    (place / "sealed.sha256").write_bytes(seal)
    assert say_one_line(lambda: read_sealed(path), DamagedError) is None


# --- locks


def try_lock(place, content):
    """A fresh lock with any content is respected in one line or taken over,
    and never crashes who finds it.
    """
    folder = Path(tempfile.mkdtemp(dir=place))
    (folder / "run.lock").write_bytes(content)

    def enter():
        with hold(folder) as check:
            check()

    say_one_line(enter, LockedError, StorageError)
    assert not list(folder.glob(".*"))


@fuzz
@given(st.binary(max_size=100))
@example(b"[" * 100_000)
@example(b"\xff\xfe")
def test_any_bytes_as_lock(place, content):
    """Arbitrary bytes."""
    try_lock(place, content)


@fuzz
@given(
    st.fixed_dictionaries(
        {}, optional={name: json_values for name in ("host", "pid", "started", "place", "token")}
    ),
    st.booleans(),
)
@example({"host": "h", "pid": 10**30, "started": None}, True)
@example({"host": "h", "pid": float("inf"), "started": None}, True)
@example({"host": "h", "pid": -1, "started": None}, True)
@example({"host": "a\nb", "pid": 5, "started": None}, False)
def test_any_owner_in_a_lock(place, owner, here):
    """Arbitrary facts about the owner, here or elsewhere."""
    whole = {"host": "h", "pid": 1, "started": "0", "place": "elsewhere", **owner}
    try_lock(
        place, json.dumps({**whole, **({"place": si_nb.record.storage._place()} if here else {})}).encode()
    )
