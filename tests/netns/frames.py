"""Frames made by hand, for what a well-behaved host would never send."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

from tests.netns.world import Namespace

BROADCAST = "ff:ff:ff:ff:ff:ff"
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD


def send(source: Namespace, frame: bytes, interface: str = "eth0") -> None:
    """Put a frame on an interface."""
    with source.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((interface, 0))
        sock.send(frame)


def _hardware(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _ip(address: str) -> bytes:
    return ip_address(address).packed


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ethernet(target: str, source: str, kind: int, payload: bytes) -> bytes:
    return _hardware(target) + _hardware(source) + struct.pack(">H", kind) + payload


def _ipv6_checksum(source: str, target: str, proto: int, payload: bytes) -> int:
    return _checksum(_ip(source) + _ip(target) + struct.pack(">II", len(payload), proto) + payload)


def _ipv6(source: str, target: str, proto: int, payload: bytes) -> bytes:
    return struct.pack(">IHBB", 6 << 28, len(payload), proto, 255) + _ip(source) + _ip(target) + payload


def udp(to_mac: str, from_mac: str, source: str, target: str, port: int, data: bytes) -> bytes:
    """A UDP datagram, of the family of ``source``."""
    head = struct.pack(">HHH", 40000, port, 8 + len(data))
    if ":" in source:
        check = _ipv6_checksum(source, target, 17, head + b"\0\0" + data)
        payload = head + struct.pack(">H", check) + data
        return _ethernet(to_mac, from_mac, _IPV6, _ipv6(source, target, 17, payload))
    payload = head + b"\0\0" + data
    fields = struct.pack(">BBHHHBB", 0x45, 0, 20 + len(payload), 1, 0, 64, 17)
    check = _checksum(fields + b"\0\0" + _ip(source) + _ip(target))
    return _ethernet(to_mac, from_mac, _IPV4, fields + struct.pack(">H", check) + _ip(source) + _ip(target) + payload)


def arp_reply(to_mac: str, from_mac: str, sender_mac: str, sender: str, target: str) -> bytes:
    """The answer "``sender`` is at ``sender_mac``", which nobody need have asked for."""
    body = struct.pack(">HHBBH", 1, _IPV4, 6, 4, 2)
    return _ethernet(
        to_mac, from_mac, _ARP, body + _hardware(sender_mac) + _ip(sender) + _hardware(to_mac) + _ip(target)
    )


def advertisement(to_mac: str, from_mac: str, source: str, target: str, claimed: str, claimed_mac: str) -> bytes:
    """A neighbour advertisement with override: "``claimed`` is at ``claimed_mac``" (RFC 4861 4.4)."""
    body = struct.pack(">I", 0x60000000) + _ip(claimed) + b"\x02\x01" + _hardware(claimed_mac)
    check = _ipv6_checksum(source, target, 58, b"\x88\0\0\0" + body)
    return _ethernet(to_mac, from_mac, _IPV6, _ipv6(source, target, 58, b"\x88\0" + struct.pack(">H", check) + body))
