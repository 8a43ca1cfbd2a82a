"""What gets installed, and what it asks for."""

import ast
import configparser
import email
import json
import os
import sys
import tarfile
import zipfile
from functools import cache

import pytest
from conftest import NOTEBOOKS, ROOT, read_notebook, read_settings, run
from IPython.core.inputtransformer2 import TransformerManager
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SETTINGS = read_settings()
RUNTIME = [Requirement(text) for text in SETTINGS["requirements"].split()]
FILES = sorted(
    path.relative_to(ROOT / "si_nb") for path in (ROOT / "si_nb").rglob("*.py") if "results" not in path.parts
)
MODULES = [".".join(path.with_suffix("").parts) for path in FILES]  # law.horizon for si_nb/law/horizon.py
ROOMS = [name for name in MODULES if name.split(".")[-1] not in ("__init__", "__main__", "_modidx")]
CLUSTER = [Requirement(text) for text in SETTINGS["cluster_requirements"].split()]
BENCH = [Requirement(text) for text in SETTINGS["bench_requirements"].split()]
DISTRIBUTION_OF = {
    "IPython": "ipython",
    "google": "google-colab",
    "tomllib": "tomli",
}  # import name -> distribution, where they differ
AWAY_FROM_NETWORK = {name: None for name in os.environ if name.startswith("PIP_")} | {
    "PIP_CONFIG_FILE": os.devnull
}


# --- the distributions


def tables():
    """Committed measured tables and what describes them, as paths below results/."""
    files = [
        path.relative_to(ROOT / "results")
        for kind in ("csv", "json", "md", "toml", "sha256")
        for path in (ROOT / "results").rglob(f"*.{kind}")
    ]
    return {
        path.as_posix() for path in files if not {"runs", "bases", "jobs"} & set(path.parts)
    }  # working folders of sweeps


def test_wheel_holds_the_modules_and_the_tables_and_nothing_else(wheel):
    """The wheel carries every module and every measured table, and no tests, notebooks or settings."""
    names = {
        name
        for name in zipfile.ZipFile(wheel).namelist()
        if ".dist-info/" not in name and not name.endswith("/")
    }
    shipped = {f"si_nb/{path.as_posix()}" for path in FILES if path.parts[0] != "benchmarks"}
    assert names == shipped | {f"si_nb/results/{name}" for name in tables()}


def test_wheel_is_small(wheel):
    """The tables travel with the wheel, so they must stay a few MB."""
    assert wheel.stat().st_size < 8e6


def test_source_distribution_builds_the_same_wheel(distributions):
    """The sdist holds what setup.py reads: settings, README, licence,
    tables (the wheel was built from it).
    """
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"settings.ini", "setup.py", "README.md", "LICENSE", "constraints.txt"} <= names
    assert {f"si_nb/results/{name}" for name in tables()} <= names


def metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_string(archive.read(name).decode())


def runtime_requirements(wheel):
    """Requirements of the wheel without any extra, by name."""
    found = [Requirement(text) for text in metadata(wheel).get_all("Requires-Dist")]
    plain = [
        r for r in found if r.marker is None or r.marker.evaluate({**default_environment(), "extra": ""})
    ]
    return {canonicalize_name(requirement.name): requirement for requirement in plain}


def test_runtime_requirements_have_no_upper_bounds(wheel):
    """Colab's own torch and numpy stay: nothing is capped, pinned or excluded at run time."""
    capped = [
        str(r)
        for r in runtime_requirements(wheel).values()
        if any(part.operator not in (">=", ">") for part in r.specifier)
    ]
    assert not capped, f"upper bounds at run time: {capped}"
    assert {"torch", "numpy"} <= runtime_requirements(wheel).keys()


