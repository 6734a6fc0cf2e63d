"""Recorded trials as training data: pixels kept as uint8, token ids as they were sampled.

A bag holds raw camera images. What the policy saw is the contract transform, then PIL's bicubic
resize to the model's size: done once here and kept as uint8; / 255 and the two towers'
normalisations follow batch by batch in torch (`pixel_values`), bit for bit what
`PixelTransform` gives for one image.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from grape_episode.bag import read_episode, read_info
from grape_episode.episode import Episode, policy_steps
from grape_policy_node.action_tokens import ACTION_DIMS
from grape_policy_node.openvla.processor import PixelTransform
from grape_trainer.scoring import preference


class DataError(ValueError):
    """Data that cannot be trained on; the text names the file and what to do."""


@dataclass(frozen=True)
class TokenTrial:
    """One recorded trial of a token policy, T control steps, S the model's image size."""

    episode_id: str
    path: Path
    task: str
    init_state: int
    instruction: str
    adapter_id: str
    images: np.ndarray  # (T, S, S, 3) uint8 RGB
    token_ids: torch.Tensor  # (T, 7) int64, as sampled
    log_probs: torch.Tensor  # (T, 7) float32, as recorded (temperature 1, full vocabulary)

    @property
    def steps(self) -> int:
        """T."""
        return len(self.images)


@dataclass(frozen=True)
class BagPair:
    """A chosen and a rejected bag; `name` is how errors call it."""

    name: str
    chosen: Path
    rejected: Path

    @property
    def bags(self) -> dict[str, Path]:
        """The bags by their role."""
        return {'chosen': self.chosen, 'rejected': self.rejected}

    def fingerprint(self, hashes: Sequence[str]) -> str:
        """Return what is learned from bags of these hashes."""
        return ' '.join(hashes)


@dataclass(frozen=True)
class LabelledBag:
    """A bag and whether its trial is desirable; `name` is how errors call it."""

    name: str
    bag: Path
    desirable: bool

    @property
    def bags(self) -> dict[str, Path]:
        """The bag by its role."""
        return {'trial': self.bag}

    def fingerprint(self, hashes: Sequence[str]) -> str:
        """Return what is learned from bags of these hashes."""
        return ' '.join((*hashes, 'desirable' if self.desirable else 'undesirable'))


class TrialStore:
    """Reads trials on demand and keeps the latest in memory up to a limit."""

    def __init__(self, pixels: PixelTransform, limit_gib: float) -> None:
        """Keep at most `limit_gib` GiB of pixels (and always the newest trial)."""
        self._pixels = pixels
        self._limit = int(limit_gib * 2**30)
        self._kept: OrderedDict[Path, TokenTrial] = OrderedDict()
        self._bytes = 0

    def get(self, path: Path) -> TokenTrial:
        """Return the trial of a bag, from memory if it is still there."""
        if path in self._kept:
            self._kept.move_to_end(path)
            return self._kept[path]
        trial = load_trial(path, self._pixels)
        self._kept[path] = trial
        self._bytes += trial.images.nbytes
        while self._bytes > self._limit and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.images.nbytes
        return trial


def load_trial(path: Path, pixels: PixelTransform) -> TokenTrial:
    """Read a bag of a token policy: the steps in which the arm did what the policy chose.

    What a person did instead, or a guard that held, is no choice of the policy's: as in R_self
    (scoring/reward.py) those steps are left out.

    Raises:
        DataError: no control step, or steps without recorded tokens (an expert's trial).

    """
    episode = read_episode(path)
    tokens = np.asarray(episode.action_token_ids)
    images = episode.policy_images()
    own = policy_steps(episode)
    if len(images) == 0 or tokens.shape != (len(images), ACTION_DIMS):
        raise DataError(
            f"'{path}' has {len(images)} images and action tokens of shape {tokens.shape}; "
            f'expected T >= 1 images and (T, {ACTION_DIMS}) tokens sampled by a policy. '
            'Trials of the expert have none, nor those of a served policy without '
            "log-probabilities (pi0, Octo), nor those in which the connection to a policy's "
            "server was lost: collect with 'grape collect' and an OpenVLA policy."
        )
    if not own.any():
        raise DataError(
            f"'{path}': the arm followed the policy in none of its {len(own)} steps; there is "
            'nothing to learn of the policy from it. Leave it out.'
        )
    info = episode.info
    return TokenTrial(
        episode_id=info.episode_id,
        path=path,
        task=info.task,
        init_state=info.init_state,
        instruction=info.instruction,
        adapter_id=info.adapter_id,
        images=resize_images(images[own], pixels.image_size),
        token_ids=torch.from_numpy(tokens[own].astype(np.int64)),
        log_probs=torch.from_numpy(np.asarray(episode.token_log_probs, dtype=np.float32)[own]),
    )


