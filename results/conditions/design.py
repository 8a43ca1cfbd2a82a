"""Choose the runs of the conditions sweep.

Run as: python results/conditions/design.py > results/conditions/grid.toml

A bundle is one set of base models and three runs from it. Task, base length and width go through all their
combinations in a random order, again and again. Bundles are added one by one. Each is the best of many random
ones of its combination: the determinant of the information matrix of a linear model in the logarithms of the
settings, divided by the fourth root of the bundle's expense, is largest (D-optimality, greedily). So every
beginning of the grid is itself a balanced design. All random numbers come from one seed.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from math import log

import numpy as np

TASKS = ("copy", "reverse", "reverse_addition")
BASE_LENGTHS = {"copy": (6, 8, 12, 16), "reverse": (6, 8, 12, 16), "reverse_addition": (5, 7, 10)}
WIDTHS = {"copy": (32, 64, 96), "reverse": (32, 64, 96), "reverse_addition": (64, 96)}
BASE_STEPS = {
    "copy": (2_500, 5_000, 10_000),
    "reverse": (2_500, 5_000, 10_000),
    "reverse_addition": (3_000, 6_000, 12_000),
}
LEARNING_RATES = {32: 3e-3, 64: 2e-3, 96: 1.5e-3}
ROUND_STEPS = (25, 100, 400)
LABELS = (250, 1_000, 4_000)
VOTES = ((3, 0.6), (3, 1.0), (5, 0.6), (5, 0.8), (5, 1.0))  # three voters cannot tell 0.8 from 1.0
ARMS = ("none", "oracle", "mv", "mv_length")
SHARES = {"none": 0.22, "oracle": 0.23, "mv": 0.05, "mv_length": 0.5}
MOST_STEP_LABELS = 400 * 1_000  # steps times labels of a round: the costliest corners are left out
SEEDS = tuple(range(6))


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


def draw_base(cell, generator):
    """A set of base models of a cell, with a random strength and seed."""
    return Base(*cell, int(generator.choice(BASE_STEPS[cell[0]])), int(generator.choice(SEEDS)))


def draw_run(generator):
    """A random run that is not among the costliest."""
    while True:
        arm = str(generator.choice(ARMS, p=[SHARES[arm] for arm in ARMS]))
        steps, labels = int(generator.choice(ROUND_STEPS)), int(generator.choice(LABELS))
        voters, threshold = VOTES[generator.choice(len(VOTES), p=(0.25, 0.3, 0.1, 0.25, 0.1))]
        if steps * labels <= MOST_STEP_LABELS:
            return Run(arm, steps, labels, *((voters, threshold) if arm.startswith("mv") else ()))


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


def draw_bundle(cell, generator):
    """Base models and three runs from them: with a vote, without, one more; at most one of five voters."""
    while True:
        runs = {draw_run(generator) for _ in range(3)}
        votes = sum(run.si_method.startswith("mv") for run in runs)
        if len(runs) == 3 and votes in (1, 2) and sum(run.voters == 5 for run in runs) <= 1:
            return draw_base(cell, generator), tuple(sorted(runs, key=repr))


def expense(base, runs):
    """About what a bundle costs, labels and measuring included, in steps of width 64 and ten digits."""
    per_step = (0.4 + 0.6 * base.n_embd / 64) * (base.original_digits + 10) / 20
    voters = [run.voters if run.si_method.startswith("mv") else 1 for run in runs]
    rounds = sum(
        25 * k * (run.si_iter + run.num_samples / 20 + 150) for k, run in zip(voters, runs, strict=True)
    )
    return per_step * (base.max_iters * max(run.voters for run in runs) + rounds)


def choose(bundles, candidates, seed):
    """Bundles in the order in which they are to be carried out."""
    generator, chosen = np.random.default_rng(seed), []
    information = 0.1 * np.eye(len(features(Base("copy", 6, 32, 2_000, 0), Run("none", 25, 250))))
    while len(chosen) < bundles:
        if len(chosen) % len(CELLS) == 0:
            cells = list(generator.permutation(len(CELLS)))
        cell = CELLS[cells.pop()]
        pool = [
            bundle
            for bundle in (draw_bundle(cell, generator) for _ in range(candidates))
            if bundle[0] not in dict(chosen)
        ]
        rows = np.stack([[features(base, run) for run in runs] for base, runs in pool])
        gains = np.linalg.slogdet(np.eye(3) + rows @ np.linalg.inv(information) @ rows.transpose(0, 2, 1))[1]
        best = int((gains / np.array([expense(base, runs) for base, runs in pool]) ** 0.25).argmax())
        chosen.append(pool[best])
        information += rows[best].T @ rows[best]
    return chosen


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
            f"voters = {run.voters}, vote_threshold = {run.vote_threshold} }}\n"
        )


HEAD = (
    "# Conditions: small models on both sides of the boundary, chosen by design.py (D-optimal, greedily); "
    """do not edit by hand.
# Every beginning of this list is a balanced design, so the sweep may be stopped anywhere.

[settings]
n_layer = 3
block_size = 160
base_samples = 100_000
batch_size = 64
warmup = 200
decay = 10_000 # at most a fifth of the steps
si_rounds = 25
vote_iter_growth = 0
eval_samples = 128
eval_interval = 500
train_multiple_base = true # all runs of a bundle start from the same base models
"""
)


def main():
    """Print the grid, and on standard error how often each value occurs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundles", type=int, default=60)
    parser.add_argument("--candidates", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chosen = choose(args.bundles, args.candidates, args.seed)
    print(HEAD)
    for number, (base, runs) in enumerate(chosen):
        print("\n".join(group_text(number, base, runs)))
    for name in Base.__dataclass_fields__:
        print(name, dict(Counter(getattr(base, name) for base, _ in chosen)), file=sys.stderr)
    for name in Run.__dataclass_fields__:
        print(name, dict(Counter(getattr(run, name) for _, runs in chosen for run in runs)), file=sys.stderr)


if __name__ == "__main__":
    main()
