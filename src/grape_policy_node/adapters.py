"""LoRA adapters by peft: made, saved, loaded, several resident, one active.

Recipe: rank 32, alpha 16, no dropout, all linear layers, gaussian initialisation (openvla/openvla,
vla-scripts/finetune.py). The never-run tail of the towers is left out; adapters made elsewhere
that cover it load as they are.

The reference policy of preference training is the same model with the adapter switched off, or
with another resident adapter in its place; never a second copy of the base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from grape_policy_node.openvla.model import OpenVLA

BASE = 'base'
WEIGHTS = 'adapter_model.safetensors'
CONFIG = 'adapter_config.json'
PICKLED = 'adapter_model.bin'
RANK = 32
ALPHA = 16
# peft's 'all-linear' wants a transformers model, so the layers are named (research: OpenVLA's are
# these, with 'proj' also naming the patch convolution).
TARGETS = (
    'q', 'kv', 'qkv', 'proj', 'fc1', 'fc2', 'fc3',
    'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj', 'lm_head',
)  # fmt: skip


class AdapterError(ValueError):
    """A folder or name that is no usable adapter of this model."""


def adapter_id(path: str | Path) -> str:
    """Return ``<folder>-<first 8 hex of the weights' sha256>``."""
    path = Path(path)
    weights = path / WEIGHTS
    if not weights.is_file() or not (path / CONFIG).is_file():
        found = sorted(p.name for p in path.iterdir()) if path.is_dir() else 'no folder'
        pickled = (path / PICKLED).is_file()
        todo = f'. {PICKLED} is not read: save the adapter with safetensors' if pickled else ''
        raise AdapterError(
            f'{path} is no adapter folder: expected {CONFIG} and {WEIGHTS}, found {found}{todo}'
        )
    return f'{path.resolve().name}-{hashlib.sha256(weights.read_bytes()).hexdigest()[:8]}'


