"""The documentation site and the files that welcome a newcomer: pages, links, examples, configuration."""

import importlib.util
import re
import shutil
import sys
import textwrap

import pytest
from conftest import NOTEBOOKS, ROOT, read_settings, run

SETTINGS = read_settings()
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("results/*.md"), *ROOT.glob("nbs/**/*.md")]
)


def load(name):
    """A script of the folder docs, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return module


def listed(menu):
    """All pages of a menu, in order."""
    for entry in menu:
        inside = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from [inside] if isinstance(inside, str) else listed(inside)


def prose(path):
    """A Markdown file without its code blocks."""
    return re.sub(r"^```.*?^```", "", (ROOT / path).read_text(encoding="utf-8"), flags=re.S | re.M)


# --- the site


def test_menu_lists_every_notebook():
    """Every notebook and every Markdown file is a page, and every page is in the menu once."""
    build = load("build")
    found = build.pages()
    menu = list(listed(build.navigation(found)))
    assert set(NOTEBOOKS) | set(PAGES) == set(found)
    assert sorted(menu) == sorted(found.values())
    assert menu[0] == "index.md" and len(set(menu)) == len(menu)


def test_menu_follows_the_file_tree(tmp_path, monkeypatch):
    """A new wing and a new notebook appear by themselves, wings after those that they import from."""
    build = load("build")
    files = ["nbs/zoo/00_cage.ipynb", "nbs/zoo/index.ipynb", "nbs/alpha/01_user.ipynb", "nbs/_draft.ipynb"]
    files += [
        "nbs/alone.ipynb",
        "README.md",
        "GLOSSARY.md",
        "si_nb/zoo/__init__.py",
        "si_nb/alpha/__init__.py",
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "si_nb/alpha/user.py").write_text("from ..zoo.cage import lion\n")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    wings = [{"Zoo": ["zoo/index.md", "zoo/cage.md"]}, {"Alpha": ["alpha/user.md"]}]
    expected = [{"Home": "index.md"}, *wings, "alone.md", {"Project": ["GLOSSARY.md"]}]
    assert build.navigation(build.pages()) == expected


HOSTED = f"{SETTINGS['git_url']}/{{}}/{SETTINGS['branch']}"
SITE = SETTINGS["doc_host"] + SETTINGS["doc_baseurl"]


@pytest.mark.parametrize(
    "written, becomes",
    [
        ("nbs/results/law.ipynb#x", "results/law.md#x"),
        (f"{SITE}/results/law.html#x", "results/law.md#x"),
        ("results/README.md", "tables/README.md"),
        ("tests/conftest.py", f"{HOSTED.format('blob')}/tests/conftest.py"),
        ("nbs", f"{HOSTED.format('tree')}/nbs"),
        ("https://arxiv.org", "https://arxiv.org"),
        ("no/such/file", "no/such/file"),
    ],
)
def test_links_lead_to_pages_or_to_the_repository(written, becomes):
    """Links to notebooks and addresses that nbdev writes lead to pages; other files are hosted elsewhere."""
    build = load("build")
    found = build.pages()
    assert build.relink(f"[a]({written})", "README.md", found, SETTINGS) == f"[a]({becomes})"
    if written.startswith("nbs/results"):
        from_a_notebook = build.relink("[a](law.ipynb)", "nbs/results/copy.ipynb", found, SETTINGS)
        assert from_a_notebook == "[a](law.md)"


def test_formulas_need_no_network():
    """A formula becomes MathML in the page itself; no script is fetched to draw it."""
    pytest.importorskip("latex2mathml", reason="the docs extra is not installed")
    inline = '<span class="arithmatex">\\(m &lt; 1\\)</span>'
    block = '<div class="arithmatex">\n\\[\\frac{a}{b}\\]\n</div>'
    made = load("build").on_page_content(f"<p>{inline}</p>{block}")
    assert made.count("<math") == 2 and made.count('display="block"') == 1
    assert "mfrac" in made and "arithmatex" not in made
    with pytest.raises(SystemExit, match="nosuchcommand"):
        load("build").on_page_content(inline.replace("m ", "\\nosuchcommand "))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    folder = tmp_path_factory.mktemp("site")
    run(sys.executable, ROOT / "docs" / "build.py", "--out", folder, timeout=900, PYTHONPATH=ROOT)
    return folder


@pytest.mark.slow(reason="builds the whole site, which runs the exported code of every notebook")
def test_site_has_what_a_reader_looks_for(site):
    """Every page; signatures with the comment of each parameter; figures, search, light and dark."""
    found = load("build").pages()
    written = [site / re.sub(r"README\.md$", "index.md", page) for page in found.values()]
    assert not [page for page in written if not page.with_suffix(".html").exists()]
    notebook = next(path for path in NOTEBOOKS if path.endswith("_figures.ipynb"))
    page = (site / found[notebook]).with_suffix(".html").read_text(encoding="utf-8")
    for text in (
        'id="canvas"',
        "width and height, inches",
        "Open in Colab",
        f"{HOSTED.format('blob')}/{notebook}",
    ):
        assert text in page, text
    for text in ("show_doc(", "google.colab"):
        assert text not in page, text
    for scheme in ("default", "slate"):
        assert f'data-md-color-scheme="{scheme}"' in page
    assert list((site / "results").glob("*.png")), "result notebooks without figures"
    assert "binomial_interval" in next(site.glob("search/search_index.js*")).read_text(encoding="utf-8")


FETCHED = (
    r'<(?:script|img|iframe)\b[^>]*\ssrc="(https?:[^"]*)|<link rel="stylesheet"[^>]*href="(https?:[^"]*)'
)


@pytest.mark.slow(reason="builds the whole site, which runs the exported code of every notebook")
def test_site_fetches_nothing(site):
    """No page needs a font, a style, a script or a picture from elsewhere."""
    texts = {page.name: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    fetched = {name: found for name, text in texts.items() if (found := re.findall(FETCHED, text))}
    assert not fetched


@pytest.mark.slow(reason="builds the whole site, which runs the exported code of every notebook")
def test_site_is_small(site):
    """The site stays small enough for any host."""
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 40e6


# --- the table of the house


def test_table_of_the_house_counts(tmp_path):
    """Long, private and repeated code is counted as somebody would who reads it."""
    table = load("house_table")
    repeated = "".join(f"    value_{number} = {number}\n" for number in range(table.BLOCK))
    rest = "".join(f"    other_{number} = {number}\n" for number in range(table.LONG))
    (tmp_path / "si_nb" / "wing").mkdir(parents=True)
    (tmp_path / "si_nb" / "wing" / "one.py").write_text(f"def shown():\n{repeated}{rest}")
    (tmp_path / "si_nb" / "wing" / "two.py").write_text(f"def _hidden():\n{repeated}")
    long = [node.name for node in table.functions(tmp_path) if node.end_lineno - node.lineno >= table.LONG]
    assert long == ["shown"] and len(table.functions(tmp_path)) == 2
    assert len(table.modules(tmp_path)) == 2 and table.duplicated_blocks(tmp_path) == 1


# --- pages and examples


@pytest.mark.parametrize("path", PAGES)
def test_links_resolve(path):
    """Every relative link of a Markdown file leads to a file of the repository."""
    links = [
        link.split("#")[0]
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(path))
        if not re.match(r"[a-z]+:|#", link)
    ]
    missing = [link for link in links if not (ROOT / path).parent.joinpath(link).exists()]
    assert not missing, f"{path}: no file {missing}"


def examples():
    """The Python blocks of CONTRIBUTING.md, by the name of what they register."""
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S | re.M
    )
    return {re.search(r"import .*\b(register_\w+)", block)[1]: block for block in blocks}


USES = {
    "register_task": """
        from si_nb.problems.tasks import TASKS, make_problems
        problems = make_problems(TASKS["rotate"], 5, 20, np.random.default_rng(0))
        assert (problems.answers[:, :5] == np.roll(problems.prompts[:, :5], 1, axis=1)).all()
    """,
    "register_keep_rule": """
        import numpy as np
        from si_nb.loop.voting import KEEP_RULES, propose
        alike, apart = np.full((2, 1, 3), 4, np.uint8), np.array([[[4, 4, 5]], [[4, 4, 4]]], np.uint8)
        proposal = propose(np.concatenate([alike, apart], axis=1))
        kept = KEEP_RULES["all_agree"].choose(proposal, (2,), 1.0, proposal.labels)
        assert KEEP_RULES["all_agree"].vote and kept.tolist() == [True, False]
    """,
    "register_forecaster": """
        from si_nb.law.report import law_report
        from si_nb.record.table import read_settings, read_table, results_folder
        run = results_folder() / "copy" / "seed0"
        report = law_report(read_table(run), 3, law="decay", resamples=50, settings=read_settings(run))
        assert {arm["chosen"] for arm in report["arms"].values()} == {"decay"}
    """,
}


def test_examples_for_contributors_run(tmp_path):
    """A task, a keep rule and a law as CONTRIBUTING.md shows them: ten lines of a user's file that work.

    Each is a file of its own, loaded as `--plugin` does, all by one process.
    """
    blocks = examples()
    assert set(blocks) == set(USES)
    for registers, block in blocks.items():
        assert len([line for line in block.splitlines() if line.strip()]) <= 10, (
            f"{registers}: over ten lines"
        )
        (tmp_path / f"{registers}.py").write_text(block + textwrap.dedent(USES[registers]), encoding="utf-8")
    load = "import sys; from si_nb.registry import load_plugin; list(map(load_plugin, sys.argv[1:]))"
    files = [f"{registers}.py" for registers in USES]
    run(sys.executable, "-c", load, *files, cwd=tmp_path, PYTHONPATH=ROOT)


def test_hooks_are_programs():
    """Every pre-commit hook is local and calls a program that the development environment has."""
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with nbdev")
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [entry["repo"] for entry in repositories] == ["local"]
    programs = [hook["entry"].split()[0] for entry in repositories for hook in entry["hooks"]]
    assert {"ruff", "nbdev_clean", "nbdev_export"} == set(programs)
    missing = [
        name
        for name in programs
        if not shutil.which(name, path=f"{sys.exec_prefix}/bin") and not shutil.which(name)
    ]
    assert not missing, missing


@pytest.mark.parametrize(
    "path",
    [
        ".github/workflows/tests.yml",
        ".github/workflows/docs.yml",
        ".github/workflows/release.yml",
        "docs/mkdocs.yml",
        "CITATION.cff",
    ],
)
def test_configuration_is_readable(path):
    """Files that only a host reads are valid, and the scripts that they call exist."""
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with nbdev")
    text = re.sub(r"!!python/name:\S+", "null", (ROOT / path).read_text(encoding="utf-8"))
    assert isinstance(yaml.safe_load(text), dict)
    for script in re.findall(r"(?:run: |python |^\s+)(\.ci/run|docs/\w+\.py)", text, re.M):
        assert (ROOT / script).is_file(), f"{path}: no {script}"


def test_citation_is_of_this_version():
    """CITATION.cff names the version, and the work that this one builds on."""
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with nbdev")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation) and citation[
        "cff-version"
    ] == "1.2.0"
    assert (citation["version"], citation["repository-code"]) == (SETTINGS["version"], SETTINGS["git_url"])
    (parent,) = citation["references"]
    assert {"type", "title", "authors"} <= set(parent) and len(parent["authors"]) == 5


def test_changelog_has_this_version():
    """The changelog has a section for the version in settings.ini."""
    assert re.search(
        rf"^## \[{re.escape(SETTINGS['version'])}\] - ",
        (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        re.M,
    )
