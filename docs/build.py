"""Builds the documentation site from the notebooks, their docments and the Markdown files beside them.

`python docs/build.py --out _docs` needs no network and no Quarto. Three steps: nbdev puts signatures, with
the comment of each parameter, in place of exported code; nbconvert makes Markdown of each notebook; mkdocs
makes the site. The menu is the file tree: a new notebook or a new wing appears without an entry anywhere.
"""

import argparse
import graphlib
import html
import os
import re
import shutil
import tempfile
from configparser import SectionProxy
from pathlib import Path

from project import ROOT, read_settings

COLAB = r"https://colab\.research\.google\.com/github/"
BADGE = re.compile(rf"\[!\[Open In Colab\]\([^)]*\)\]\(({COLAB}([^)]*))\)\n+(# .*\n)")
BUTTONS = r"\3\n[Open in Colab](\1){.md-button} [Notebook](https://github.com/\2){.md-button}\n"
LINK = re.compile(r'(\]\(|(?:src|srcset|href)=")([^)"\s#]+)(#[^)"\s]*)?(?=[)"])')
FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.S)
IMAGES = {".png", ".svg", ".jpg"}
TEMPLATE = """{% extends "markdown/index.md.j2" %}
{% block input %}{% if not cell.source.startswith("show_doc(") %}{{ super() }}{% endif %}{% endblock %}
{% block stream %}
~~~~ {.text .output}
{{ output.text | strip_ansi }}
~~~~
{% endblock %}
{% block data_text %}
~~~~ {.text .output}
{{ output.data["text/plain"] }}
~~~~
{% endblock %}"""


# --- which pages there are


def pages() -> dict[str, str]:
    """Every source of the site and the page that it becomes, by paths in the repository and in the site.

    Numbers in front of names are dropped, as in the addresses of nbdev: law/00_x.ipynb is law/x.html.
    """
    found = {"README.md": "index.md"}
    for path in sorted([*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("nbs/**/*.md")]):
        inside = path.relative_to(ROOT / "nbs")
        if not any(part.startswith((".", "_")) for part in inside.parts):
            page = re.sub(r"(^|/)\d+\w?_", r"\1", inside.with_suffix(".md").as_posix())
            found[f"nbs/{inside.as_posix()}"] = page
    found |= {f"results/{path.name}": f"tables/{path.name}" for path in sorted(ROOT.glob("results/*.md"))}
    found |= {path.name: path.name for path in sorted(ROOT.glob("*.md")) if path.name != "README.md"}
    if len(set(found.values())) < len(found):
        raise SystemExit(f"docs/build.py: two files would become one page: {sorted(found.values())}")
    return found


def wings() -> list[str]:
    """The folders of the package, each after those that it imports from."""
    imports = {}
    for folder in sorted(path.parent for path in ROOT.glob("si_nb/*/__init__.py")):
        code = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
        imports[folder.name] = sorted(
            set(re.findall(r"^from (?:si_nb\.|\.\.)(\w+)", code, re.M)) - {folder.name}
        )
    return [wing for wing in graphlib.TopologicalSorter(imports).static_order() if wing in imports]


def navigation(found: dict[str, str]) -> list:
    """The menu: home, results, the wings in the order of their arrows, then what remains."""
    sections: dict[str, list[str]] = {}
    for source, page in found.items():
        folder = page.split("/")[0] if "/" in page else "" if source.startswith("nbs/") else "project"
        sections.setdefault(folder, []).append(page)
    known = [folder for folder in ("results", *wings()) if folder in sections]
    others = sorted(set(sections) - {*known, "", "tables", "project"})
    menu: list = [{"Home": sections["project"].pop(0)}]
    for folder in (*known, "", *others, "tables", "project"):
        listed = sorted(sections.get(folder, []), key=lambda page: Path(page).stem not in ("index", "README"))
        menu += [{folder.capitalize(): listed}] if folder and listed else listed
    return menu


# --- from a source to a page


def relink(text: str, source: str, found: dict[str, str], options: SectionProxy) -> str:
    """Links between files become links between pages; other files are linked in the hosted repository."""
    site = options["doc_host"] + options["doc_baseurl"] + "/"
    folder = Path(found[source]).parent

    def link(match: re.Match) -> str:
        before, target, anchor = match[1], match[2], match[3] or ""
        if target.startswith(site):
            page = re.sub(r"\.html$", ".md", target.removeprefix(site))
            return before + os.path.relpath(page, folder) + anchor if page in found.values() else match[0]
        path = os.path.normpath(Path(source).parent / target)
        if ":" in target or path.startswith("..") or not (ROOT / path).exists():
            return match[0]
        if path in found or Path(path).suffix in IMAGES:
            return before + os.path.relpath(found.get(path, path), folder) + anchor
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{before}{options['git_url']}/{kind}/{options['branch']}/{path}{anchor}"

    return LINK.sub(link, text)


