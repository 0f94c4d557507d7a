"""GigE Vision and USB3 Vision cameras by GenICam, through viva-genicam: pure Rust, MIT, without a vendor's driver.

A camera that needs the producer of its vendor takes a class of three methods around harvesters instead: see
`andon.streams.cameras.Camera`.
"""

from contextlib import suppress
from typing import Any

from andon.errors import AndonError, few
from andon.streams.cameras import CameraLost, Shot


class GenICam:
    """The camera with an address (IP, MAC or serial number), or the only one there is.

    Exposure, trigger and pixel format are those that the camera holds: set them once with its vendor's tool. Mono and
    RGB are taken as they are, Bayer becomes RGB of the same depth. A frame that misses packets is not inspected; it
    counts as lost.
    """

    def __init__(self, address: str = "", seconds: float = 1.0) -> None:
        """Finding it may take `seconds`. AndonError when viva-genicam is not installed."""
        try:
            import viva_genicam
        except ImportError:
            raise AndonError(
                "viva-genicam is not installed, and GenICam cameras need it. Install it: pip install 'andon[genicam]'"
            ) from None
        self._library: Any = viva_genicam
        self._address, self._milliseconds = address, int(1000 * seconds)
        self._camera: Any = None
        self._stream: Any = None

    def open(self) -> None:
        """Find it, take control and begin to take pictures."""
        try:
            self._camera = self._library.Camera.open(self._find())
            self._stream = self._camera.stream()
            self._stream.__enter__()
        except self._library.GenicamError as error:
            self.close()
            raise CameraLost(f"cannot be opened: {error}. Check that no other program controls it.") from error

    def grab(self, seconds: float) -> Shot | None:
        """Wait for the next whole frame."""
        if self._stream is None:
            raise CameraLost("it is closed; open it first.")
        try:
            frame = self._stream.next_frame(int(1000 * seconds))
            if frame is None:
                raise CameraLost("its stream has ended. Check cable and power.")
            return Shot(frame.to_numpy(demosaic=True), frame.block_id)
        except self._library.TransportError as error:
            if "timeout" not in str(error):
                raise CameraLost(f"{error}. Check cable and power.") from error
        try:
            self._camera.read_register(0)  # no frame: does the camera still answer?
        except self._library.GenicamError as error:
            raise CameraLost(f"does not answer: {error}. Check cable and power.") from error
        return None

    def close(self) -> None:
        """Stop it and give back control."""
        if self._stream is not None:
            with suppress(self._library.GenicamError):  # it may be gone
                self._stream.__exit__(None, None, None)
        if self._camera is not None:
            with suppress(self._library.GenicamError):
                self._camera.close()
        self._stream = self._camera = None

    def _find(self) -> Any:
        """The device that is meant. CameraLost when it is not there, or when several are and none is named."""
        found = list(self._library.discover(timeout_ms=self._milliseconds, all=True))
        with suppress(self._library.TransportError):  # a machine without USB
            found += self._library.discover_u3v()
        names = {tuple(filter(None, (getattr(d, key, None) for key in ("ip", "mac", "serial")))): d for d in found}
        chosen = [device for keys, device in names.items() if not self._address or self._address in keys]
        if len(chosen) == 1:
            return chosen[0]
        there = few(["/".join(keys) for keys in names], 10) or "none"
        asked = f" with the address {self._address}" if self._address else ""
        raise CameraLost(
            f"{len(chosen)} GenICam cameras{asked}; expected one. On network and USB: {there}. "
            "Name one as genicam:ADDRESS, and check that it is in the subnet of this machine."
        )
