"""Writes the install cell of every notebook, for the version and the address in settings.ini.

`python docs/install_cells.py`, after a new version. On Colab a notebook installs the tag that it belongs to.
`%pip` does not stop a notebook when it fails, so the cell looks.
"""

import json
import re
from pathlib import Path

from project import ROOT, read_settings

CELL = """\
try:
    import google.colab  # noqa: F401
except ImportError:
    pass  # not on Colab: si_nb is already here
else:
    %pip install -q git+{git_url}@v{version}
    try:
        from si_nb import __version__ as installed
    except ImportError:
        installed = "none"
    if installed != "{version}":
        raise SystemExit(f"This notebook needs si_nb {version} and found {{installed}}: pip says above why.")
    from si_nb.loop.folder import describe_place

    print(describe_place())"""


def install_cell(root: Path) -> str:
    """The cell for the address and version in settings.ini."""
    settings = read_settings(root)
    return CELL.format(git_url=settings["git_url"], version=settings["version"])


def write_install_cells(root: Path) -> list[str]:
    """Rewrite the install cell of every notebook, and return the notebooks that changed.

    Raises: SystemExit when a notebook has no install cell, or more than one.
    """
    changed = []
    for path in sorted(
        path for path in root.glob("nbs/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts
    ):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        cells = [
            cell for cell in code if re.search(r"^\s*import google\.colab", "".join(cell["source"]), re.M)
        ]
        if len(cells) != 1:
            raise SystemExit(f"{path.relative_to(root)}: {len(cells)} install cells, not one")
        source = install_cell(root).splitlines(keepends=True)
        if source != cells[0]["source"]:
            cells[0]["source"] = source
            path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            changed.append(path.relative_to(root).as_posix())
    return changed


if __name__ == "__main__":
    print(f"{len(write_install_cells(ROOT))} install cells written")