def test_runtime_requirements_hold_no_tools(wheel):
    """What only builds, tests or edits is in the dev extra, and the extra repeats nothing that runs."""
    runtime = runtime_requirements(wheel).keys()
    development = {canonicalize_name(Requirement(text).name) for text in SETTINGS["dev_requirements"].split()}
    tools = {
        "nbdev",
        "execnb",
        "ghapi",
        "jupyterlab",
        "nbclient",
        "nbconvert",
        "ipykernel",
        "pytest",
        "hypothesis",
        "build",
        "setuptools",
    }
    assert not runtime & (development | tools)
    assert tools <= development


def test_version_and_address_are_the_same_everywhere(wheel, wheel_site):
    """settings.ini, the package and the wheel agree on version, name, address, licence and Python."""
    facts = metadata(wheel)
    told = run(
        sys.executable,
        "-c",
        "import si_nb; print(si_nb.__version__, si_nb.__file__)",
        cwd=wheel_site,
        PYTHONPATH=wheel_site,
    )
    version, file = told.split(maxsplit=1)
    assert file.startswith(str(wheel_site))
    assert version == facts["Version"] == SETTINGS["version"]
    assert (facts["Name"], facts["Requires-Python"]) == ("si_nb", ">=3.10")
    assert SETTINGS["git_url"] in (
        facts["Home-page"],
        *[url.split(", ")[-1] for url in facts.get_all("Project-URL", [])],
    )
    assert "Apache-2.0" in (facts["License"], facts["License-Expression"])


@pytest.mark.parametrize("where", ["wheel", "checkout"])
def test_measured_tables_are_found_beside_the_code(where, request):
    """The same line of Python finds the tables in an installed wheel and in a checkout."""
    site = request.getfixturevalue("wheel_site") if where == "wheel" else ROOT
    code = (
        "import si_nb, pathlib; [print(p) for p in sorted((pathlib.Path(si_nb.__file__).parent / "
        "'results').rglob('*.*'))]"
    )
    lines = run(sys.executable, "-c", code, cwd=site, PYTHONPATH=site).splitlines()
    found = {line.removeprefix(f"{site}/si_nb/results/") for line in lines}
    assert tables() <= found


def test_command_is_installed(wheel, wheel_site):
    """The wheel brings the command si_nb, and python -m si_nb is the same program."""
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    parser = configparser.ConfigParser()
    parser.read_string(archive.read(name).decode())
    assert parser["console_scripts"]["si_nb"] == "si_nb.cli:main"
    for start in (
        ["-c", "import sys; sys.argv[0] = 'si_nb'; from si_nb.cli import main; main()"],
        ["-m", "si_nb"],
    ):
        text = run(
            sys.executable, *start, "--help", cwd=wheel_site, PYTHONPATH=wheel_site, NO_COLOR=1, TERM="dumb"
        )
        assert all(command in text for command in ("run", "law", "figures")), text


# --- an environment that has another torch, such as Colab


