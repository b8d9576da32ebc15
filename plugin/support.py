"""One archive for a bug report, with everything in it that could be a secret left out. Pure but for the clock.

Nothing of a container is read but what its endpoint here says: no environment, no command, no label.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping
from typing import Any

LEFT_OUT = "(left out)"
# What the name of a value says of it.
_WORDS = "passw|passphrase|secret|token|credential|auth|cookie|(?:api|private|access|ssh|encryption).?key"
_SECRET = re.compile(_WORDS, re.IGNORECASE)
_IN_TEXT = re.compile(rf"\b([\w.-]*(?:{_WORDS})[\w.-]*)([\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s'\"]+)", re.IGNORECASE)
_IN_ADDRESS = re.compile(r"(\w+://)[^/\s@]+@")


def clean(value: Any) -> Any:
    """The same without what looks like a secret: by the name of a value, or inside text."""
    if isinstance(value, Mapping):
        return {key: LEFT_OUT if _SECRET.search(str(key)) and item else clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, str):
        return _IN_TEXT.sub(rf"\1\2{LEFT_OUT}", _IN_ADDRESS.sub(rf"\1{LEFT_OUT}@", value))
    return value


def archive(folder: str, parts: Mapping[str, Any], now: float) -> bytes:
    """A tar.gz: each part is a file in ``folder``, cleaned; text as it is, anything else as JSON."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, part in parts.items():
            cleaned = clean(part)
            text = cleaned if isinstance(cleaned, str) else json.dumps(cleaned, indent=2)
            content = text.encode() + b"\n"
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o600, int(now)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
