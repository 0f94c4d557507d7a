"""TIFF: its directories, and whether every strip or tile contains all its pixels.

libtiff leaves a damaged strip incomplete, and OpenCV continues. So each strip is checked before OpenCV decodes it: its
compression must be supported here, and its data must have exactly the size of its pixels.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from isal import isal_zlib
from isal.igzip_lib import IsalError
from numpy.typing import NDArray

from andon.errors import damaged

Ints = NDArray[np.int64]

MAX_PAGES = 1000
MAX_TAGS = 1000

COMPRESSIONS = {1: "none", 5: "LZW", 8: "Deflate", 32946: "Deflate", 32773: "PackBits"}
"""Compressions whose damage is detected."""

PREDICTED = (5, 8, 32946)
"""Compressions for which a predictor is defined."""

OTHER_COMPRESSIONS = {
    **dict.fromkeys((2, 3, 4, 32771), "CCITT fax"),
    **dict.fromkeys((6, 7, 34892), "JPEG"),
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((34887, 34888, 34889), "LERC"),
    **dict.fromkeys((50000, 34926), "Zstandard"),
    **dict.fromkeys((50001, 34927), "WebP"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    34925: "LZMA",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv",
}

_TYPES = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}


class Directory:
    """The tags of one page. Values are read on access."""

    def __init__(self, data: bytes, at: int) -> None:
        """Read the list of tags at this offset. Errors: ValueError when it is incomplete."""
        self._data, self._order = data, "<" if data[:2] == b"II" else ">"
        big = data[2:4] in (b"+\0", b"\0+")
        word = f"{self._order}u{8 if big else 4}"
        (count,) = np.frombuffer(data, f"{self._order}u{8 if big else 2}", 1, at).tolist()
        if count > MAX_TAGS:
            raise ValueError(f"{count} tags")
        entry = np.dtype([("tag", f"{self._order}u2"), ("type", f"{self._order}u2"), ("count", word), ("value", word)])
        at += 8 if big else 2
        entries = np.frombuffer(data, entry, count, at)
        end = at + count * entry.itemsize
        self.next = int(np.frombuffer(data, word, 1, end)[0])
        self._entries: dict[int, tuple[str, int, int]] = {}
        for i, (tag, kind, number, value) in enumerate(entries.tolist()):
            if kind in _TYPES and number and tag not in self._entries:  # the first of two equal tags, as in libtiff
                inline = number * int(_TYPES[kind][1]) <= word_size(big)
                where = at + (i + 1) * entry.itemsize - word_size(big) if inline else value
                self._entries[tag] = self._order + _TYPES[kind], number, where

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def values(self, tag: int, most: int) -> Ints:
        """Return all values of a tag; empty if it is absent. ValueError when there are more than `most`."""
        if tag not in self._entries:
            return np.zeros(0, np.int64)
        code, number, where = self._entries[tag]
        if number > most:
            raise ValueError(f"{number} values of tag {tag}")
        return np.frombuffer(self._data, code, number, where).astype(np.int64)

    def value(self, tag: int, default: int) -> int:
        """Return the first value of a tag. ValueError when its offset is outside the file."""
        if tag not in self._entries:
            return default
        code, _, where = self._entries[tag]
        return int(np.frombuffer(self._data, code, 1, where)[0])


def word_size(big: bool) -> int:
    """Bytes of an offset, in BigTIFF or TIFF."""
    return 8 if big else 4


def pages(data: bytes) -> Iterator[Directory]:
    """Yield the directories of the main list, previews included. Errors: ValueError when one is incomplete."""
    big = data[2:4] in (b"+\0", b"\0+")
    order = "<" if data[:2] == b"II" else ">"
    at = int(np.frombuffer(data, f"{order}u{word_size(big)}", 1, 8 if big else 4)[0])
    offsets: set[int] = set()
    while at and at not in offsets:
        if len(offsets) == MAX_PAGES:
            raise ValueError(f"more than {MAX_PAGES} pages")
        offsets.add(at)
        page = Directory(data, at)
        yield page
        at = page.next


def check(data: bytes, name: str) -> None:
    """Check every strip or tile of the first page. ImageError names the first damaged one."""
    page = next(pages(data))
    compression = page.value(259, 1)
    try:
        kind, offsets, lengths, sizes, full = _layout(page, name)
    except ValueError as error:
        raise damaged(name, f"its list of strips is invalid or incomplete: {error}") from None
    window = np.frombuffer(data + bytes(2), np.uint8).astype(np.uint32) if compression == 5 else np.zeros(2, np.uint32)
    words = window[:-2] << 16 | window[1:-1] << 8 | window[2:]  # three bytes from each offset
    table = np.empty(4096 * 256 if compression == 5 else 0, np.int16)
    for i, (offset, length, size) in enumerate(zip(offsets, lengths, sizes.tolist(), strict=True)):
        if offset < 0 or length < 0 or offset + length > len(data):
            raise damaged(name, "the file ends before the end of the picture")
        if compression == 1:
            actual, complete = length, length >= size
        else:
            if compression == 5:
                actual = _lzw(words[offset : offset + length], full, table)
            elif compression == 32773:
                actual = _packbits(data[offset : offset + length])
            else:
                out = inflate(memoryview(data)[offset : offset + length], full)
                actual = -1 if out is None else len(out)
            complete = actual == size or (i == len(offsets) - 1 and actual == full)  # some writers pad the last strip
        if not complete:
            scheme = COMPRESSIONS[compression]
            what = f"{kind} {i + 1} of {len(offsets)}, compression {compression} ({scheme}),"
            count = "cannot be decompressed" if actual < 0 else f"contains {actual if actual <= full else 'more'} bytes"
            raise damaged(name, f"{what} {count}; expected {size}")


def _layout(page: Directory, name: str) -> tuple[str, list[int], list[int], Ints, int]:
    """Return "strip" or "tile", their offsets and lengths in the file, their unpacked sizes, and that of a full one."""
    width, height = page.value(256, 0), page.value(257, 0)
    samples, planes = page.value(277, 1), 1
    if page.value(284, 1) == 2:
        samples, planes = 1, samples
    bits = samples * page.value(258, 1)
    tiled = 322 in page
    if tiled:
        across, rows = page.value(322, 0), page.value(323, 0)
    else:
        across, rows = width, min(page.value(278, height), height)
    if across <= 0 or rows <= 0:
        raise damaged(name, "its strips have no size")
    full = rows * ((across * bits + 7) // 8)
    down = -(-height // rows)
    count = -(-width // across) * down * planes
    offsets = page.values(324 if tiled else 273, count)
    lengths = page.values(325 if tiled else 279, count)
    kind = "tile" if tiled else "strip"
    if len(offsets) != count or len(lengths) != count:
        raise damaged(name, f"{len(offsets)} {kind}s with {len(lengths)} lengths; expected {count}")
    sizes = np.full(count, full)
    if not tiled:
        sizes[down - 1 :: down] = (height - (down - 1) * rows) * (full // rows)
    return kind, offsets.tolist(), lengths.tolist(), sizes, full


def inflate(data: bytes | memoryview, most: int) -> bytes | None:
    """Inflate a zlib stream to at most `most` + 1 bytes; None when it is damaged or incomplete."""
    stream = isal_zlib.decompressobj()  # twice as fast as zlib
    try:
        out = stream.decompress(data, most + 1)
    except IsalError:  # type: ignore[misc]  # its stub declares a variable
        return None
    return out if stream.eof or len(out) > most else None


def _packbits(data: bytes) -> int:
    """Return the unpacked size of PackBits data; −1 when it ends inside a run."""
    at = size = 0
    while at < len(data):
        run = data[at]
        if run < 128:
            at += run + 2
            size += run + 1
        elif run > 128:
            at += 2
            size += 257 - run
        else:
            at += 1
    return size if at == len(data) else -1


_CLEAR, _END, _FIRST = 256, 257, 258
_MOST_CODES = 4096 + 1024 - _FIRST  # between two clear codes: the size of libtiff's table


@cache
def _places(phase: int) -> tuple[Any, Any, Any, Any]:
    """Positions of the codes after a clear code that ends at bit `phase` of a byte: byte, shift, mask and last bit."""
    number = np.arange(_MOST_CODES)
    bits = 9 + (number > 253).astype(np.int64) + (number > 765) + (number > 1789)
    last = phase + np.cumsum(bits)
    first = last - bits
    return first >> 3, (24 - (first & 7) - bits).astype(np.uint32), ((1 << bits) - 1).astype(np.uint32), last


def _lzw(words: NDArray[Any], most: int, table: NDArray[np.int16]) -> int:
    """Return the unpacked size of LZW data, given as the 24 bits from each byte on; −1 for codes of no valid encoder.

    The codes between two clear codes have known widths, so they are read at once. The string of a code is the string of
    an earlier code and one more byte; its length and first byte are computed by pointer jumping. An encoder writes the
    longest string of its table, so no string is added to the table twice; most damage is detected by this rule.
    """
    if not len(words) or words[0] >> 15 != _CLEAR:
        return -1
    total, bit, bits = 0, 9, 8 * len(words)
    for _ in range(16 + most // 64):  # no encoder writes more clear codes
        byte, shift, mask, last = _places(bit & 7)
        fit = int(np.searchsorted(last, bits - bit + (bit & 7), side="right"))
        codes = (words[bit >> 3 :][byte[:fit]] >> shift[:fit] & mask[:fit]).astype(np.int64)
        marks = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        count = int(marks[0]) if len(marks) else fit
        earlier = codes[:count] - _FIRST  # negative for single bytes
        number = np.arange(count)
        if (earlier >= number).any():
            return -1
        steps = (earlier >= 0).astype(np.int64)
        parent = np.where(earlier >= 0, earlier, number)
        while True:
            above = parent[parent]
            if (above == parent).all():
                break
            steps += steps[parent]
            parent = above
        strings = codes[: max(count - 1, 0)] * 256 + codes[parent[1:]]  # table entries: a code and the next byte
        table[strings] = number[1:]
        if (table[strings] != number[1:]).any():
            return -1
        total += count + int(steps.sum())
        if total > most or not len(marks):  # no end code: the caller checks the size
            return -1 if count == _MOST_CODES else total
        if codes[count] == _END:
            return total
        bit += int(last[count]) - (bit & 7)
    return -1
