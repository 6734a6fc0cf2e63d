"""The bag functions in one place; what they need is message definitions from the bag, not ROS."""

from grape_episode.bag_export import write_episode
from grape_episode.bag_folder import METADATA, BagError, find_bags, read_info
from grape_episode.bag_reader import read_episode
from grape_episode.recover import recover

__all__ = [
    'METADATA',
    'BagError',
    'find_bags',
    'read_episode',
    'read_info',
    'recover',
    'write_episode',
]
