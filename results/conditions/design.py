"""Choose the runs of the conditions sweep, beyond those that the grid already holds.

Run as: python results/conditions/design.py --keep 5

A bundle is one set of base models and three runs from it. Task, base length and width go through all their
combinations in a random order, again and again; the strength of the base models, and whether there is a vote
among the runs, are drawn for each. Bundles are added one by one. Each is the best of many random ones of its
combination: the determinant of the information matrix of a linear model in the logarithms of the settings,
divided by the square root of the bundle's expense, is largest (D-optimality, greedily). So every beginning
of the grid is itself a balanced design. All random numbers come from one seed.

The first five bundles were chosen by an earlier version of this file, which preferred what is cheap less and
gave every bundle a vote: at that rate the sweep would have taken three times as long, and most of its runs
would have died early. They stay, and what they tell counts in the choice of the others (a design augmented).
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
import tomllib

TASKS = ("copy", "reverse", "reverse_addition")
BASE_LENGTHS = {"copy": (6, 8, 12, 16), "reverse": (6, 8, 12, 16), "reverse_addition": (5, 7, 10)}
WIDTHS = {"copy": (32, 64, 96), "reverse": (32, 64, 96), "reverse_addition": (64, 96)}
BASE_STEPS = {
    "copy": (2_500, 5_000, 10_000),
    "reverse": (2_500, 5_000, 10_000),
    "reverse_addition": (3_000, 6_000, 12_000),
}
VOTE_SHARE = 0.4  # of the bundles: a vote needs several base models, the other arms need one
BASE_STEP_SHARES = (0.15, 0.45, 0.4)  # of the three levels: weak bases die early and tell little
LEARNING_RATES = {32: 3e-3, 64: 2e-3, 96: 1.5e-3}
ROUND_STEPS = (25, 100, 400)
LABELS = (250, 1_000, 4_000)
VOTES = ((3, 0.6), (3, 1.0), (5, 0.6), (5, 0.8), (5, 1.0))  # three voters cannot tell 0.8 from 1.0
ARMS = ("none", "oracle", "mv", "mv_length")
SHARES = {"none": 0.3, "oracle": 0.25, "mv": 0.05, "mv_length": 0.4}
MOST_STEP_LABELS = 400 * 1_000  # steps times labels of a round: the costliest corners are left out
MOST_VOTED = {32: 400 * 250, 64: 100 * 1_000, 96: 100 * 250}  # the same where several voters work, by width
SEEDS = tuple(range(6))
ROUNDS = 22
GRID = Path(__file__).with_name("grid.toml")


@dataclass(frozen=True)
class Base:
    """Settings of a set of base models."""

    task: str
    original_digits: int
    n_embd: int
    max_iters: int
    seed: int


@dataclass(frozen=True)
class Run:
    """Settings of a run after its base models; voters and vote_threshold matter only if there is a vote."""

    si_method: str
    si_iter: int
    num_samples: int
    voters: int = 3
    vote_threshold: float = 1.0


CELLS = [(task, length, width) for task in TASKS for length in BASE_LENGTHS[task] for width in WIDTHS[task]]


def draw_run(width, generator):
    """A random run of models of a width that is not among the costliest."""
    while True:
        arm = str(generator.choice(ARMS, p=[SHARES[arm] for arm in ARMS]))
        steps, labels = int(generator.choice(ROUND_STEPS)), int(generator.choice(LABELS))
        voters, threshold = VOTES[generator.choice(len(VOTES), p=(0.25, 0.3, 0.1, 0.25, 0.1))]
        voted = arm.startswith("mv")
        if steps * labels <= (MOST_VOTED[width] if voted else MOST_STEP_LABELS):
            return Run(arm, steps, labels, *((voters, threshold) if voted else ()))


def features(base, run):
    """The row of a run in the linear model; settings as logarithms, near 0 in the middle of their range."""
    length, width = log(base.original_digits / 10, 2), log(base.n_embd / 64, 2)
    strength = log(base.max_iters / BASE_STEPS[base.task][1], 4)
    steps, labels = log(run.si_iter / 100, 4), log(run.num_samples / 1_000, 4)
    vote, oracle = run.si_method.startswith("mv"), run.si_method == "oracle"
    main = [
        1,
        base.task == "reverse",
        base.task == "reverse_addition",
        length,
        width,
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
    """Base models and three runs from them, of two arms at least; at most one of five voters."""
    while True:
        runs = {draw_run(cell[2], generator) for _ in range(3)}
        arms = {run.si_method for run in runs}
        fits = any(arm.startswith("mv") for arm in arms) == vote and sum(run.voters == 5 for run in runs) <= 1
        if fits and len(runs) == 3 and len(arms) > 1:
            return Base(*cell, steps, int(generator.choice(SEEDS))), tuple(sorted(runs, key=repr))


def voters_of(run):
    """How many models of a run are trained: one where there is no vote."""
    return run.voters if run.si_method.startswith("mv") else 1


def expense(base, runs):
    """About what a bundle costs, labels and measuring included, in steps of width 64 and ten digits."""
    per_step = (0.4 + 0.6 * base.n_embd / 64) * (base.original_digits + 10) / 20
    voters = [voters_of(run) for run in runs]
    rounds = sum(
        25 * k * (run.si_iter + run.num_samples / 20 + 150) for k, run in zip(voters, runs, strict=True)
    )
    return per_step * (base.max_iters * max(voters) + rounds)


def information_of(base, runs):
    """What the runs of a bundle add to the information matrix."""
    rows = np.stack([features(base, run) for run in runs])
    return rows.T @ rows


def choose(kept, bundles, candidates, seed):
    """Bundles to carry out after those kept, in order, up to a number of all."""
    generator, chosen = np.random.default_rng(seed), list(kept)
    information = 0.1 * np.eye(len(features(Base("copy", 6, 32, 2_000, 0), Run("none", 25, 250))))
    information += sum(information_of(base, runs) for base, runs in kept)
    while len(chosen) < bundles:
        if (len(chosen) - len(kept)) % len(CELLS) == 0:
            cells = list(generator.permutation(len(CELLS)))
        cell = CELLS[cells.pop()]
        steps = int(generator.choice(BASE_STEPS[cell[0]], p=BASE_STEP_SHARES))
        vote = bool(generator.random() < VOTE_SHARE)
        pool = [
            bundle
            for bundle in (draw_bundle(cell, steps, vote, generator) for _ in range(candidates))
            if bundle[0] not in dict(chosen)
        ]
        rows = np.stack([[features(base, run) for run in runs] for base, runs in pool])
        gains = np.linalg.slogdet(np.eye(3) + rows @ np.linalg.inv(information) @ rows.transpose(0, 2, 1))[1]
        best = int((gains / np.array([expense(base, runs) for base, runs in pool]) ** 0.5).argmax())
        chosen.append(pool[best])
        information += information_of(*pool[best])
    return chosen[len(kept) :]


def read_bundles(text):
    """The bundles of a grid, in their order."""
    bundles = {}
    for group in tomllib.loads(text)["group"]:
        settings = group["settings"] | {"seed": group["seeds"][0]}
        number, base = group["name"][:-1], Base(*(settings[name] for name in Base.__dataclass_fields__))
        bundles.setdefault(number, (base, []))[1].append(
            Run(*(settings[name] for name in Run.__dataclass_fields__))
        )
    return list(bundles.values())


def group_text(number, base, runs):
    """Groups of the grid for one bundle: one for each run."""
    learning_rate, heads = LEARNING_RATES[base.n_embd], base.n_embd // 16
    answer = ', loss_on = "answer"' if base.task == "reverse_addition" else ""
    for letter, run in zip("abc", runs, strict=True):
        yield (
            f'[[group]]\nname = "{number:02d}{letter}"\nseeds = [{base.seed}]\n'
            f'settings = {{ task = "{base.task}", original_digits = {base.original_digits}, '
            f"n_embd = {base.n_embd}, n_head = {heads}, "
            f"learning_rate = {learning_rate}, max_iters = {base.max_iters}{answer}, "
            f'si_method = "{run.si_method}", si_iter = {run.si_iter}, num_samples = {run.num_samples}, '
            f"voters = {voters_of(run)}, vote_threshold = {run.vote_threshold}, si_rounds = {ROUNDS} }}\n"
        )


def main():
    """Write the grid anew behind the bundles kept, and print how often each value occurs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=int, required=True, help="bundles at the head of the grid that stay")
    parser.add_argument("--bundles", type=int, default=65, help="bundles in all")
    parser.add_argument("--candidates", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    head, mark, _ = GRID.read_text().partition(f'[[group]]\nname = "{args.keep:02d}a"')
    kept = read_bundles(head)
    if len(kept) != args.keep:
        parser.error(f"{GRID.name} holds {len(kept)} bundles, fewer than --keep {args.keep}")
    chosen = choose(kept, args.bundles, args.candidates, args.seed)
    groups = [group_text(number, *bundle) for number, bundle in enumerate(chosen, args.keep)]
    GRID.write_text(head + "\n".join(text for bundle in groups for text in bundle))
    for name in Base.__dataclass_fields__:
        print(name, dict(Counter(getattr(base, name) for base, _ in kept + chosen)))
    for name in Run.__dataclass_fields__:
        print(name, dict(Counter(getattr(run, name) for _, runs in kept + chosen for run in runs)))


if __name__ == "__main__":
    main()
