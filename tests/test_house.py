"""The house limits, measured: shape and opening of notebooks, documentation of names,
and what must never be in a tracked file.
"""

import ast
import contextlib
import io
import re
import shutil
import statistics
import sys
import tokenize
import types
from functools import cache
from unittest.mock import MagicMock

import nbformat
import pytest
from conftest import NOTEBOOKS, ROOT, read_notebook, read_settings, run
from IPython.core.inputtransformer2 import TransformerManager

from si_nb.cli import make_parser

SETTINGS = read_settings()
RESULTS = [path for path in NOTEBOOKS if path.startswith("nbs/results/")]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS)
each_module_notebook = pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path not in RESULTS])
each_result_notebook = pytest.mark.parametrize("path", RESULTS)


def source(cell):
    return "".join(cell["source"])


def code_cells(path):
    """Index and source of every code cell."""
    return [
        (index, source(cell))
        for index, cell in enumerate(read_notebook(path)["cells"])
        if cell["cell_type"] == "code"
    ]


def directives(text):
    """First words of a cell's nbdev directives, which are its leading comment lines."""
    leading = re.match(r"(?:\s*#[^\n]*(?:\n|$))*", text)[0]
    return {words.split()[0] for words in re.findall(r"^\s*#\s*\|\s*(.+)$", leading, re.M)}


def is_exported(text):
    return bool(directives(text) & {"export", "exports"})


@cache
def tree(text):
    """Syntax tree of a cell, magics and shell lines included; nobody may change it."""
    return ast.parse(TransformerManager().transform_cell(text))


def is_import(node):
    return isinstance(node, (ast.Import, ast.ImportFrom))


def public_names(text):
    """Names that a cell defines at its top level, private ones left out."""
    names = []
    for node in tree(text).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [
                n.id
                for target in targets
                for n in ast.walk(target)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            ]
    return [name for name in names if not name.startswith("_")]


def used_names(text):
    """Names and attributes that a cell mentions."""
    nodes = list(ast.walk(tree(text)))
    return {n.id for n in nodes if isinstance(n, ast.Name)} | {
        n.attr for n in nodes if isinstance(n, ast.Attribute)
    }


def checks_something(text):
    """Whether a cell can fail: an assertion, a fastcore test, or an error that is expected."""
    return any(
        isinstance(n, (ast.Assert, ast.Try))
        or (
            isinstance(n, ast.Call)
            and re.match(
                r"test_|raises|ExceptionExpected|assert_", getattr(n.func, "attr", getattr(n.func, "id", ""))
            )
        )
        for n in ast.walk(tree(text))
    )


def report(problems):
    assert not problems, "\n" + "\n".join(problems)


def library_files():
    """Every Python file of the package."""
    return sorted(
        path for path in (ROOT / "si_nb").rglob("*.py") if "results" not in path.relative_to(ROOT).parts
    )


def percentile_90(values):
    return statistics.quantiles(values, n=10, method="inclusive")[-1] if len(values) > 1 else values[0]


# --- notebooks: size and shape


def test_no_notebook_lies_outside_nbs():
    """Notebooks elsewhere are run by no test."""
    found = {path.relative_to(ROOT).as_posix() for path in repository_files() if path.suffix == ".ipynb"}
    assert found == set(NOTEBOOKS)


def test_there_is_a_notebook_for_every_module():
    """si_nb/ holds nothing that was written by hand: every module names the notebook it comes from."""
    by_hand = {"__init__.py", "__main__.py", "_modidx.py"}
    modules = [path for path in library_files() if path.name not in by_hand]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in modules}
    origins = {
        name: re.search(r"File to edit: (?:\.\./)+(nbs/\S+\.ipynb)\.", text) for name, text in texts.items()
    }
    assert modules, "si_nb holds no module"
    report(
        [
            f"{name}: names no notebook that it comes from"
            for name, origin in origins.items()
            if not origin or origin[1] not in NOTEBOOKS
        ]
    )
    report(
        [f"{name}: no docstring" for name, text in texts.items() if not ast.get_docstring(ast.parse(text))]
    )


