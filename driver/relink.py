"""A lost veth pair, given back to a container that lives."""

from __future__ import annotations

from dataclasses import replace

from driver.model import Endpoint, Network
from driver.plan import FAMILIES, Plan, container_prefix, gateway_of, plan_endpoint
from driver.reconcile import Reconciler
from driver.sandbox import Sandbox


def relink(reconciler: Reconciler, network: Network, endpoint: Endpoint) -> None:
    """Make the pair, and set it up in the container as dockerd had.

    Raises FileNotFoundError when the container is gone, KernelError.
    """
    addresses = [address for address in (endpoint.address4, endpoint.address6) if address]
    gateways = [g for g in (gateway_of(network, endpoint.ip(family)) for family in FAMILIES) if g]
    with Sandbox(endpoint.sandbox or "") as sandbox:
        # Made where it belongs: a move from one namespace to another takes the kernel many times as long.
        name = sandbox.free_name(container_prefix(network, endpoint))
        veths = plan_endpoint(network, endpoint).veths.items()
        inside = {host: replace(veth, peer=name, namespace=sandbox.fd) for host, veth in veths}
        reconciler.apply(Plan(veths=inside))
        # Only the container's gateway endpoint was told to publish (protocol page 2.10).
        sandbox.configure(name, addresses, gateways if endpoint.bindings is not None else [])