def read_pairs(path: Path | str) -> list[BagPair]:
    """Read the pairs file of `grape pair` (scoring/preference.py) for training.

    Raises:
        PairingError: no such file, or not a pairs file.
        DataError: an empty list, a bag that is not there, or a policy without likelihoods.

    """
    pairs = [
        BagPair(
            f'pair {number} (chosen {pair.chosen.bag.name}, rejected {pair.rejected.bag.name})',
            pair.chosen.bag,
            pair.rejected.bag,
        )
        for number, pair in enumerate(preference.read_pairs(path).pairs)
    ]
    if not pairs:
        raise DataError(
            f"'{path}' has no pairs. Every initial state needs trials of unequal reward: collect "
            'more trials, more initial states, or at a higher temperature.'
        )
    absent = [bag for pair in pairs for bag in (pair.chosen, pair.rejected) if not bag.exists()]
    if absent:
        raise DataError(
            f"'{path}' names {len(absent)} bags that are not there, first '{absent[0]}'. Move the "
            "bags back beside it, or make it again with 'grape pair'."
        )
    for bag in dict.fromkeys(bag for pair in pairs for bag in (pair.chosen, pair.rejected)):
        require_likelihoods(bag)
    return pairs


def require_likelihoods(bag: Path) -> None:
    """Refuse, before any model is loaded, a trial whose policy says that it gives none."""
    policy = read_info(bag).policy
    if policy.get('has_log_probs') is False:
        raise DataError(
            f"'{bag}' was played by {policy.get('policy')}, which gives no log-probabilities "
            f'({policy.get("protocol")}). The likelihoods of what was sampled are compared: '
            "take trials of an OpenVLA policy ('grape collect --policy DIR', or a 'grape serve' "
            'server).'
        )


def bag_sha256(path: Path) -> str:
    """Return the sha256 of a bag's recorded messages (its storage files, not its labels)."""
    files = sorted(p for p in path.iterdir() if p.suffix in ('.mcap', '.db3'))
    if not files:
        raise DataError(f"'{path}' holds no .mcap file; expected a bag folder.")
    digest = hashlib.sha256()
    for file in files:
        with file.open('rb') as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def data_hash(hashes: Sequence[str]) -> str:
    """Return one sha256 over an ordered list of hashes."""
    return hashlib.sha256('\n'.join(hashes).encode()).hexdigest()


def resize_images(images: np.ndarray, size: int) -> np.ndarray:
    """Return (T, H, W, 3) uint8 RGB resized to (T, size, size, 3) uint8, PIL's bicubic."""
    if images.shape[1:3] == (size, size):
        return np.ascontiguousarray(images)
    out = np.empty((len(images), size, size, 3), np.uint8)
    for index, image in enumerate(images):
        picture = Image.fromarray(np.ascontiguousarray(image))
        out[index] = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
    return out


def pixel_values(images: torch.Tensor, pixels: PixelTransform) -> torch.Tensor:
    """Normalise a batch for both vision towers.

    Args:
        images: (B, S, S, 3) uint8, or float32 in 0..255 after augmentation, any device.
        pixels: means and stds, DINOv2 first.

    Returns:
        (B, 6, S, S) float32.

    """
    channels = images.permute(0, 3, 1, 2).float().div(255.0).unsqueeze(1)
    mean = torch.tensor(pixels.means, device=images.device).view(1, 2, 3, 1, 1)
    std = torch.tensor(pixels.stds, device=images.device).view(1, 2, 3, 1, 1)
    return ((channels - mean) / std).flatten(1, 2)


def policy_actions(episode: Episode) -> np.ndarray:
    """Return (T, 7) float64 actions in policy units."""
    return np.asarray(episode.policy_actions(), dtype=np.float64)
