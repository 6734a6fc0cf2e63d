"""What policy servers and clients say to one another.

The server speaks first: one message about the policy. Then the client asks and the server
answers, one to one and in order: a binary message is an answer, a text message an error. That is
openpi's protocol; a request with the key ``grape`` is ours:

    infer         picture, instruction, temperature, seed or state of the generator
                  -> tokens, log-probabilities, action, the generator's next state
    prepare       an instruction that will come: it is checked, and the first step made ready
    load_adapter  a folder on the server's machine; for this connection only

A server of ours keeps nothing of an episode. The random generator's state goes to the client with
every answer and comes back with the next question, so that a question that is asked again, of a
server that was started again, has the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from grape_policy_node.action_tokens import ACTION_DIMS
from grape_policy_node.backend import Decision

NAME, VERSION = 'grape', 1
KIND = 'grape'  # the key of our requests
INFER, PREPARE, LOAD_ADAPTER = 'infer', 'prepare', 'load_adapter'
KINDS = (INFER, PREPARE, LOAD_ADAPTER)
IMAGE_KEYS = ('observation/image', 'image')  # openpi's LIBERO and simple observations
PROMPT_KEY = 'prompt'
HEALTH_PATH = '/healthz'
MAX_SIDE_PX = 4096
MAX_PROMPT_CHARACTERS = 2000
MAX_RNG_BYTES = 16 * 1024  # torch's CPU generator takes 5056


class RequestError(ValueError):
    """A request that cannot be answered; the text goes to the client."""


class ReplyError(RuntimeError):
    """An answer that is not as the protocol says."""


@dataclass(frozen=True)
class InferRequest:
    """One observation and how to sample.

    Attributes:
        image: (H, W, 3) uint8 RGB after the contract transform.
        instruction: as the person gave it.
        temperature: 0 is greedy.
        seed: of the generator where `rng_state` is None.
        rng_state: the generator's, as the answer before gave it.
    """

    image: np.ndarray
    instruction: str
    temperature: float = 0.0
    seed: int = 0
    rng_state: bytes | None = None

    def to_message(self) -> dict[str, Any]:
        """Return the message that `read_infer` takes."""
        return {
            KIND: INFER,
            IMAGE_KEYS[0]: self.image,
            PROMPT_KEY: self.instruction,
            'temperature': self.temperature,
            'seed': self.seed,
            'rng_state': self.rng_state,
        }


def read_infer(message: Mapping[str, Any]) -> InferRequest:
    """Check an infer request, ours or an openpi client's (which is answered greedily).

    Raises:
        RequestError: says what was found and expected.
    """
    seed, rng_state = message.get('seed', 0), message.get('rng_state')
    if type(seed) is not int or not 0 <= seed < 2**64:
        raise RequestError(f'seed is {seed!r:.40}; expected a whole number of 64 bits')
    if rng_state is not None and (
        not isinstance(rng_state, bytes) or len(rng_state) > MAX_RNG_BYTES
    ):
        raise RequestError(f'rng_state is no state of a generator ({type(rng_state).__name__})')
    return InferRequest(
        _image(message), read_prompt(message), read_temperature(message), seed, rng_state
    )


def read_prompt(message: Mapping[str, Any]) -> str:
    """Return a request's instruction.

    Raises:
        RequestError: none, empty or too long.
    """
    prompt = message.get(PROMPT_KEY)
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > MAX_PROMPT_CHARACTERS:
        raise RequestError(
            f"'{PROMPT_KEY}' is {prompt!r:.60}; expected the instruction, a text of up to "
            f'{MAX_PROMPT_CHARACTERS} characters'
        )
    return prompt


def read_temperature(message: Mapping[str, Any]) -> float:
    """Return a request's sampling temperature; 0 where it names none.

    Raises:
        RequestError: below 0, or no number.
    """
    temperature = message.get('temperature', 0.0)
    if type(temperature) not in (int, float) or not 0.0 <= temperature < math.inf:
        raise RequestError(f'temperature is {temperature!r:.40}; expected 0 (greedy) or more')
    return float(temperature)


def decision_message(decision: Decision, rng_state: bytes | None) -> dict[str, Any]:
    """Return the answer to our infer request."""
    return {
        'token_ids': np.asarray(decision.token_ids, np.int64),
        'log_probs': np.asarray(decision.log_probs, np.float32),
        'action': np.asarray(decision.action, np.float64),
        'adapter_id': decision.adapter_id,
        'rng_state': rng_state,
    }


def read_decision(message: Mapping[str, Any]) -> tuple[Decision, bytes | None]:
    """Return the decision of an answer, and the generator's next state.

    Raises:
        ReplyError: names the entry that is missing or has another shape.
    """
    arrays = {}
    for name, kind in (('token_ids', 'i'), ('log_probs', 'f'), ('action', 'f')):
        value = message.get(name)
        if not isinstance(value, np.ndarray) or value.shape != (ACTION_DIMS,):
            raise ReplyError(
                f"the policy server's answer has {name} {_form(value)}; expected (7,)"
            )
        if value.dtype.kind != kind:
            raise ReplyError(f"the policy server's answer has {name} of {value.dtype}")
        arrays[name] = value
    decision = Decision(adapter_id=str(message.get('adapter_id', '')), **arrays)
    return decision, message.get('rng_state')


def chunk_message(action: np.ndarray) -> dict[str, Any]:
    """Return one action as openpi's clients expect it: a chunk of length 1."""
    return {'actions': np.asarray(action, np.float64).reshape(1, ACTION_DIMS)}


def read_chunk(message: Mapping[str, Any]) -> np.ndarray:
    """Return an openpi answer's (T, 7) float64 actions.

    Raises:
        ReplyError: no such entry, or another shape.
    """
    actions = message.get('actions')
    if not isinstance(actions, np.ndarray) or actions.dtype.kind not in 'fiu':
        raise ReplyError(
            "the policy server's answer has no array 'actions'; it has: "
            f'{", ".join(map(str, message))}'
        )
    if actions.ndim != 2 or not len(actions) or actions.shape[1] != ACTION_DIMS:
        raise ReplyError(
            f"the policy server's actions have shape {actions.shape}; expected "
            f'(T, {ACTION_DIMS}): six deltas in policy units and the gripper'
        )
    return actions.astype(np.float64)


def _image(message: Mapping[str, Any]) -> np.ndarray:
    key = next((name for name in IMAGE_KEYS if name in message), None)
    if key is None:
        raise RequestError(
            f'the observation has no picture; expected {" or ".join(IMAGE_KEYS)}, found: '
            f'{", ".join(str(name)[:40] for name in list(message)[:12])}'
        )
    image = message[key]
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or not 1 <= min(image.shape[:2]) <= max(image.shape[:2]) <= MAX_SIDE_PX
    ):
        raise RequestError(
            f"'{key}' is {_form(image)}; expected uint8 (H, W, 3) RGB of up to {MAX_SIDE_PX} px"
        )
    return image


def _form(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f'{value.dtype} {value.shape}'
    return f'a {type(value).__name__}'
