"""The `grape` command: every step of the loop alone, and all of them in one go.

Each step reads and writes files that the next one takes. What is slow to import (torch, rclpy,
LIBERO) is imported by the commands that use it.
"""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from grape_bringup import (
    cli_bag,
    cli_calibrate,
    cli_checkpoint,
    cli_costs,
    cli_data,
    cli_experiment,
    cli_keypoints,
    cli_label,
    cli_loop,
    cli_preference,
    cli_review,
    cli_rollouts,
    cli_serve,
    cli_stages,
    cli_train,
    cli_train_rl,
)
from grape_bringup.cli_console import readable_errors, set_up_logging

app = typer.Typer(
    name='grape',
    help='Trajectory-wise preference optimisation of vision-language-action policies, for ROS 2.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
train_app = typer.Typer(no_args_is_help=True, help='Train a policy (sft) or an adapter.')
bag_app = typer.Typer(no_args_is_help=True, help='Look at recorded bags and repair them.')
costs_app = typer.Typer(no_args_is_help=True, help='Look at cost programs.')
keypoints_app = typer.Typer(no_args_is_help=True, help='Where things are, seen by a camera.')
stages_app = typer.Typer(no_args_is_help=True, help='Which stages a task has, and where they are.')
experiment_app = typer.Typer(no_args_is_help=True, help='Compare methods over seeds.')
checkpoint_app = typer.Typer(no_args_is_help=True, help='Look at policies and check them.')
calibrate_app = typer.Typer(no_args_is_help=True, help='Cameras: intrinsics, and their place.')

app.command('demo')(cli_loop.demo)
app.command('doctor')(cli_loop.doctor)
app.command('demos')(cli_rollouts.demos)
app.add_typer(train_app, name='train')
train_app.command('sft')(cli_train.sft)
train_app.command('tpo')(cli_train.tpo)
train_app.command('dpo')(cli_preference.dpo)
train_app.command('kto')(cli_preference.kto)
train_app.command('ppo')(cli_train_rl.ppo)
train_app.command('grpo')(cli_train_rl.grpo)
train_app.command('tgrpo')(cli_train_rl.tgrpo)
app.command('collect')(cli_rollouts.collect)
app.command('score')(cli_data.score)
app.command('pair')(cli_data.pair)
app.command('evaluate')(cli_rollouts.evaluate)
app.command('serve')(cli_serve.serve)
app.command('iterate')(cli_loop.iterate)
app.add_typer(experiment_app, name='experiment')
experiment_app.command('run')(cli_experiment.run)
experiment_app.command('table')(cli_experiment.table)
app.command('report')(cli_loop.report)
app.command('label')(cli_label.label)
app.command('teleop')(cli_label.teleop)
app.add_typer(bag_app, name='bag')
bag_app.command('info')(cli_bag.info)
bag_app.command('recover')(cli_bag.recover)
app.add_typer(calibrate_app, name='calibrate')
calibrate_app.command('board')(cli_calibrate.board)
calibrate_app.command('capture')(cli_calibrate.capture)
calibrate_app.command('intrinsics')(cli_calibrate.intrinsics)
calibrate_app.command('hand-eye')(cli_calibrate.hand_eye)
app.add_typer(costs_app, name='costs')
costs_app.command('check')(cli_costs.check)
costs_app.command('review')(cli_review.review)
app.add_typer(keypoints_app, name='keypoints')
keypoints_app.command('show')(cli_keypoints.show)
app.add_typer(stages_app, name='stages')
stages_app.command('propose')(cli_stages.propose)
stages_app.command('show')(cli_stages.show)
app.add_typer(checkpoint_app, name='checkpoint')
checkpoint_app.command('info')(cli_checkpoint.info)
checkpoint_app.command('verify')(cli_checkpoint.verify)


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option('--verbose', '-v', help='Say more.')] = False,
) -> None:
    """Set what all commands share."""
    set_up_logging(verbose)


def main() -> None:
    """Run the command line."""
    # A shell script's background job inherits an ignored SIGINT, and Python would keep it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with readable_errors():
        app()


if __name__ == '__main__':
    main()
