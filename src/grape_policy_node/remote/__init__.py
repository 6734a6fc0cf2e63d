"""A policy on another machine: websocket and msgpack, as openpi's clients and servers speak it."""
