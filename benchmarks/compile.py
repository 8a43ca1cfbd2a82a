"""Whether torch.compile pays.

Its own time, a training step with and without it, and the number of steps after which it has paid.
Run as: python benchmarks/compile.py [preset]
"""

import os
import sys
import tempfile
import time
from functools import partial

import numpy as np
import torch

from si_nb.benchmarks.benchmark import Job, make_pool, time_in_turns
from si_nb.loop.settings import make_config
from si_nb.model.gpt import GPT
from si_nb.model.trainer import TrainConfig, choose_device, train

STEPS, REPEATS = 10, 7


def main(preset="quick"):
    """Compile from nothing; print one line for base data and one for the last round's."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        compare(preset)


def compare(preset):
    """Time training steps with and without it."""
    torch.set_num_threads(1)
    config, device = make_config(preset), choose_device()
    plain = GPT(config.model, torch.Generator().manual_seed(0)).to(device)
    compiled = torch.compile(GPT(config.model, torch.Generator().manual_seed(0)).to(device), dynamic=True)
    training = TrainConfig(STEPS, 0, 0, config.batch_size, config.learning_rate)
    for late in (False, True):
        mixture, rng = make_pool(config, late, device).mixture, np.random.default_rng(0)
        start = time.perf_counter()
        train(compiled, mixture, training, rng)
        first = time.perf_counter() - start
        jobs = {
            name: Job(partial(train, model, mixture, training, rng), STEPS)
            for name, model in (("plain", plain), ("compiled", compiled))
        }
        seconds = {
            name: float(np.median(values)) for name, values in time_in_turns(jobs, REPEATS, device).items()
        }
        saved = seconds["plain"] - seconds["compiled"]
        pays = f"has paid after {first / saved:,.0f} steps" if saved > 0 else "never pays"
        print(
            f"{preset}, {'last round' if late else 'base'}: first {STEPS} steps {first:.1f} s; "
            f"then {1e3 * seconds['compiled']:.1f} ms per step against {1e3 * seconds['plain']:.1f} ms: "
            f"{seconds['plain'] / seconds['compiled']:.2f}x; {pays}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
