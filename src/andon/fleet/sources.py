"""Archives of pictures: a folder, a Parquet file of paths, or an object store (`s3://bucket/prefix`).

The settings of an object store are those of the AWS tools: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile or
a role, AWS_REGION, and AWS_ENDPOINT_URL for a store other than Amazon's.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from andon import files
from andon.data import folders
from andon.errors import AndonError, DatasetError, ImageError, few
from andon.pictures import image
from andon.pictures.headers import SUFFIXES

S3 = "s3://"
DENIED = ("ACCESS_DENIED", "ACCESS_KEY", "SIGNATURE", "TOKEN", "CREDENTIAL", "HTTP status 403")  # in Arrow's errors
LONGEST = 8  # seconds to connect to an object store

Tell = Callable[[str], None]


class Archive(NamedTuple):
    """The pictures of an archive."""

    pictures: list[str]  # paths and s3:// addresses, each once
    root: str  # a folder that every node must have; "" for none


def find(source: str, column: str = "path", warn: Tell = lambda sentence: None) -> Archive:
    """List the pictures of an archive, in a fixed order.

    source: a folder; a Parquet file, `*.parquet`, whose column `column` has paths (relative to the file) and s3://
    addresses; or s3://bucket/prefix. `warn` gets a sentence on what is left out.
    Errors: AndonError when it cannot be read or has no pictures, and for a picture that is listed twice.
    """
    if source.lower().endswith(".parquet"):
        pictures, root = _listed(source, column), ""
    elif source.startswith(S3):
        pictures, root = _stored(source), ""
    elif "://" in source:
        raise AndonError(f"{source}: unknown kind of archive; expected a folder, a Parquet file or s3://bucket/prefix.")
    else:
        pictures, root = _below(source, warn), str(Path(source).resolve())
    if not pictures:
        raise DatasetError(f"{source}: no pictures there. Expected {', '.join(sorted(SUFFIXES))}. Check the path.")
    seen: set[str] = set()
    for picture in pictures:
        if picture in seen:
            raise DatasetError(f"{source}: {picture} is listed twice; expected each picture once. Remove one.")
        seen.add(picture)
    if bad := [picture for picture in pictures if not picture.isprintable() and not _encodes(picture)]:
        shown = bad[0].encode(errors="backslashreplace").decode()
        raise DatasetError(f"{source}: the name {shown} is not Unicode, so no table can hold it. Rename the file.")
    return Archive(pictures, root)


def full(source: str) -> str:
    """An archive by its full path, so that it is the same from every folder; an address stays."""
    return source if "://" in source else Path(source).resolve().as_posix()


def stamp(picture: str) -> str:
    """Size and time of change of a picture; "" if it is missing, or in an object store: asking costs a request each."""
    try:
        state = None if picture.startswith(S3) else Path(picture).stat()
    except (OSError, ValueError):
        state = None
    return f"{state.st_size} {state.st_mtime_ns}" if state else ""


def read(picture: str) -> bytes | ImageError:
    """Read the bytes of a picture. A picture that is missing or too large is returned as an ImageError.

    Errors: AndonError when the object store does not answer: the picture may be good.
    """
    try:
        if not picture.startswith(S3):
            return image.contents(picture)[0]
        with _named(picture), store().open_input_file(_key(picture)) as file:
            if file.size() > image.MAX_BYTES:
                raise ImageError(f"{picture}: {file.size():,} bytes; expected at most {image.MAX_BYTES:,}.")
            data: bytes = file.read()
            return data
    except ImageError as error:
        return error


@cache
def store() -> Any:
    """The object store of the environment, as a file system of pyarrow."""
    from pyarrow import fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None
    with _named(endpoint or S3):
        return fs.S3FileSystem(endpoint_override=endpoint, region=region, connect_timeout=LONGEST)


class _named:
    """Turns errors of an object store into an ImageError for a missing object, and an AndonError for any other."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise ImageError(f"{self._address}: no such object. Check the address.") from None
        if isinstance(error, OSError):
            text = " ".join(str(error).split())
            if "NO_SUCH_BUCKET" in text:
                raise DatasetError(f"{self._address}: no such bucket. Check the address and AWS_REGION.") from None
            if any(word in text for word in DENIED):
                raise AndonError(
                    f"{self._address}: credentials are missing or not accepted: {text}. Set AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, a profile or a role that may read, on every node."
                ) from None
            raise AndonError(
                f"{self._address}: the object store cannot be read: {text}. Check the address, the network, "
                "AWS_ENDPOINT_URL and AWS_REGION."
            ) from None


def _key(address: str) -> str:
    """Bucket and key of an s3:// address. AndonError for an address without a bucket, or with credentials."""
    key = address.removeprefix(S3).strip("/")
    bucket = key.partition("/")[0]
    if not bucket or ":" in bucket or "@" in bucket or "?" in bucket:
        raise AndonError(
            f"{S3}{'…' if bucket else ''}: expected s3://bucket/prefix, without credentials and options; these come "
            "from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …). Correct the address."
        )
    return key


def _stored(address: str) -> list[str]:
    from pyarrow import fs

    key = _key(address)
    try:
        with _named(address):
            entries = store().get_file_info(fs.FileSelector(key, recursive=True))
    except ImageError:
        raise DatasetError(f"{address}: no such prefix. Check the address.") from None
    names = [entry.path for entry in entries if entry.type == fs.FileType.File]
    return sorted(f"{S3}{name}" for name in names if Path(name).suffix.lower() in SUFFIXES)


def _below(folder: str, warn: Tell) -> list[str]:
    if not files.is_folder(folder):
        what = "a file; for single pictures use `andon inspect`" if files.is_file(folder) else "no such folder"
        raise DatasetError(f"{folder}: {what}; expected a folder, a Parquet file of paths or s3://bucket/prefix.")
    try:
        contents = folders.scan(Path(folder))
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read: {files.reason(error)}. Allow reading.") from None
    for sentence in contents.unreadable:
        warn(f"left out: {sentence}")
    if contents.masks:
        warn(f"{folder}: {len(contents.masks)} masks are not inspected")
    return [path.as_posix() for path in contents.images]


def _listed(source: str, column: str) -> list[str]:
    from pyarrow import ArrowInvalid, parquet

    stored = source.startswith(S3)
    if not stored and not files.is_file(source):
        raise DatasetError(f"{source}: no such file; expected a Parquet file of paths. Check the path.")
    try:
        with _named(source):
            place, where = (_key(source), store()) if stored else (source, None)
            with parquet.ParquetFile(place, filesystem=where) as table:
                names = table.schema_arrow.names
                if column not in names:
                    raise DatasetError(
                        f"{source}: no column '{column}'; it has {few(names, 10)}. Name the column of paths: --column."
                    )
                values = table.read([column]).column(0).to_pylist()
    except ArrowInvalid as error:
        raise DatasetError(f"{source}: not a Parquet file: {error}. Write it again.") from None
    wrong = next((row for row, value in enumerate(values) if not isinstance(value, str) or not value), None)
    if wrong is not None:
        raise DatasetError(
            f"{source}: column '{column}', row {wrong}: {values[wrong]!r}; expected the path of a picture. Correct it."
        )
    here = source.rpartition("/")[0] if stored else str(Path(source).parent)
    return [
        value if "://" in value else f"{here}/{value}" if stored else Path(here, value).as_posix() for value in values
    ]


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