class AdapterSet:
    """The adapters resident in one model. At most one is active; names are free text."""

    def __init__(self, model: OpenVLA) -> None:
        self._model = model
        self._peft: PeftModel | None = None
        self._active = BASE
        self.revision = 0  # counts every change of which adapter acts or learns

    @property
    def active(self) -> str:
        """Name of the active adapter, or 'base'."""
        return self._active

    @property
    def names(self) -> tuple[str, ...]:
        """The resident adapters, without 'base'."""
        return tuple(_outer(n) for n in self._peft.peft_config) if self._peft else ()

    def new(self, name: str, seed: int, rank: int = RANK, alpha: int = ALPHA) -> None:
        """Make a fresh adapter, equal to the base until trained, and activate it, trainable."""
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            target_modules=list(TARGETS),
            exclude_modules=_never_run(self._model),
            init_lora_weights='gaussian',
            bias='none',
        )
        # peft draws from the global generator: lend it one state and give the old one back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._add(name, config)
        self.activate(name, trainable=True)

    def load(self, path: str | Path, name: str | None = None) -> str:
        """Read an adapter folder; return its name (by default its id). Not activated.

        Loading an id that is resident already changes nothing.

        Raises:
            AdapterError: no adapter folder, another model's adapter, or a name in use.
        """
        path = Path(path)
        name = adapter_id(path) if name is None else name
        if name in self.names and name == adapter_id(path):
            return name
        try:
            config = LoraConfig.from_pretrained(str(path))
            state = load_file(str(path / WEIGHTS))
        except Exception as error:  # peft, json and safetensors each raise their own types
            raise AdapterError(f'{path} is not a readable LoRA adapter: {error}') from error
        if not isinstance(config, LoraConfig) or config.use_dora:
            kind = 'DoRA' if isinstance(config, LoraConfig) else config.peft_type
            raise AdapterError(f'{path} is an adapter of kind {kind}; expected plain LoRA')
        state = self._without_base(state, path)
        active = self._active
        learning = active != BASE and any(p.requires_grad for p in self.parameters(active))
        self._add(name, config)
        try:
            self._assign(name, state, path)
        except AdapterError:
            self._peft.delete_adapter(_inner(name))
            raise
        finally:
            self.activate(active, trainable=learning)
        return name

    def save(self, name: str, folder: str | Path) -> str:
        """Write one adapter in peft's layout; return its id."""
        self._require(name)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(
            self._peft, adapter_name=_inner(name), save_embedding_layers=False
        )
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
        save_file(state, str(folder / WEIGHTS), metadata={'format': 'pt'})
        config = self._peft.peft_config[_inner(name)]
        training, config.inference_mode = config.inference_mode, True
        config.save_pretrained(str(folder))
        config.inference_mode = training
        return adapter_id(folder)

    def activate(self, name: str, trainable: bool = False) -> None:
        """Make one adapter the acting one ('base': none).

        Args:
            name: resident adapter or 'base'.
            trainable: whether its weights ask for gradients; all others never do.
        """
        if name != BASE:
            self._require(name)
        self._active = name
        self.revision += 1
        if self._peft is not None and name == BASE:
            self._peft.base_model.disable_adapter_layers()
        elif self._peft is not None:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(_inner(name))
        # set_adapter and the layer switches flip requires_grad on their own: set it last.
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        if trainable and name != BASE:
            for parameter in self.parameters(name):
                parameter.requires_grad_(True)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """Weights of one adapter."""
        self._require(name)
        marks = (f'.lora_A.{_inner(name)}.', f'.lora_B.{_inner(name)}.')
        return [p for n, p in self._model.named_parameters() if any(m in n for m in marks)]

    @contextmanager
    def reference(self, name: str = BASE) -> Iterator[None]:
        """Act as a frozen reference ('base' or a resident adapter), without gradients."""
        active = self._active
        asked = [p for p in self._model.parameters() if p.requires_grad]
        self.activate(name)
        try:
            with torch.no_grad():
                yield
        finally:
            self.activate(active)
            for parameter in asked:
                parameter.requires_grad_(True)

    def _add(self, name: str, config: LoraConfig) -> None:
        if name == BASE or name in self.names:
            raise AdapterError(f"adapter name '{name}' is taken; resident: {(BASE, *self.names)}")
        if self._peft is None:
            self._peft = PeftModel(self._model, config, adapter_name=_inner(name))
        else:
            self._peft.add_adapter(_inner(name), config)
        self._model.eval()

    def _assign(self, name: str, state: dict[str, torch.Tensor], path: Path) -> None:
        wanted = get_peft_model_state_dict(
            self._peft, adapter_name=_inner(name), save_embedding_layers=False
        )
        missing = sorted(set(wanted) - set(state))
        unexpected = sorted(set(state) - set(wanted))
        shapes = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
        if missing or unexpected or shapes:
            raise AdapterError(
                f'{path} is not an adapter of this model: missing {missing[:4]}, '
                f'unexpected {unexpected[:4]}, other shapes {shapes[:4]}'
            )
        set_peft_model_state_dict(self._peft, state, adapter_name=_inner(name))

    def _without_base(self, state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
        """Drop base weights that peft saved along; they must be this model's own."""
        kept = {}
        weights = dict(self._model.named_parameters())
        for key, tensor in state.items():
            if '.base_layer.' not in key:
                kept[key] = tensor
                continue
            plain = key.removeprefix('base_model.model.')
            own = weights.get(plain, weights.get(plain.replace('.base_layer.', '.')))
            if (
                own is None
                or own.shape != tensor.shape
                or not torch.equal(own.detach().cpu(), tensor.to(own.dtype))
            ):
                raise AdapterError(
                    f"{path} carries a base weight '{plain}' that is not this model's; "
                    'it was trained on another base'
                )
        return kept

    def _require(self, name: str) -> None:
        if name not in self.names:
            raise AdapterError(
                f"adapter '{name}' is not resident; resident: {(BASE, *self.names)}"
            )


def _inner(name: str) -> str:
    """Return the name as a torch module may have it (no dots)."""
    return name.replace('.', '%2E')


def _outer(name: str) -> str:
    return name.replace('%2E', '.')


def _never_run(model: OpenVLA) -> str:
    """Regular expression of the towers' modules that no forward pass reaches."""
    last = [tower.depth - 1 for tower in model.spec.towers]
    return (
        rf'vision_backbone\.(featurizer\.blocks\.{last[0]}\..*'
        rf'|fused_featurizer\.blocks\.{last[-1]}\..*|(fused_)?featurizer\.attn_pool\..*)'
    )
