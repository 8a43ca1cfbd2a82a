"""What `si_nb cost` foretold beside what `si_nb run` took, one after the other.

Run as: python benchmarks/cost_checks.py [NAME ...]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

TABLE = Path(__file__).parents[1] / "results" / "cost" / "checks.csv"
SETTINGS = {
    "tiny": "--preset tiny",
    "quick": "--preset quick",
    "a third of the steps": "--preset quick --max_iters 1000 --si_iter 50 --si_rounds 3",
    "width 32": "--preset quick --n_embd 32 --max_iters 600 --si_rounds 3",
    "width 128": "--preset quick --n_embd 128 --max_iters 200 --si_rounds 2 --si_iter 50",
    "addition, five voters": (
        "--preset quick --task reverse_addition --voters 5 --max_iters 150 --si_rounds 2 --si_iter 50"
    ),
    "paper, few steps": (
        "--preset paper --max_iters 1 --si_rounds 1 --si_iter 1 "
        "--voters 2 --num_samples 512 --eval_samples 64"
    ),
}


def si_nb(*words):
    """Run a command: what it printed, seconds, and bytes at the highest."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        child = subprocess.Popen([sys.executable, "-m", "si_nb", *words], stdout=printed)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        printed.seek(0)
        if status:
            raise SystemExit(f"si_nb {' '.join(words)}: exit code {os.waitstatus_to_exitcode(status)}")
        return printed.read(), seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check(name):
    """One row of the table."""
    flags, load = SETTINGS[name].split(), os.getloadavg()[0]
    foretold, rehearsal, _ = si_nb("cost", *flags, "--json")
    foretold = json.loads(foretold)
    with tempfile.TemporaryDirectory() as folder:
        _, seconds, memory = si_nb("run", *flags, "--run_dir", folder)
    return {
        "name": name,
        "settings": SETTINGS[name],
        "foretold_seconds": foretold["seconds"],
        "least_seconds": foretold["least"],
        "most_seconds": foretold["most"],
        "seconds": seconds,
        "foretold_bytes": foretold["memory"],
        "bytes": memory,
        "rehearsal_seconds": rehearsal,
        "load_before": load,
    }


def main(names):
    """Check the named settings, or all; rows of others stay."""
    if unknown := sorted(set(names) - set(SETTINGS)):
        raise SystemExit(f"{', '.join(unknown)}: no such setting; choose {', '.join(SETTINGS)}")
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    for name in names or SETTINGS:
        rows = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
        rows = {row["name"]: row for row in [*rows, check(name)]}
        table = pd.DataFrame([rows[known] for known in SETTINGS if known in rows])
        table.round(2).to_csv(TABLE, index=False, lineterminator="\n")
        shown = table[table["name"] == name]
        print(shown.drop(columns="settings").to_string(index=False), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
