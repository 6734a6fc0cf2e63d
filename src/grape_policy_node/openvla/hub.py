"""A policy's name -> its folder: a path, or a Hugging Face hub id like ``openvla/openvla-7b``.

The local cache comes first, so that a machine without network acts with what it has, and a policy
does not change under its name: ``ORG/NAME@REVISION`` asks for another one.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from grape_policy_node.openvla.folder import CONFIG, SENTENCEPIECE, CheckpointError, weight_files

HUB_ID = re.compile(r'(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?')
NEEDED = ['*.json', '*.safetensors', SENTENCEPIECE]
NOT_NEEDED = ['*/*']  # optimiser states, other formats and adapters in subfolders

logger = logging.getLogger(__name__)


def is_hub_id(name: str | Path) -> bool:
    """Whether a name is no folder and has the form of a hub id."""
    return not Path(name).exists() and HUB_ID.fullmatch(str(name)) is not None


def resolve_folder(name: str | Path) -> Path:
    """Return the folder of a policy; a hub id is looked up in the cache, then fetched.

    ``HF_HUB_OFFLINE``, ``HF_HOME`` and ``HF_TOKEN`` count as everywhere. Any other name is
    returned as it is.

    Raises:
        CheckpointError: the hub does not have it, or cannot be reached.
    """
    if not is_hub_id(name):
        return Path(name)
    found = HUB_ID.fullmatch(str(name))
    repo, revision = found['repo'], found['revision']
    return _cached(repo, revision) or _fetched(repo, revision)


def _cached(repo: str, revision: str | None) -> Path | None:
    """The snapshot in the local cache, where it is complete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    try:
        weight_files(folder)
    except (CheckpointError, OSError):
        return None  # an interrupted download
    return folder if (folder / CONFIG).exists() else None


def _fetched(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    logger.info('%s is not in the local cache: asking the Hugging Face hub', repo)
    try:
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=NEEDED, ignore_patterns=NOT_NEEDED
        )
    except Exception as error:  # httpx, huggingface_hub and the system each raise their own
        named = f"revision '{revision}' of '{repo}'" if revision else f"'{repo}'"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'
        raise CheckpointError(
            f"'{repo}' is no folder here, and {named} could not be fetched from the Hugging Face "
            f'hub: {type(error).__name__}: {reason}. Check the name and the network (and '
            f'HF_TOKEN for a private model), or fetch it where there is one '
            f'(hf download {repo}) and give the folder.'
        ) from error
    return Path(folder)
