"""Bisect critical settings: the value of one setting at which half of six seeds last twenty rounds.

Run as: python results/critical/run.py --predict, before any run of a new point; then
        python results/critical/run.py FOLDER --jobs 2 [--points NAME ...]

The points are in points.toml. Each starts at the value that the law of conditions foretold (predictions.json;
a point that has a forecast keeps it), moves by a factor of two until one value lasts and one does not, and
then halves the distance in logarithms once; base lengths go on until they are neighbours. A value lasts when
three of its six seeds do; four seeds are run first, the last two only where those leave it open. All runs of
all points are carried out as one sweep in FOLDER, which goes on where it was interrupted. Writes grid.toml,
the runs that were asked for, and critical.csv, what they say so far, beside this file.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

from si_nb.law.forecasters import collapse_round
from si_nb.law.prediction import critical
from si_nb.loop.settings import ConfigError, RunConfig
from si_nb.record.table import read_table, trajectory

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE, SEEDS, FIRST, ROUNDS, FARTHEST = Path(__file__).parent, range(30, 36), 4, 20, 32
HEAD = "# Written by run.py from points.toml; do not edit by hand.\n\nstop_when_over = true\n"


def read_points():
    """Points with all their settings, by name."""
    content = tomllib.loads((HERE / "points.toml").read_text())
    return {
        point["name"]: {"vary": point["vary"], "settings": content["settings"] | point["settings"]}
        for point in content["point"]
    }


def predict_new(points, foretold):
    """What the law says of every point that has no forecast yet, written beside this file with the others."""
    new = {name: point for name, point in points.items() if name not in foretold}
    found = {name: critical(point["settings"], point["vary"], ROUNDS) for name, point in new.items()}
    (HERE / "predictions.json").write_text(json.dumps(foretold | found, indent=1) + "\n")
    return found


def whole(point, value):
    """A value that the setting can have: even lengths and steps are counts."""
    return max(4 if point["vary"] == "original_digits" else 1, round(value))


def possible(point, value):
    """Whether there is such a run: from very long base lengths its sequences do not fit."""
    settings = point["settings"] | {point["vary"]: value}
    try:
        RunConfig(**settings | {"si_method": (settings["si_method"],)})
    except ConfigError:
        return False
    return True


def verdict(lasting):
    """Whether half of six seeds last; None while those run so far leave it open."""
    good, left = sum(lasting), len(SEEDS) - len(lasting)
    if good >= len(SEEDS) / 2:
        return True
    return False if good + left < len(SEEDS) / 2 else None


def bracket(verdicts):
    """Largest value below which nothing lasts, and smallest that lasts; None where there is none yet."""
    good = min((value for value, lasts in verdicts.items() if lasts), default=None)
    bad = [value for value, lasts in verdicts.items() if not lasts and (good is None or value < good)]
    return max(bad, default=None), good


def next_value(point, start, verdicts):
    """The value to be tried next; None when the point is settled or lies beyond the farthest value."""
    low, high = bracket(verdicts)
    if low is None and high is None:
        return whole(point, start)
    if low is None or high is None:
        value = whole(point, 2 * low if high is None else high / 2)
        inside = 1 / FARTHEST <= value / start <= FARTHEST
        return value if inside and value not in verdicts and possible(point, value) else None
    near = high - low <= 1 if point["vary"] == "original_digits" else high / low < 1.5
    return None if near else whole(point, (low * high) ** 0.5)


def lasting_of(table, runs):
    """For each point and value the seeds run so far: whether each has lasted."""
    ended = collapse_round(trajectory(table)).set_index("run_id")
    found = {}
    for run in runs[runs["status"].isin(["finished", "over"])].to_dict("records"):
        lasts = bool(ended.loc[run["run_id"], "at_least"] > ROUNDS)
        for group in run["groups"].split(";"):
            name, value, _ = group.split(" ")
            found.setdefault(name, {}).setdefault(int(value), []).append(lasts)
    return found


def group_text(name, point, value, seeds):
    """A group of the grid: one value of a point with some seeds."""
    settings = point["settings"] | {point["vary"]: value}
    words = ", ".join(f"{key} = {json.dumps(setting)}" for key, setting in settings.items())
    title = f'name = "{name} {value} {len(seeds)}"\nseeds = {list(seeds)}'
    return f"\n[[group]]\n{title}\nsettings = {{ {words} }}\n"


def wanted(point, start, seen):
    """What a point asks for next: a new value and the first seeds, or the last seeds of an open value."""
    verdicts = {value: verdict(seeds) for value, seeds in seen.items()}
    open_values = [value for value, lasts in verdicts.items() if lasts is None]
    if open_values:
        return open_values[0], SEEDS[FIRST:]
    value = next_value(point, start, verdicts)
    return None if value is None else (value, SEEDS[:FIRST])


def asked(points, starts, lasting):
    """Groups that are wanted next."""
    found = {name: wanted(point, starts[name], lasting.get(name, {})) for name, point in points.items()}
    return [group_text(name, points[name], *each) for name, each in found.items() if each]


def summary(points, starts, lasting):
    """A row for each point: the value foretold, what was found on either side of it, and the counts."""
    rows = []
    for name, point in points.items():
        seen = dict(sorted(lasting.get(name, {}).items()))
        low, high = bracket({value: bool(verdict(seeds)) for value, seeds in seen.items()})
        counts = "; ".join(f"{value}: {sum(seeds)} of {len(seeds)}" for value, seeds in seen.items())
        settled = wanted(point, starts[name], seen) is None
        rows.append((name, point["vary"], starts[name], low, high, settled, counts))
    names = ["point", "setting", "foretold", "dies", "lasts", "settled", "lasting"]
    return pd.DataFrame(rows, columns=names)


def main():
    """Predict, or go on with the runs until every point is settled."""
    points = read_points()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--points", nargs="+", choices=points, help="go on with these only; default: all")
    args = parser.parse_args()
    grid, said = HERE / "grid.toml", HERE / "predictions.json"
    foretold = json.loads(said.read_text()) if said.exists() else {}
    if args.predict:
        print(pd.DataFrame(predict_new(points, foretold)).T)
        return
    starts = {
        name: foretold[name]["value"] or point["settings"].get(point["vary"], 12)
        for name, point in points.items()
    }
    text = grid.read_text() if grid.exists() else HEAD
    while True:
        lasting = {}
        if "[[group]]" in text:
            grid.write_text(text)
            command = [
                sys.executable,
                "-m",
                "si_nb",
                "sweep",
                grid,
                "--out",
                args.folder,
                "--jobs",
                args.jobs,
            ]
            subprocess.run(command, check=True)
            lasting = lasting_of(read_table(args.folder), pd.read_csv(args.folder / "runs.csv"))
            summary(points, starts, lasting).to_csv(HERE / "critical.csv", index=False)
        chosen = {name: points[name] for name in args.points or points}
        more = asked(chosen, starts, lasting)
        if not more:
            break
        text += "".join(more)


if __name__ == "__main__":
    main()
