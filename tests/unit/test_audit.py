"""The audit of pinned packages: what an index tells is told on, and one that tells nothing is no clean bill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FAULT = {"id": "PYSEC-1", "aliases": ["CVE-2026-1"], "fixed_in": ["9.9"], "withdrawn": None}


@contextmanager
def index(answers: dict[str, Any], status: int = 200) -> Iterator[str]:
    """An index that tells these vulnerabilities by package; its address."""

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.split("/")[1]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"vulnerabilities": answers.get(name, [])}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def audit(base: str) -> tuple[int, list[str]]:
    environment = {"TRESTLE_ADVISORIES": base, "no_proxy": "*", "PATH": os.environ["PATH"]}
    command = [sys.executable, str(ROOT / "script/audit.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_no_vulnerability_is_said_with_the_number_of_packages() -> None:
    with index({}) as base:
        code, (line,) = audit(base)
    assert code == 0
    assert line.startswith("audit: none of ") and int(line.split()[3]) > 15


def test_a_vulnerability_is_named_unless_it_was_withdrawn() -> None:
    with index({"flask": [FAULT], "click": [FAULT | {"withdrawn": "2026-01-01T00:00:00Z"}]}) as base:
        code, (line,) = audit(base)
    assert code == 1
    assert line.startswith("flask ") and "PYSEC-1, CVE-2026-1; mended in 9.9" in line


def test_an_index_that_cannot_tell_is_one_line_and_no_success() -> None:
    with index({}, status=404) as base:
        code, (line,) = audit(base)
    assert (code, line.startswith("audit: not done: the index answers 404")) == (3, True)
    code, (line,) = audit(base)  # nobody listens there any more
    assert (code, line.startswith("audit: not done: the index does not answer")) == (3, True)
