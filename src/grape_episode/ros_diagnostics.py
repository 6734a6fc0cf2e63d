"""What a node says of itself on /diagnostics.

A status is called '<node>: <what>', so that the manager (grape_bringup.robot.manager_node) and
Foxglove's panel know whose it is; the node's name carries its namespace.
"""

from __future__ import annotations

from collections.abc import Mapping

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.publisher import Publisher

TOPIC = '/diagnostics'
PERIOD_S = 1.0


def publisher(node: Node) -> Publisher:
    """Return the node's publisher of diagnostics."""
    return node.create_publisher(DiagnosticArray, TOPIC, 10)


def diagnostics(
    node: Node, what: str, values: Mapping[str, object], warning: str = '', error: str = ''
) -> DiagnosticArray:
    """Return one status of a node; an error outweighs a warning, and '' is neither."""
    name = node.get_fully_qualified_name().lstrip('/')
    status = DiagnosticStatus(name=f'{name}: {what}', hardware_id='grape')
    status.level = DiagnosticStatus.OK
    if warning:
        status.level = DiagnosticStatus.WARN
    if error:
        status.level = DiagnosticStatus.ERROR
    status.message = error or warning or 'ok'
    status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    array = DiagnosticArray(status=[status])
    array.header.stamp = node.get_clock().now().to_msg()
    return array
