"""Pictures for triggers without a picture: from the camera or folder of the product's settings."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, Full, Queue

from andon.errors import AndonError
from andon.station.events import Job, StationError
from andon.station.line.shown import Shown, Value
from andon.station.station import Station
from andon.streams import naming
from andon.streams.cameras import Live
from andon.streams.folder import Folder
from andon.streams.frames import Control, Frame, Report, Source, contents

AGAIN_S = 1.0
LOOK_S = 0.25


class Cameras:
    """The cameras of all products. Products with the same camera share it: few cameras can be opened twice.

    Args:
        station: station that inspects.
    """

    def __init__(self, station: Station) -> None:
        self._station = station
        named = {name: each for name, each in station.config.products.items() if each.camera}
        products: dict[tuple[str, int], list[str]] = {}
        for name, each in named.items():
            products.setdefault((each.camera, each.camera_channels), []).append(name)
        self._all = [_Camera(self, names, *key, station) for key, names in products.items()]
        self._cameras = {name: camera for camera in self._all for name in camera.products}

    def status(self) -> Shown:
        lost = sorted(self._station.cameras_lost)
        values = [
            Value(name, camera.place, "lost" if name in lost else "there", f"{camera.jobs(name)} jobs wait")
            for name, camera in self._cameras.items()
        ]
        fault = f"no pictures come from the camera of {', '.join(lost)}." if lost else ""
        return Shown("Cameras", "", fault, values)

    def start(self) -> None:
        self._station.teaching.cameras.opened.update(self._cameras)
        for camera in self._all:
            camera.thread.start()

    def close(self) -> None:
        for camera in self._all:
            camera.close()

    def trigger(self, product: str, part: str, lot: str | None, latch: bool) -> Job:
        """Start a job with the next picture of the product's camera. StationError: the trigger is refused and missed.

        A part without an id gets the id of the job. The trigger of an idle product is refused, and the product loaded.
        """
        self._station.products.idle.use(product)
        camera = self._cameras.get(product)
        if camera is None or (not part and camera.by_name):
            self._station.miss()
            raise StationError(
                f"product '{product}': "
                + ("the part has no id, which names its file in the folder." if camera else "it has no camera.")
                + " Expected one. See products.NAME.camera in the settings."
            )
        with camera.lock, self._station.lock:
            part = part or f"job {self._station.machine.memory.next_job}"
            job = self._station.trigger(product, part, lot, latch)
            camera.waiting.append(job)
        return job

    def connected(self, products: list[str], here: bool) -> None:
        """Note that a camera is connected (`here`) or lost; begin or end the error CAMERA_LOST."""
        station, lost = self._station, self._station.cameras_lost
        if here == lost.isdisjoint(products):
            return
        with station.lock:
            (lost.difference_update if here else lost.update)(products)
            if lost:
                station.do(lambda now: station.machine.fail("CAMERA_LOST", now))
            elif station.machine.memory.errors.get("CAMERA_LOST") is False:
                station.do(lambda now: station.machine.resolve("CAMERA_LOST", now))


class _Camera:
    """One free-running camera. The picture of a job is the first one after its trigger.

    From a folder, it is the file with the name of the part.
    """

    def __init__(self, cameras: Cameras, products: list[str], place: str, channels: int, station: Station) -> None:
        self._cameras, self.products, self.place, self._channels = cameras, products, place, channels
        self._station = station
        self.lock = threading.Lock()
        self.waiting: list[Job] = []
        self._others: list[Queue[Frame]] = []  # who looks at its frames, too
        self._source: Source | None = None
        self._control = Control(Report(), threading.Event(), self._warn)
        self.by_name = isinstance(self._open(), Folder)
        self._name = f"camera of {', '.join(products)}"
        self._pool = ThreadPoolExecutor(1, f"pictures of the {self._name}")
        self.thread = threading.Thread(target=self._run, name=self._name, daemon=True)

    def close(self) -> None:
        self._control.stop.set()
        if self.thread.ident:
            self.thread.join()
        self._pool.shutdown()

    def jobs(self, product: str) -> int:
        """How many jobs of a product wait for their picture."""
        with self.lock:
            return sum(job.product == product for job in self.waiting)

    def frames(self, control: Control) -> Iterator[Frame]:
        """Its frames as they come, for somebody who looks at them, too."""
        frames: Queue[Frame] = Queue(1)
        self._others.append(frames)
        try:
            while not control.stop.is_set():
                with suppress(Empty):
                    yield frames.get(timeout=LOOK_S)
        finally:
            self._others.remove(frames)

    def _open(self) -> Source:
        self._source = naming.named(self.place, watch=True, channels=self._channels, existing=False)
        return self._source

    def _run(self) -> None:
        stop = self._control.stop
        while not stop.is_set():
            try:
                for frame in self._open().frames(self._control):
                    self._cameras.connected(self.products, True)
                    self._give(frame)
                self._fault("it gives no more pictures. Expected a camera or a folder, which never end.")
            except Exception as error:  # a driver's, too
                self._fault(str(error) or type(error).__name__)
            stop.wait(AGAIN_S)

    def _fault(self, sentence: str) -> None:
        if not self._control.stop.is_set():
            self._station.tell(f"{self._name}: {sentence}")
            self._cameras.connected(self.products, False)

    def _warn(self, sentence: str) -> None:
        self._station.tell(f"{self._name}: {sentence}")
        if isinstance(self._source, Live):
            self._cameras.connected(self.products, not self._source.lost)

    def _give(self, frame: Frame) -> None:
        """Pass a picture to the oldest job that waits for it."""
        for frames in list(self._others):
            with suppress(Full):
                frames.put_nowait(frame)
        with self.lock:
            awaited = {job.id for job in self._station.machine.memory.waiting}
            self.waiting = [job for job in self.waiting if job.id in awaited]
            job = next((each for each in self.waiting if not self.by_name or each.part == frame.part), None)
            if job:
                self.waiting.remove(job)
        if job:
            self._pool.submit(self._take, job, frame)
        elif self.by_name:
            self._station.tell(f"{frame.label}: no trigger waits for part '{frame.part}'; the picture was not used.")

    def _take(self, job: Job, frame: Frame) -> None:
        try:
            self._station.picture(job.id, contents(frame))
        except (AndonError, OSError) as error:  # its deadline ends the job, if nothing else has
            self._station.tell(f"{self._name}, job {job.id}: {error}")
