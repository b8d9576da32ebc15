"""The ``trestle`` command: runs the daemon, and asks a running one.

It speaks HTTP over the daemon's Unix socket with the standard library alone, so it answers at once;
only ``serve`` and ``teardown`` import more. Exit codes: 0 fine, 1 drift found or the daemon refused, 2 wrong
usage, 3 no daemon answers.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from driver.errors import InvalidRequest, TrestleError
from driver.settings import DEFAULT_SOCKET, SETTINGS, from_environment
from plugin import tables
from plugin.unix import UnixConnection
from plugin.version import version

FINE, REFUSED, USAGE, UNREACHABLE = 0, 1, 2, 3


class UnreachableError(Exception):
    """No daemon answers at the socket."""


class RefusedError(Exception):
    """The daemon answered that it will not, and why."""


def fetch(path: str, target: str, method: str = "GET") -> tuple[int, bytes]:
    """Status and body of the daemon's answer to one request. Raises UnreachableError."""
    connection = UnixConnection(path)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreachableError(
            f"no trestle daemon answers at {path}: {reason}; start it, or name its --socket"
        ) from None
    finally:
        connection.close()


def ask(path: str, target: str, method: str = "GET") -> Any:
    """The daemon's answer to one request, from JSON. Raises UnreachableError and RefusedError."""
    status, body = fetch(path, target, method)
    try:
        content = json.loads(body)
    except ValueError:
        raise UnreachableError(f"what answers at {path} is not trestle") from None
    if status != http.client.OK:
        raise RefusedError(content.get("Err", f"HTTP status {status}"))
    return content


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        code: int = chosen.run(chosen)
        sys.stdout.flush()
    except InvalidRequest as error:
        return _complain(error, USAGE)
    except (RefusedError, TrestleError) as error:
        return _complain(error, REFUSED)
    except UnreachableError as error:
        return _complain(error, UNREACHABLE)
    except BrokenPipeError:
        # The reader, such as head, has seen enough; Python would complain when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except KeyboardInterrupt:
        return 130
    return code


def _complain(error: Exception, code: int) -> int:
    print(f"trestle: {error}", file=sys.stderr)  # noqa: T201 - a command speaks by printing
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trestle",
        description="A network driver and IPAM plugin for Docker.",
        epilog="Exit codes: 0 fine, 1 check or doctor found something or the daemon refused, 2 wrong usage, "
        "3 no daemon answers. A command's own options: trestle COMMAND --help.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    serve = commands.add_parser("serve", help="run the daemon", description="Run the daemon until SIGTERM.")
    for setting in SETTINGS:
        meaning = f"{setting.meaning} ({setting.allowed}; else {setting.variable})"
        serve.add_argument(setting.flag, dest=setting.field, metavar="VALUE", help=meaning.replace("%", "%%"))
    serve.set_defaults(run=_serve)
    meaning = "take everything of ours out of the kernel, for uninstalling; the state stays"
    commands.add_parser("teardown", help=meaning, description=f"With the daemon stopped, {meaning}.").set_defaults(
        run=_teardown
    )
    for name, (meaning, run) in _COMMANDS.items():
        command = commands.add_parser(name, help=meaning, description=meaning[0].upper() + meaning[1:] + ".")
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
        command.add_argument("--socket", metavar="PATH", help="the daemon's socket (else TRESTLE_SOCKET)")
        if name == "support":
            command.add_argument("-o", "--output", metavar="FILE", help="the archive, - for standard output")
        if name == "inspect":
            command.add_argument("id", metavar="ID", help="the beginning of an id, or the name of a bridge")
        command.set_defaults(run=run)
    return parser


def _serve(chosen: argparse.Namespace) -> int:
    settings = from_environment(os.environ, **{setting.field: getattr(chosen, setting.field) for setting in SETTINGS})
    from plugin.server import serve

    return serve(settings)


def _teardown(_: argparse.Namespace) -> int:
    from driver.daemon import Driver

    # A daemon that runs holds the state directory, and this is refused.
    with closing(Driver(from_environment(os.environ))) as driver:
        driver.remove()
    return FINE


def _socket(chosen: argparse.Namespace) -> str:
    """The socket that was named, or the one where it belongs, or that of the only managed plugin."""
    named = chosen.socket or os.environ.get("TRESTLE_SOCKET")
    if named:
        return str(named)
    if not DEFAULT_SOCKET.exists():
        managed = [str(path) for path in DEFAULT_SOCKET.parent.glob(f"*/{DEFAULT_SOCKET.name}")]
        if len(managed) == 1:
            return managed[0]
    return str(DEFAULT_SOCKET)


