"""How the cost of a step, a label and an evaluated problem grows.

Around one middle size, length, batch, width and number of voters are varied one at a time. Every point is
measured in a process of its own, forked from this one, so that its memory is its own. A voter has one
thread, as in a run of small models. Run as: python benchmarks/growth.py [--repeats 7] [--out FOLDER]
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from si_nb.loop.cost import copy_rate, matmul_rate, peak_memory, training_flops
from si_nb.loop.workers import side_by_side
from si_nb.model.generate import exact_match, generate
from si_nb.model.gpt import GPT, ModelConfig, forward_flops
from si_nb.model.trainer import Mixture, TrainConfig, train
from si_nb.problems.tasks import TASKS, Problems, make_problems

CPU, TASK, LAYERS, HEAD_WIDTH = torch.device("cpu"), TASKS["copy"], 3, 32
MIDDLE = dict(length=16, batch=128, width=64, voters=1)
VARIED = {
    "length": (4, 8, 16, 32, 64, 128),
    "batch": (8, 32, 128, 512, 2048),
    "width": (32, 64, 128, 256, 512),
    "voters": (1, 2, 3, 5),
}
MOST_SECONDS = 2.5  # per point, when the repeats wanted would take longer


def training_step(model, problems, count):
    """Optimiser steps on a batch of one length."""
    rows = np.concatenate(problems, axis=1)
    config = TrainConfig(count, 0, 0, batch_size=len(rows), learning_rate=1e-9)
    train(model, Mixture([rows], [1], CPU), config, np.random.default_rng(0))


def labelling(model, problems, count):
    """Answers of an untrained model, decoded to the full width."""
    for _ in range(count):
        generate(model, problems.prompts, problems.answers.shape[1])


def accuracy(model, problems, count):
    """Whether each answer is right, by one pass."""
    for _ in range(count):
        exact_match(model, problems)


PIECES = {
    "training step": (training_step, training_flops),
    "labelling": (labelling, forward_flops),
    "accuracy": (accuracy, forward_flops),
}


def measure(piece, size, repeats):
    """Seconds of each repeat, and bytes that the first took on top of what there was; in its own process."""
    model_config = ModelConfig(
        block_size=1024, n_layer=LAYERS, n_head=max(1, size["width"] // HEAD_WIDTH), n_embd=size["width"]
    )
    models = [
        GPT(model_config, torch.Generator().manual_seed(voter)).eval() for voter in range(size["voters"])
    ]
    problems = make_problems(TASK, size["length"], size["batch"], np.random.default_rng(0))

    def all_voters(count):
        start = time.perf_counter()
        side_by_side([partial(PIECES[piece][0], model, problems, count) for model in models], len(models))
        return time.perf_counter() - start

    small = GPT(ModelConfig(block_size=1024, n_layer=1, n_head=1, n_embd=8), torch.Generator())
    PIECES[piece][0](
        small, Problems(problems.prompts[:1], problems.answers[:1]), 1
    )  # loads what is loaded late
    before = peak_memory()
    cold = all_voters(1)
    memory = peak_memory() - before
    many = max(1, math.ceil(0.02 / cold))  # pieces at a time, enough for the clock
    repeats = max(3, min(repeats, int(MOST_SECONDS / (cold * many))))
    return [all_voters(many) / many for _ in range(repeats)], memory


def measured_rows(piece, against, value, repeats):
    """Rows of the table for one point."""
    size = {**MIDDLE, against: value}
    with multiprocessing.get_context("fork").Pool(1) as pool:
        seconds, memory = pool.apply(measure, (piece, size, repeats))
    tokens = TASK.width(size["length"]) - 1
    model_config = ModelConfig(block_size=1024, n_layer=LAYERS, n_head=1, n_embd=size["width"])
    linear = size["batch"] * size["voters"] * PIECES[piece][1](model_config, 1) * tokens
    flops = size["batch"] * size["voters"] * PIECES[piece][1](model_config, tokens)
    common = {
        "piece": piece,
        "against": against,
        **size,
        "tokens": tokens,
        "flops": flops,
        "linear_flops": linear,
        "bytes": memory,
    }
    return [{**common, "repeat": repeat, "seconds": second} for repeat, second in enumerate(seconds)]


def cpu_name():
    """What the processor calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def machine(rates):
    """What the numbers were measured on."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads_per_voter": 1,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "layers": LAYERS,
        "head_width": HEAD_WIDTH,
        "load_before": round(os.getloadavg()[0], 2),
        "matmul_rate": float(np.median([rate for rate, _ in rates])),
        "copy_rate": float(np.median([rate for _, rate in rates])),
    }


def main():
    """Measure every point; write the table and what it was measured on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "cost")
    args = parser.parse_args()
    torch.set_num_threads(1)  # before anything is computed: a process with a pool of threads cannot be forked
    rows, rates, facts = [], [], machine([(0, 0)])
    for against, values in VARIED.items():
        rates.append((matmul_rate(CPU), copy_rate(CPU)))
        for value in values:
            for piece in PIECES:
                rows += measured_rows(piece, against, value, args.repeats)
                seconds = np.median([row["seconds"] for row in rows[-3:]])
                print(f"{piece} against {against} {value}: {1e3 * seconds:.2f} ms", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    table["seconds"] = table["seconds"].map("{:.4g}".format)
    table.to_csv(args.out / "growth.csv", index=False, lineterminator="\n")
    (args.out / "machine.json").write_text(
        json.dumps(machine(rates) | {"load_before": facts["load_before"]}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
