"""Programs that make and answer traffic, inside network namespaces; each ends with the block that started it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from tests.engine.machine import run
from tests.waiting import wait_until

SOURCE = Path(__file__).with_name("netbench.c")
# Client and server each have a processor of their own where there are two: the scheduler is not what is measured.
PINNED = [["taskset", "-c", "0"], ["taskset", "-c", "1"]] if (os.cpu_count() or 1) > 1 else [[], []]
CLIENT, SERVER = PINNED
PATIENCE = 60
_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


class Place(Protocol):
    """A network namespace by path."""

    @property
    def path(self) -> str:
        """What nsenter opens."""


TOLERATED = 0.001  # of all connections and questions
RUNS = 5  # for one in which there were no more


class Answer(NamedTuple):
    """What a client measured; times in microseconds."""

    rate: float
    median: float
    p99: float


def inside(place: Place, *command: str) -> list[str]:
    """The command line that runs a program of this machine in a namespace."""
    return ["nsenter", f"--net={place.path}", "--", *command]


@contextmanager
def compiled() -> Iterator[str]:
    """The path of netbench, built for this run."""
    with tempfile.TemporaryDirectory(prefix="trestle-netbench-") as folder:
        program = f"{folder}/netbench"
        subprocess.run(["cc", "-O2", "-o", program, str(SOURCE)], check=True)
        yield program


@contextmanager
def running(place: Place, *command: str, ready: str | None = None) -> Iterator[None]:
    """A server, until the end of the block; ``ready`` is what it prints first, if it says so."""
    whole = ["setpriv", "--pdeathsig", "KILL", "--", *inside(place, *SERVER, *command)]
    with subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            if ready is not None:
                line = process.stdout.readline()
                assert ready in line, f"{' '.join(command)}: {line}{process.stdout.read()}"
            yield
        finally:
            process.kill()


def client(program: str, place: Place, what: str, host: str, port: int, seconds: float) -> Answer:
    """One run of a netbench client in which at most one in a thousand did not come through; else it is run again.

    Docker's proxy now and then lets a connection wait for half a second, which netbench calls a failure.
    AssertionError when running it again does not help.
    """
    for _ in range(RUNS):
        said = _output(place, program, what, host, str(port), str(seconds))
        rate, median, _, p99, failed = map(float, said.split())
        if failed:
            print(f"bench: {what} {host} {port}: {failed:.0f} failed, {rate:.0f} per second did not", file=sys.stderr)
        if failed <= rate * seconds * TOLERATED:
            return Answer(rate, median, p99)
    raise AssertionError(f"{what} {host} {port}: {failed:.0f} failures in the last of {RUNS} runs")


def _output(place: Place, *command: str) -> str:
    done = subprocess.run(
        inside(place, *CLIENT, *command), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


# -- workloads that people know ------------------------------------------------------------------


@contextmanager
def redis(places: Sequence[tuple[Place, int]]) -> Iterator[None]:
    """A redis server without persistence in each place, on each port."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _nested(
            [
                (place, port, ("redis-server", "--port", str(port), "--bind", "0.0.0.0", "--save", "", "--dir", folder,
                               "--protected-mode", "no", "--loglevel", "warning"))
                for place, port in places
            ]
        )  # fmt: skip


@contextmanager
def web(places: Sequence[tuple[Place, int]]) -> Iterator[None]:
    """An nginx with one worker in each place, which answers 200 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        commands = []
        for number, (place, port) in enumerate(places):
            config = Path(folder, f"{number}.conf")
            config.write_text(
                f"daemon off; master_process off; worker_processes 1; pid {folder}/{number}.pid; error_log stderr;\n"
                "events { worker_connections 1024; }\n"
                f"http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/body;\n"
                f"proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fcgi; uwsgi_temp_path {folder}/uwsgi;\n"
                f"scgi_temp_path {folder}/scgi;\n"
                f"server {{ listen {port}; location / {{ return 200 '{'x' * 200}'; }} }} }}\n"
            )
            commands.append((place, port, ("nginx", "-p", folder, "-c", str(config))))
        yield from _nested(commands)


def _nested(commands: Sequence[tuple[Place, int, tuple[str, ...]]]) -> Iterator[None]:
    if not commands:
        yield
        return
    (place, port, command), rest = commands[0], commands[1:]
    with running(place, *command):
        _listening(place, port)
        yield from _nested(rest)


def _listening(place: Place, port: int) -> None:
    wait_until(f"something listens on port {port}", lambda: f":{port} " in run(*inside(place, "ss", "-Hltn")).stdout)


def redis_benchmark(place: Place, host: str, port: int, requests: int, test: str) -> Answer:
    """50 clients, small values."""
    said = _output(
        place, "redis-benchmark", "-h", host, "-p", str(port), "-c", "50", "-n", str(requests), "-d", "16",
        "-t", test, "--csv",
    )  # fmt: skip
    fields = [field.strip('"') for field in said.strip().splitlines()[-1].split(",")]
    rate, _, _, p50, _, p99, _ = map(float, fields[1:8])
    return Answer(rate, p50 * 1000, p99 * 1000)


def wrk(place: Place, host: str, port: int, seconds: int) -> Answer:
    """50 connections that stay open."""
    url = f"http://{host}:{port}/"
    said = _output(place, "wrk", "-t1", "-c50", f"-d{seconds}s", "--latency", url)
    assert "Non-2xx" not in said and "Socket errors" not in said, said
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    times = dict(re.findall(r"^\s+(\d+)%\s+([\d.]+(?:us|ms|s))$", said, re.MULTILINE))
    assert rate, said
    return Answer(float(rate[1]), _micro(times["50"]), _micro(times["99"]))


def _micro(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]  # wrk's own format
    return float(number) * _UNITS[unit]