def _print(chosen: argparse.Namespace, content: Any, text: str) -> None:
    print(json.dumps(content, indent=2) if chosen.json else text)  # noqa: T201 - a command speaks by printing


def _show(chosen: argparse.Namespace, what: str) -> int:
    content = ask(_socket(chosen), f"/trestle/v1/{what}")
    _print(chosen, content, tables.RENDER[what](content))
    return FINE


def _inspect(chosen: argparse.Namespace) -> int:
    content = ask(_socket(chosen), f"/trestle/v1/inspect/{quote(chosen.id, safe='')}")
    _print(chosen, content, tables.outline(content))
    return FINE


def _check(chosen: argparse.Namespace) -> int:
    content = ask(_socket(chosen), "/trestle/v1/check")
    lines = content["drift"]
    _print(chosen, content, "\n".join(lines) or "The kernel is what it should be.")
    return REFUSED if lines else FINE


def _doctor(chosen: argparse.Namespace) -> int:
    content = ask(_socket(chosen), "/trestle/v1/doctor")
    if content or chosen.json:
        _print(chosen, content, "\n".join(f"{one['check']}: {one['text']}" for one in content))
    return REFUSED if content else FINE


def _repair(chosen: argparse.Namespace) -> int:
    content = ask(_socket(chosen), "/trestle/v1/repair", "POST")
    _print(chosen, content, "\n".join(content["mended"]) or "Nothing was amiss.")
    return FINE


def _metrics(chosen: argparse.Namespace) -> int:
    status, body = fetch(_socket(chosen), "/metrics")
    if status != http.client.OK:
        raise RefusedError(f"no metrics: HTTP status {status}")
    sys.stdout.write(body.decode())
    return FINE


def _support(chosen: argparse.Namespace) -> int:
    from plugin.support import archive

    now, path = time.time(), _socket(chosen)
    parts: dict[str, Any] = {"version.txt": f"trestle {version()}"}
    for name in ("status", "check", "doctor", "networks", "endpoints", "ports", "pools"):
        parts[f"{name}.json"] = _tell(ask, path, f"/trestle/v1/{name}")
    parts["metrics.txt"] = _tell(lambda path: fetch(path, "/metrics")[1].decode(), path)
    rest = _tell(ask, path, "/trestle/v1/support")
    texts = {f"{name}.txt": rest.pop(name) for name in ("nft", "log")} if isinstance(rest, dict) else {}
    folder = time.strftime("trestle-support-%Y%m%d-%H%M%S", time.gmtime(now))
    content = archive(folder, {**parts, **texts, "host.json": rest}, now)
    if chosen.output == "-":
        sys.stdout.buffer.write(content)
        return FINE
    output = Path(chosen.output or f"{folder}.tar.gz")
    try:
        with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
    except OSError as error:
        raise InvalidRequest(f"cannot write {output}: {error.strerror}") from None
    _print(chosen, {"file": str(output)}, f"{output}: read it before you send it on; addresses and names are in it")
    return FINE


def _tell(read: Callable[..., Any], *arguments: str) -> Any:
    """A part of the archive, or why there is none: the daemon may be what is broken."""
    try:
        return read(*arguments)
    except (UnreachableError, RefusedError) as error:
        return str(error)


def _version(chosen: argparse.Namespace) -> int:
    _print(chosen, {"version": version()}, f"trestle {version()}")
    return FINE


_COMMANDS = {
    "status": ("what the daemon runs on, and how much it holds", lambda chosen: _show(chosen, "status")),
    "networks": ("list the networks", lambda chosen: _show(chosen, "networks")),
    "endpoints": ("list the containers' endpoints", lambda chosen: _show(chosen, "endpoints")),
    "ports": ("list the published ports, which docker ps cannot show", lambda chosen: _show(chosen, "ports")),
    "pools": ("list the address pools of the trestle IPAM driver", lambda chosen: _show(chosen, "pools")),
    "inspect": ("show one network or endpoint", _inspect),
    "check": ("compare the kernel with what it should be; exit code 1 if it differs", _check),
    "repair": ("make the kernel what it should be", _repair),
    "doctor": ("look for the usual wrong set-ups of a host; exit code 1 if there is one", _doctor),
    "metrics": ("print the metrics in the text format of Prometheus", _metrics),
    "support": ("write an archive for a bug report, without secrets", _support),
    "version": ("show the version", _version),
}

if __name__ == "__main__":
    sys.exit(main())
