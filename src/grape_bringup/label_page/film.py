"""A recorded episode as what a browser plays: JPEG pictures with their times, in one answer.

The answer is a JSON header (its size first, 4 bytes little-endian) and the pictures one after the
other. Only the chosen camera's pictures are read from the bag.
"""

from __future__ import annotations

import io
import json
import struct
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
from PIL import Image

from grape_episode.bag_folder import BagError, open_bag, read_info
from grape_episode.contract import Contract, ContractError
from grape_episode.messages import typestore

QUALITY = 80
WIDEST_PX = 640
KEPT = 6  # films


class FilmError(ValueError):
    """An episode that can't be shown; the text says why."""


def film_of(bag: Path, camera: str = '') -> bytes:
    """Return the film of one camera; '' is the policy's.

    Raises:
        FilmError: the bag cannot be read, or has no such pictures.

    """
    try:
        info = read_info(bag)
        contract = Contract.from_dict(info.contract, str(bag))
        camera = camera or contract.policy_camera
        if camera not in contract.cameras:
            raise FilmError(f"camera '{camera}' is none of: {', '.join(contract.cameras)}")
        spec = contract.cameras[camera]
        stamps_ns, pictures = [], []
        with open_bag(bag) as reader:
            chosen = [c for c in reader.connections if c.topic == spec.topic]
            for connection, _, cdr in reader.messages(connections=chosen) if chosen else ():
                image = typestore().deserialize_cdr(cdr, connection.msgtype)
                pixels = np.asarray(image.data).reshape(image.height, image.width, -1)
                if spec.transform.rotate_deg == 180:
                    pixels = pixels[::-1, ::-1]
                stamp = image.header.stamp
                stamps_ns.append(stamp.sec * 10**9 + stamp.nanosec)
                pictures.append(jpeg(pixels))
    except (BagError, ContractError, ValueError) as error:
        raise FilmError(str(error)) from error
    if not pictures:
        raise FilmError(f"'{bag}' has no pictures of camera '{camera}'")
    header = json.dumps(
        {
            'episode_id': info.episode_id,
            'camera': camera,
            'cameras': list(contract.cameras),
            'times_s': [round((stamp - stamps_ns[0]) / 1e9, 4) for stamp in stamps_ns],
            'sizes': [len(picture) for picture in pictures],
        }
    ).encode()
    return b''.join([struct.pack('<I', len(header)), header, *pictures])


def jpeg(pixels: np.ndarray) -> bytes:
    """Return (H, W, 3) uint8 RGB as a JPEG, not wider than the page shows it."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if picture.width > WIDEST_PX:
        height = max(1, round(picture.height * WIDEST_PX / picture.width))
        picture = picture.resize((WIDEST_PX, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, 'JPEG', quality=QUALITY)
    return buffer.getvalue()


class FilmShelf:
    """Keeps the films that were asked for last; safe on any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._films: OrderedDict[tuple[Path, str], bytes] = OrderedDict()

    def film(self, bag: Path, camera: str = '') -> bytes:
        """Return a film; FilmError as film_of."""
        key = (bag, camera)
        with self._lock:
            if key in self._films:
                self._films.move_to_end(key)
                return self._films[key]
        made = film_of(bag, camera)
        with self._lock:
            self._films[key] = made
            while len(self._films) > KEPT:
                self._films.popitem(last=False)
        return made
