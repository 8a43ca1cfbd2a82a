"""One-round probes: what one round of training does to a model, with everything that matters set by hand.

Run as: python results/probes/run.py SWEEP FOLDER [--chains 4]

SWEEP is a folder in which `results/conditions/grid.toml` is being carried out; its base models are the start.
From each, a few chains of three rounds. Before each round steps, labels and the dose of wrong labels are
drawn at random, whatever the state of the model: so what they do is a cause and not a companion. A dose of
own wrong labels is the share of those made that is kept; a dose of uniform ones is the share of right labels
whose digits are replaced at random. Tables are written as they come; the same command goes on with what is
missing.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from si_nb.loop.bases import load_base_model
from si_nb.loop.evaluate import count_right, derive_rng, derive_seed
from si_nb.loop.sweep import base_config, base_key, read_grid, sweep_run
from si_nb.loop.training import mix, round_training
from si_nb.model.generate import generate
from si_nb.model.trainer import train
from si_nb.problems.noise import damage_labels
from si_nb.problems.tasks import TASKS, Problems, is_right, make_base_data, make_problems
from si_nb.record.table import measurement_table

STEPS, LABELS = (25, 50, 100, 200, 400), (250, 1_000, 4_000)
DOSES = [("own", dose) for dose in (0, 0, 0.01, 0.03, 0.1, 0.3, 1, 1)]
DOSES += [("uniform", dose) for dose in (0.03, 0.1, 0.3)]
LINKS, ITEMS, TRIES, CPU = 3, 256, 4, torch.device("cpu")


def draw_settings(generator):
    """Steps, labels and dose of one round."""
    kind, dose = DOSES[generator.integers(len(DOSES))]
    steps, labels = int(generator.choice(STEPS)), int(generator.choice(LABELS))
    return {"si_iter": steps, "num_samples": labels, "kind": kind, "dose": dose}


def answer(model, task, length, count, generator):
    """Problems with a model's answers: tokens, whether right, and the true answers."""
    problems = make_problems(task, length, count, generator)
    room = problems.answers.shape[1] + 2
    answers = generate(model, problems.prompts, room, drafts=problems.answers)
    return problems, answers, is_right(answers, problems.answers)


def answer_enough(model, task, length, settings, generator):
    """Problems, answers, which are right, which kept; up to TRIES times as many while too few are kept."""
    wanted, dose, parts = settings["num_samples"], settings["dose"] if settings["kind"] == "own" else 0, []
    while len(parts) < TRIES and sum(int(part[3].sum()) for part in parts) < wanted:
        problems, answers, right = answer(model, task, length, wanted, generator)
        kept = right | (generator.random(len(right)) < dose)
        parts.append((problems, answers, right, kept))
    made, answers, right, kept = zip(*parts, strict=True)
    problems = Problems(*map(np.concatenate, zip(*made, strict=True)))
    return problems, *map(np.concatenate, (answers, right, kept))


def label(model, task, length, settings, generator):
    """Kept rows of tokens, and counts of what was made and kept."""
    problems, answers, right, kept = answer_enough(model, task, length, settings, generator)
    chosen = np.flatnonzero(kept)[: settings["num_samples"]]
    tried = int(chosen[-1]) + 1 if len(chosen) == settings["num_samples"] else len(right)
    labels, good = answers[chosen], right[chosen]
    if settings["kind"] == "uniform":
        labels = damage_labels(labels, settings["dose"], "uniform", generator)
        good = is_right(labels, problems.answers[chosen])
    made = int(right[:tried].sum()), tried
    counts = {
        (0, "label_raw"): made,
        (-1, "label_kept"): (int(good.sum()), len(good)),
        (-1, "kept_right"): (int(right[chosen].sum()), made[0]),
        (-1, "kept_wrong"): (int((~right[chosen]).sum()), tried - made[0]),
    }
    return np.concatenate([problems.prompts[chosen], labels], axis=1), counts


def place_of(config, name):
    """What every row of a probe begins with."""
    return {"run_id": name, "task": config.task, "arm": "probe", "seed": config.seed}


