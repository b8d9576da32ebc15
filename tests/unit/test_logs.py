from __future__ import annotations

import json
import logging
import sys

from plugin import logs


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("driver.x", logging.WARNING, "", 0, message, arguments, None)
    made.created, made.msecs = 1795378381.5, 500.0
    made.__dict__.update(extra)
    return made


def test_a_text_line_has_time_level_logger_message_and_fields() -> None:
    with logs.fields(verb="NetworkDriver.Join", network_id="n1", endpoint_id=None), logs.fields(pool_id=""):
        line = logs.TextFormatter().format(record("took %s", "long", fields={"ms": 3.1}))
    assert line == ("2026-11-22T20:13:01.500Z warning driver.x: took long verb=NetworkDriver.Join network_id=n1 ms=3.1")


def test_fields_end_with_their_block() -> None:
    with logs.fields(verb="x"):
        pass
    assert logs.TextFormatter().format(record("m")).endswith(" m")


def test_what_a_caller_sent_cannot_forge_a_line() -> None:
    with logs.fields(network_id='a"\n2026 critical', verb="a b"):
        line = logs.TextFormatter().format(record("refused: %s", "x\n2026 critical: y\x1b[31m"))
    assert "\n" not in line and "\x1b" not in line
    assert line.endswith(r'refused: x\n2026 critical: y\x1b[31m network_id="a\"\n2026 critical" verb="a b"')


def test_a_traceback_stands_below_the_text_line_and_inside_the_json_line() -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        made = record("failed", exc_info=sys.exc_info())
    assert logs.TextFormatter().format(made).splitlines()[-1] == "ValueError: boom"
    with logs.fields(verb="v"):
        (line,) = logs.JsonFormatter().format(made).splitlines()
    told = json.loads(line)
    assert told | {"exception": ""} == {
        "time": "2026-11-22T20:13:01.500Z",
        "level": "warning",
        "logger": "driver.x",
        "message": "failed",
        "verb": "v",
        "exception": "",
    }
    assert "boom" in told["exception"]
