"""The tables of the documentation that follow from the code; with --check, only say which are out of date.

A page holds them between <!-- TABLE name --> and <!-- END -->.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from driver.model import NetworkOptions
from driver.options import OPTIONS
from driver.settings import SETTINGS, Settings

PAGES = ("docs/options.md", "docs/settings.md")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def shown(value: object) -> str:
    """A default as a user would write it."""
    if value is None or value == () or value == "":
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value > 0xFFFF:
        return f"`{value:#x}`"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def options() -> str:
    defaults = NetworkOptions()
    rows = [
        (f"`{o.key}`", o.meaning, o.allowed, shown(default), f"`{o.example}`", o.since)
        for o in OPTIONS
        for default in [getattr(defaults, o.field) if o.field else o.default]
    ]
    return table(("key", "meaning", "values", "default", "example", "in Docker since"), rows)


def settings() -> str:
    defaults = Settings()
    rows = [
        (f"`{s.variable}`", f"`{s.flag}`", s.meaning, s.allowed, shown(getattr(defaults, s.field))) for s in SETTINGS
    ]
    return table(("variable", "flag", "meaning", "values", "default"), rows)


TABLES: dict[str, Callable[[], str]] = {"options": options, "settings": settings}


def fill(text: str) -> str:
    """The page with every table as the code has it."""
    return re.sub(
        r"(<!-- TABLE (\w+) -->\n).*?(\n<!-- END -->)",
        lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}",
        text,
        flags=re.DOTALL,
    )


def main() -> int:
    old = []
    for page in PAGES:
        path = ROOT / page
        text = path.read_text()
        if (filled := fill(text)) != text:
            old.append(page)
            if "--check" not in sys.argv:
                path.write_text(filled)
    if "--check" in sys.argv and old:
        print(f"docs: out of date: {', '.join(old)}; run script/docs")
        return 1
    print(f"docs: the tables of {len(PAGES)} pages follow from the code{f'; written: {old}' if old else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
