"""What the scripts of this folder share: the repository's folder and its settings.ini."""

import configparser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def read_settings(root: Path = ROOT) -> configparser.SectionProxy:
    """The options of settings.ini."""
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]
