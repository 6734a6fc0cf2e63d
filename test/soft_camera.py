"""A RealSense without hardware: librealsense's software device behind camera_node's seam.

Its streams, syncer and frames are librealsense's own. Depth has another focal length than colour
and stands 15 mm beside it, so that depth that is not aligned shows: it sees a near wall that
begins at its column EDGE, before a far one.
"""

import threading
import time

import numpy as np
import pyrealsense2 as rs

from grape_bringup.robot.realsense import CameraLostError

WIDTH, HEIGHT, FPS = 640, 480, 30
COLOUR_FX, DEPTH_FX = 615.0, 380.0
BESIDE_M = 0.015
FAR_MM, NEAR_MM, EDGE = 1000, 500, 320


class SoftCamera:
    """A FrameSource that a test can unplug, freeze and let lose frames."""

    def __init__(self, depth_unit_m=0.001):
        self.is_plugged = True
        self.is_frozen = False
        self.skip = 0  # frames that are numbered and never sent
        self.opened = 0
        self._depth_unit_m = depth_unit_m
        self._number = 0
        self._stop = threading.Event()
        self._feeder = None

    def open(self):
        if not self.is_plugged:
            raise CameraLostError('the software camera is unplugged')
        self.opened += 1
        device = rs.software_device()
        self._colour, self._depth = device.add_sensor('RGB'), device.add_sensor('Stereo')
        self._profiles = (
            self._colour.add_video_stream(
                _stream(rs.stream.color, 1, rs.format.rgb8, 3, COLOUR_FX)
            ),
            self._depth.add_video_stream(_stream(rs.stream.depth, 2, rs.format.z16, 2, DEPTH_FX)),
        )
        self._depth.add_read_only_option(rs.option.depth_units, self._depth_unit_m)
        beside = rs.extrinsics()
        beside.rotation = [1, 0, 0, 0, 1, 0, 0, 0, 1]
        beside.translation = [BESIDE_M, 0, 0]
        self._profiles[1].register_extrinsics_to(self._profiles[0], beside)
        device.create_matcher(rs.matchers.default)
        self._device, self._syncer, self._kept = device, rs.syncer(FPS), []
        for sensor, profile in zip((self._colour, self._depth), self._profiles, strict=True):
            sensor.open(profile)
            sensor.start(self._syncer)
        self._stop.clear()
        self._feeder = threading.Thread(target=self._feed, daemon=True)
        self._feeder.start()
        return 'software camera'

    def wait(self, timeout_s):
        has_come, frames = self._syncer.try_wait_for_frames(round(1000 * timeout_s))
        return frames if has_come else None

    def close(self):
        if self._feeder is None:
            return
        self._stop.set()
        self._feeder.join()
        self._feeder = None
        for sensor in (self._colour, self._depth):
            sensor.stop()
            sensor.close()

    def picture(self, number):
        """The colour picture of a number: a bright square that wanders."""
        picture = np.full((HEIGHT, WIDTH, 3), (20, 40, 60), np.uint8)
        left = 4 * number % (WIDTH - 80)
        picture[200:280, left : left + 80] = (250, number % 256, 10)
        return picture

    def _feed(self):
        begin, sent = time.monotonic(), 0
        unit_mm = 1000 * self._depth_unit_m
        while not self._stop.wait(max(0.0, begin + sent / FPS - time.monotonic())):
            sent += 1
            if not self.is_plugged:
                continue
            self._number += 1 + self.skip
            self.skip = 0
            colour = self.picture(0 if self.is_frozen else self._number)
            depth = np.full((HEIGHT, WIDTH), round(FAR_MM / unit_mm), np.uint16)
            depth[:, EDGE:] = round(NEAR_MM / unit_mm)
            self._kept = [*self._kept[-20:], (colour, depth)]  # librealsense does not copy them
            sensors = (self._colour, self._depth)
            for sensor, profile, pixels, size in zip(
                sensors, self._profiles, (colour, depth), (3, 2), strict=True
            ):
                sensor.on_video_frame(self._frame(profile, pixels, size))

    def _frame(self, profile, pixels, size):
        frame = rs.software_video_frame()
        frame.pixels, frame.bpp, frame.stride = pixels, size, WIDTH * size
        frame.timestamp = 1000 * time.time()
        frame.domain = rs.timestamp_domain.system_time
        frame.frame_number = self._number
        frame.profile = profile.as_video_stream_profile()
        if size == 2:
            frame.depth_units = self._depth_unit_m
        return frame


def _stream(kind, uid, form, size, focal):
    intrinsics = rs.intrinsics()
    intrinsics.width, intrinsics.height = WIDTH, HEIGHT
    intrinsics.ppx, intrinsics.ppy, intrinsics.fx, intrinsics.fy = 321.5, 241.5, focal, focal
    intrinsics.model, intrinsics.coeffs = rs.distortion.brown_conrady, [0.0] * 5
    stream = rs.video_stream()
    stream.type, stream.index, stream.uid, stream.fmt, stream.bpp = kind, 0, uid, form, size
    stream.width, stream.height, stream.fps, stream.intrinsics = WIDTH, HEIGHT, FPS, intrinsics
    return stream


def record(path, frames):
    """Record so many colour pictures of 320 x 240 px to a .db3."""
    device = rs.software_device()
    sensor = device.add_sensor('RGB')
    intrinsics = rs.intrinsics()
    intrinsics.width, intrinsics.height, intrinsics.ppx, intrinsics.ppy = 320, 240, 160.0, 120.0
    intrinsics.fx = intrinsics.fy = 300.0
    stream = rs.video_stream()
    stream.type, stream.index, stream.uid, stream.fmt = rs.stream.color, 0, 1, rs.format.rgb8
    stream.width, stream.height, stream.fps, stream.bpp = 320, 240, FPS, 3
    stream.intrinsics = intrinsics
    profile = sensor.add_video_stream(stream)
    recorder = rs.recorder(str(path), device)
    recorded = recorder.query_sensors()[0]
    queue = rs.frame_queue(50)
    recorded.open(profile)
    recorded.start(queue)
    kept = []
    for number in range(frames):
        pixels = np.full((240, 320, 3), number, np.uint8)
        kept.append(pixels)
        frame = rs.software_video_frame()
        frame.pixels, frame.bpp, frame.stride, frame.frame_number = pixels, 3, 960, number + 1
        frame.timestamp, frame.domain = number * 1000 / FPS, rs.timestamp_domain.system_time
        frame.profile = profile.as_video_stream_profile()
        sensor.on_video_frame(frame)
        time.sleep(0.005)
    time.sleep(0.3)
    recorded.stop()
    recorded.close()
    del recorder
