"""Where a training step spends its time: shares of kinds of operations, by torch's profiler, with one thread.

Run as: python benchmarks/operations.py [preset] [rows of a batch]
"""

import sys

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from si_nb.benchmarks.benchmark import make_pool
from si_nb.loop.settings import make_config
from si_nb.model.gpt import GPT
from si_nb.model.trainer import TrainConfig, choose_device, train

STEPS = 20
KINDS = {
    "matrix products": ("mm", "addmm"),
    "attention": ("bmm", "baddbmm", "_softmax", "_softmax_backward_data"),
    "moving data": ("copy_", "cat", "fill_", "index_select", "index_copy_", "scatter_add_", "zero_"),
    "SwiGLU, sums and products of numbers": ("silu", "silu_backward", "mul", "add", "add_"),
    "normalisation": ("native_layer_norm", "native_layer_norm_backward"),
}


def shares(preset, batch_size, late):
    """Share of each kind in the time of a step, the largest first."""
    config, device = make_config(preset), choose_device("cpu")
    model = GPT(config.model, torch.Generator().manual_seed(0))
    steps = TrainConfig(STEPS, 0, 0, batch_size or config.batch_size, 1e-3, loss_on=config.loss_on)
    mixture = make_pool(config, late, device).mixture
    train(model, mixture, steps, np.random.default_rng(0))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        train(model, mixture, steps, np.random.default_rng(0))
    times = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in seen.key_averages()}
    total = sum(times.values())
    found = {kind: sum(times.get(name, 0) for name in names) / total for kind, names in KINDS.items()}
    found["the rest"] = 1 - sum(found.values())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main(preset="quick", batch_size="0"):
    """Print a line for base data and one for the last round's."""
    torch.set_num_threads(1)
    for late in (False, True):
        text = ", ".join(
            f"{kind} {share:.0%}" for kind, share in shares(preset, int(batch_size), late).items()
        )
        print(f"{preset}, {'last round' if late else 'base data'}: {text}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
