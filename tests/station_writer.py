"""A process that writes records and says on standard output what was acknowledged, until it is killed."""

import sys

from andon.station.archive import Archive
from andon.station.entries import Entry
from andon.station.ledger import Ledger

if __name__ == "__main__":
    url, folder = sys.argv[1:]
    archive = Archive(folder)
    with Ledger(url, "killed") as ledger:
        print("open", flush=True)
        while True:
            job = ledger.reserve(3)
            digest = archive.put(f"picture of job {job}".encode() * 3000, ".png")
            entries = [Entry("inspection", job=job + each, body={"digest": digest}) for each in range(3)]
            rows = ledger.append(entries, deliver=("mqtt",), state={"job": job})
            print(*(f"{row.sequence}:{row.digest}:{row.job}:{digest}" for row in rows), flush=True)
