"""Prints what the house limits are about, for two commits side by side: `python docs/house_table.py OLD NEW`.

Both are read from git, so the working tree does not matter. Types are judged by today's mypy.ini.
"""

import argparse
import ast
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from io import BytesIO
from pathlib import Path

from project import ROOT

LONG, BLOCK = 40, 6  # lines of a function that needs a reason; lines of a sequence that counts as duplicated


def unpacked(commit: str, folder: Path) -> Path:
    """The files of a commit, in a folder."""
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def modules(root: Path) -> list[Path]:
    """The files that are exported from notebooks."""
    by_hand = ("__init__.py", "__main__.py", "_modidx.py")
    return [path for path in sorted(root.glob("si_nb/**/*.py")) if path.name not in by_hand]


def functions(root: Path) -> list[ast.FunctionDef]:
    """Every function and method of the exported code, but those whose names Python fixes."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in modules(root)]
    found = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [node for node in found if not node.name.startswith("__")]


def notebooks(root: Path) -> list[dict]:
    """The notebooks that modules are exported from."""
    read = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(root.glob("nbs/**/*.ipynb"))]
    return [notebook for notebook in read if any("default_exp" in text for text in code(notebook))]


def code(notebook: dict) -> list[str]:
    """The sources of its code cells."""
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def duplicated_blocks(root: Path) -> int:
    """How many sequences of BLOCK lines stand twice in the exported code; comments do not count."""
    seen: Counter[tuple[str, ...]] = Counter()
    for path in modules(root):
        text = re.sub(r"^\s*(from \S+ import|import) .*$", "", path.read_text(encoding="utf-8"), flags=re.M)
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if len(line) > 3 and not line.startswith("#")]
        seen.update(tuple(lines[at : at + BLOCK]) for at in range(len(lines) - BLOCK + 1))
    return sum(count > 1 for count in seen.values())


def type_errors(root: Path) -> str:
    """What mypy counts in the exported code, by the rules of this working tree."""
    shutil.copyfile(ROOT / "mypy.ini", root / "mypy.ini")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(root / ".mypy_cache")]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True).stdout
    found = re.search(r"Found (\d+) errors?", said)
    return found[1] if found else "0" if "Success" in said else "not judged"


def measured(root: Path) -> dict[str, str]:
    """The rows of the table for one commit."""
    named, written = functions(root), notebooks(root)
    lines = [line for notebook in written for text in code(notebook) for line in text.splitlines()]
    long = sum(node.end_lineno - node.lineno >= LONG for node in named)
    private = sum(node.name.startswith("_") for node in named)
    shown = sum(any(cell.get("outputs") for cell in notebook["cells"]) for notebook in written)
    return {
        "rooms": f"{len(modules(root))} in {len({path.parent for path in modules(root)})} folders",
        f"functions over {LONG} lines": f"{long} of {len(named)}",
        "private functions": f"{private / len(named):.0%}",
        "longest line of code": str(max(map(len, lines))),
        "lines of code over 110": str(sum(len(line) > 110 for line in lines)),
        f"sequences of {BLOCK} lines that stand twice": str(duplicated_blocks(root)),
        "module notebooks with stored outputs": f"{shown} of {len(written)}",
        "type errors (mypy)": type_errors(root),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commits", nargs="+", metavar="COMMIT")
    commits = parser.parse_args().commits
    columns = []
    for commit in commits:
        with tempfile.TemporaryDirectory() as folder:
            columns.append(measured(unpacked(commit, Path(folder))))
    print("| | " + " | ".join(commits) + " |\n" + "|---" * (len(commits) + 1) + "|")
    for row in columns[0]:
        print(f"| {row} | " + " | ".join(column[row] for column in columns) + " |")
