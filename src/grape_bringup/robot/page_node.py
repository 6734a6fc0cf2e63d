"""The page node: the labelling page beside a running robot, with the trial's buttons.

    python -m grape_bringup.robot.page_node --ros-args -p contract:=franka_openvla -p bags:=DIR

It serves this machine only, unless `host` says otherwise; then the log names the URL with the
token that is due. `grape label BAGS --live` is the same by hand.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.signals import SignalHandlerOptions

from grape_bringup.label_page.access import Access
from grape_bringup.label_page.live_robot import live_robot
from grape_bringup.label_page.server import PageSettings, serve


@dataclass(frozen=True)
class PageNodeConfig:
    """The node's parameters.

    Attributes:
        contract: name in config/contract/ or path.
        config: name in config/robot/ or path of the trial configuration.
        bags: the recorder's output_dir; required.
        scores: score table; empty: the newest one around the bags.
        labeller: who labels; empty: who runs the node.
        host, port: where to listen.
        token: who knows it may open the page; empty: made up where one is due.

    """

    contract: str = 'franka_openvla'
    config: str = 'trial'
    bags: str = ''
    scores: str = ''
    labeller: str = ''
    host: str = '127.0.0.1'
    port: int = 8321
    token: str = ''

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.bags:
            raise ValueError("parameter 'bags' is empty; expected the recorder's output_dir")
        if not 1 <= self.port <= 65535:
            raise ValueError(f'port is {self.port}; expected 1 to 65535')

    def settings(self) -> PageSettings:
        """Return what the server is started with; the folder of bags is made if need be."""
        bags = Path(self.bags).expanduser()
        bags.mkdir(parents=True, exist_ok=True)
        return PageSettings(
            bags=bags,
            scores=Path(self.scores).expanduser() if self.scores else None,
            labeller=self.labeller,
            host=self.host,
            port=self.port,
            access=Access.for_host(self.host, self.token),
        )


def main(args: list[str] | None = None) -> int:
    """Serve until told to stop."""
    # Signals are the web server's affair, which ends its connections first.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('page_node')
    defaults = {n: f.default for n, f in PageNodeConfig.__dataclass_fields__.items()}
    try:
        values = {n: node.declare_parameter(n, value).value for n, value in defaults.items()}
        config = PageNodeConfig(**values)
        settings = config.settings()
        with live_robot(node, config.contract, config.config) as robot:
            url = settings.access.url(config.host, config.port)
            node.get_logger().info(f'labelling page: {url}')
            serve(settings, robot)
    except (ValueError, OSError, ParameterException) as error:
        node.get_logger().error(str(error))
        return 1
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
