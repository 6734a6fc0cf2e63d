"""The web server of the labelling page: NiceGUI on one address, with films and pictures."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nicegui import app, run, ui
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from grape_bringup.label_page.access import Access, AccessMiddleware
from grape_bringup.label_page.film import FilmError, FilmShelf
from grape_bringup.label_page.labelling import LabelPage
from grape_bringup.label_page.live import LivePage
from grape_bringup.label_page.queue import LabelQueue
from grape_bringup.label_page.scores import ScoreBook, find_scores

if TYPE_CHECKING:
    from grape_bringup.label_page.live_robot import LiveRobot

LIVE_HZ = 10.0  # of the camera on the page
GOODBYE_S = 1
BOUNDARY = 'frame'


@dataclass(frozen=True)
class PageSettings:
    """What the page is started with.

    Attributes:
        bags: folder of recorded episodes.
        scores: score table; None: the newest one around the bags.
        labeller: who labels; '' : who started it.
        host, port: where to listen.
        access: who may open it.

    """

    bags: Path
    scores: Path | None
    labeller: str
    host: str
    port: int
    access: Access


def serve(settings: PageSettings, robot: LiveRobot | None = None) -> None:
    """Serve the page until Ctrl-C or SIGTERM; with a robot, its trial too."""
    queue, shelf = LabelQueue(settings.bags), FilmShelf()
    scores = ScoreBook(settings.scores or find_scores(settings.bags))
    labeller = settings.labeller or getpass.getuser()
    app.add_middleware(AccessMiddleware, access=settings.access)
    app.add_static_file(
        local_file=Path(__file__).with_name('player.js'), url_path='/label/player.js'
    )

    @app.get('/film/{number}')
    async def film(number: int, camera: str = '') -> Response:
        if not 0 <= number < len(queue.entries):
            return PlainTextResponse(f'there is no episode {number}', status_code=404)
        try:
            made = await run.io_bound(shelf.film, queue.entries[number].bag, camera)
        except FilmError as error:
            return PlainTextResponse(str(error), status_code=422)
        return Response(made, media_type='application/octet-stream')

    @ui.page('/', title='GRAPE labelling')
    def labelling() -> None:
        LabelPage(queue, scores, labeller, robot is not None).build()

    if robot is not None:
        _serve_live(robot, labeller)
    ui.run(
        host=settings.host,
        port=settings.port,
        reload=False,
        show=False,
        show_welcome_message=False,
        gzip_middleware_factory=None,  # it would hold back the live pictures
        timeout_graceful_shutdown=GOODBYE_S,
    )


def _serve_live(robot: LiveRobot, labeller: str) -> None:
    @ui.page('/live', title='GRAPE trial')
    def live() -> None:
        LivePage(robot, labeller).build()

    @app.get('/live/camera')
    async def camera() -> Response:
        return StreamingResponse(
            _pictures(robot), media_type=f'multipart/x-mixed-replace; boundary={BOUNDARY}'
        )


async def _pictures(robot: LiveRobot) -> AsyncIterator[bytes]:
    """Yield the robot's newest pictures as JPEG, each once."""
    sent = -1
    while not app.is_stopping and not app.is_stopped:
        number, picture = await asyncio.to_thread(robot.picture, sent)
        if picture is not None:
            sent = number
            head = f'--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}'
            yield head.encode() + b'\r\n\r\n' + picture + b'\r\n'
        await asyncio.sleep(1 / LIVE_HZ)