def measure(model, config, newest, number, name):
    """Counts of right answers around the newest length; round 0 is before the probe, 1 after it."""
    lengths = range(max(1, config.original_digits - 2), min(2 * newest, config.block_size // 3) + 1)
    seed, task = derive_seed(config.seed, "probe evaluation"), TASKS[config.task]
    place = {**place_of(config, name), "round": number, "voter": 0}
    asked_of = {"accuracy": ("evaluate", lengths), "accuracy_select": ("select", [newest])}
    rows = []
    for quantity, (split, asked) in asked_of.items():
        for length, right in count_right(model, task, asked, ITEMS, seed, split).items():
            counts = {"length": length, "quantity": quantity, "successes": right, "trials": ITEMS}
            rows.append({**place, **counts})
    return rows


def label_rows(counts, config, newest, name):
    """The same for labels."""
    place = {**place_of(config, name), "round": 1, "length": newest}
    return [
        {**place, "voter": voter, "quantity": quantity, "successes": good, "trials": of}
        for (voter, quantity), (good, of) in counts.items()
    ]


def probe(model, config, base, older, settings, number, name):
    """One round from a model, changed in place; its rows of the table and the kept labels."""
    generator, newest = derive_rng(config.seed, "probe", name), config.original_digits + number
    rows = measure(model, config, newest - 1, 0, name)
    kept, counts = label(model, TASKS[config.task], newest, settings, generator)
    if len(kept) == 0:
        return None
    asked = replace(config, si_iter=settings["si_iter"], num_samples=settings["num_samples"])
    mixture = mix(base, [*older, kept], config.original_digits, CPU)
    order = derive_rng(config.seed, "probe training", name)
    train(model, mixture, round_training(asked, "none", number), order)
    rows += label_rows(counts, config, newest, name) + measure(model, config, newest, 1, name)
    return measurement_table(rows), kept


OF_BASE = ("task", "original_digits", "n_layer", "n_embd", "max_iters", "base_samples", "batch_size")
OF_BASE += ("learning_rate", "loss_on", "seed")


def carry_out_chain(model, config, base, first):
    """A few rounds one after another; the tables, and a row of settings for each."""
    older, tables, rows = [], [], []
    fixed = {key: getattr(config, key) for key in OF_BASE}
    for number in range(1, LINKS + 1):
        name = f"{first}-r{number}"
        settings = draw_settings(derive_rng(config.seed, "probe settings", name))
        found = probe(model, config, base, older, settings, number, name)
        if found is None:  # no label was right, and no wrong one was to be kept
            break
        tables.append(found[0])
        older.append(found[1])
        single = {"voters": 1, "vote_threshold": 1.0, "si_rounds": 1}
        rows.append({"run_id": name, **fixed, **settings, **single})
    return tables, rows


def carry_out(config, folder, out, chains):
    """All chains of one base model."""
    first = f"{config.task}-n{config.original_digits}-w{config.n_embd}-b{config.max_iters}-s{config.seed}"
    generator = derive_rng(0, first)
    base = make_base_data(TASKS[config.task], config.original_digits, config.base_samples, generator)
    for chain in range(chains):
        file = out / f"{first}-c{chain}.csv"
        if not file.exists():
            model = load_base_model(config, folder, 0, CPU, names=())
            tables, rows = carry_out_chain(model, config, base, f"{first}-c{chain}")
            if tables:
                pd.DataFrame(rows).to_csv(file.with_suffix(".runs"), index=False)
                pd.concat(tables).to_csv(file, index=False)


def gather(out):
    """One table of all chains, and one row of settings for each probe."""
    files = sorted(out.glob("*-c*.csv"))
    if files:
        pd.concat(map(pd.read_csv, files)).to_csv(out / "measurements.csv", index=False, lineterminator="\n")
        settings = pd.concat([pd.read_csv(file.with_suffix(".runs")) for file in files])
        settings.to_csv(out / "runs.csv", index=False, lineterminator="\n")
    return len(files)


def main():
    """Carry out the chains that are missing, of all base models that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--grid", type=Path, default=Path(__file__).parents[1] / "conditions" / "grid.toml")
    parser.add_argument("--chains", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    bundles = {}
    for run in read_grid(args.grid).runs.values():
        bundles.setdefault(base_key(run.config), []).append(run.config)
    for configs in bundles.values():
        config, folder = base_config(configs), sweep_run(configs[0], args.sweep.absolute())
        if folder.base_model(0).exists():
            carry_out(config, folder, args.out, args.chains)
            print(f"{gather(args.out)} chains", flush=True)


if __name__ == "__main__":
    main()
