"""What a Colab user sees and nbdev_test does not: notebooks in a plain Jupyter kernel, with the wheel.

nbdev_test runs every notebook of the checkout, and `.ci/run` counts that it does. Here the imports of all
notebooks are tried with the wheel alone, and a few whole notebooks; `pytest --slow` takes them all.
"""

import ast
import asyncio
import os
import re
import sys
import time

import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT, run
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal

SECONDS = 300  # limit for one notebook
TOOLS = [path for path in NOTEBOOKS if path.startswith("nbs/benchmarks/")]  # for developers: not in the wheel
SHIPPED = [path for path in NOTEBOOKS if path not in TOOLS]
QUICKSTART, SMALLEST = "nbs/results/quickstart.ipynb", "nbs/record/index.ipynb"
WHOLE = "make_config(PRESET, seed=SEED, **SETTINGS)"  # the run of quickstart, which nbdev_test makes in full
FEWER = WHOLE.replace("**SETTINGS", "max_iters=60, si_iter=10, num_samples=100, eval_samples=50")
slow = pytest.mark.slow(reason="nbdev_test runs it too; this runs it as on Colab, with the wheel")
WHICH_PACKAGE = "import si_nb\nassert si_nb.__file__.startswith({site!r}), f'imported {{si_nb.__file__}}'"


def first_failure(path, site, folder, change=None):
    """What went wrong in a notebook, of which one piece of code may be changed before; or None."""
    notebook = nbformat.read(ROOT / path, as_version=4)
    if change is not None:
        (cell,) = [cell for cell in notebook.cells if change[0] in cell.source]
        cell.source = cell.source.replace(*change)
    code = [(index, cell) for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    for _, cell in code:
        cell.outputs, cell.execution_count = [], None
    notebook.cells.insert(0, nbformat.v4.new_code_cell(WHICH_PACKAGE.format(site=str(site))))
    end = time.monotonic() + SECONDS
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        timeout_func=lambda cell: max(1, int(end - time.monotonic())),
    )
    hidden = ("IN_TEST", "MPLBACKEND", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    try:
        asyncio.run(client.async_execute(env=environment | {"PYTHONPATH": str(site)}))
    except (CellControlSignal, RuntimeError) as error:  # a failing cell, the time limit, a kernel that died
        started = [index for index, cell in code if "execution" in cell.metadata]
        message = re.sub(r"\x1b\[[\d;]*m", "", str(error))
        return f"{path}, cell {started[-1] if started else 'before the first'}: {message}"
    return None


def test_quickstart_runs_in_a_plain_kernel_with_the_wheel(wheel_site, tmp_path):
    """A newcomer's first notebook, with fewer steps than it has."""
    problem = first_failure(QUICKSTART, wheel_site, tmp_path, (WHOLE, FEWER))
    assert problem is None, problem


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=() if path == SMALLEST else slow) for path in SHIPPED]
)
def test_notebook_runs_in_a_plain_kernel_with_the_wheel(path, wheel_site, tmp_path):
    """A Colab user, who has the wheel and no checkout,
    can run the notebook from the first cell to the last.
    """
    problem = first_failure(path, wheel_site, tmp_path)
    assert problem is None, problem


@pytest.mark.parametrize("path", [pytest.param(path, marks=slow) for path in TOOLS])
def test_development_notebook_runs_in_a_plain_kernel_from_the_checkout(path, tmp_path):
    """The benchmark and the plain script are not in the wheel: who works on them has the checkout."""
    problem = first_failure(path, ROOT, tmp_path)
    assert problem is None, problem


def imports_of(path):
    """The import statements of a notebook, one a line; those of Colab's install cell are left out."""
    cells = [cell for cell in nbformat.read(ROOT / path, as_version=4).cells if cell.cell_type == "code"]
    trees = [ast.parse(TransformerManager().transform_cell(cell.source)) for cell in cells[1:]]
    return [
        ast.unparse(node)
        for tree in trees
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]


def test_imports_of_all_notebooks_work_with_the_wheel(wheel_site, tmp_path):
    """Every name that a shipped notebook imports is in the wheel, with no checkout near."""
    lines = sorted({line for path in SHIPPED for line in imports_of(path)})
    assert any(line.startswith("from si_nb.law.") for line in lines)
    program = "\n".join([WHICH_PACKAGE.format(site=str(wheel_site)), *lines])
    (tmp_path / "imports.py").write_text(program, encoding="utf-8")
    run(sys.executable, "imports.py", cwd=tmp_path, PYTHONPATH=wheel_site, MPLBACKEND="agg")


def test_nbdev_test_leaves_no_notebook_out():
    """nbdev_test is content with nothing to do: it must find every notebook,
    and each must have a cell that it runs.
    """
    from nbdev.config import get_config
    from nbdev.doclinks import nbglob
    from nbdev.test import _keep_file

    found = {file.resolve() for file in nbglob(ROOT / "nbs", as_path=True) if _keep_file(file, ".notest")}
    assert found == {(ROOT / path).resolve() for path in NOTEBOOKS}
    flags = set(get_config(cfg_name=ROOT / "settings.ini").tst_flags.split()) | {"eval:"}
    for path in NOTEBOOKS:
        cells = [cell.source for cell in nbformat.read(ROOT / path, as_version=4).cells]
        assert "skip_exec" not in cells[0], f"{path}: left out by skip_exec"
        ran = [
            text for text in cells[3:] if not any(re.search(rf"^#\|\s*{flag}", text, re.M) for flag in flags)
        ]
        assert any("assert" in text for text in ran), f"{path}: no assertion that nbdev_test runs"
