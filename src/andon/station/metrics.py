"""Metrics of a station for Prometheus."""

import shutil
from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from andon.errors import StorageError
from andon.station.config import Config
from andon.station.keeper import Keeper
from andon.station.ledger import Ledger
from andon.station.loaded import Loaded
from andon.station.machine import Machine
from andon.station.table import STATES

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Observed(Protocol):
    """The attributes of a station that metrics use."""

    config: Config
    machine: Machine
    ledger: Ledger
    keeper: Keeper
    loaded: dict[str, Loaded]
    idle: dict[str, Loaded]

    @property
    def ready(self) -> bool: ...

    @property
    def lost(self) -> int: ...

    def watched(self) -> dict[str, Loaded]: ...


class Metrics:
    """Histograms and counters of jobs, and values that are read when the metrics are requested."""

    def __init__(self, station: Observed) -> None:
        self._registry = CollectorRegistry()
        self.stages = Histogram(
            "andon_stage_seconds", "Time of each stage.", ["product", "stage"], registry=self._registry, buckets=BUCKETS
        )
        self.total = Histogram(
            "andon_job_seconds",
            "Time from trigger to durable result.",
            ["product"],
            registry=self._registry,
            buckets=BUCKETS,
        )
        self.verdicts = Counter(
            "andon_verdicts", "Ended jobs of production by outcome.", ["product", "outcome"], registry=self._registry
        )
        self._registry.register(_Now(station))

    def text(self) -> tuple[bytes, str]:
        """Return all metrics and their media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Now(Collector):
    """Reads the current values of a station."""

    def __init__(self, station: Observed) -> None:
        self._station = station

    def collect(self) -> Iterator[Metric]:
        station = self._station
        memory, disk = station.machine.memory, shutil.disk_usage(station.config.data)
        state = GaugeMetricFamily("andon_state", "1: the station is in this state.", labels=["state"])
        for name in STATES:
            state.add_metric([name], float(name == station.machine.state))
        yield state
        yield GaugeMetricFamily("andon_ready", "1: a trigger would be accepted.", float(station.ready))
        yield CounterMetricFamily("andon_missed_triggers", "Triggers that were refused.", memory.missed)
        queues = GaugeMetricFamily("andon_queue", "Entries of each queue.", labels=["queue"])
        queues.add_metric(["jobs"], len(memory.waiting))
        queues.add_metric(["latched"], len(memory.latched))
        queues.add_metric(["records"], station.keeper.depth)
        try:
            for target, count in station.ledger.backlog().items():
                queues.add_metric([f"outbox {target}"], count)
        except StorageError:
            pass  # the alarm STORAGE reports it
        yield queues
        lost = CounterMetricFamily("andon_events_lost", "Events lost because views read too slowly.")
        lost.add_metric([], station.lost)
        yield lost
        alarms = GaugeMetricFamily("andon_alarm", "1: this error is active.", labels=["code"])
        for code in memory.errors:
            alarms.add_metric([code], 1)
        yield alarms
        drift = GaugeMetricFamily("andon_drift", "1: scores or pictures have changed.", labels=["product"])
        for name, loaded in station.watched().items():
            drift.add_metric([name], float(loaded.drift.change is not None))
        yield drift
        there = GaugeMetricFamily("andon_product_loaded", "1: loaded; 0: idle, without processes.", labels=["product"])
        held = GaugeMetricFamily("andon_product_bytes", "Memory of its processes.", labels=["product"])
        loading = GaugeMetricFamily("andon_product_load_seconds", "Time to load its bundle.", labels=["product"])
        for name, loaded in station.loaded.items():
            there.add_metric([name], 1)
            held.add_metric([name], loaded.memory)
            loading.add_metric([name], loaded.load_s)
        for name in station.idle:
            there.add_metric([name], 0)
        yield from (there, held, loading)
        yield GaugeMetricFamily("andon_disk_free_bytes", "Free space on the disk of the data folder.", disk.free)
        yield GaugeMetricFamily("andon_disk_bytes", "Size of the disk of the data folder.", disk.total)
