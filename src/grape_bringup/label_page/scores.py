"""What `grape score` found out about an episode: its row, and its stages over time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from grape_episode.bag_folder import BagError
from grape_trainer.scoring.score_table import ScoreRow, ScoreTableError, read_scores

FILE = 'scores.csv'
NOT_SCORED = 'Not scored yet: grape score BAGS --out scores.csv, then reload the page.'


@dataclass(frozen=True)
class Scored:
    """What is shown of a score.

    Attributes:
        costs: stage -> its cost, in the order of the table.
        numbers: name -> text.
        problem: why there is nothing to show; ''.

    """

    costs: dict[str, float]
    numbers: dict[str, str]
    objective: str = ''
    problem: str = ''


def find_scores(bags: Path) -> Path | None:
    """Return the newest score table in the folder, below it, or in the one above."""
    found = [*bags.rglob(FILE), *bags.resolve().parent.glob(FILE)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


class ScoreBook:
    """The rows of one table, by bag; read again when the file changes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._read_ns = 0
        self._rows: dict[Path, ScoreRow] = {}

    def scored(self, bag: Path) -> Scored:
        """Return what the table says of a bag."""
        try:
            row = self._find(bag)
        except (ScoreTableError, OSError) as error:
            return Scored({}, {}, problem=str(error))
        if row is None:
            return Scored({}, {}, problem=NOT_SCORED)
        numbers = {
            'R_GCPG': row.r_gcpg, 'R_ext': row.r_ext, 'R_self': row.r_self,
            'path, m': row.path_length_m, 'collisions': row.collisions,
        }  # fmt: skip
        shown = {name: f'{value:.4g}' for name, value in numbers.items() if value is not None}
        problem = '' if row.stage_costs else f'{row.status}: {row.detail}'
        return Scored(dict(row.stage_costs), shown, row.objective, problem)

    def _find(self, bag: Path) -> ScoreRow | None:
        if self._path is None:
            return None
        changed_ns = self._path.stat().st_mtime_ns
        if changed_ns != self._read_ns:
            self._rows = {row.bag: row for row in read_scores(self._path)}
            self._read_ns = changed_ns
        return self._rows.get(bag.resolve())


def stage_curves(bag: Path, objective: str) -> str:
    """Return the distances that a trial's stages close, over time, as SVG.

    Raises:
        ValueError: they cannot be drawn; the text says why.

    """
    # Slow to import, and asked for by few.
    from grape_episode.bag import read_episode
    from grape_trainer.report_distances import stage_distances
    from grape_trainer.report_plots import distances_plot
    from grape_trainer.scoring.keypoint import KeypointError
    from grape_trainer.scoring.objective import ObjectiveError, load_objective
    from grape_trainer.scoring.stage import StageError

    try:
        episode = read_episode(bag, images=False)
        distances = stage_distances(episode, load_objective(objective))
    except (BagError, KeypointError, StageError, ObjectiveError) as error:
        raise ValueError(str(error)) from error
    if distances is None:
        raise ValueError('the bag has no scene_state, so that its stages are not known')
    return distances_plot(distances, episode.info.episode_id)
