"""What a vision-language model is asked: the stages of a task, and their costs.

After the prompts of GRAPE's appendix in their intent, not in their words: a picture with numbered
keypoints and an instruction go in, stages with their costs come out. Costs are asked for in the
declarative notation first, which can do nothing but compute, and may be Python where it is not
enough. The kinds of declarative costs are listed from cost_kinds.py, so that what is asked for is
what is accepted.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from PIL import Image
from pydantic_core import PydanticUndefined

from grape_trainer.scoring.cost_form import SIGNAL_INPUTS
from grape_trainer.scoring.cost_kinds import KINDS
from grape_trainer.scoring.cost_point import Point
from grape_trainer.scoring.stage_events import EVENTS

SYSTEM = """\
You analyse manipulation tasks of a robot arm with a parallel gripper. You see the scene before
the robot moves, with numbered keypoints, and the instruction. You split the task into stages and
write, for each stage, costs that measure how well a recorded trajectory does it.

Positions are in metres in the robot's base frame; z points up. A cost is a number for one moment
of a stage: 0 or less where the constraint is satisfied, larger the worse it is violated.

Stages
- Number them 1, 2, 3, ... in the order in which they have to happen. As few as the task needs.
- Grasping an object is a stage of its own ("grasp": true) and ends when it is held. Carrying it
  is the next one. Letting go is the end of the stage that places it ("release": true).
- "keypoints" lists numbers from the picture: first what is grasped, moved or acted on, then where
  it is to go, if anywhere. Other things are obstacles and are not listed.
- "ends" is the event that ends the stage, one of:
{events}

Costs
- Every stage has one or more, each of a class: "target" (where something has to be), "grasp"
  (what has to be held or released), "collision" (what must not be touched or come near), "path"
  (how direct and quick the way is).
- In the costs of a stage, keypoint 0 or `target` is the first one that the stage lists, keypoint
  1 or `receptacle` the second one (the first again, where it lists one), and keypoints 2 and up
  are all others: the obstacles.

Write the costs in the declarative notation, "notation": "declarative". "text" is then an object
with a "kind" and the fields of that kind (a field without a value has to be given):
{kinds}
A point is "end_effector", "target", "receptacle", "keypoint N", "start of ..." one of these
(where it was when the stage began), {{"point": ..., "offset_m": [x, y, z]}} or
{{"at_m": [x, y, z]}}.

Only where these kinds cannot say it, write all costs of the reply as Python, "notation":
"python". "text" is then one function stageN_<class>_constraintM(end_effector, keypoints) that
returns a number. end_effector has the shape (3,), keypoints (K, 3). It may name more parameters:
{signals}
It may use arithmetic, if, for over short ranges, and functions of np; no import, no attribute of
anything but np, no file, no print. Anything else is refused without being run.

Reply with one JSON object and nothing else, in this form:
{example}
"""

EXAMPLE = """\
{"stages": [
  {"number": 1, "name": "grasp_cup", "description": "reach the cup and grasp it", "keypoints": [3],
   "grasp": true, "release": false, "ends": "grasped", "constraints": [
     {"stage": 1, "class": "target", "notation": "declarative",
      "text": {"kind": "distance", "of": "end_effector", "to": "target"}},
     {"stage": 1, "class": "collision", "notation": "declarative",
      "text": {"kind": "clearance", "clearance_m": 0.1}}]},
  {"number": 2, "name": "carry", "description": "carry the cup over the shelf",
   "keypoints": [3, 0], "grasp": false, "release": false, "ends": "arrived", "constraints": [
     {"stage": 2, "class": "target", "notation": "declarative",
      "text": {"kind": "distance", "of": "target", "to": "receptacle", "axes": "xy"}},
     {"stage": 2, "class": "grasp", "notation": "declarative",
      "text": {"kind": "gripper", "state": "held"}}]}
]}"""

CORRECTION = """\
Your reply cannot be used:
{reason}
Reply again with the whole corrected JSON object and nothing else."""


@dataclass(frozen=True)
class NumberedKeypoint:
    """A keypoint as the model sees it; its number is its place in the list."""

    name: str  # '' where it is not known what it is
    position_m: tuple[float, float, float]  # at the first state, robot base frame


def system_prompt() -> str:
    """Return the rules, the same for every task."""
    return SYSTEM.format(
        events='\n'.join(f'  - {name}: {event.__doc__}' for name, event in EVENTS.items()),
        kinds='\n'.join(f'- {line}' for line in _kind_lines()),
        signals='\n'.join(f'- {name}: {what}' for name, what in SIGNAL_INPUTS.items()),
        example=EXAMPLE,
    )


def task_prompt(instruction: str, keypoints: Sequence[NumberedKeypoint], pictures: int) -> str:
    """Return the text that goes with the pictures of a task."""
    lines = [
        f'Instruction: {instruction}',
        f'Pictures: {pictures}, of the scene before the robot moves.',
        'Keypoints (number: what it is, position in m):',
    ]
    for number, keypoint in enumerate(keypoints):
        x, y, z = keypoint.position_m
        name = keypoint.name or 'not known; see the number in the picture'
        lines.append(f'{number}: {name}, ({x:.3f}, {y:.3f}, {z:.3f})')
    return '\n'.join(lines)


def messages(
    texts: Sequence[tuple[str, str]], images: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Return a conversation as chat completions take it.

    Args:
        texts: (role, text); the pictures go with the first one of the user.
        images: (H, W, 3) uint8 RGB each.

    """
    result: list[dict[str, Any]] = []
    pending = [{'type': 'image_url', 'image_url': {'url': png_url(image)}} for image in images]
    for role, text in texts:
        if role == 'user' and pending:
            result.append({'role': role, 'content': [{'type': 'text', 'text': text}, *pending]})
            pending = []
        else:
            result.append({'role': role, 'content': text})
    return result


def png_url(image: np.ndarray) -> str:
    """Return a picture (H, W, 3) uint8 RGB as a PNG data URL.

    Raises:
        ValueError: another shape or type.

    """
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(
            f'a picture is {array.dtype} {array.shape}; expected uint8 (H, W, 3), RGB.'
        )
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, 'PNG')
    return f'data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'


def _kind_lines() -> list[str]:
    """Return one line a kind: its names, its fields with their defaults, what it means."""
    lines = []
    for model in KINDS:
        names = ' or '.join(
            f'"{name}"' for name in get_args(model.model_fields['kind'].annotation)
        )
        given = [
            f'{field.alias or name}{_default(field.default)}'
            for name, field in model.model_fields.items()
            if name not in ('stage', 'cost_class', 'number', 'note', 'kind')
        ]
        meaning = ' '.join((model.__doc__ or '').split())
        lines.append(f'{names}({", ".join(given)}): {meaning}')
    return lines


def _default(value: object) -> str:
    if value is PydanticUndefined:
        return ''
    shown = value.now.replace('keypoints[0]', 'target') if isinstance(value, Point) else value
    return f'={shown}'
