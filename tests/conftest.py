"""What all tests share: the markers' rules, the checkout, the notebooks,
and the wheel built from the checkout.
"""

import configparser
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # several processes side by side: spinning threads would slow each other
os.environ.setdefault("MPLBACKEND", "agg")

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.glob("nbs/**/*.ipynb")
    if ".ipynb_checkpoints" not in path.parts
)

COLLAPSE = {
    "threshold",
    "round",
    "low",
    "high",
    "level",
    "probability_by_last_round",
    "sustained_probability",
}


def read_settings(root=ROOT):
    """The options of settings.ini."""
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


@cache
def read_notebook(path):
    """A notebook's JSON, by its path in the repository; nobody may change it."""
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def run(*command, cwd=None, timeout=300, **environment):
    """Run a command to its end; a failure shows what it printed. A variable set to None is removed."""
    merged = {**os.environ, **environment}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={name: str(value) for name, value in merged.items() if value is not None},
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def series_of(counts, run_id="r", arm="none", seed=0, trials=1000):
    """A trajectory of copying with given counts of right answers, from round 1 and length 9 on."""
    import numpy as np
    import pandas as pd

    r = np.arange(1, len(counts) + 1)
    names = dict(run_id=run_id, task="copy", arm=arm, seed=seed)
    return pd.DataFrame(dict(names, round=r, length=8 + r, successes=counts, trials=trials))


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config, items):
    """Markers slow and cuda leave a test out, with the reason that each of them must state."""
    for item in items:
        for name, left_out in (("slow", not config.getoption("--slow")), ("cuda", not _has_cuda(item))):
            marker = item.get_closest_marker(name)
            if marker is None:
                continue
            reason = marker.kwargs.get("reason") or next(iter(marker.args), None)
            if not reason:
                raise pytest.UsageError(f"{item.nodeid}: write pytest.mark.{name}(reason=...)")
            if left_out:
                item.add_marker(pytest.mark.skip(reason=f"{name}: {reason}"))


def _has_cuda(item):
    if item.get_closest_marker("cuda") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _short_model(encoding, generator):
    """A model as the next two functions train and load it."""
    from si_nb.model.gpt import GPT, ModelConfig

    return GPT(ModelConfig(n_layer=2, n_head=2, n_embd=64, positional_encoding=encoding), generator)


def _train_short(name, encoding):
    """Base data of a task, and the weights of a model that has learned its short problems only."""
    import numpy as np
    import torch

    from si_nb.model.trainer import Mixture, TrainConfig, train
    from si_nb.problems.tasks import TASKS, make_base_data

    longest, steps = (
        (3, 400) if TASKS[name].operands == 1 else (2, 800)
    )  # adding is harder than moving digits
    if encoding == "learned":  # it does all lengths of its training or none beyond: so it learns less of more
        longest, steps = longest + 1, 150
    base = make_base_data(TASKS[name], longest, 10_000, np.random.default_rng(0))
    model = _short_model(encoding, torch.Generator().manual_seed(0))
    config = TrainConfig(steps, 20, steps // 5, 64, 3e-3, loss_on="answer")
    train(model, Mixture([base], [1], torch.device("cpu")), config, np.random.default_rng(0))
    return {"base": torch.from_numpy(base), **model.state_dict()}


@pytest.fixture(scope="session")
def learned(tmp_path_factory):
    """Gives the base data and a trained model of a task; all processes share one training."""
    home = tmp_path_factory.getbasetemp()
    home = home.parent if "PYTEST_XDIST_WORKER" in os.environ else home

    def load(name, encoding="none"):
        import torch
        from filelock import FileLock
        from safetensors.torch import load_file, save_file

        path = home / f"learned_{name}_{encoding}.safetensors"
        with FileLock(f"{path}.lock"):
            if not path.exists():
                save_file(_train_short(name, encoding), path)
        weights = load_file(path)
        base = weights.pop("base").numpy()
        model = _short_model(encoding, torch.Generator())
        model.load_state_dict(weights)
        return base, model.eval()

    return load


@pytest.fixture(scope="session")
def distributions(tmp_path_factory):
    """Folder with the sdist and the wheel made from it,
    built from a copy so that the checkout stays as it was.
    """
    copy, built = tmp_path_factory.mktemp("checkout") / "si_nb", tmp_path_factory.mktemp("dist")
    not_source = shutil.ignore_patterns(
        ".git",
        "build",
        "dist",
        "*.egg-info",
        "__pycache__",
        ".venv",
        "runs",
        "bases",
        "jobs",
        "wandb",
        "_proc",
        "_docs",
        ".hypothesis",
    )
    shutil.copytree(ROOT, copy, symlinks=True, ignore=not_source)
    run(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--skip-dependency-check",
        "--outdir",
        built,
        copy,
        cwd=built,
    )
    return built


@pytest.fixture(scope="session")
def wheel(distributions):
    """Path of the built wheel."""
    (path,) = distributions.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def wheel_site(wheel, tmp_path_factory):
    """Folder that holds the installed wheel and nothing else, to be put in front of sys.path."""
    site = tmp_path_factory.mktemp("site")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        site,
        wheel,
        cwd=site,
    )
    return site
