"""What a policy is shown and told, perturbed: the same in any environment."""

from __future__ import annotations

import numpy as np

NOISE_STD = {'weak': 12.0, 'strong': 40.0}  # of 255

# Sixteen ways of saying an instruction, as many as RL4VLA's suite has; the wording is our own.
TEMPLATES = (
    'please {}',
    'could you {}',
    'can you {} for me',
    'your task is to {}',
    'the next thing to do is to {}',
    'i would like you to {}',
    'i need you to {}',
    'robot, {}',
    'now {}',
    'go ahead and {}',
    'you should {}',
    'would you mind helping me: {}',
    'what i want is this: {}',
    'here is your job: {}',
    'when you are ready, {}',
    '{}, and do nothing else',
)


def noisy(image: np.ndarray, strength: str, rng: np.random.Generator) -> np.ndarray:
    """Return an (H, W, 3) uint8 picture with normal noise on each channel of each pixel."""
    noise = rng.standard_normal(image.shape, np.float32) * NOISE_STD[strength]
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def said_otherwise(instruction: str, index: int, rng: np.random.Generator) -> str:
    """Return the instruction in template `index`, or in a drawn one for -1."""
    chosen = index if index >= 0 else int(rng.integers(len(TEMPLATES)))
    return TEMPLATES[chosen].format(instruction)
