"""The policy node's parameters, and the backend that they ask for.

A backend's module is imported when it is chosen: with a remote policy neither torch nor
transformers is.
"""

from __future__ import annotations

from dataclasses import dataclass

from grape_policy_node.backend import Backend
from grape_policy_node.remote.options import OPENPI, RemoteOptions

LOCAL, REMOTE = 'local', 'remote'
BACKENDS = (LOCAL, REMOTE)
_DEFAULTS = RemoteOptions()


@dataclass(frozen=True)
class PolicyNodeConfig:
    """The node's parameters.

    Attributes:
        backend: 'local' loads the policy into this process, 'remote' asks a server.
        policy: checkpoint folder; required where the backend is local.
        adapter: LoRA adapter folder (of the server's machine where the backend is remote); empty:
            the base, or the server's own.
        unnorm_key: which action statistics; empty: the only ones, or the server's own.
        contract: name in config/contract/ or path.
        device: 'cpu', 'cuda' ...; local.
        torch_threads: threads of one operation; 0: torch's own choice; local.
        runtime: how a step runs: auto, eager, compile or cuda_graph; local.
        quantize: 8 or 4 bits for the language model's weights, 0 for none; local.
        max_image_age_s: observations older than this are not acted on; 0: any age (lockstep).
        dump_tensors: folder for each step's pixel tensor as npy; empty: none; local.
        remote_*: see RemoteOptions.
    """

    backend: str = LOCAL
    policy: str = ''
    adapter: str = ''
    unnorm_key: str = ''
    contract: str = 'libero'
    device: str = 'cpu'
    torch_threads: int = 1
    runtime: str = 'auto'
    quantize: int = 0
    max_image_age_s: float = 0.0
    dump_tensors: str = ''
    remote_url: str = _DEFAULTS.url
    remote_token_file: str = _DEFAULTS.token_file
    remote_protocol: str = _DEFAULTS.protocol
    remote_timeout_s: float = _DEFAULTS.timeout_s
    remote_image_key: str = _DEFAULTS.image_key
    remote_prompt_key: str = _DEFAULTS.prompt_key
    remote_state_key: str = _DEFAULTS.state_key
    remote_replan_steps: int = _DEFAULTS.replan_steps
    remote_gripper: str = _DEFAULTS.gripper

    def __post_init__(self) -> None:
        """Check the values."""
        if self.backend not in BACKENDS:
            raise ValueError(
                f"parameter 'backend' is '{self.backend}'; expected one of: {', '.join(BACKENDS)}"
            )
        if self.backend == LOCAL and not self.policy:
            raise ValueError(
                "parameter 'policy' is empty; expected a checkpoint folder: -p policy:=DIR "
                '(or a server: -p backend:=remote -p remote_url:=ws://HOST:PORT)'
            )
        if self.backend == REMOTE:
            self.remote.check()
            for name in ('policy', 'dump_tensors'):
                if getattr(self, name):
                    raise ValueError(
                        f"parameter '{name}' is '{getattr(self, name)}' and backend is 'remote'; "
                        'the policy is on the server: leave it empty'
                    )
        if self.torch_threads < 0:
            raise ValueError(f'torch_threads is {self.torch_threads}; expected 0 or more')

    @property
    def remote(self) -> RemoteOptions:
        """The ``remote_*`` parameters."""
        return RemoteOptions.from_parameters(vars(self))

    @property
    def where(self) -> str:
        """What the policy is loaded from, for messages."""
        return self.policy if self.backend == LOCAL else self.remote_url


def make_backend(config: PolicyNodeConfig) -> Backend:
    """Load the policy, or connect to its server.

    Raises:
        ValueError, OSError, RuntimeError: it cannot be had; the text says what to do.
        ImportError: a library is missing in this Python.
    """
    if config.backend == LOCAL:
        from grape_policy_node.local_backend import LocalBackend

        return LocalBackend.load(
            config.policy,
            config.adapter,
            config.unnorm_key,
            config.device,
            config.torch_threads,
            config.dump_tensors,
            config.runtime,
            config.quantize,
        )
    if config.remote_protocol == OPENPI:
        from grape_policy_node.remote.openpi import OpenpiBackend

        return OpenpiBackend(config.remote, config.adapter)
    from grape_policy_node.remote.client import RemoteBackend

    return RemoteBackend(config.remote, config.adapter, config.unnorm_key)