@each_notebook
def test_code_cells_are_short(path):
    """Code cells: median at most 10 lines, 90th percentile at most 30, none above 60."""
    lengths = {index: len(text.strip("\n").splitlines()) for index, text in code_cells(path)}
    median, high = statistics.median(lengths.values()), percentile_90(list(lengths.values()))
    report(
        [
            f"{path}, cell {index}: {length} lines, more than 60"
            for index, length in lengths.items()
            if length > 60
        ]
    )
    assert median <= 10, f"{path}: median code cell has {median} lines, more than 10"
    assert high <= 30, (
        f"{path}: 90th percentile of code cells is {high} lines, more than 30: "
        f"{sorted(lengths.values())[-6:]}"
    )


@each_notebook
def test_few_cells_are_hidden(path):
    """At most a third of the code cells are hidden from the reader."""
    cells = code_cells(path)
    hidden = [
        index
        for index, text in cells
        if directives(text) & {"hide", "hide_input", "exporti", "include:", "echo:"}
    ]
    assert 3 * len(hidden) <= len(cells), (
        f"{path}: cells {hidden} hidden of {len(cells)} code cells, more than a third"
    )


@each_notebook
def test_prose_explains(path):
    """A notebook is a text: at least 150 words of prose."""
    prose = " ".join(source(cell) for cell in read_notebook(path)["cells"] if cell["cell_type"] == "markdown")
    words = len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\(https?://\S+\)", "", prose)))
    assert words >= 150, f"{path}: {words} words of prose, fewer than 150"


@each_notebook
def test_file_format_is_stable(path):
    """Nbformat 4.5 with unique ids, so that an export does not invent new ones."""
    notebook = read_notebook(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5), f"{path}: not nbformat 4.5"
    nbformat.validate(notebook)
    ids = [cell.get("id") for cell in notebook["cells"]]
    report(
        [
            f"{path}, cell {index}: id {name!r} missing or used twice"
            for index, name in enumerate(ids)
            if not name or ids.count(name) > 1
        ]
    )


@each_notebook
def test_stored_outputs_have_no_errors(path):
    """No stored output is a traceback or a warning."""
    bad = [
        f"{path}, cell {index}: stored {output.get('ename') or ''.join(output.get('text', []))[:200]}"
        for index, cell in enumerate(read_notebook(path)["cells"])
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
        or (output.get("name") == "stderr" and re.search(r"Warning|Error|Traceback", "".join(output["text"])))
    ]
    report(bad)


@each_module_notebook
def test_module_notebooks_store_their_outputs(path):
    """What the text announces is seen by who only reads: on GitHub, on Colab, in the documentation."""
    outputs = [output for cell in read_notebook(path)["cells"] for output in cell.get("outputs", [])]
    assert outputs, f"{path}: stores no output; run it from top to bottom, then nbdev_clean"


@each_module_notebook
def test_stored_outputs_need_no_kernel(path):
    """No stored output is a widget, which only a running kernel can draw: a progress bar, for example."""
    report(
        [
            f"{path}, cell {index}: a widget is stored"
            for index, cell in enumerate(read_notebook(path)["cells"])
            for output in cell.get("outputs", [])
            if any("widget" in kind for kind in output.get("data", {}))
        ]
    )


def test_result_notebooks_are_there():
    """What a reader comes for: the main job, one notebook per experiment,
    the law and the forecast of collapse.
    """
    expected = {
        f"nbs/results/{name}.ipynb" for name in ("quickstart", "copy", "reverse_addition", "law", "collapse")
    }
    assert expected <= set(RESULTS), f"missing: {sorted(expected - set(RESULTS))}"


@each_result_notebook
def test_result_notebooks_store_their_outputs(path):
    """A reader on GitHub sees the numbers and the figure without running anything."""
    outputs = [output for cell in read_notebook(path)["cells"] for output in cell.get("outputs", [])]
    kinds = {kind for output in outputs for kind in output.get("data", {"text/plain": 0})}
    assert "image/png" in kinds, f"{path}: stores no figure"
    assert kinds & {"text/html", "text/plain"}, f"{path}: stores no table and no numbers"


# --- notebooks: the opening


@each_notebook
def test_opening_cell(path):
    """A notebook opens with its own Colab badge, a title, a quoted one-line subtitle and a paragraph."""
    slug = SETTINGS["git_url"].split("github.com/")[1]
    target = f"https://colab.research.google.com/github/{slug}/blob/{SETTINGS['branch']}/{path}"
    badge = f"[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({target})"
    first, second = read_notebook(path)["cells"][:2]
    assert first["cell_type"] == second["cell_type"] == "markdown", f"{path}: does not open with prose"
    assert source(first) == badge, f"{path}, cell 0: the badge is not {badge}"
    blocks = re.split(r"\n\s*\n", source(second).strip())
    assert re.fullmatch(r"# \S.*", blocks[0]), f"{path}, cell 1: no H1 after the badge"
    assert re.fullmatch(r"> \S.*[.?!]", blocks[1]), (
        f"{path}, cell 1: no quoted sentence after the H1, the docstring of its module"
    )
    paragraph = " ".join(blocks[2:])
    assert len(paragraph.split()) >= 30, (
        f"{path}, cell 1: no paragraph that says why this part exists and what the reader will see"
    )


def install_cell(path):
    return source(read_notebook(path)["cells"][2])


@each_notebook
def test_install_cell_is_the_same_everywhere(path):
    """One install cell, right after the opening, letter for letter the same in all notebooks."""
    assert read_notebook(path)["cells"][2]["cell_type"] == "code", f"{path}, cell 2: not the install cell"
    assert install_cell(path) == install_cell(NOTEBOOKS[0]), (
        f"{path}, cell 2: differs from the install cell of {NOTEBOOKS[0]}"
    )


def installs(text, on_colab, monkeypatch):
    """The pip calls that the install cell makes, on Colab or elsewhere."""
    modules = {"google": types.ModuleType("google")} | (
        {"google.colab": MagicMock()} if on_colab else {"google.colab": None}
    )
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    if on_colab:
        modules["google"].colab = modules["google.colab"]
    shell = MagicMock()
    exec(compile(tree(text), "install cell", "exec"), {"get_ipython": lambda: shell})
    calls = [call.args for method in (shell.run_line_magic, shell.system) for call in method.call_args_list]
    return [" ".join(args) for args in calls]


def test_install_cell_installs_only_on_colab(monkeypatch, capsys):
    """Nothing is installed where google.colab cannot be imported;
    on Colab one package, from git_url, upgrading nothing.
    """
    text = install_cell(NOTEBOOKS[0])
    assert installs(text, False, monkeypatch) == []
    (call,) = installs(text, True, monkeypatch)
    assert re.fullmatch(
        rf"pip install (-q |--quiet )?git\+{re.escape(SETTINGS['git_url'])}(\.git)?(@\S+)?", call
    ), call


@each_notebook
def test_imports_stand_alone_at_the_top(path):
    """Imports fill cells of their own, one exported and at most one more for the reader's trials,
    before any other code.
    """
    cells = [(index, text) for index, text in code_cells(path)[1:] if tree(text).body]
    importing = [(index, text) for index, text in cells if any(is_import(node) for node in tree(text).body)]
    mixed = [index for index, text in importing if not all(is_import(node) for node in tree(text).body)]
    report([f"{path}, cell {index}: imports and other code in one cell" for index in mixed])
    assert len(importing) <= 2, (
        f"{path}, cells {[index for index, _ in importing]}: more than two cells of imports"
    )
    exported = [index for index, text in importing if is_exported(text)]
    assert len(exported) <= 1, f"{path}, cells {exported}: two cells of exported imports"
    late = [index for (index, _), (first, _) in zip(cells, importing, strict=False) if index != first]
    assert not late, f"{path}, cell {late[0]}: code before the last cell of imports"


# --- names: documented and shown


def parameters_without_comment(node, text):
    """Parameters of a function that have no comment at the end of their own line."""
    comments = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    a = node.args
    named = [
        *a.posonlyargs,
        *a.args,
        *([a.vararg] if a.vararg else []),
        *a.kwonlyargs,
        *([a.kwarg] if a.kwarg else []),
    ]
    defaults = [None] * (len(a.posonlyargs + a.args) - len(a.defaults)) + a.defaults
    ends = {
        arg: default.end_lineno
        for arg, default in [
            *zip(a.posonlyargs + a.args, defaults, strict=True),
            *zip(a.kwonlyargs, a.kw_defaults, strict=True),
        ]
        if default
    }
    wanted = [arg for arg in named if arg.arg not in ("self", "cls")]
    lines = [ends.get(arg, arg.end_lineno) for arg in wanted]
    return [
        arg.arg
        for arg, line in zip(wanted, lines, strict=True)
        if line not in comments or lines.count(line) > 1
    ]


def says_what_it_is(field):
    """Whether a field's own definition holds a help text."""
    texts = [
        n.value
        for n in ast.walk(field.value or field.annotation)
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]
    return isinstance(field.value, ast.Call) and any(" " in text for text in texts)


def undocumented(node, text, owner=""):
    """What a public function or class lacks: docstring, comments of parameters or fields,
    the same for public methods.
    """
    name = owner + node.name
    problems = [] if ast.get_docstring(node) or node.name == "__init__" else [f"{name} has no docstring"]
    if isinstance(node, ast.ClassDef):
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and not says_what_it_is(n)]
        commented = {
            t.start[0]
            for t in tokenize.generate_tokens(io.StringIO(text).readline)
            if t.type == tokenize.COMMENT
        }
        problems += [
            f"{name}.{n.target.id}: field without a comment" for n in fields if n.end_lineno not in commented
        ]
        methods = [
            n
            for n in node.body
            if isinstance(n, ast.FunctionDef) and (n.name == "__init__" or not n.name.startswith("_"))
        ]
        return problems + [
            problem for method in methods for problem in undocumented(method, text, f"{name}.")
        ]
    return problems + [
        f"{name}: parameter {arg} without a comment on its own line"
        for arg in parameters_without_comment(node, text)
    ]


