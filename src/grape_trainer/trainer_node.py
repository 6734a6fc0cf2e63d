"""The trainer node: scores each trial as soon as it is recorded, and trains on request.

    python -m grape_trainer.trainer_node --ros-args -p bags_dir:=DIR -p out_dir:=DIR -p policy:=DIR

On EpisodeEvent RECORDED the trial's reward terms go to `trial_score` (std_msgs/String, JSON) and
into OUT_DIR/scores.csv. `~/update` (std_srvs/Trigger) answers at once; behind it the acting
adapter's trials are paired, an adapter is trained by TPO and switched into the policy node, and
the result goes to `~/update_result` (JSON). Both are done on one thread, so that the node goes on
spinning.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from grape.msg import EpisodeEvent
from grape.srv import LoadAdapter
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import Trigger

from grape_episode.bag import BagError, find_bags
from grape_episode.contract import load_contract
from grape_episode.ros_qos import qos_profile
from grape_episode.ros_timer import steady_timer
from grape_policy_node.adapters import BASE, adapter_id
from grape_trainer.scoring.objective import Objective, load_scored_objective
from grape_trainer.scoring.preference import PairSettings, make_pairs, write_pairs
from grape_trainer.scoring.score_setup import prepare
from grape_trainer.scoring.score_table import ScoreRow, read_scores
from grape_trainer.scoring.scorer import score_bags
from grape_trainer.train_tpo import train_tpo
from grape_trainer.training_config import TpoConfig

DIAGNOSTICS_PERIOD_S = 1.0
LOAD_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class TrainerConfig:
    """The node's parameters.

    Attributes:
        bags_dir: the recorder's output_dir; required.
        out_dir: for scores.csv and update_<k>/; required.
        policy: checkpoint folder; without it `~/update` is refused.
        adapter: that acts when the node starts; empty: the base.
        contract: name in config/contract/ or path.
        objective: name in config/objective/ or path; empty: completion, or with costs or stages
            generated.
        costs: a cost program, approved; empty: the objective's.
        stages: a proposal of stages; empty: the objective's.
        allow_unapproved: score with costs that nobody approved.
        keypoints: scene, clicks or perceived; empty: the objective's.
        clicks: of clicks; a file or a folder.
        numbers: of perceived; a file or a folder.
        tpo: YAML of TpoConfig; empty: the paper's values.
        m: the best m trials of an initial state against the worst m.

    """

    bags_dir: str = ''
    out_dir: str = ''
    policy: str = ''
    adapter: str = ''
    contract: str = 'libero'
    objective: str = ''
    costs: str = ''
    stages: str = ''
    allow_unapproved: bool = False
    keypoints: str = ''
    clicks: str = ''
    numbers: str = ''
    tpo: str = ''
    m: int = 2

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ('bags_dir', 'out_dir'):
            if not vars(self)[name]:
                raise ValueError(f"parameter '{name}' is empty; expected a folder")


class TrainerNode(Node):
    """Callbacks put work into a queue; `work` does it on a thread of its own."""

    def __init__(self) -> None:
        super().__init__('trainer_node')
        defaults = {n: f.default for n, f in TrainerConfig.__dataclass_fields__.items()}
        values = {n: self.declare_parameter(n, value).value for n, value in defaults.items()}
        self.config = TrainerConfig(**values)
        self._setup = prepare(_objective(self.config))
        self._tpo = TpoConfig.load(self.config.tpo) if self.config.tpo else TpoConfig()
        self._out = Path(self.config.out_dir)
        self._adapter = Path(self.config.adapter) if self.config.adapter else None
        # Of earlier runs of the node too: their folders are kept.
        self._updates = len(list(self._out.glob('update_*/tpo/result.json')))
        self._scored = 0
        self._problem = ''
        self._updating = threading.Event()
        self._work: queue.Queue[Callable[[], None]] = queue.Queue()
        topic = load_contract(self.config.contract).topic('episode_event')
        self.create_subscription(EpisodeEvent, topic.name, self._on_event, qos_profile(topic))
        self._scores = self.create_publisher(String, 'trial_score', 10)
        self._results = self.create_publisher(String, '~/update_result', 10)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._client = self.create_client(LoadAdapter, 'policy_node/load_adapter')
        self.create_service(Trigger, '~/update', self._on_update)
        steady_timer(self, DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)
        # A daemon: what a shutdown breaks off is resumed (every file is written whole).
        threading.Thread(target=self._run, name='trainer_work', daemon=True).start()
        self.get_logger().info(f'scoring {self.config.bags_dir} into {self._out}')

    # What comes in (executor thread)

    def _on_event(self, event: EpisodeEvent) -> None:
        if event.kind == EpisodeEvent.RECORDED:
            bag = Path(event.detail)
            self._work.put(lambda: self._score(bag))

    def _on_update(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self.config.policy:
            response.message = "parameter 'policy' is empty; expected a checkpoint folder"
        elif self._updating.is_set():
            response.message = 'an update is running; its result comes on ~/update_result'
        else:
            self._updating.set()
            self._work.put(self._update)
            response.success = True
            response.message = 'the update began; its result comes on ~/update_result'
        return response

    # Work (its own thread)

    def _run(self) -> None:
        while True:
            work = self._work.get()
            try:
                work()
            except (ValueError, RuntimeError, OSError) as error:
                self._problem = str(error)
                self.get_logger().error(str(error))

    def _score(self, bag: Path) -> None:
        rows = {row.bag: row for row in self._score_all()}
        row = rows.get(bag.resolve())
        if row is None:
            raise BagError(f"'{bag}' was recorded, but it is not below {self.config.bags_dir}")
        self._scored += row.r_gcpg is not None
        self._scores.publish(String(data=json.dumps(_plain(row))))

    def _score_all(self) -> tuple[ScoreRow, ...]:
        bags = find_bags(self.config.bags_dir)
        return score_bags(bags, self._setup, self._out / 'scores.csv').rows

    def _update(self) -> None:
        """Pair, train, switch; tell the result whatever it is."""
        result: dict[str, object] = {'success': False}
        try:
            result |= self._train()
            result['success'] = True
            self._problem = ''
        except (ValueError, RuntimeError, OSError) as error:
            self._problem = result['message'] = str(error)
            self.get_logger().error(f'the update failed: {error}')
        finally:
            self._updating.clear()
        self._results.publish(String(data=json.dumps(result)))

    def _train(self) -> dict[str, object]:
        self._score_all()
        acting = adapter_id(self._adapter) if self._adapter else BASE
        # The trials' policy is the reference, so older adapters' trials are left out.
        rows = [r for r in read_scores(self._out / 'scores.csv') if r.adapter_id == acting]
        pairs = make_pairs(rows, PairSettings(self.config.m))
        folder = self._out / f'update_{self._updates + 1}'
        write_pairs(folder / 'pairs.json', pairs)
        done = train_tpo(
            self._tpo,
            self.config.policy,
            folder / 'pairs.json',
            folder / 'tpo',
            self._adapter,
            resume=False,
        )
        self._load(folder / 'tpo')
        self._updates += 1
        self._adapter = folder / 'tpo'
        return {'pairs': len(pairs.pairs), 'start': acting, **asdict(done)}

    def _load(self, adapter: Path) -> None:
        answered = threading.Event()
        future = self._client.call_async(LoadAdapter.Request(path=str(adapter.resolve())))
        future.add_done_callback(lambda _: answered.set())
        if not answered.wait(LOAD_TIMEOUT_S):
            raise RuntimeError(
                f'policy_node/load_adapter gave no answer in {LOAD_TIMEOUT_S:.0f} s; is the '
                f'policy node running? The adapter is in {adapter}.'
            )
        answer = future.result()
        if not answer.success:
            raise RuntimeError(f'the policy node refused {adapter}: {answer.message}')
        self.get_logger().info(f'adapter {answer.adapter_id} acts from now on')

    # What goes out beside

    def _publish_diagnostics(self) -> None:
        values = {
            'scored': self._scored,
            'waiting': self._work.qsize(),
            'updating': self._updating.is_set(),
            'updates': self._updates,
            'adapter': self._adapter or BASE,
        }
        status = DiagnosticStatus(name='trainer_node: scores and updates')
        status.level = DiagnosticStatus.WARN if self._problem else DiagnosticStatus.OK
        status.message = self._problem or 'ok'
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def _objective(config: TrainerConfig) -> Objective:
    """Return what to score for."""
    costs, stages = (Path(name) if name else None for name in (config.costs, config.stages))
    objective = load_scored_objective(
        config.objective, costs, stages, allow_unapproved=config.allow_unapproved
    )
    if config.keypoints:
        objective = objective.with_keypoints(
            source=config.keypoints, clicks=config.clicks or None, numbers=config.numbers or None
        )
    return objective


def _plain(row: ScoreRow) -> dict[str, object]:
    return asdict(row) | {'bag': str(row.bag)}


def main() -> None:
    """Run the node until it is told to stop."""
    rclpy.init()
    try:
        node = TrainerNode()
    except (ValueError, RuntimeError, OSError) as error:
        rclpy.logging.get_logger('trainer_node').error(str(error))
        rclpy.try_shutdown()
        sys.exit(1)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
