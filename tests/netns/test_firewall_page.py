"""docs/firewall.md shows the rules as the kernel holds them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_rules_of_each_mode_are_those_of_the_page() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs/rulesets.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
