"""Known vulnerabilities of the pinned packages, as the index tells them with each release.

    .venv/bin/python script/audit.py

TRESTLE_ADVISORIES=URL asks another index that speaks PyPI's JSON (URL/NAME/VERSION/json). Ends with 1 when a pinned
release has a vulnerability that was not withdrawn, with 0 when none has, with 3 and one line when nobody can be asked.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

# The address of the public index as pip knows it: no registry is named in this repository.
from pip._internal.models.index import PyPI

LOCKS = ("runtime.txt", "dev.txt", "build.txt")
PATIENCE = 5.0  # seconds for one answer
UNKNOWN = 3


def pins(folder: Path) -> list[tuple[str, str]]:
    """Every package and version of the lock files."""
    text = "\n".join((folder / name).read_text() for name in LOCKS)
    return sorted(set(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE)))


def ask(base: str, name: str, version: str) -> Any:
    """What the index says of one release. Raises OSError, or ValueError for what is no JSON."""
    with urllib.request.urlopen(f"{base}/{name}/{version}/json", timeout=PATIENCE) as answer:
        return json.load(answer)


def faults(name: str, version: str, release: Any) -> Iterator[str]:
    """One line for each vulnerability."""
    for one in release["vulnerabilities"]:
        if not one.get("withdrawn"):
            names = ", ".join([one["id"], *one.get("aliases", ())])
            mended = ", ".join(one.get("fixed_in", ())) or "no release yet"
            yield f"{name} {version}: {names}; mended in {mended}; then script/lock --upgrade"


def main() -> int:
    """Ask for each; the first that cannot be asked for ends it, since the others cannot either."""
    base = os.environ.get("TRESTLE_ADVISORIES") or PyPI.pypi_url
    found: list[str] = []
    pinned = pins(Path(__file__).parents[1] / "requirements")
    for name, version in pinned:
        try:
            found += faults(name, version, ask(base, name, version))
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = f"answers {error.code}" if isinstance(error, HTTPError) else f"does not answer ({error})"
            print(f"audit: not done: the index {said} when asked for the vulnerabilities of {name} {version}")
            return UNKNOWN
    print("\n".join(found) or f"audit: none of {len(pinned)} pinned packages has a known vulnerability")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
