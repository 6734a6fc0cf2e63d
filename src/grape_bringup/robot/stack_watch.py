"""Which nodes a stack is made of, and whether each is alive; pure.

A node is alive while it is in the ROS graph and says so on /diagnostics. The graph forgets a
killed process after the lease of 5 s (config/fastdds.xml); a process that hangs stays in it and
only falls silent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

NOT_STARTED = 10  # + the node's place: exit codes
DIED = 30
MOST_NODES = DIED - NOT_STARTED


@dataclass(frozen=True)
class StackConfig:
    """The manager node's parameters.

    Attributes:
        nodes: names in the order in which they come up; their places give the exit codes.
        lifecycle: those that are configured and activated in their turn.
        without_heartbeat: those that say nothing on /diagnostics, such as others' drivers.
        guard: the one that is disarmed before anything else when the stack goes down.
        start_timeout_s: for a node to appear, and to be heard.
        configure_timeout_s: for a lifecycle node's transition; a policy of 7 B takes minutes.
        heartbeat_timeout_s: silence on /diagnostics after which a node counts as hung.

    """

    nodes: tuple[str, ...] = (
        'camera_node',
        'recorder_node',
        'guard_node',
        'policy_node',
        'trial_node',
    )
    lifecycle: tuple[str, ...] = ('policy_node',)
    without_heartbeat: tuple[str, ...] = ()
    guard: str = 'guard_node'
    start_timeout_s: float = 30.0
    configure_timeout_s: float = 600.0
    heartbeat_timeout_s: float = 6.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 < len(self.nodes) <= MOST_NODES or len(set(self.nodes)) < len(self.nodes):
            raise ValueError(
                f'nodes is {list(self.nodes)}; expected 1 to {MOST_NODES} names, each once'
            )
        for name in ('lifecycle', 'without_heartbeat'):
            strange = sorted(set(vars(self)[name]) - set(self.nodes) - {''})
            if strange:
                raise ValueError(
                    f'{name} has {", ".join(strange)}; expected some of: {", ".join(self.nodes)}'
                )
        for name in ('start_timeout_s', 'configure_timeout_s', 'heartbeat_timeout_s'):
            if not vars(self)[name] > 0:
                raise ValueError(f'{name} is {vars(self)[name]}; expected more than 0')


class StackError(RuntimeError):
    """A node that is not there; `code` is what the manager exits with."""

    def __init__(self, node: str, text: str, code: int) -> None:
        super().__init__(text)
        self.node = node
        self.code = code


class StackWatch:
    """What is known of each node; times are of a monotonic clock, in seconds."""

    def __init__(self, config: StackConfig) -> None:
        self.config = config
        self.up: list[str] = []  # those that were brought up, in order
        self.present: set[str] = set()
        self._heard: dict[str, float] = {}

    def hear(self, status: str, now_s: float) -> None:
        """Take the name of a diagnostic status: '<node>: <what>', with or without namespace."""
        node = status.partition(':')[0].strip().rpartition('/')[2]
        if node in self.config.nodes:
            self._heard[node] = now_s

    def see(self, present: Iterable[str]) -> None:
        """Take the names of the nodes that are in the graph now."""
        self.present = set(present) & set(self.config.nodes)

    def is_there(self, node: str) -> bool:
        """Say whether a node is in the graph."""
        return node in self.present

    def is_heard(self, node: str) -> bool:
        """Say whether a node has said something, or need not."""
        return node in self.config.without_heartbeat or node in self._heard

    def ages_s(self, now_s: float) -> dict[str, float]:
        """Return node -> how long it has been silent."""
        return {node: now_s - at for node, at in self._heard.items()}

    def came_up(self, node: str, now_s: float) -> None:
        """Watch a node from now on."""
        self.up.append(node)
        if node in self._heard:
            self._heard[node] = now_s

    def check(self, now_s: float) -> None:
        """Look at the nodes that are up.

        Raises:
            StackError: one of them died, or hangs.

        """
        for node in self.up:
            if node not in self.present:
                raise self.error(node, 'is not there any more; look at its log', DIED)
            silence_s = now_s - self._heard.get(node, now_s)
            if silence_s > self.config.heartbeat_timeout_s and not self._is_mute(node):
                raise self.error(
                    node,
                    f'has said nothing on /diagnostics for {silence_s:.1f} s (heartbeat_timeout_s '
                    f'is {self.config.heartbeat_timeout_s:g}): it hangs',
                    DIED,
                )

    def error(self, node: str, text: str, kind: int) -> StackError:
        """Return the error of a node; its exit code says which one it was."""
        return StackError(node, f'{node} {text}', kind + self.config.nodes.index(node))

    def _is_mute(self, node: str) -> bool:
        return node in self.config.without_heartbeat
