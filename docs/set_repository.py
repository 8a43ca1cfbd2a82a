"""Rewrites the repository's address everywhere, for a fork: `python docs/set_repository.py OWNER/NAME`.

Settings, badges, install cells, links and citation change; the package keeps its name.
"""

import argparse
import re
import subprocess
from pathlib import Path

from project import ROOT, read_settings


def owner_and_name(root: Path) -> tuple[str, str]:
    """The address in settings.ini, which all other places are held to."""
    owner, name = read_settings(root)["git_url"].split("/")[-2:]
    return owner, name


def rewritten(text: str, old: tuple[str, str], new: tuple[str, str], settings: bool = False) -> str:
    """A file's text with the new address; in settings.ini the options that hold a part of it as well."""
    for shape in ("{}/{}", "{}.github.io/{}", "{}.github.io", "{}@users.noreply.github.com"):
        text = re.sub(rf"(?<![\w.-]){re.escape(shape.format(*old))}(?![\w-])", shape.format(*new), text)
    text = text.replace(f"'doc_baseurl': '/{old[1]}'", f"'doc_baseurl': '/{new[1]}'")  # in the index of names
    parts = {"user": new[0], "repo": new[1], "doc_baseurl": f"/{new[1]}"} if settings else {}
    for option, value in parts.items():
        text = re.sub(rf"^{option} = .*$", f"{option} = {value}", text, flags=re.M)
    return text


def set_repository(root: Path, new: tuple[str, str]) -> list[str]:
    """Rewrite every tracked text file, and return those that changed."""
    old, changed = owner_and_name(root), []
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True)
    for path in (root / name for name in listed.stdout.split("\0") if name):
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" in content:
            continue  # not text
        text = content.decode("utf-8")
        after = rewritten(text, old, new, settings=path == root / "settings.ini")
        if after != text:
            path.write_bytes(after.encode("utf-8"))
            changed.append(path.relative_to(root).as_posix())
    return changed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("address", metavar="OWNER/NAME")
    address = parser.parse_args().address
    if not re.fullmatch(r"[A-Za-z0-9-]+/[\w.-]+", address):
        parser.error(f"{address!r} is no address: write OWNER/NAME, as in https://github.com/OWNER/NAME")
    files = set_repository(ROOT, tuple(address.split("/")))
    print(f"{len(files)} files now name {address}")
