"""Package metadata comes from settings.ini, so that nbdev and setuptools never disagree."""

import configparser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = configparser.ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url=settings["git_url"],
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=settings["keywords"].split(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
    ],
    packages=find_packages(include=["si_nb", "si_nb.*"], exclude=["si_nb.benchmarks", "si_nb.results*"]),
    # si_nb/results is a link to results/: the measured tables are found beside the code in a checkout and in
    # a wheel alike
    package_data={
        "si_nb": [
            "results/**/*.csv",
            "results/**/*.json",
            "results/**/*.md",
            "results/**/*.toml",
            "results/**/*.sha256",
        ]
    },
    exclude_package_data={
        "si_nb": ["results/*/runs/*", "results/*/bases/*", "results/*/jobs/*"]
    },  # working folders of sweeps
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require={
        name: settings[f"{name}_requirements"].split() for name in ("dev", "docs", "cluster", "bench")
    },
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [
            "si_nb=si_nb._modidx:d"
        ],  # names in backticks become links in documentation, here and elsewhere
    },
    zip_safe=False,
)
