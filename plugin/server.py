"""The daemon: one gunicorn worker with threads, behind one Unix socket.

What gunicorn is told, and why (protocol page 1.5): connections close after each answer, since one
that the server closes while dockerd reuses it looks like a broken call; no worker timeout, since a
call that is cut off comes again without its body; 8 s to finish running calls, since dockerd kills
a plugin after 10; one worker, since it alone may hold the state directory.

The order of a start: the listening socket gets a temporary name, the worker opens the state
directory (a second daemon ends here and has disturbed nobody), the socket is renamed to the name
that dockerd looks for, the kernel is rebuilt, and only then is the first call read. Calls that
come in between wait in the socket's queue. With socket activation, systemd holds that queue and
not even a call that comes between two daemons is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import gunicorn.arbiter
from gunicorn import systemd
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger as GunicornLogger
from gunicorn.workers.gthread import ThreadWorker

from driver.errors import StateError, TrestleError
from driver.settings import Settings, unknown_variables
from plugin import docker, logs, memory

if TYPE_CHECKING:
    from driver.daemon import Driver

log = logging.getLogger(__name__)

GRACE = 8  # seconds
BACKLOG = 1024


class Listener:
    """The listening socket: systemd's, or one of our own that replaces what has its name.

    ``publish`` puts it at its path and ``withdraw`` takes it away, if it is still ours that stands there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.activated = systemd.listen_fds() > 0
        if self.activated:
            self.fd = systemd.SD_LISTEN_FDS_START
            return
        if path.exists() and not path.is_socket():
            raise StateError(f"{path} exists and is no socket; remove it, or set TRESTLE_SOCKET")
        self._draft = path.with_name(f".{path.name}.{os.getpid()}")
        self.fd = _listen(self._draft)
        self._identity = _identity(self._draft)

    def publish(self) -> None:
        """Let dockerd find it; atomic, so a call meets the old socket or the new one. Twice is as good as once."""
        if not self.activated and self._draft.exists():
            self._draft.replace(self.path)

    def withdraw(self) -> None:
        """Remove the names that are ours; systemd's socket stays."""
        if self.activated:
            return
        for path in (self._draft, self.path):
            with contextlib.suppress(OSError):
                if _identity(path) == self._identity:
                    path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _listen(path: Path) -> int:
    """The descriptor of a socket that root alone can reach. Raises StateError when it cannot be made."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o077)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.umask(0o177)
        listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StateError(f"cannot listen in {path.parent}: {error.strerror}; set TRESTLE_SOCKET") from None
    finally:
        os.umask(umask)
    return listener.detach()


class _Arbiter(gunicorn.arbiter.Arbiter):  # type: ignore[misc]  # gunicorn ships no types
    """Gunicorn's parent process, less what one worker and one socket forbid."""

    def __init__(self, app: _Application) -> None:
        super().__init__(app)
        # Gunicorn would remove the name that the socket was bound to; Listener removes the one it has.
        self.systemd = True

    def stop(self, graceful: bool = True) -> None:
        """First nobody finds the socket any more, then the worker serves who has found it."""
        self.app.listener.withdraw()
        super().stop(graceful)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> NoReturn:
        """Without gunicorn's reason: the worker has told a better one."""
        with contextlib.suppress(SystemExit):
            super().halt()
        sys.exit(1 if exit_status else 0)

    def _ignore(self) -> None:
        self.log.info("this signal means nothing here: settings are read at start, and one worker is all there can be")

    handle_hup = handle_usr2 = handle_ttin = handle_ttou = _ignore


class _Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn ships no types
    """Gunicorn's threaded worker, which loses no call when it stops and answers JSON to what is no HTTP."""

    def set_accept_enabled(self, enabled: bool) -> None:
        """When it stops, whoever already waits in the socket's queue is served.

        A connection that is dropped from there may hold a call, which dockerd would repeat without its body.
        """
        if not enabled and not self.alive and self._accepting:
            self._accept_waiting()
        super().set_accept_enabled(enabled)

    def _accept_waiting(self) -> None:
        for _ in range(BACKLOG):
            before = self.nr_conns
            self.accept(self.sockets[0])
            if self.nr_conns == before:
                return

    def handle(self, conn: Any) -> Any:
        """One connection, in a thread. After the answer nothing more is heard.

        Gunicorn would wait for the caller to close, up to 2 s for each, in the one thread that accepts. On a
        Unix socket there is nothing to wait for: what was sent can be read after the sender is gone.
        """
        keep = super().handle(conn)
        if keep is False:
            with contextlib.suppress(OSError):
                conn.sock.shutdown(socket.SHUT_RDWR)
        return keep

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """What gunicorn refuses before it is a request."""
        body = b'{"Err": "not a HTTP request that is understood", "Error": "not a HTTP request that is understood"}'
        log.warning("refused: %s", exc)
        with contextlib.suppress(OSError):
            client.sendall(
                b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )


class _Logger(GunicornLogger):  # type: ignore[misc]  # gunicorn ships no types
    """Gunicorn's messages through our log; how its processes come and go is of interest when debugging."""

    def setup(self, cfg: Any) -> None:
        """Handlers and form are the root logger's."""
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.propagate = True
        chatty = logging.getLogger().isEnabledFor(logging.DEBUG)
        self.error_log.setLevel(logging.DEBUG if chatty else logging.WARNING)

    def error(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """A worker that did not start has said why already."""
        if args[1:] not in ((_Arbiter.APP_LOAD_ERROR,), (_Arbiter.WORKER_BOOT_ERROR,)):
            super().error(msg, *args, **kwargs)


class _Application(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    """What gunicorn runs. The driver lives in the worker, which starts it before it answers."""

    def __init__(self, settings: Settings, listener: Listener, notify: Callable[[], None]) -> None:
        self.settings = settings
        self.listener = listener
        self.notify = notify
        self.driver: Driver | None = None
        super().__init__()

    def load_config(self) -> None:
        """Settings of gunicorn; nothing is read from files or its own variables."""
        directory = self.listener.path.parent
        for key, value in {
            "bind": f"fd://{self.listener.fd}",
            "workers": 1,
            "worker_class": _Worker,
            "threads": self.settings.threads,
            "keepalive": 0,
            "timeout": 0,
            "graceful_timeout": GRACE,
            "preload_app": False,
            "control_socket_disable": True,
            "logger_class": _Logger,
            "worker_tmp_dir": str(directory) if directory.is_dir() else None,
            "pre_fork": lambda arbiter, worker: memory.keep_shared(),
            "post_fork": lambda arbiter, worker: _end_with_parent(),
            "worker_exit": lambda arbiter, worker: self.close(),
            "proc_name": "trestle",
        }.items():
            self.cfg.set(key, value)

    def load(self) -> Any:
        """In the worker: state, socket, kernel, application. A refusal ends the daemon with its sentence."""
        try:
            from driver.daemon import Driver
            from driver.watch import name_threads

            name_threads()
            self.driver = Driver(self.settings)
            self.listener.publish()
            self.driver.watch()
            for line in self.driver.start():
                log.warning("at start: %s", line)
        except TrestleError as error:
            log.critical("%s", error)
            sys.exit(_Arbiter.APP_LOAD_ERROR)
        from plugin.app import create_app

        app = create_app(self.driver)
        self.driver.ask_docker(lambda: docker.roll(self.settings.docker_socket))
        self.notify()
        log.info("ready at %s", self.listener.path)
        return app

    def close(self) -> None:
        """In the worker, at its end. The kernel keeps what it has: traffic goes on."""
        if self.driver is not None:
            self.driver.close()

    def run(self) -> None:
        """Until a signal ends it."""
        _Arbiter(self).run()


def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; the exit code is 0 then, and 1 when the daemon cannot start."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # as pid 1, a signal without handler is lost
    logs.configure(settings.log_level, settings.log_format)
    for name in unknown_variables(os.environ):
        log.warning("%s is not a setting and is ignored", name)
    _raise_file_limit()
    memory.limit_heaps()
    arbiter, notify = os.getpid(), _notifier()
    try:
        listener = Listener(settings.socket)
    except StateError as error:
        log.critical("%s", error)
        return 1
    try:
        _Application(settings, listener, notify).run()
    finally:
        if os.getpid() == arbiter:  # the worker, a fork, leaves through here as well
            listener.withdraw()
    return 0


def _raise_file_limit() -> None:
    """Held host ports are open files; systemd gives 1024 unless told more, and the hard limit is far higher."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _end_with_parent() -> None:
    """A worker without arbiter ends at once, and the state directory is free for the next daemon (prctl(2))."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _notifier() -> Callable[[], None]:
    """What tells systemd that the daemon is ready.

    Taken away from gunicorn, whose arbiter would say so before the worker has rebuilt the kernel. The
    unit needs NotifyAccess=all, since it is the worker that says it.
    """
    address = os.environ.pop("NOTIFY_SOCKET", None)

    def notify() -> None:
        if address:
            os.environ["NOTIFY_SOCKET"] = address
            systemd.sd_notify("READY=1", log, unset_environment=True)

    return notify