@each_module_notebook
def test_public_names_are_documented(path):
    """Every exported function and class has a docstring,
    every parameter and field a comment on its own line.
    """
    report(
        [
            f"{path}, cell {index}: {problem}"
            for index, text in code_cells(path)
            if is_exported(text)
            for node in tree(text).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            for problem in undocumented(node, text)
        ]
    )


@each_module_notebook
def test_exported_names_are_shown_at_once(path):
    """Every exported name is used in one of the next two code cells, and one of those two can fail."""
    cells, problems = code_cells(path), []
    for position, (index, text) in enumerate(cells):
        if not is_exported(text):
            continue
        shown = [later for _, later in cells[position + 1 : position + 3] if not is_exported(later)]
        used = set().union(*map(used_names, shown))
        names = public_names(text)
        problems += [
            f"{path}, cell {index}: {name} is not used in the next two code cells"
            for name in names
            if name not in used
        ]
        if names and not any(map(checks_something, shown)):
            problems.append(
                f"{path}, cell {index}: no assertion in the next two code cells about {', '.join(names)}"
            )
    report(problems)


# --- the library and the repository


def library_calls():
    """Every call in the library: file, line, dotted name, keywords."""
    for path in library_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield (
                    f"{path.relative_to(ROOT)}:{node.lineno}",
                    ast.unparse(node.func),
                    {keyword.arg: keyword.value for keyword in node.keywords},
                )


