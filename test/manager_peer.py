"""Small stand-ins for the nodes of a robot's stack, all in one process.

    python test/manager_peer.py NAME...

Each node beats on /diagnostics; policy_node is a lifecycle node, guard_node serves guard/arm. A
line on stdin does something to one of them: `hang NAME` (no more beats), `end NAME` (leaves),
`refuse NAME` (its next transition fails), `start NAME`. What is asked of them goes to stdout.
"""

import queue
import sys
import threading

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.node import Node
from std_srvs.srv import SetBool


def say(text):
    sys.stdout.write(f'{text}\n')
    sys.stdout.flush()


class Policy(LifecycleNode):
    refuses = False

    def on_configure(self, state):
        say('policy_node configured')
        return TransitionCallbackReturn.FAILURE if self.refuses else super().on_configure(state)

    def on_activate(self, state):
        say('policy_node activated')
        return super().on_activate(state)

    def on_deactivate(self, state):
        say('policy_node deactivated')
        return super().on_deactivate(state)


def arm(request, response):
    say(f'guard_node armed {request.data}')
    response.success, response.message = True, 'disarmed'
    return response


def main():
    rclpy.init()
    executor = SingleThreadedExecutor()
    nodes, mute = {}, set()

    def start(name):
        node = nodes[name] = (Policy if name == 'policy_node' else Node)(name)
        if name == 'guard_node':
            node.create_service(SetBool, 'guard/arm', arm)
        publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        array = DiagnosticArray(status=[DiagnosticStatus(name=f'{name}: beat')])
        node.create_timer(0.2, lambda: None if name in mute else publisher.publish(array))
        executor.add_node(node)

    def end(name):
        executor.remove_node(nodes[name])
        nodes.pop(name).destroy_node()

    def refuse(name):
        nodes[name].refuses = True

    orders = queue.SimpleQueue()
    threading.Thread(target=lambda: [orders.put(x) for x in sys.stdin], daemon=True).start()
    for name in sys.argv[1:]:
        start(name)
    while True:
        executor.spin_once(timeout_sec=0.05)
        while not orders.empty():
            verb, name = orders.get().split()
            {'hang': mute.add, 'end': end, 'refuse': refuse, 'start': start}[verb](name)
            say(f'{verb} {name} done')


if __name__ == '__main__':
    main()
