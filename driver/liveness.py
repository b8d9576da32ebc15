"""Whether a container uses an endpoint, as far as the kernel shows it.

Docker's word is not enough: calls are lost, and dockerd hands out the addresses and ports of the dead at
once, often before the kernel has removed their links.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from driver.kernel import Kernel
from driver.model import Endpoint
from driver.plan import veth_names

# Seconds that a container may take from Join to its start before another may take its addresses and ports.
START_PATIENCE = 120.0
# Seconds that an endpoint may be without a sandbox: Join follows CreateEndpoint, and DeleteEndpoint follows Leave,
# within milliseconds, unless a call was lost.
IDLE_PATIENCE = 60.0


class Liveness:
    """Judges endpoints. ``clock`` is that of ``Endpoint.since``. Thread-safe."""

    def __init__(self, kernel: Kernel, clock: Callable[[], float]) -> None:
        self._kernel = kernel
        self._clock = clock
        self._joined_at: dict[str, float] = {}

    def note_join(self, endpoint_id: str) -> None:
        """It joins now."""
        self._joined_at[endpoint_id] = time.monotonic()

    def forget(self, endpoint_id: str) -> None:
        """It has left, or is gone."""
        self._joined_at.pop(endpoint_id, None)

    def is_alive(self, endpoint: Endpoint) -> bool:
        """Whether a container uses it: its veth pair is there, and leads into a network namespace that lives.

        Up to 27, dockerd moves the far end only when the container starts, a while after Join: until then it is
        taken to be on its way, unless this daemon started after the Join. When the container has stopped dockerd takes
        it back, before it says so: then it has been up.
        """
        host, peer = veth_names(endpoint.id)
        if not endpoint.joined or not self._kernel.exists(host):
            return False
        starting = time.monotonic() - self._joined_at.get(endpoint.id, -START_PATIENCE) < START_PATIENCE
        with self._kernel.session() as session:
            if self._kernel.exists(peer):
                return starting and not session.was_connected(host)
            return session.leads_to_the_living(host)

    def is_idle(self, endpoint: Endpoint) -> bool:
        """Whether nobody will ever use it: a call about it was lost.

        It has been without a sandbox for too long, or both ends of its veth pair are here although its container
        had the time to start, or ended while no daemon was here to be told.
        """
        if not endpoint.joined:
            return self._clock() - endpoint.since > IDLE_PATIENCE
        host, peer = veth_names(endpoint.id)
        if not self._kernel.exists(host) or not self._kernel.exists(peer):
            return False
        joined = self._joined_at.get(endpoint.id)
        if joined is not None:
            return time.monotonic() - joined > START_PATIENCE
        with self._kernel.session() as session:
            return self._clock() - endpoint.since > START_PATIENCE or session.was_connected(host)


def idle_line(endpoint: Endpoint) -> str:
    """An endpoint that nobody will join or delete, for people."""
    state = "its interface is in no container" if endpoint.joined else "it has no sandbox"
    return f"endpoint {endpoint.id[:12]} is nobody's: {state}, and a call of dockerd's was lost"
