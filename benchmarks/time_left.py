"""How good the time left is: what the bar believed of a run, over what it came to, at every tenth of the run.

Run as: python benchmarks/time_left.py [FLAG VALUE ...]   (settings of `si_nb run`; default: --preset tiny)

Time is counted in seconds of computing of this process, so that it matters less what else the machine does.
"""

import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import si_nb.loop.cost
from si_nb.cli import _config_from, foresee_arms, make_parser
from si_nb.loop import rounds
from si_nb.loop.progress import Schedule, start_bar

EVERY = 0.1  # seconds between two looks


class Silent:
    """A face that somebody looks at, but shows nothing."""

    live = True

    def start(self, line):
        """Print the first line only."""
        print(line)

    def show(self, share, line, lasting=False):
        """Show nothing."""

    def close(self, share, line):
        """Print the last line only."""
        print(line)


def watched(config):
    """Seconds spent and seconds left, at every look at a run."""
    looks, over, bars = [], threading.Event(), []

    def look():
        while not over.wait(EVERY):
            if bars and bars[0].begun:
                looks.append((bars[0].schedule.spent(), bars[0].schedule.seconds_left()))

    def start(*where):
        si_nb.loop.cost.time = SimpleNamespace(perf_counter=time.process_time)
        bar = start_bar(*where)
        bar.face, bar.schedule, bar.wants_outlooks = Silent(), Schedule(time.process_time), True
        bars.append(bar)
        return bar

    rounds.start_bar, thread = start, threading.Thread(target=look)
    with tempfile.TemporaryDirectory() as folder:
        thread.start()
        try:
            rounds.run_experiment(config, Path(folder) / "run", observe=foresee_arms(config))
        finally:
            over.set()
            thread.join()
    return np.array(looks), bars[0].schedule.paces


def main(flags):
    """Carry out a run and print the ratios."""
    config, load = _config_from(make_parser().parse_args(["run", *flags])), os.getloadavg()[0]
    begun = time.perf_counter()
    looks, paces = watched(config)
    (spent, left), wall = looks.T, time.perf_counter() - begun
    total = spent[-1]
    print(f"{wall:.0f} s, {total:.0f} s of computing; load {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    for (kind, arm), (took, foretold) in paces.items():
        print(f"{kind}, {arm}: took {took:.1f} s, foretold {foretold:.1f} s, ratio {took / foretold:.2f}")
    print("done  estimated/true total  estimated/true left")
    for tenth in range(10):
        at = int(np.argmax(spent >= max(tenth / 10 * total, spent[0])))
        rest = left[at] / (total - spent[at])
        print(f"{tenth / 10:4.0%}  {(spent[at] + left[at]) / total:20.2f}  {rest:19.2f}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["--preset", "tiny"])
