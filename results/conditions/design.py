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

Run as: python results/conditions/design.py --lasting 34

Too few of these runs last, so this adds runs of base models that the grid already has, where rounds are all
that they cost: those whose chance of lasting is at least 0.7 by the law as it is now. No more than two for a
set of base models, an oracle in every other one at most while there are others, and again the most
information for the expense first.
"""

import argparse
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from math import log
from pathlib import Path

import numpy as np
import pandas as pd

from si_nb.law.prediction import predict
from si_nb.loop.sweep import read_grid

TASK_SHARES = {"copy": 0.45, "reverse": 0.47, "reverse_addition": 0.08}
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
MOST_VOTED = {48: 200 * 1_000, 64: 200 * 1_000, 96: 100 * 1_000}  # the same where several vote, by width
SEEDS = tuple(range(6))
ROUNDS = 22
LASTING = 20  # rounds
POOL = 5  # of the candidates, those most likely to last
LIKELY, MORE_EACH = 0.7, 2  # least chance of lasting of a further run; how many more a set of base models has
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


def draw_bundle(cell, steps, vote, generator):
    """Base models and three runs, of two arms at least; at most one oracle, at most one of five voters."""
    while True:
        runs = {draw_run(cell[2], generator) for _ in range(3)}
        arms = {run.si_method for run in runs}
        fits = any(arm.startswith("mv") for arm in arms) == vote and sum(run.voters == 5 for run in runs) <= 1
        fits = fits and sum(run.si_method == "oracle" for run in runs) <= 1
        if fits and len(runs) == 3 and len(arms) > 1:
            task, length, width = cell
            base = Base(
                task, length, draw(LAYERS, generator), width, steps, "answer", int(generator.choice(SEEDS))
            )
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


def choose(kept, bundles, candidates, seed):
    """Bundles to carry out after those kept, in order, up to a number of all."""
    generator, chosen = np.random.default_rng(seed), list(kept)
    information = 0.02 * np.eye(len(features(Base("copy", 6, 3, 32, 2_000, "all", 0), Run("none", 25, 250))))
    information += sum(information_of(base, runs) for base, runs in kept)
    while len(chosen) < bundles:
        task = draw(TASK_SHARES, generator)
        cell = (task, draw(BASE_LENGTHS[task], generator), draw(WIDTHS[task], generator))
        steps = int(generator.choice(BASE_STEPS[task], p=BASE_STEP_SHARES))
        vote = bool(generator.random() < VOTE_SHARE)
        drawn = [draw_bundle(cell, steps, vote, generator) for _ in range(candidates)]
        drawn = [bundle for bundle in drawn if bundle[0] not in dict(chosen)]
        pool = sorted(drawn, key=lambda bundle: -sum(lasting(bundle[0], run) for run in bundle[1]))[:POOL]
        rows = np.stack([rows_of(base, runs) for base, runs in pool])
        gains = np.linalg.slogdet(np.eye(3) + rows @ np.linalg.inv(information) @ rows.transpose(0, 2, 1))[1]
        best = int((gains / np.array([expense(base, runs) for base, runs in pool]) ** 0.5).argmax())
        chosen.append(pool[best])
        information += information_of(*pool[best])
    return chosen[len(kept) :]


def likely_runs(base, runs):
    """Runs that base models can still have, likely to last; votes only of as many models as there are."""
    voters = max(map(voters_of, runs))
    arms = [("none",), ("oracle",), *[("mv_length", *vote) for vote in VOTES if vote[0] <= voters]]
    further = [
        Run(arm, steps, labels, *vote)
        for arm, *vote in arms
        for steps, labels in product(ROUND_STEPS, LABELS)
        if steps * labels <= (MOST_VOTED[base.n_embd] if vote else MOST_STEP_LABELS)
    ]
    return [run for run in further if run not in runs and lasting(base, run) >= LIKELY]


def choose_lasting(bundles, number):
    """Further runs of strong base models and the names of their bundles, most information first."""
    pool = [
        (name, base, run)
        for name, (base, runs) in bundles.items()
        if base.loss_on == "answer" and base.n_embd in MOST_VOTED
        for run in likely_runs(base, runs)
    ]
    information = 0.02 * np.eye(len(features(*pool[0][1:])))
    information += sum(information_of(*bundle) for bundle in bundles.values())
    chosen = []
    while len(chosen) < number and pool:
        without = [each for each in pool if each[2].si_method != "oracle"]
        open_to = without if without and len(chosen) % 2 else pool
        rows = np.stack([rows_of(base, [run])[0] for _, base, run in open_to])
        gains = np.log1p(np.einsum("ij,jk,ik->i", rows, np.linalg.inv(information), rows))
        expenses = [expense(replace(base, max_iters=0), [run]) for _, base, run in open_to]
        best = open_to[int((gains / np.array(expenses) ** 0.5).argmax())]
        chosen.append(best)
        information += information_of(best[1], [best[2]])
        full = Counter(name for name, *_ in chosen)
        pool = [each for each in pool if each != best and full[each[0]] < MORE_EACH]
    return chosen


def read_bundles(path):
    """The bundles of a grid, by the number in the names of their groups."""
    bundles = {}
    for run in read_grid(path).runs.values():
        config = asdict(run.config) | {"si_method": run.config.si_method[0]}
        base = Base(*(config[name] for name in Base.__dataclass_fields__))
        bundles.setdefault(run.groups[0][:-1], (base, []))[1].append(
            Run(*(config[name] for name in Run.__dataclass_fields__))
        )
    return bundles


def group_text(number, base, runs, letters="abc"):
    """Groups of the grid for one bundle: one for each run."""
    learning_rate, heads = LEARNING_RATES[base.n_embd], base.n_embd // 16
    for letter, run in zip(letters, runs, strict=True):
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


def add_lasting(number):
    """Put further runs behind all others, and print how many of them are expected to last."""
    bundles = read_bundles(GRID)
    chosen, letters = choose_lasting(bundles, number), {name: iter("defgh") for name in bundles}
    with GRID.open("a") as grid:
        for name, base, run in chosen:
            grid.write("\n" + "".join(group_text(int(name), base, [run], next(letters[name]))))
    for name in Run.__dataclass_fields__:
        print(name, dict(Counter(getattr(run, name) for *_, run in chosen)))
    print(f"{sum(lasting(base, run) for _, base, run in chosen):.0f} of {len(chosen)} are expected to last")
    print(f"expense {sum(expense(replace(base, max_iters=0), [run]) for _, base, run in chosen):,.0f}")


def main():
    """Write the grid anew behind the bundles begun, and print how often each value occurs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundles", type=int, default=48, help="bundles in all")
    parser.add_argument("--candidates", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--lasting", type=int, help="runs to add of base models that are there, and no others"
    )
    args = parser.parse_args()
    if args.lasting:
        return add_lasting(args.lasting)
    head, *blocks = GRID.read_text().split("[[group]]\n")
    GRID.write_text(head + "".join(f"[[group]]\n{block.rstrip()}\n\n" for block in begun(blocks)))
    kept = list(read_bundles(GRID).values())
    first = 1 + max(int(block.split('"')[1][:-1]) for block in begun(blocks))
    chosen = choose(kept, args.bundles, args.candidates, args.seed)
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
