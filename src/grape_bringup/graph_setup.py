"""What a graph is made of, and what it is asked and answers: plain values without ROS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from grape_bringup.node_process import NodeSpec
from grape_episode.outcome import Outcome
from grape_policy_node.remote.options import RemoteOptions

OWN, SHARED = 'own', 'shared'
WORKER_GIB = 3.0  # simulator 2, policy node 0.7, recorder 0.1


@dataclass(frozen=True)
class GraphSetup:
    """What all episodes of a run have in common.

    Neither policy nor remote: the scripted expert acts, and no policy node is started.
    dump_tensors: folder for the pixel tensors that a local policy sees, '' for none.
    engine: own: every policy node loads `policy`; shared: a pool's graphs ask one server for it.
    device: of `policy`, such as cpu or cuda.
    """

    policy: Path | None = None
    unnorm_key: str = ''
    contract: str = 'libero'
    rendering: str = 'auto'
    step_timeout_s: float = 30.0
    dump_tensors: str = ''
    remote: RemoteOptions | None = None  # of a policy on a server, instead of `policy`
    engine: str = OWN
    device: str = 'cpu'

    @property
    def has_policy(self) -> bool:
        """Say whether a policy acts, and not the expert."""
        return self.policy is not None or self.remote is not None


@dataclass(frozen=True)
class EpisodeRequest:
    """The goal of RunEpisode; see action/RunEpisode.action."""

    episode_id: str
    task: str
    init_state: int
    seed: int
    temperature: float = 0.0
    max_steps: int = 0
    controller: str = 'policy'
    expert_attempt: int = 0
    action_noise: float = 0.0
    instruction: str = ''


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode ended; bag is None where none was closed."""

    outcome: Outcome
    steps: int
    bag: Path | None
    detail: str


def node_specs(setup: GraphSetup, bags: Path, adapter: Path | None) -> list[NodeSpec]:
    """Return the nodes of a graph.

    Args:
        setup: its policy is the policy node's own, or on a server.
        bags: the recorder's folder.
        adapter: that acts first; of a policy on a server: on the server's machine.

    """
    participants = ['policy', 'recorder'] if setup.has_policy else ['recorder']
    specs = [
        NodeSpec(
            'bridge_node',
            'sim_bridge.bridge_node',
            {
                'contract': setup.contract,
                'rendering': setup.rendering,
                'participants': participants,
                'step_timeout_s': setup.step_timeout_s,
            },
        ),
        NodeSpec(
            'recorder_node',
            'grape_episode.recorder_node',
            {'output_dir': str(bags), 'contract': setup.contract},
        ),
    ]
    if setup.has_policy:
        specs.append(_policy_node(setup, adapter))
    return specs


def _policy_node(setup: GraphSetup, adapter: Path | None) -> NodeSpec:
    parameters: dict[str, object] = {
        'adapter': str(adapter or ''),
        'unnorm_key': setup.unnorm_key,
        'contract': setup.contract,
        'dump_tensors': setup.dump_tensors,
        'autostart': True,
    }
    if setup.remote is None:
        policy = str(setup.policy.resolve())
        parameters |= {'policy': policy, 'device': setup.device, 'torch_threads': 1}
    else:
        parameters |= {'backend': 'remote', **setup.remote.parameters()}
    return NodeSpec('policy_node', 'grape_policy_node.policy_node', parameters)
