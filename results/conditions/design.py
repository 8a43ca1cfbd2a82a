"""Choose the runs of the conditions sweep, beyond those that the grid already holds.

Run as: python results/conditions/design.py

A bundle is one set of base models and three runs from it. Its cell (task, base length, width), the strength
of its base models and whether there is a vote among its runs are drawn; what is cheap and what lasts is drawn
more often. Each bundle is then the best of five: of forty random ones, those most likely to last. What a run
tells of lasting is p (1 - p) times the square of its row in a linear model in the logarithms of the settings,
where p is the chance of lasting twenty rounds that the law of conditions gives it at present (the information
of a logistic model): runs that are sure to die or to last tell little. The determinant of the information
matrix, divided by the square root of the bundle's expense, is largest (D-optimality, greedily). So every
beginning of the grid is itself a balanced design. All random numbers come from one seed; the law was the one
that rests on 308 runs.

Bundles up to 75 were chosen by earlier versions of this file: the first ten without asking how likely a run
is to last, those up to 40 with the loss on all tokens, all of them with three layers. Few of their runs
lasted. Those of which a run was carried out stay, and what they tell counts in the choice of the others (a
design augmented). The new ones learn from the answers alone, and most have a fourth layer: in trials that
gave stronger base models at less expense than more steps or more width.

Run as: python results/conditions/design.py --small 10

Puts sets of base models behind all others that are cheap and where the law is least to be trusted: widths 32
and 48, three layers, base lengths 12 and 16, 8,000 steps. Of the first such set (43, width 32, length 16) two
runs without a filter went on for 14 and 17 rounds and one with an oracle lasted, where the law gave chances
of lasting of 0.06, 0.12 and 0.25. Otherwise as above, but for two oracles in a set, as too few runs last, and
a vote in one set of five, since that costs three times as much.
"""

import argparse
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache
from math import log
from pathlib import Path

import numpy as np
import pandas as pd

from si_nb.law.prediction import predict
from si_nb.loop.sweep import read_grid

TASK_SHARES = {"copy": 0.45, "reverse": 0.47, "reverse_addition": 0.08}
SMALL_TASKS, SMALL_LENGTHS = {"copy": 0.5, "reverse": 0.5}, {12: 0.4, 16: 0.6}
SMALL_WIDTHS, SMALL_ORACLES = {32: 0.3, 48: 0.7}, 2
SMALL_STEPS, SMALL_VOTE_SHARE = 8_000, 0.2
_LENGTHS, _WIDTHS = {8: 0.3, 10: 0.35, 12: 0.35}, {48: 0.2, 64: 0.5, 96: 0.3}  # with their shares
BASE_LENGTHS = {"copy": _LENGTHS, "reverse": _LENGTHS, "reverse_addition": {5: 0.4, 7: 0.6}}
WIDTHS = {"copy": _WIDTHS, "reverse": _WIDTHS, "reverse_addition": {64: 0.6, 96: 0.4}}
BASE_STEPS = {
    "copy": (4_000, 8_000, 16_000),
    "reverse": (4_000, 8_000, 16_000),
    "reverse_addition": (3_000, 6_000, 12_000),
}
MIDDLE_STEPS = {"copy": 4_000, "reverse": 4_000, "reverse_addition": 6_000}  # where features are zero
VOTE_SHARE = 0.5  # of the bundles: a vote needs several base models, the other arms need one
BASE_STEP_SHARES = (0.2, 0.45, 0.35)  # of the three levels: weak bases die early and tell little
LAYERS = {3: 0.2, 4: 0.8}
LEARNING_RATES = {32: 3e-3, 48: 2.5e-3, 64: 2e-3, 96: 1.5e-3}
ROUND_STEPS = {50: 0.2, 100: 0.3, 200: 0.3, 400: 0.2}
LABELS = {500: 0.25, 1_000: 0.35, 4_000: 0.4}
VOTES = ((3, 0.6), (3, 1.0), (5, 0.6), (5, 0.8), (5, 1.0))  # three voters cannot tell 0.8 from 1.0
ARM_SHARES = {"none": 0.3, "oracle": 0.2, "mv": 0.05, "mv_length": 0.45}
MOST_STEP_LABELS = 400 * 4_000  # steps times labels of a round: the costliest corners are left out
MOST_VOTED = {32: 200_000, 48: 200_000, 64: 200_000, 96: 100_000}  # the same where several vote, by width
SEEDS = tuple(range(6))
ROUNDS = 22
LASTING = 20  # rounds
POOL = 5  # of the candidates, those most likely to last
GRID = Path(__file__).with_name("grid.toml")


@dataclass(frozen=True)
class Base:
    """Settings of a set of base models."""

    task: str
    original_digits: int
    n_layer: int
    n_embd: int
    max_iters: int
    loss_on: str
    seed: int


