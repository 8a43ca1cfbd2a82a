"""Draws the picture of a whole run that README shows, from the committed run in results/quick/seed0.

`python docs/picture.py` writes docs/run.png; `si_nb figures results/quick/seed0` draws the same as map.png.
"""

import argparse
from pathlib import Path

from project import ROOT

from si_nb.law.figures import map_figure
from si_nb.record.table import read_table


def draw() -> bytes:
    """The picture, as the content of a PNG file."""
    return map_figure(read_table(ROOT / "results" / "quick" / "seed0")).png()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "run.png", help="file of the picture")
    parser.parse_args().out.write_bytes(draw())
