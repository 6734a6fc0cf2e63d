"""`grape label` and `grape teleop`: what a person does beside the robot."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from grape_bringup.cli_console import UsageError, console


def label(
    bags: Annotated[Path, typer.Argument(help='Folder of recorded episodes.')],
    live: Annotated[
        bool, typer.Option('--live', help='Show the running trial and its buttons as well.')
    ] = False,
    scores: Annotated[
        Path | None, typer.Option(help='scores.csv; default: the newest one at or above BAGS.')
    ] = None,
    labeller: Annotated[str, typer.Option(help='Who labels; the page asks when empty.')] = '',
    host: Annotated[
        str, typer.Option(help='Address to listen on; others than this machine need the token.')
    ] = '127.0.0.1',
    port: Annotated[int, typer.Option(min=1, max=65535, help='Port of the page.')] = 8321,
    token: Annotated[
        str, typer.Option(help='Who knows it may open the page; empty: made up where one is due.')
    ] = '',
    contract: Annotated[
        str, typer.Option(help='Of the live camera: name in config/contract/, or a YAML.')
    ] = 'franka_openvla',
    config: Annotated[
        str, typer.Option(help='Of the live camera: trial configuration in config/robot/.')
    ] = 'trial',
) -> None:
    """Label recorded episodes in the browser: s success, f failure, d discard, u undo."""
    if not live and not bags.is_dir():  # the page node makes it
        raise UsageError(f"'{bags}' is no folder; give the folder that the recorder writes to.")
    if live:
        use_ros()
        from grape_bringup.robot.page_node import main

        given = {
            'bags': bags, 'contract': contract, 'config': config, 'labeller': labeller,
            'scores': scores or '', 'host': host, 'token': token,
        }  # fmt: skip
        # In quotes: a folder called 2025 would arrive as a number.
        parameters = [f'{name}:={json.dumps(str(value))}' for name, value in given.items()]
        words = [word for text in (*parameters, f'port:={port}') for word in ('-p', text)]
        raise typer.Exit(main(['--ros-args', *words]))
    from grape_bringup.label_page.access import Access
    from grape_bringup.label_page.server import PageSettings, serve

    access = Access.for_host(host, token)
    console.print(f'labelling page: {access.url(host, port)}', soft_wrap=True, markup=False)
    serve(PageSettings(bags, scores, labeller, host, port, access))


def teleop(
    device: Annotated[str, typer.Option(help='keyboard, spacemouse or joy.')] = 'keyboard',
    config: Annotated[
        str, typer.Option(help='Name in config/robot/, or a YAML: speeds, keys.')
    ] = 'teleop',
    namespace: Annotated[str, typer.Option(help="The robot's namespace.")] = '',
) -> None:
    """Drive the arm by hand: hold a key to move, let go to give it back. Ctrl-C ends."""
    use_ros()
    from grape_bringup.robot.teleop_node import main

    arguments = ['--ros-args', '-p', f'device:={device}', '-p', f'config:={config}']
    if namespace:
        arguments += ['-r', f'__ns:=/{namespace.strip("/")}']
    raise typer.Exit(main(arguments))


def use_ros() -> None:
    """Give this process what a node needs; what a person has set, the domain too, stays."""
    from grape_bringup.graph_client import prepare_process
    from grape_bringup.ros_environment import ros_environment

    variables = ros_environment(0)
    del variables['ROS_DOMAIN_ID']
    kept = {name: os.environ[name] for name in variables if os.environ.get(name)}
    prepare_process()
    os.environ.update(kept)
