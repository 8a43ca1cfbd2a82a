"""Whether torch.compile pays.

Its own time, a training step with and without it, the number of steps after which it has paid, and the same
step where two voters train side by side in threads, as voters do.
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
from si_nb.loop.workers import side_by_side
from si_nb.model.gpt import GPT
from si_nb.model.trainer import TrainConfig, choose_device, train

STEPS, REPEATS, VOTERS = 10, 7, 2


def main(preset="quick"):
    """Compile from nothing; print two lines for base data and two for the last round's."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        compare(preset)


def compare(preset):
    """Time training steps with and without it."""
    torch.set_num_threads(1)
    config, device = make_config(preset), choose_device()
    plain = make_voters(config.model, device)
    compiled = [torch.compile(model, dynamic=True) for model in make_voters(config.model, device)]
    training = TrainConfig(STEPS, 0, 0, config.batch_size, config.learning_rate, loss_on=config.loss_on)
    for late in (False, True):
        mixture, start = make_pool(config, late, device).mixture, time.perf_counter()
        steps = {
            name: [partial(train, model, mixture, training, np.random.default_rng(0)) for model in voters]
            for name, voters in (("compiled", compiled), ("plain", plain))
        }
        for voter in steps["compiled"]:
            voter()
        first = time.perf_counter() - start
        alone = milliseconds({name: Job(voters[0], STEPS) for name, voters in steps.items()}, device)
        together = milliseconds(
            {
                name: Job(partial(side_by_side, voters, VOTERS, threads=2), STEPS)
                for name, voters in steps.items()
            },
            device,
        )
        saved = alone["plain"] - alone["compiled"]
        pays = f"has paid after {1e3 * first / saved:,.0f} steps" if saved > 0 else "never pays"
        where = f"{preset}, {'last round' if late else 'base'}"
        print(f"{where}: first {VOTERS} x {STEPS} steps {first:.1f} s; then {compared(alone)}; {pays}")
        print(f"{where}, {VOTERS} voters in threads: {compared(together)}", flush=True)


def make_voters(sizes, device):
    """Models that all begin alike."""
    return [GPT(sizes, torch.Generator().manual_seed(0)).to(device) for _ in range(VOTERS)]


def milliseconds(jobs, device):
    """Median of a step, ms, by name of the job."""
    times = time_in_turns(jobs, REPEATS, device)
    return {name: 1e3 * float(np.median(values)) for name, values in times.items()}


def compared(step):
    """A step compiled beside one that is not."""
    ratio = step["plain"] / step["compiled"]
    return f"{step['compiled']:.1f} ms per step against {step['plain']:.1f} ms: {ratio:.2f}x"


if __name__ == "__main__":
    main(*sys.argv[1:])