def test_nothing_that_is_read_can_run_code():
    """No pickle, eval or exec in the library, and torch.load only of weights:
    a file from elsewhere is data.
    """
    problems = []
    for where, name, keywords in library_calls():
        weights_only = (
            isinstance(keywords.get("weights_only"), ast.Constant) and keywords["weights_only"].value is True
        )
        if (
            name in ("eval", "exec", "pd.eval", "os.system")
            or name.split(".")[0] in ("pickle", "dill", "joblib")
            or name.endswith("read_pickle")
        ):
            problems.append(f"{where}: {name}")
        pickled = (
            name in ("np.load", "numpy.load")
            and ast.unparse(keywords.get("allow_pickle", ast.Constant(False))) != "False"
        )
        if pickled or (name == "torch.load" and not weights_only):
            problems.append(f"{where}: {name} can run code")
    for path in library_files():
        problems += [
            f"{path.relative_to(ROOT)}: imports pickle"
            for _ in re.findall(
                r"^\s*(?:import|from) (?:pickle|dill|joblib)\b", path.read_text(encoding="utf-8"), re.M
            )
        ]
    report(problems)


def test_no_error_is_swallowed():
    """No bare except in the library, and none whose whole answer to any error is to pass."""
    problems = []
    for path in library_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                silent = all(isinstance(n, (ast.Pass, ast.Continue)) for n in node.body)
                broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
                if node.type is None or (silent and broad):
                    problems.append(f"{path.relative_to(ROOT)}:{node.lineno}: swallows every error")
    report(problems)


def repository_files():
    """Text files that are tracked, or would be: what git does not ignore;
    without git, the files of the source distribution.
    """
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
        paths = [ROOT / name for name in listed]
    else:
        paths = [
            path
            for pattern in ("*", "si_nb/**/*.py", "nbs/**/*", "tests/*", "results/**/*", ".ci/*")
            for path in ROOT.glob(pattern)
        ]
    return [path for path in paths if path.is_file() and path.suffix not in (".png", ".gz", ".safetensors")]


