"""Which room of the package may know which, and what each wing must do without."""

import re
import sys

import pytest
from conftest import ROOT, run

from si_nb.house import MAY_IMPORT, WINGS, forbidden_arrows, imported_rooms, mermaid, rooms

LAW = [room for room in rooms() if room.startswith(("law.", "record."))]
LAW += ["loop.settings", "loop.voting", "loop.complete", "loop.grid"]  # settings are plain values
LAW += ["model.positions"]  # whose names the settings take
HEAVY = ("matplotlib", "IPython", "safetensors", "wandb", "torch")


def reached(room):
    """Every room that a room imports, itself or through others."""
    seen, open_ = set(), [room]
    while open_:
        new = imported_rooms(open_.pop()) - seen
        seen |= new
        open_ += new
    return seen


def text(room):
    return (ROOT / "si_nb" / f"{room.replace('.', '/')}.py").read_text(encoding="utf-8")


def test_arrows_are_read_rightly():
    """The arrows that the next tests judge include some that are known to be there,
    through others and in functions too.
    """
    assert "problems.tokenizer" in imported_rooms("model.trainer")
    assert {"problems.tasks", "problems.tokenizer"} <= reached("loop.evaluate")
    assert any(room.startswith("loop.") for room in imported_rooms("cli"))  # inside functions


def test_no_arrow_leads_where_none_may():
    """Problems and record know no other wing, the model no loop, the law neither;
    nobody knows the command line.
    """
    assert forbidden_arrows() == []
    assert MAY_IMPORT["law"] == {"record"} and not MAY_IMPORT["problems"] and not MAY_IMPORT["record"]
    assert not any("cli" in allowed for allowed in MAY_IMPORT.values())


def test_every_room_belongs_to_a_wing():
    """No module lies outside of the wings but the house itself and the benchmarks,
    which are not part of the wheel.
    """
    outside = {path.name for path in (ROOT / "si_nb").glob("*.py")} - {
        "__init__.py",
        "__main__.py",
        "_modidx.py",
        "house.py",
        "registry.py",
        "cli.py",
    }
    folders = {path.parent.name for path in (ROOT / "si_nb").glob("*/__init__.py")} - {"benchmarks"}
    assert not outside and folders | {"cli"} == set(WINGS)


def test_there_are_no_circles():
    """No room imports itself through others."""
    assert not [room for room in rooms() if room in reached(room)]


def test_the_model_knows_nothing_of_ours():
    """The GPT can be lifted out: it imports no other room but that of its positions, which imports none."""
    assert imported_rooms("model.gpt") == {"model.positions"} and not imported_rooms("model.positions")
    assert "problems.tasks" not in reached("model.trainer")


@pytest.mark.parametrize("room", [room for room in rooms() if "wandb" in text(room)])
def test_one_room_speaks_to_the_tracker(room):
    """Weights & Biases is imported in one place."""
    imports = re.search(r"^\s*(import|from) wandb\b", text(room), re.M)
    assert not imports or room == "loop.tracker"


def test_tables_are_read_and_fitted_without_torch(tmp_path):
    """Where torch is not installed the law still works,
    and who reads tables does not wait for plotting or tracking to load.
    """
    for absent in ("torch", "wandb"):  # found first, and not importable
        (tmp_path / f"{absent}.py").write_text(
            f"raise ModuleNotFoundError('No module named {absent}', name='{absent}')"
        )
    rooms = [room for room in LAW if room not in ("law.figures", "law.comparisons")]  # which draw
    code = (
        f"import sys, importlib\nfor room in {rooms}:\n    importlib.import_module('si_nb.' + room)\n"
        f"    print(room, [name for name in {HEAVY} if name in sys.modules])"
    )
    said = run(sys.executable, "-W", "error", "-c", code, cwd=ROOT, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert said.splitlines() == [f"{room} []" for room in rooms]


def test_the_picture_in_the_readme_is_that_of_the_code():
    """The arrows between wings that README draws are those of the imports."""
    (picture,) = re.findall(
        r"^```mermaid\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M
    )
    assert picture.strip() == mermaid()
