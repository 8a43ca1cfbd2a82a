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
    keywords=settings["keywords"].split(),
    packages=find_packages(include=["si_nb", "si_nb.*"]) + ["si_nb.results"],
    package_dir={"si_nb": "si_nb", "si_nb.results": "results"},
    package_data={"si_nb.results": ["*.md", "**/*.csv", "**/*.json"]},
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require={"dev": settings["dev_requirements"].split()},
    entry_points={"console_scripts": settings["console_scripts"].split()},
    zip_safe=False,
)