@pytest.mark.parametrize(
    "pattern, meaning",
    [
        (r"(?<![\w.:/])/(?:work|root|home|tmp|Users)/", "a path of somebody's machine"),
        (
            r"(?:pypi|pythonhosted|anaconda|npmjs|debian|pytorch)\.(?:org|com|io)/?(?:simple|"
            r"packages|whl|pool)|files\.pythonhosted|[:/]pypi\.",
            "a package registry's address",
        ),
    ],
    ids=["paths", "registries"],
)
def test_repository_works_elsewhere(pattern, meaning):
    """No tracked file, stored outputs included, names a machine's folders or a package registry."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {meaning}: {line.strip()[:120]}"
        for path in repository_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, re.sub(r'"image/png": "[^"]*"', "", line))
    ]
    report(found)


@pytest.mark.parametrize("path", sorted(path.name for path in (ROOT / "tests").glob("*.py")))
def test_every_skip_has_a_reason(path):
    """A test that is left out says why."""
    problems = []
    for node in ast.walk(ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Call, ast.Attribute)):
            name = ast.unparse(node.func if isinstance(node, ast.Call) else node)
            if isinstance(node, ast.Call) and re.fullmatch(
                r"pytest\.(skip|xfail|mark\.(skip|skipif|xfail))", name
            ):
                reasons = [
                    *node.args,
                    *(keyword.value for keyword in node.keywords if keyword.arg in ("reason", "msg")),
                ]
                if name.endswith("skipif"):
                    reasons = [keyword for keyword in node.keywords if keyword.arg == "reason"]
                problems += [] if reasons else [f"tests/{path}:{node.lineno}: {name} without a reason"]
    for number, line in enumerate((ROOT / "tests" / path).read_text(encoding="utf-8").splitlines(), 1):
        problems += (
            [f"tests/{path}:{number}: a bare skip"]
            if re.match(r"\s*@pytest\.mark\.(skip|xfail)\s*$", line)
            else []
        )
    report(problems)


# --- README


def readme_commands():
    """Commands in the README's bash blocks, lines joined at a backslash, comments left out."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.S | re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    parts = [
        part.strip()
        for line in lines
        for part in re.split(r"&&|\|\||;|\|", re.sub(r"(^|\s)#.*", "", line).removeprefix("$ "))
    ]
    return [part for part in parts if part]


def test_readme_has_the_two_first_commands():
    """A newcomer finds the main job and the tests, as one line each."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in (
        "pip install -c constraints.txt -e . && si_nb run --preset quick",
        'pip install -c constraints.txt -e ".[dev]" && nbdev_test && pytest',
    ):
        assert re.search(rf"^(\$ )?{re.escape(line)}\s*(#.*)?$", text, re.M), (
            f"README.md lacks the line: {line}"
        )


def test_readme_commands_exist():
    """Every program that the README calls is there, and si_nb knows every command and flag that the README
    gives it.
    """
    helps, problems = {}, []
    for command in readme_commands():
        words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]
        if not words or words[0] in ("cd", "export", "source"):
            continue
        if not (ROOT / words[0]).is_file() and not shutil.which(
            words[0], path=f"{sys.exec_prefix}/bin:/usr/local/bin:/usr/bin:/bin"
        ):
            problems.append(f"README.md: no program {words[0]}: {command}")
        if words[:3] in (["python", "-m", "si_nb"], ["python3", "-m", "si_nb"]):
            words = words[2:]
        if words[0] != "si_nb" or len(words) < 2 or words[1].startswith("-"):
            continue
        if words[1] not in helps:
            with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
                make_parser(words[1]).parse_args([words[1], "--help"])
            helps[words[1]] = said.getvalue()
        known = set(re.findall(r"--[\w-]+", helps[words[1]]))
        problems += [
            f"README.md: si_nb {words[1]} has no flag {flag}"
            for flag in re.findall(r"(--[\w-]+)", command)
            if flag not in known
        ]
    report(problems)


def test_readme_links_exist():
    """Every relative link of the README leads to a file of the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [
        link.split("#")[0]
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
        if not re.match(r"[a-z]+:|#", link)
    ]
    report([f"README.md: no file {link}" for link in links if not (ROOT / link).exists()])
