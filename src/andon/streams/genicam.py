"""GenICam cameras (GigE Vision, USB3 Vision) with viva-genicam: pure Rust, MIT, without a driver of the vendor.

For a camera that needs the producer of its vendor, write a class with three methods around harvesters: see
`andon.streams.cameras.Camera`.
"""

from contextlib import suppress
from typing import Any

from andon.errors import AndonError, few
from andon.streams.cameras import CameraLost, Shot


class GenICam:
    """The camera with an address (IP, MAC or serial number), or the only camera.

    Exposure, trigger and pixel format are the settings stored in the camera; set them with the tool of its vendor. Mono
    and RGB stay as they are, Bayer becomes RGB of the same depth. A frame with missing packets is not inspected; it
    counts as lost.
    """

    def __init__(self, address: str = "", seconds: float = 1.0) -> None:
        """`seconds` is the time for finding cameras. AndonError when viva-genicam is not installed."""
        try:
            import viva_genicam
        except ImportError:
            raise AndonError(
                "GenICam cameras need viva-genicam, which is not installed. Install it: pip install 'andon[genicam]'"
            ) from None
        self._library: Any = viva_genicam
        self._address, self._milliseconds = address, int(1000 * seconds)
        self._camera: Any = None
        self._stream: Any = None

    def open(self) -> None:
        """Find the camera, take control and start the acquisition."""
        try:
            self._camera = self._library.Camera.open(self._find())
            self._stream = self._camera.stream()
            self._stream.__enter__()
        except self._library.GenicamError as error:
            self.close()
            raise CameraLost(
                f"the camera cannot be opened: {error}. Check that no other program controls it."
            ) from error

    def grab(self, seconds: float) -> Shot | None:
        """Wait for the next complete frame."""
        if self._stream is None:
            raise CameraLost("the camera is closed; open it first.")
        try:
            frame = self._stream.next_frame(int(1000 * seconds))
            if frame is None:
                raise CameraLost("the stream of the camera has ended. Check cable and power.")
            return Shot(frame.to_numpy(demosaic=True), frame.block_id)
        except self._library.TransportError as error:
            if "timeout" not in str(error):
                raise CameraLost(f"{error}. Check cable and power.") from error
        try:
            self._camera.read_register(0)  # no frame: does the camera still answer?
        except self._library.GenicamError as error:
            raise CameraLost(f"the camera does not answer: {error}. Check cable and power.") from error
        return None

    def close(self) -> None:
        """Stop the acquisition and release the camera."""
        if self._stream is not None:
            with suppress(self._library.GenicamError):  # it may be disconnected
                self._stream.__exit__(None, None, None)
        if self._camera is not None:
            with suppress(self._library.GenicamError):
                self._camera.close()
        self._stream = self._camera = None

    def _find(self) -> Any:
        """The device with the address. CameraLost when there is none, or several without an address."""
        devices = list(self._library.discover(timeout_ms=self._milliseconds, all=True))
        with suppress(self._library.TransportError):  # a machine without USB
            devices += self._library.discover_u3v()
        names = {tuple(filter(None, (getattr(d, key, None) for key in ("ip", "mac", "serial")))): d for d in devices}
        chosen = [device for keys, device in names.items() if not self._address or self._address in keys]
        if len(chosen) == 1:
            return chosen[0]
        listing = few(["/".join(keys) for keys in names], 10) or "none"
        which = f" with the address {self._address}" if self._address else ""
        raise CameraLost(
            f"{len(chosen)} GenICam cameras{which}; expected one. On network and USB: {listing}. "
            "Name one as genicam:ADDRESS, and check that it is in the subnet of this computer."
        )
