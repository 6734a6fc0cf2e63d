"""How to reach a policy server: the node's ``remote_*`` parameters, and the command line's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlsplit

GRAPE, OPENPI = 'grape', 'openpi'
PROTOCOLS = (GRAPE, OPENPI)
# What 'actions[:, 6]' means at an openpi server; inside GRAPE it is 0 closed .. 1 open.
GRIPPERS = ('opening', 'libero', 'widowx')
PREFIX = 'remote_'


class OptionsError(ValueError):
    """Options that cannot be used; the text lists the choices."""


@dataclass(frozen=True)
class RemoteOptions:
    """A policy server and how to speak to it.

    Attributes:
        url: ws://HOST:PORT, or wss:// behind TLS.
        token_file: file with the token; '' for the variable GRAPE_POLICY_TOKEN, if it is set.
        protocol: 'grape' (tokens with log-probabilities) or 'openpi' (chunks of actions).
        timeout_s: for a connection, and for an answer where the world waits for it.
        image_key, prompt_key: names in an openpi server's observation.
        state_key: name of the robot's state there; '' sends none. See observed_state.py.
        replan_steps: actions of a chunk that are used (openpi's LIBERO example: 5).
        gripper: 'opening' (0 closed .. 1 open), 'libero' (-1 open .. 1 closed) or 'widowx'
            (-1 closed .. 1 open).
    """

    url: str = ''
    token_file: str = ''
    protocol: str = GRAPE
    timeout_s: float = 30.0
    image_key: str = 'observation/image'
    prompt_key: str = 'prompt'
    state_key: str = ''
    replan_steps: int = 5
    gripper: str = 'opening'

    def check(self) -> None:
        """Check the values; apart from construction, as a node without a server has defaults.

        Raises:
            OptionsError: names the option, what it is and what was expected.
        """
        _check_url(self.url)
        if self.protocol not in PROTOCOLS:
            raise OptionsError(
                f"remote_protocol '{self.protocol}' is not one of: {', '.join(PROTOCOLS)}"
            )
        if self.gripper not in GRIPPERS:
            raise OptionsError(
                f"remote_gripper '{self.gripper}' is not one of: {', '.join(GRIPPERS)}"
            )
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0.0):
            raise OptionsError(f'remote_timeout_s is {self.timeout_s}; expected seconds above 0')
        if self.replan_steps < 1:
            raise OptionsError(f'remote_replan_steps is {self.replan_steps}; expected 1 or more')
        keys = [key for key in (self.image_key, self.prompt_key, self.state_key) if key]
        if not (self.image_key and self.prompt_key) or len(set(keys)) != len(keys):
            raise OptionsError(
                f"remote_image_key '{self.image_key}', remote_prompt_key '{self.prompt_key}' and "
                f"remote_state_key '{self.state_key}' must differ; only the last may be empty"
            )

    def parameters(self) -> dict[str, object]:
        """Return these as the policy node's parameters."""
        return {PREFIX + field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_parameters(cls, values: Mapping[str, Any]) -> RemoteOptions:
        """Take the ``remote_*`` parameters out of a node's."""
        return cls(**{field.name: values[PREFIX + field.name] for field in fields(cls)})

    def with_settings(self, settings: Sequence[str]) -> RemoteOptions:
        """Return these with NAME=VALUE texts applied (``grape collect --remote``).

        Raises:
            OptionsError: an unknown name or a value of another kind; lists the choices.
        """
        kinds = {f.name: type(f.default) for f in fields(self) if f.name != 'url'}
        changed: dict[str, object] = {}
        for setting in settings:
            name, equals, text = setting.partition('=')
            if not equals or name not in kinds:
                raise OptionsError(
                    f"'{setting}' is not a setting of a policy server; expected NAME=VALUE with "
                    f'one of: {", ".join(kinds)}'
                )
            try:
                changed[name] = kinds[name](text)
            except ValueError as error:
                raise OptionsError(
                    f"'{setting}': expected a {kinds[name].__name__} after '='"
                ) from error
        return replace(self, **changed)


def is_url(text: object) -> bool:
    """Say whether a policy is named by a server's address; a Path has lost one slash."""
    return str(text).startswith(('ws:/', 'wss:/'))


def _check_url(url: str) -> None:
    expected = 'expected ws://HOST:PORT or wss://HOST:PORT, such as ws://127.0.0.1:8000'
    if not url:
        raise OptionsError(f"parameter 'remote_url' is empty; {expected}")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where it is no number
    except ValueError as error:
        raise OptionsError(f"remote_url '{url}': {error}; {expected}") from error
    if parts.scheme not in ('ws', 'wss') or not parts.hostname:
        raise OptionsError(f"remote_url '{url}'; {expected}")
    if parts.username or parts.password:
        raise OptionsError(
            'remote_url holds a user name or password, which logs would show; give the token in '
            'a file: remote_token_file'
        )
