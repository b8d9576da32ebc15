"""Hundreds of questions at once: TCP, UDP and ICMP echo from many network namespaces, in one thread.

A question that is answered takes a millisecond, one that is dropped takes as long as one waits. Asked
together, a thousand dropped ones cost no more than one: the wait ends when nothing has happened for a while.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import selectors
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from tests.engine.machine import NetworkNamespace
from tests.netns.probes import family_of

QUIET = 1.6  # seconds without any event until the rest counts as unanswered: longer than a TCP SYN's first repetition
AGAIN = 0.5  # seconds after which an unanswered datagram is sent once more
AT_ONCE = 4000  # open sockets

TIMEOUT = "timeout"
_NAMES = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.ETIMEDOUT: TIMEOUT,
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EACCES: "prohibited",
    errno.EPERM: "prohibited",
    errno.EADDRNOTAVAIL: "unreachable",
    errno.EINVAL: "unreachable",
}


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks which address, how; ``port`` counts for tcp and udp."""

    place: NetworkNamespace
    proto: str
    address: str
    port: int = 0


class _Asked:
    """One open question."""

    def __init__(self, question: Question, sock: socket.socket) -> None:
        self.question, self.sock = question, sock
        self.connecting = question.proto == "tcp"
        self.nonce = os.urandom(8)
        self.answer = TIMEOUT
        sock.setblocking(False)

    def send(self) -> None:
        """Ask. OSError when it cannot even leave."""
        question = self.question
        if question.proto == "icmp":
            self.sock.sendto(_echo_request(question.address, self.nonce), (question.address, 0))
        elif question.proto == "udp":
            self.sock.connect((question.address, question.port))
            self.sock.send(b"?")
        else:
            with contextlib.suppress(BlockingIOError):
                self.sock.connect((question.address, question.port))

    def progress(self) -> bool:
        """Take what came; True when the question is answered. OSError says why there is no answer."""
        if self.connecting:
            if error := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            self.connecting = False
            return False
        try:
            data = self.sock.recv(2048)
        except BlockingIOError:
            return False
        if self.question.proto != "icmp":
            self.answer = data.decode() or "closed"
            return True
        if self.sock.family == socket.AF_INET:  # a raw IPv4 socket hands out the IP header too
            data = data[(data[0] & 15) * 4 :]
        if data[0] in (0, 129) and data[8:16] == self.nonce:
            self.answer = "pong"
            return True
        return False


def _echo_request(address: str, nonce: bytes) -> bytes:
    head = struct.pack(">BBHHH", 8 if family_of(address) == socket.AF_INET else 128, 0, 0, 1, 1)
    if family_of(address) == socket.AF_INET:  # the kernel fills in the checksum of ICMPv6 only
        total = sum(struct.unpack(">8H", head + nonce)) % 0xFFFF
        head = head[:2] + struct.pack(">H", 0xFFFF ^ total) + head[4:]
    return head + nonce


def _kind(question: Question) -> tuple[int, int, int]:
    family = family_of(question.address)
    if question.proto == "icmp":
        return family, socket.SOCK_RAW, socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
    return family, socket.SOCK_STREAM if question.proto == "tcp" else socket.SOCK_DGRAM, 0


def ask(questions: Sequence[Question]) -> list[str]:
    """The answers, in the questions' order: what the server said, "pong", "refused", "timeout", ..."""
    _allow_files(AT_ONCE + 1000)
    answers: list[str] = []
    for start in range(0, len(questions), AT_ONCE):
        answers += _batch(questions[start : start + AT_ONCE])
    return answers


def _allow_files(count: int) -> None:
    """Let this process open so many files, if the hard limit does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else min(count, hard), hard)
        )


def _batch(questions: Sequence[Question]) -> list[str]:
    with contextlib.ExitStack() as stack:
        asked = _open(questions, stack)
        selector = stack.enter_context(selectors.DefaultSelector())
        for one in asked:
            _start(one, selector)
        _wait(selector)
        return [one.answer for one in asked]


def _open(questions: Sequence[Question], stack: contextlib.ExitStack) -> list[_Asked]:
    by_place: defaultdict[NetworkNamespace, list[int]] = defaultdict(list)
    for number, question in enumerate(questions):
        by_place[question.place].append(number)
    asked: dict[int, _Asked] = {}
    for place, numbers in by_place.items():
        kinds = [_kind(questions[number]) for number in numbers]
        sockets = place.call(partial(_sockets, kinds))
        for number, sock in zip(numbers, sockets, strict=True):
            asked[number] = _Asked(questions[number], stack.enter_context(sock))
    return [asked[number] for number in range(len(questions))]


def _sockets(kinds: Iterable[tuple[int, int, int]]) -> list[socket.socket]:
    return [socket.socket(*kind) for kind in kinds]


def _start(one: _Asked, selector: selectors.BaseSelector) -> None:
    try:
        one.send()
    except OSError as error:
        one.answer = _name(error)
    else:
        selector.register(one.sock, selectors.EVENT_WRITE if one.connecting else selectors.EVENT_READ, one)


def _wait(selector: selectors.BaseSelector) -> None:
    last = again = time.monotonic()
    while selector.get_map():
        events = selector.select(0.1)
        now = time.monotonic()
        for key, _ in events:
            if _advance(key.data, selector):
                last = now
        if again and now - again > AGAIN:
            _repeat(key.data for key in selector.get_map().values())
            again = 0.0
        if now - last > QUIET:
            return


def _advance(one: _Asked, selector: selectors.BaseSelector) -> bool:
    """Whether that was about this question: raw sockets hear of much else."""
    was_connecting = one.connecting
    try:
        answered = one.progress()
    except OSError as error:
        answered, one.answer = True, _name(error)
    if answered:
        selector.unregister(one.sock)
    elif was_connecting:
        selector.modify(one.sock, selectors.EVENT_READ, one)
    return answered or was_connecting


def _repeat(open_ones: Iterable[_Asked]) -> None:
    """A datagram may be lost under load; a SYN is repeated by the kernel."""
    for one in open_ones:
        if one.question.proto != "tcp":
            with contextlib.suppress(OSError):
                one.send()


def _name(error: OSError) -> str:
    return _NAMES.get(error.errno or 0, str(error))
