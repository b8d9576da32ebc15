"""The HTTP face: every call of the Docker plugin protocol, and a little of our own on the same socket.

An answer to dockerd is 200 with an object, or 500 with ``{"Err": text, "Error": text}``: the
network driver reads the one key, the IPAM driver the other (protocol page 1.5). Nobody ever gets
HTML or a traceback. Our own paths, GET /trestle/v1/…, use the usual HTTP statuses.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from driver import view
from driver.daemon import Driver
from driver.errors import Conflict, InvalidRequest, NotFound, TrestleError
from driver.report import report
from plugin import docker, logs, messages, metrics
from plugin.memory import give_memory_back
from plugin.verbs import VERBS, Answer, Verb
from plugin.version import version

log = logging.getLogger(__name__)

PLUGIN_JSON = "application/vnd.docker.plugins.v1.2+json"
JSON = "application/json"
# 16 384 ports of tcp and of udp take 3.4 MiB without and 4.6 MiB with a long host address (tests/unit/test_app.py).
MAX_BODY = 8 * 2**20
LONG_BODY = 2**16  # some five hundred ports
OWN = "/trestle/v1/"


def create_app(driver: Driver) -> Flask:
    """The WSGI application over a driver that is started."""
    app = Flask("trestle", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False
    calls = metrics.Calls()
    for path, verb in VERBS.items():
        app.add_url_rule(path, path, partial(_serve_verb, driver, calls, path, verb), methods=["POST"])
    for path, (method, read) in _views(driver).items():
        app.add_url_rule(path, path, partial(_serve_view, read), methods=[method])
    app.add_url_rule("/metrics", "/metrics", partial(_serve_metrics, driver, calls), methods=["GET"])
    app.register_error_handler(Exception, _serve_fault)
    return app


# -- dockerd's calls ----------------------------------------------------------------------------


def _serve_verb(driver: Driver, calls: metrics.Calls, path: str, verb: Verb[Any]) -> Response:
    name, started = path[1:], time.perf_counter()
    with logs.fields(verb=name):
        try:
            answer = Response(messages.encode(_perform(driver, verb)), content_type=PLUGIN_JSON)
            said, level = "done", logging.DEBUG if verb.quiet else logging.INFO
        except TrestleError as error:
            answer = _error(str(error), 500, PLUGIN_JSON)
            said, level = f"refused: {error}", logging.WARNING
        except Exception:
            answer = _error(_fault(name), 500, PLUGIN_JSON)
            said, level = "failed", logging.ERROR
        seconds = time.perf_counter() - started
        calls.add(name, seconds, failed=answer.status_code != 200)
        log.log(level, "%s", said, extra=logs.with_fields(ms=round(seconds * 1000, 1)))
    if (request.content_length or 0) > LONG_BODY:
        answer.call_on_close(give_memory_back)
    return answer


def _perform(driver: Driver, verb: Verb[Any]) -> Answer:
    """Read and do; what is logged from here on names the things concerned."""
    body = _body()
    if verb.request is None:
        return verb.handle(driver, messages.Request())
    message = messages.decode(verb.request, body)
    logs.add(**{name: getattr(message, name, None) for name in ("network_id", "endpoint_id", "pool_id")})
    return verb.handle(driver, message)


def _body() -> bytes:
    """The raw body, whatever its Content-Type, which dockerd does not send."""
    if "Transfer-Encoding" in request.headers:
        raise InvalidRequest("a body needs a Content-Length; Transfer-Encoding is not supported")
    length = request.content_length or 0
    stream = request.environ["wsgi.input"]
    if length > MAX_BODY:
        # Read on for a while: a client that is still writing when we close would never see the answer.
        for _ in range(min(length, 8 * MAX_BODY) // 2**16):
            if not stream.read(2**16):
                break
        raise InvalidRequest(f"the request has {length} bytes; at most {MAX_BODY} are read")
    body: bytes = stream.read(length)
    if len(body) != length:
        raise InvalidRequest(f"the request broke off after {len(body)} of {length} bytes")
    return body


def _fault(what: str) -> str:
    """Log the exception at hand with an id, and say the id in one sentence."""
    fault = uuid.uuid4().hex[:8]
    log.exception("fault %s in %s", fault, what)
    return f"trestle has a fault in {what}; its log has the details under {fault}"


def _error(text: str, status: int, content_type: str) -> Response:
    body = messages.encode({"Err": text, "Error": text})
    return Response(body, status=status, content_type=content_type)


def _serve_fault(error: Exception) -> Response:
    """What is wrong outside any view: an unknown path, a wrong method."""
    if isinstance(error, HTTPException):
        return _error(f"{request.method} {request.path}: {error.name}", error.code or 500, JSON)
    return _error(_fault(request.path), 500, JSON)


# -- our own paths ------------------------------------------------------------------------------

View = Callable[..., Any]


def _views(driver: Driver) -> dict[str, tuple[str, View]]:
    """Path: method and what to read. Everything is told as JSON."""
    store = driver.store
    return {
        "/health": ("GET", lambda: _health(driver)),
        f"{OWN}status": ("GET", lambda: {"version": version(), **driver.status()}),
        f"{OWN}networks": ("GET", lambda: view.networks(store.networks(), store.endpoints())),
        f"{OWN}endpoints": ("GET", lambda: view.endpoints(store.networks(), store.endpoints())),
        f"{OWN}ports": ("GET", lambda: view.ports(store.networks(), store.endpoints())),
        f"{OWN}pools": ("GET", lambda: view.pools(driver.ipam.usage())),
        f"{OWN}inspect/<path:name>": ("GET", lambda name: view.inspect(name, store.networks(), store.endpoints())),
        f"{OWN}check": ("GET", lambda: {"drift": driver.check()}),
        f"{OWN}doctor": ("GET", lambda: [{"check": f.check, "text": f.text} for f in driver.doctor()]),
        f"{OWN}support": ("GET", lambda: _support(driver)),
        f"{OWN}repair": ("POST", lambda: {"mended": driver.repair()}),
    }


def _health(driver: Driver) -> dict[str, str]:
    """Well when the state can be read; that the kernel is as it should be is what ``check`` says."""
    with driver.store.reading() as database:
        database.execute("SELECT 1")
    return {"status": "ok"}


def _support(driver: Driver) -> dict[str, Any]:
    return {
        **report(driver.settings),
        "docker": docker.version(driver.settings.docker_socket),
        "log": "\n".join(logs.recent()),
    }


def _serve_view(read: View, **arguments: str) -> Response:
    try:
        return Response(messages.encode(read(**arguments)), content_type=JSON)
    except TrestleError as error:
        return _error(str(error), _status(error), JSON)
    except Exception:
        return _error(_fault(request.path), 500, JSON)


def _status(error: TrestleError) -> int:
    """The HTTP status that fits; dockerd never sees it."""
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, Conflict):
        return 409
    return 400 if isinstance(error, InvalidRequest) else 500


def _serve_metrics(driver: Driver, calls: metrics.Calls) -> Response:
    return Response(metrics.render(calls, driver), content_type="text/plain; version=0.0.4; charset=utf-8")