def processed(notebook: Path) -> str:
    """A notebook's JSON with signatures in place of exported code; imports and exported cells are run."""
    from execnb.nbio import nb2str, read_nb
    from nbdev import processors as nbdev

    class Processors(nbdev.FilterDefaults):
        def base_procs(self) -> list:
            names = (
                "populate_language add_show_docs strip_ansi hide_line exec_show_docs rm_export clean_magics"
            )
            return [getattr(nbdev, name) for name in [*names.split(), "hide_", "add_links"]]

    content = read_nb(notebook)
    content.cells = [c for c in content.cells if c.cell_type != "code" or "google.colab" not in c.source]
    Processors()(content)
    return nb2str(content)


def markdown_of(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its figures by file name."""
    import nbformat
    from nbconvert import MarkdownExporter

    content = nbformat.reads(processed(notebook), as_version=4)
    content.metadata.language_info = {"name": "python"}
    exporter = MarkdownExporter(raw_template=TEMPLATE)
    text, resources = exporter.from_notebook_node(content, {"unique_key": notebook.stem})
    text = BADGE.sub(BUTTONS, text)
    text = re.sub(r"<style scoped>.*?</style>\n?", "", text, flags=re.S)
    text = text.replace('<table border="1" class="dataframe">', "<table>")
    anchored = re.sub(r"^#{2,4} ([\w.]+)$", lambda m: f"{m[0]} {{#{m[1].lower()}}}", text, flags=re.M)
    return anchored, resources["outputs"]


def stage(folder: Path) -> list:
    """Write every page into a folder, and return the menu."""
    os.chdir(ROOT)  # nbdev looks for settings.ini from here
    found, options = pages(), read_settings()
    for source, page in found.items():
        target = folder / page
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".ipynb"):
            text, figures = markdown_of(ROOT / source)
        else:
            text, figures = (ROOT / source).read_text(encoding="utf-8"), {}
        target.write_text(relink(text, source, found, options), encoding="utf-8")
        for name, data in figures.items():
            (target.parent / name).write_bytes(data)
    for top in ("docs", "nbs"):
        for image in (path for path in ROOT.glob(f"{top}/**/*") if path.suffix in IMAGES):
            (folder / image.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, folder / image.relative_to(ROOT))
    shutil.copyfile(ROOT / "docs" / "site.css", folder / "site.css")
    return navigation(found)


# --- the site


def on_page_content(content: str, **_) -> str:
    """Formulas become MathML, which browsers draw by themselves; mkdocs calls this for every page.

    Raises: SystemExit naming a formula that holds what latex2mathml does not know.
    """
    from latex2mathml.converter import convert

    def mathml(match: re.Match) -> str:
        formula = html.unescape(match[2]).replace(
            "{aligned}", "{align*}"
        )  # latex2mathml knows only the second
        made = convert(formula, display="inline" if match[1] == "span" else "block")
        if unknown := re.search(r"<m[io]>(&|\\\w+)</m[io]>", made):
            raise SystemExit(f"docs/build.py: {unknown[1]} in the formula {formula} cannot be drawn")
        return made

    return FORMULA.sub(mathml, content)


def build(out: Path) -> None:
    """Build the whole site into a folder; a link that leads nowhere is an error."""
    from mkdocs.commands import build as mkdocs_build
    from mkdocs.config import load_config

    options = read_settings()
    with tempfile.TemporaryDirectory() as folder:
        menu = stage(Path(folder))
        config = load_config(
            str(ROOT / "docs" / "mkdocs.yml"),
            docs_dir=folder,
            site_dir=str(out),
            nav=menu,
            strict=True,
            site_name=options["title"],
            site_description=options["description"],
            repo_url=options["git_url"],
            site_url=options["doc_host"] + options["doc_baseurl"] + "/",
            copyright=options["copyright"],
        )
        config.plugins.on_startup(command="build", dirty=False)
        mkdocs_build.build(config)
        config.plugins.on_shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "_docs", help="folder of the site (default: %(default)s)"
    )
    chosen = parser.parse_args().out.resolve()
    build(chosen)
    size = sum(path.stat().st_size for path in chosen.rglob("*") if path.is_file())
    print(f"{chosen}: {len(list(chosen.rglob('*.html')))} pages, {size / 1e6:.1f} MB")