@dataclass(frozen=True)
class Run:
    """Settings of a run after its base models; voters and vote_threshold matter only if there is a vote."""

    si_method: str
    si_iter: int
    num_samples: int
    voters: int = 3
    vote_threshold: float = 1.0


def draw(shares, generator):
    """A value, as often as its share says."""
    return list(shares)[generator.choice(len(shares), p=list(shares.values()))]


def draw_run(width, generator):
    """A random run of models of a width that is not among the costliest."""
    while True:
        arm, steps, labels = (draw(shares, generator) for shares in (ARM_SHARES, ROUND_STEPS, LABELS))
        voters, threshold = VOTES[generator.choice(len(VOTES), p=(0.25, 0.3, 0.1, 0.25, 0.1))]
        voted = arm.startswith("mv")
        if steps * labels <= (MOST_VOTED[width] if voted else MOST_STEP_LABELS):
            return Run(arm, steps, labels, *((voters, threshold) if voted else ()))


def features(base, run):
    """The row of a run in the linear model; settings as logarithms, near 0 in the middle of their range."""
    length, width = log(base.original_digits / 10, 2), log(base.n_embd / 64, 2)
    depth = base.n_layer - 3
    strength = log(base.max_iters / MIDDLE_STEPS[base.task], 4)
    steps, labels = log(run.si_iter / 100, 4), log(run.num_samples / 1_000, 4)
    vote, oracle = run.si_method.startswith("mv"), run.si_method == "oracle"
    main = [
        1,
        base.loss_on == "answer",
        base.task == "reverse",
        base.task == "reverse_addition",
        length,
        width,
        depth,
        strength,
        steps,
        labels,
        oracle,
        vote,
    ]
    filters = [vote * log(run.voters / 3, 2), vote * (run.vote_threshold - 0.8) * 5]
    both = [
        length * width,
        length * strength,
        depth * strength,
        depth * vote,
        steps * labels,
        vote * ((run.vote_threshold - 0.8) * 5) ** 2,
        vote * steps,
        vote * labels,
        vote * length,
        oracle * steps,
        oracle * length,
    ]
    return np.array(main + filters + both + [length**2, width**2, strength**2, steps**2, labels**2], float)


def draw_cell(generator, small):
    """Task, base length, width, base steps, layers, whether there is a vote, and most runs with an oracle."""
    if small:
        found = [draw(shares, generator) for shares in (SMALL_TASKS, SMALL_LENGTHS, SMALL_WIDTHS)]
        return *found, SMALL_STEPS, 3, bool(generator.random() < SMALL_VOTE_SHARE), SMALL_ORACLES
    task = draw(TASK_SHARES, generator)
    found = [task, draw(BASE_LENGTHS[task], generator), draw(WIDTHS[task], generator)]
    steps = int(generator.choice(BASE_STEPS[task], p=BASE_STEP_SHARES))
    return *found, steps, draw(LAYERS, generator), bool(generator.random() < VOTE_SHARE), 1


def draw_bundle(cell, generator):
    """Base models and three runs, of two arms at least; at most one of five voters."""
    task, length, width, steps, layers, vote, oracles = cell
    while True:
        runs = {draw_run(width, generator) for _ in range(3)}
        arms = {run.si_method for run in runs}
        fits = any(arm.startswith("mv") for arm in arms) == vote and sum(run.voters == 5 for run in runs) <= 1
        fits = fits and sum(run.si_method == "oracle" for run in runs) <= oracles
        if fits and len(runs) == 3 and len(arms) > 1:
            base = Base(task, length, layers, width, steps, "answer", int(generator.choice(SEEDS)))
            return base, tuple(sorted(runs, key=repr))


def voters_of(run):
    """How many models of a run are trained: one where there is no vote."""
    return run.voters if run.si_method.startswith("mv") else 1


def expense(base, runs):
    """About what a bundle costs, labels and measuring too, in steps of 3 layers, width 64 and ten digits."""
    per_step = base.n_layer / 3 * (0.4 + 0.6 * base.n_embd / 64) * (base.original_digits + 10) / 20
    voters = [voters_of(run) for run in runs]
    rounds = sum(
        25 * k * (run.si_iter + run.num_samples / 20 + 150) for k, run in zip(voters, runs, strict=True)
    )
    return per_step * (base.max_iters * max(voters) + rounds)


@cache
def lasting(base, run):
    """The chance that a run lasts twenty rounds, by the law of conditions as it is fitted now."""
    width = {"batch_size": 64, "learning_rate": LEARNING_RATES[base.n_embd]}
    found = predict({**asdict(base), **asdict(run), **width}, draws=300)
    return found["probability_lasting"][str(LASTING)]


