"""Makes the pictures that README shows, from what is committed.

`python docs/picture.py` writes docs/run.png, a whole run, as `si_nb figures results/quick/seed0` draws it in
map.png, and docs/carried.png, the first figure stored in the notebook conditions.
"""

import argparse
import json
from base64 import b64decode
from pathlib import Path

from project import ROOT

from si_nb.law.figures import map_figure
from si_nb.record.table import read_table


def draw() -> bytes:
    """The picture of a whole run, as the content of a PNG file."""
    return map_figure(read_table(ROOT / "results" / "quick" / "seed0")).png()


def taken(notebook: Path) -> bytes:
    """The first figure stored in a notebook, as the content of a PNG file."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return b64decode(next(data["image/png"] for data in shown if "image/png" in data))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the pictures")
    out = parser.parse_args().out
    (out / "run.png").write_bytes(draw())
    (out / "carried.png").write_bytes(taken(ROOT / "nbs" / "results" / "conditions.ipynb"))