def pretend_installed(site, name, version):
    """An installed distribution as pip sees one: a dist-info folder."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text("")


def pretend_offered(shelf, name, version):
    """A wheel without content that pip could choose instead."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(shelf / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def planned(wheel, tmp_path):
    """What pip would install beside the wheel, given what is installed already;
    newer versions of all lie ready.
    """
    names = [requirement.name for requirement in RUNTIME]

    def plan(installed):
        run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
        (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
        shelf = tmp_path / "shelf"
        shelf.mkdir()
        for name, version in installed.items():
            pretend_installed(site, name, version)
        for name in names:
            pretend_offered(shelf, name, "99.0")
        text = run(
            sys.executable,
            "-m",
            "pip",
            "--python",
            tmp_path / "venv" / "bin" / "python",
            "install",
            "--quiet",
            "--dry-run",
            "--no-index",
            "--find-links",
            shelf,
            "--report",
            "-",
            wheel,
            cwd=tmp_path,
            **AWAY_FROM_NETWORK,
        )
        return {item["metadata"]["name"] for item in json.loads(text[text.index("{") :])["install"]} - {
            "si_nb"
        }

    return plan


def test_install_leaves_the_torch_and_numpy_of_the_machine_alone(planned):
    """Installing beside another torch and numpy brings in what is missing and replaces neither."""
    others = {r.name: "50.0" for r in RUNTIME if r.name not in ("torch", "numpy", "safetensors")}
    assert planned({"torch": "2.5.0+cu121", "numpy": "1.26.4", **others}) == {"safetensors"}


def test_install_plan_would_show_a_replaced_torch(planned):
    """The plan above can fail: a torch that is too old is listed as replaced."""
    others = {r.name: "50.0" for r in RUNTIME if r.name != "torch"}
    assert planned({"torch": "1.0.0", **others}) == {"torch"}


def test_constraints_cover_the_requirements():
    """Every requirement has its tested range in constraints.txt, and none contradicts settings.ini."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = {
        r.name: r.specifier
        for r in (Requirement(line) for line in lines if line and not line.startswith("#"))
    }
    assert str(constraints["torch"]) == "<2.14"
    needed = [
        *RUNTIME,
        *CLUSTER,
        *BENCH,
        *(Requirement(text) for text in SETTINGS["dev_requirements"].split()),
    ]
    missing = [r.name for r in needed if r.name not in constraints]
    assert not missing, f"constraints.txt says nothing of {missing}"
    from importlib.metadata import version

    needed = [
        r for r in needed if (r.marker is None or r.marker.evaluate()) and r not in BENCH
    ]  # which dev does not install
    outside = [
        r.name
        for r in needed
        if not (constraints[r.name] & r.specifier).contains(version(r.name), prereleases=True)
    ]
    assert not outside, f"installed versions outside of constraints.txt: {outside}"


# --- imports


@cache
def imported(module):
    """What a module imports anywhere in its text: everything foreign by its first name."""
    path = ROOT / "si_nb" / f"{module.replace('.', '/')}.py"
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - {"si_nb"}


def test_tracker_is_imported_only_when_asked_for():
    """Importing every room does not import Weights & Biases."""
    code = (
        "import sys; "
        + "; ".join(f"import si_nb.{name}" for name in ROOMS)
        + "; print('wandb' in sys.modules)"
    )
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == "False"


IN_NOTEBOOKS = {"loop.progress": {"IPython"}}  # imported only where a notebook runs, which brings it


def undeclared(names):
    """Imported names that are neither Python's own, nor ours, nor a requirement at run time,
    on a cluster or of the benchmark.
    """
    declared = {canonicalize_name(requirement.name) for requirement in (*RUNTIME, *CLUSTER, *BENCH)}
    foreign = {name for name in names if name not in sys.stdlib_module_names and name != "si_nb"}
    return {name for name in foreign if canonicalize_name(DISTRIBUTION_OF.get(name, name)) not in declared}


@pytest.mark.parametrize("room", [name for name in MODULES if name != "_modidx"])
def test_library_imports_only_what_it_declares(room):
    """Every import of the library is in settings.ini's requirements, so that an install is complete."""
    missing = undeclared(imported(room)) - IN_NOTEBOOKS.get(room, set())
    assert not missing, f"si_nb.{room} imports {missing}: not in requirements"


def test_every_requirement_is_used():
    """No runtime requirement that nothing imports."""
    used = {canonicalize_name(name) for room in MODULES for name in imported(room)}
    idle = [requirement.name for requirement in RUNTIME if canonicalize_name(requirement.name) not in used]
    assert not idle, f"required but imported nowhere: {idle}"


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_notebook_imports_only_what_the_wheel_brings(path):
    """A Colab user has the wheel and its requirements, and no development tools: a notebook needs no more."""
    in_every_kernel = {"IPython", "google"}
    problems = []
    for index, cell in enumerate(read_notebook(path)["cells"]):
        if cell["cell_type"] != "code":
            continue
        nodes = list(ast.walk(ast.parse(TransformerManager().transform_cell("".join(cell["source"])))))
        names = {alias.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        names |= {n.module.split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}
        problems += [
            f"{path}, cell {index}: imports {name}" for name in sorted(undeclared(names) - in_every_kernel)
        ]
    assert not problems, "\n" + "\n".join(problems)
