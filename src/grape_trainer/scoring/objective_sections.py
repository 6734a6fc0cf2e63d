"""The parts of an objective file, and what each of them may say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from grape_trainer.scoring.cost_form import CLASSES, stage_name


class Section(BaseModel):
    """What every part has in common: it does not change, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra='forbid')


class RewardSettings(Section):
    """The weights of Eq. 9."""

    lambda_self: float = Field(ge=0)
    lambda_ext: float = Field(ge=0)
    lambda_success: float = Field(ge=0)
    self_reward: Literal['sum', 'per_token']  # Eq. 10 is the sum


class GeometrySettings(Section):
    """Numbers inside the cost terms."""

    clearance_m: float = Field(gt=0)  # to an obstacle's keypoint (appendix E.2.2: 0.1)
    above_margin_m: float = Field(ge=0)  # this far below the keypoint still counts as above
    straight_speed_mps: float = Field(gt=0)  # of the straight path that time is compared with
    straight_floor_m: float = Field(gt=0)  # a shorter straight path counts as this long


class TermSettings(Section):
    """How one constraint's cost over a stage becomes a number in [0, weight]."""

    weight: float = Field(ge=0)
    threshold: float = Field(ge=0)  # tau of Algorithm 1: up to here the cost is 0
    worst: float = Field(gt=0)  # from here on the cost is the whole weight
    reduce: Literal['last', 'mean', 'max', 'min']  # over the stage's states; never a sum

    @model_validator(mode='after')
    def _ordered(self) -> TermSettings:
        if not self.worst > self.threshold:
            raise ValueError(
                f'worst is {self.worst}, threshold is {self.threshold}; expected worst above it'
            )
        return self


class ProgramSettings(Section):
    """A cost program, the stages it is for, and how its functions count.

    Paths are relative to the objective file. What classes, overrides and functions mean is in
    docs/reference/cost-programs.md.
    """

    costs: Path | None = None  # a cost program, or a proposal with costs
    stages: Path | None = None  # a proposal of stages; its own costs count unless there are others
    approved_sha: str = Field(default='', pattern=r'^[0-9a-f]*$')  # of an approved text; '': now's
    allow_unapproved: bool = False
    classes: dict[Literal[CLASSES], TermSettings]
    # Number of a stage -> class or name of a function -> instead of the class's, in this stage.
    overrides: dict[Annotated[int, Field(ge=1)], dict[str, TermSettings]] = Field(
        default_factory=dict
    )

    @model_validator(mode='after')
    def _known(self) -> ProgramSettings:
        for number, settings in self.overrides.items():
            for key in settings:
                named = stage_name(key)
                if key not in CLASSES and (named is None or named.stage != number):
                    raise ValueError(
                        f"overrides of stage {number} name '{key}'; expected a class "
                        f'({", ".join(CLASSES)}) or a function stage{number}_..._constraintM'
                    )
        return self

    @property
    def named(self) -> bool:
        """Whether there is a file of costs or stages."""
        return self.costs is not None or self.stages is not None


class KeypointSettings(Section):
    """Where keypoints come from (docs/reference/keypoints.md)."""

    source: Literal['scene', 'perceived', 'clicks']
    clicks: Path | None = None  # name -> [u, v], a file or a folder of them
    numbers: Path | None = None  # name -> number in the proposer's picture, the same
    proposer: Literal['height', 'colour', 'segment_anything'] = 'height'
    weights: Path | None = None  # of segment_anything
    model: str = 'vit_b'  # of segment_anything
    camera: str | None = None  # in the contract; None: the policy's

    @model_validator(mode='after')
    def _complete(self) -> KeypointSettings:
        needed = {'clicks': 'clicks', 'perceived': 'numbers'}
        for name in needed.values():
            given = vars(self)[name] is not None
            if given != (needed.get(self.source) == name):
                raise ValueError(
                    f"the source '{self.source}' {'takes no' if given else 'needs'} '{name}'; "
                    "clicks needs 'clicks', perceived needs 'numbers' (a file that says which "
                    'thing in the first picture is which), scene neither'
                )
        if (self.weights is None) == (self.proposer == 'segment_anything'):
            raise ValueError(
                f"the proposer is '{self.proposer}' and weights are {self.weights}; "
                'segment_anything needs weights, the others take none'
            )
        return self
