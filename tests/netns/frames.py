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
    return _icmpv6(to_mac, from_mac, source, target, 136, body)


def solicitation(from_mac: str, wanted: str) -> bytes:
    """Whether anybody has ``wanted``, asked from :: as duplicate address detection does (RFC 4862 5.4.2)."""
    group = _ip("ff02::1:ff00:0")[:13] + _ip(wanted)[13:]
    to_mac = "33:33:" + group[12:].hex(":")
    return _icmpv6(to_mac, from_mac, "::", str(ip_address(group)), 135, bytes(4) + _ip(wanted))


def report(from_mac: str) -> bytes:
    """A multicast listener report from ::, as before an address is known to be free (RFC 3810 5.2.13)."""
    record = b"\x04\0\0\0" + _ip("ff02::1:ff12:3456")
    return _icmpv6("33:33:00:00:00:16", from_mac, "::", "ff02::16", 143, b"\0\0\0\1" + record, alert=True)


def _icmpv6(
    to_mac: str, from_mac: str, source: str, target: str, kind: int, body: bytes, *, alert: bool = False
) -> bytes:
    check = _ipv6_checksum(source, target, 58, bytes([kind]) + b"\0\0\0" + body)
    payload = bytes([kind, 0]) + struct.pack(">H", check) + body
    if alert:  # in a hop-by-hop header, which stands before
        return _ethernet(to_mac, from_mac, _IPV6, _ipv6(source, target, 0, b"\x3a\0\x05\x02\0\0\1\0" + payload))
    return _ethernet(to_mac, from_mac, _IPV6, _ipv6(source, target, 58, payload))
