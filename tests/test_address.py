"""One address and one version everywhere: settings.ini has them, all other places are held to it."""

import configparser
import re
import shutil
import sys
import types
from unittest.mock import MagicMock

import pytest
from conftest import NOTEBOOKS, ROOT, read_notebook, read_settings, run
from IPython.core.inputtransformer2 import TransformerManager
from test_docs import load
from test_house import repository_files

SETTINGS = read_settings()
OWNER, NAME = SETTINGS["git_url"].split("/")[-2:]
PLACES = re.compile(
    r"(?:github\.com|colab\.research\.google\.com/github|mybinder\.org/v2/gh|"
    r"raw\.githubusercontent\.com)/([\w-]+/[\w.-]+)"
)


def install_cell(path):
    """Source of a notebook's install cell."""
    code = ("".join(cell["source"]) for cell in read_notebook(path)["cells"] if cell["cell_type"] == "code")
    return next(text for text in code if "google.colab" in text)


def test_settings_agree_with_each_other():
    """User, repository and the site's address in settings.ini follow from its git_url."""
    expected = {
        "user": OWNER,
        "repo": NAME,
        "doc_host": f"https://{OWNER}.github.io",
        "doc_baseurl": f"/{NAME}",
    }
    assert {option: SETTINGS[option] for option in expected} == expected


def test_every_place_names_the_same_repository():
    """Badges, install cells, citation and texts name the address in settings.ini and none like it."""
    found, wrong = set(), []
    for path in repository_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for slug in PLACES.findall(line):
                slug = slug.removesuffix(".git")
                if slug == f"{OWNER}/{NAME}":
                    found.add(path.relative_to(ROOT).as_posix())
                elif slug.split("/")[1] == NAME or slug.split("/")[0] == OWNER:
                    wrong.append(f"{path.relative_to(ROOT)}:{number}: {slug}")
    assert not wrong, "\n".join(wrong)
    assert {"settings.ini", "CITATION.cff", "CHANGELOG.md", *NOTEBOOKS} <= found


def test_a_fork_rewrites_every_place(tmp_path):
    """One command, and nothing names the old address; a second one brings every byte back."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    for path in repository_files():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    run("git", "init", "-q", cwd=tmp_path)
    run("git", "add", "-A", cwd=tmp_path)
    before = {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(tmp_path).parts
    }
    owner, name = "some-one", "else.where"
    said = run(sys.executable, "docs/set_repository.py", f"{owner}/{name}", cwd=tmp_path)
    assert said.endswith(f"files now name {owner}/{name}\n")
    left = [
        path.name
        for path in before
        if re.search(rf"{OWNER}/{NAME}\b|\b{OWNER}\.github\.io|\b{OWNER}@".encode(), path.read_bytes())
    ]
    assert not left, left
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(tmp_path / "settings.ini", encoding="utf-8")
    options = parser["DEFAULT"]
    assert (options["git_url"], options["user"], options["repo"]) == (
        f"https://github.com/{owner}/{name}",
        owner,
        name,
    )
    assert (options["doc_host"], options["doc_baseurl"], options["lib_name"]) == (
        f"https://{owner}.github.io",
        f"/{name}",
        SETTINGS["lib_name"],
    )
    run(sys.executable, "docs/set_repository.py", f"{OWNER}/{NAME}", cwd=tmp_path)
    assert not [path for path, content in before.items() if path.read_bytes() != content]


def test_no_address_is_refused():
    """What is no OWNER/NAME is refused in one line, and nothing is written."""
    with pytest.raises(AssertionError, match="is no address: write OWNER/NAME"):
        run(sys.executable, "docs/set_repository.py", "https://example.org/a/b", cwd=ROOT)


# --- install cells


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_install_cell_installs_this_version(path):
    """A notebook installs the tag that it belongs to: run docs/install_cells.py after a new version."""
    module = load("install_cells")
    text = install_cell(path)
    assert text == module.install_cell(ROOT), f"{path}: run python docs/install_cells.py"


@pytest.mark.parametrize("installed, stops", [("none", True), ("0.0.1", True), (SETTINGS["version"], False)])
def test_install_cell_fails_loudly(installed, stops, monkeypatch, capsys):
    """On Colab, a pip that failed or brought another version stops the notebook with one line."""
    module = load("install_cells")
    colab, package, runs = (
        types.ModuleType("google"),
        types.ModuleType("si_nb"),
        types.ModuleType("si_nb.loop.folder"),
    )
    colab.colab = types.ModuleType("google.colab")
    package.__version__, runs.describe_place = installed, lambda: "a machine"
    there = None if installed == "none" else package
    for name, made in {
        "google": colab,
        "google.colab": colab.colab,
        "si_nb": there,
        "si_nb.loop.folder": runs,
    }.items():
        monkeypatch.setitem(sys.modules, name, made)
    text = TransformerManager().transform_cell(module.install_cell(ROOT))
    shell = MagicMock()
    try:
        exec(compile(text, "install cell", "exec"), {"get_ipython": lambda: shell})
    except SystemExit as error:
        assert (
            stops and "\n" not in str(error) and SETTINGS["version"] in str(error) and installed in str(error)
        )
    else:
        assert not stops and capsys.readouterr().out == "a machine\n"
    (call,) = shell.run_line_magic.call_args_list
    assert call.args == ("pip", f"install -q git+{SETTINGS['git_url']}@v{SETTINGS['version']}")