def rows_of(base, runs):
    """The rows of a bundle, weighted so that their squares add up to its information."""
    chances = np.clip([lasting(base, run) for run in runs], 0.02, 0.98)
    return np.stack([features(base, run) for run in runs]) * np.sqrt(chances * (1 - chances))[:, None]


def information_of(base, runs):
    """What the runs of a bundle add to the information matrix."""
    rows = rows_of(base, runs)
    return rows.T @ rows


def choose(kept, bundles, candidates, seed, small):
    """Bundles to carry out after those kept, in order, up to a number of all."""
    generator, chosen = np.random.default_rng(seed), list(kept)
    information = 0.02 * np.eye(len(features(Base("copy", 6, 3, 32, 2_000, "all", 0), Run("none", 25, 250))))
    information += sum(information_of(base, runs) for base, runs in kept)
    while len(chosen) < bundles:
        cell = draw_cell(generator, small)
        drawn = [draw_bundle(cell, generator) for _ in range(candidates)]
        drawn = [bundle for bundle in drawn if bundle[0] not in dict(chosen)]
        pool = sorted(drawn, key=lambda bundle: -sum(lasting(bundle[0], run) for run in bundle[1]))[:POOL]
        rows = np.stack([rows_of(base, runs) for base, runs in pool])
        gains = np.linalg.slogdet(np.eye(3) + rows @ np.linalg.inv(information) @ rows.transpose(0, 2, 1))[1]
        best = int((gains / np.array([expense(base, runs) for base, runs in pool]) ** 0.5).argmax())
        chosen.append(pool[best])
        information += information_of(*pool[best])
    return chosen[len(kept) :]


def read_bundles(path):
    """The bundles of a grid, in their order."""
    bundles = {}
    for run in read_grid(path).runs.values():
        config = asdict(run.config) | {"si_method": run.config.si_method[0]}
        base = Base(*(config[name] for name in Base.__dataclass_fields__))
        bundles.setdefault(run.groups[0][:-1], (base, []))[1].append(
            Run(*(config[name] for name in Run.__dataclass_fields__))
        )
    return list(bundles.values())


def group_text(number, base, runs):
    """Groups of the grid for one bundle: one for each run."""
    learning_rate, heads = LEARNING_RATES[base.n_embd], base.n_embd // 16
    for letter, run in zip("abc", runs, strict=True):
        yield (
            f'[[group]]\nname = "{number:02d}{letter}"\nseeds = [{base.seed}]\n'
            f'settings = {{ task = "{base.task}", original_digits = {base.original_digits}, '
            f"n_layer = {base.n_layer}, n_embd = {base.n_embd}, n_head = {heads}, "
            f'learning_rate = {learning_rate}, max_iters = {base.max_iters}, loss_on = "{base.loss_on}", '
            f'si_method = "{run.si_method}", si_iter = {run.si_iter}, num_samples = {run.num_samples}, '
            f"voters = {voters_of(run)}, vote_threshold = {run.vote_threshold}, si_rounds = {ROUNDS} }}\n"
        )


def begun(blocks):
    """Those groups of the grid of whose bundle a run has been carried out, as text, in their order."""
    runs = pd.read_csv(GRID.with_name("runs.csv"))
    done = runs.loc[runs["status"] != "unfinished", "groups"].str[:-1]
    return [block for block in blocks if block.split('"')[1][:-1] in set(done)]


def main():
    """Write the grid anew behind the bundles begun, and print how often each value occurs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundles", type=int, default=48, help="bundles in all")
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--small", type=int, help="small bundles to add; all others stay")
    args = parser.parse_args()
    head, *blocks = GRID.read_text().split("[[group]]\n")
    stay = blocks if args.small else begun(blocks)
    GRID.write_text(head + "".join(f"[[group]]\n{block.rstrip()}\n\n" for block in stay))
    kept, first = read_bundles(GRID), 1 + max(int(block.split('"')[1][:-1]) for block in stay)
    bundles = len(kept) + args.small if args.small else args.bundles
    chosen = choose(kept, bundles, args.candidates, args.seed, bool(args.small))
    groups = [group_text(number, *bundle) for number, bundle in enumerate(chosen, first)]
    with GRID.open("a") as grid:
        grid.write("\n".join(text for bundle in groups for text in bundle))
    for name in Base.__dataclass_fields__:
        print(name, dict(Counter(getattr(base, name) for base, _ in kept + chosen)))
    for name in Run.__dataclass_fields__:
        print(name, dict(Counter(getattr(run, name) for _, runs in kept + chosen for run in runs)))
    chances = [lasting(base, run) for base, runs in chosen for run in runs]
    print(f"of the {len(chances)} new runs about {sum(chances):.0f} are expected to last {LASTING} rounds")
    print(f"expense {sum(expense(*bundle) for bundle in chosen):,.0f}")


if __name__ == "__main__":
    main()
