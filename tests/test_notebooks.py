"""Every notebook runs top to bottom in a plain Jupyter kernel, with the package from the wheel,
as on Colab.
"""

import asyncio
import os
import re
import time

import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal

SECONDS = 300  # limit for one notebook
SLOW = {}  # notebook -> why it takes more than about a minute
TOOLS = [path for path in NOTEBOOKS if path.startswith("nbs/benchmarks/")]  # for developers: not in the wheel
SHIPPED = [path for path in NOTEBOOKS if path not in TOOLS]
WHICH_PACKAGE = "import si_nb\nassert si_nb.__file__.startswith({site!r}), f'imported {{si_nb.__file__}}'"


def first_failure(path, site, folder):
    """What went wrong in a notebook, or None."""
    notebook = nbformat.read(ROOT / path, as_version=4)
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


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow(reason=SLOW[path]) if path in SLOW else ())
        for path in SHIPPED
    ],
)
def test_notebook_runs_in_a_plain_kernel_with_the_wheel(path, wheel_site, tmp_path):
    """A Colab user, who has the wheel and no checkout,
    can run the notebook from the first cell to the last.
    """
    problem = first_failure(path, wheel_site, tmp_path)
    assert problem is None, problem


@pytest.mark.parametrize("path", TOOLS)
def test_development_notebook_runs_in_a_plain_kernel_from_the_checkout(path, tmp_path):
    """The benchmark and the plain script are not in the wheel: who works on them has the checkout."""
    problem = first_failure(path, ROOT, tmp_path)
    assert problem is None, problem


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
