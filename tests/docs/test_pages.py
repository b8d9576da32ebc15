"""The pages' command blocks that say "run" do, in the order of the page, in one shell on a real engine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.engine.engine import IMAGE, ROOT, TRESTLE
from tests.engine.lab import Lab

BLOCK = re.compile(r"^```sh run\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]) if BLOCK.search(page.read_text())]
# What must stand in the output of a page, beside every command's success.
SAYS = {
    "README.md": ["hello", "0.0.0.0:8080"],
    "docs/getting-started.md": ["hello", "0.0.0.0:8080", "nft"],
    "docs/operations.md": ["8080", "table inet trestle {", "mv /tmp/trestle.prom.new", "/nft.txt"],
    "docs/recipes.md": ["udp . 20000-24999 : 10.", "only by the VPN", "no way out", "  10.121.0.2  "],
    "docs/troubleshooting.md": ["127.0.0.1:8080", "hello", "chain gate {", "table bridge trestle {"],
}
# What a page's reader has already, and this machine has not: a VPN, and compose 2.
BEFORE = {
    "docs/recipes.md": """
        ip tuntap add wg0 mode tun; ip link set wg0 up; ip route add 10.8.0.0/16 dev wg0; trap "ip link del wg0" EXIT
        docker() { if [ "$1" = compose ]; then shift; command docker-compose "$@"; else command docker "$@"; fi; }
        """
}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def script(page: Path) -> str:
    """All runnable blocks of a page; a command that fails ends it, wherever it stands."""
    return "\n".join(["set -euo pipefail", BEFORE.get(name(page), ""), "set -x", *BLOCK.findall(page.read_text())])


@pytest.mark.parametrize("page", PAGES, ids=name)
@pytest.mark.parametrize("lab", ["host"], indirect=True)
def test_its_commands_run(lab: Lab, page: Path) -> None:
    lab.docker("tag", IMAGE, "busybox")
    try:
        path = f"PATH={Path(TRESTLE).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        command = lab.machine.enter("/usr/bin/env", path, "bash", "-c", script(page))
        done = subprocess.run(
            command, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240
        )
    finally:
        lab.docker("rmi", "busybox")
    assert done.returncode == 0, f"{name(page)}:\n{done.stdout[-3000:]}"
    for words in SAYS.get(name(page), []):
        assert words in done.stdout, f"{name(page)} does not say {words!r}:\n{done.stdout[-3000:]}"


def test_every_page_that_is_expected_to_run_has_blocks() -> None:
    assert SAYS.keys() <= set(map(name, PAGES))


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=name)
def test_a_block_that_is_not_run_still_is_a_shells(page: Path) -> None:
    """Quotes and brackets that are open would be noticed by the reader, too late."""
    for block in re.findall(r"^```sh(?: run)?\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        done = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
