"""Ray: start or join a cluster, check its nodes, and run the work of a fleet on it.

Ray's usage reports and dashboard are switched off. A cluster that is started here listens on this machine only.
"""

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import andon
from andon.errors import AndonError, few
from andon.fleet import place, plant
from andon.fleet.actor import Actor
from andon.fleet.archive import Parts, Run
from andon.fleet.plan import Needs
from andon.fleet.product import Job, Json
from andon.inspector import Inspector

TRIES = 3  # number of passes without a finished part after which the run ends with an error
POLL, CONNECT = 0.5, 5.0  # seconds
MB = 1_000_000
STORE_MB = 256  # object store of a cluster that is started here: pictures do not pass through it
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # messages of its C++ code on the terminal
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # makes Ray listen on 127.0.0.1, on every system


@contextmanager
def connected(address: str = "", workers: int = 0) -> Iterator[Any]:
    """Yield the module `ray`, connected to a cluster.

    address: of a running cluster; "": one is started on this machine, with `workers` CPUs (0: all cores), and ended.
    Errors: AndonError when Ray is not installed or the cluster does not answer.
    """
    os.environ.update(QUIET if address else QUIET | LOOPBACK)
    _check_answers(address)
    try:
        import ray
    except ImportError:
        raise AndonError("Ray is not installed. Run: pip install 'andon[fleet]', or use --local.") from None
    start: Json = (
        {"address": address}
        if address
        else {
            "address": "local",
            "num_cpus": workers or None,
            "object_store_memory": STORE_MB * MB,
        }
    )
    try:
        dashboard = None if address else False
        ray.init(**start, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise AndonError(f"{address or 'Ray'}: no cluster there ({error}). Start it, or check --address.") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise AndonError when nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), CONNECT).close()
        except (OSError, OverflowError) as error:
            raise AndonError(f"{address}: no cluster there ({error}). Start it, or check --address.") from None


def check_nodes(ray: Any, paths: Sequence[str]) -> None:
    """Check that every node with CPUs has this version of andon and these paths. AndonError names what is missing."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    look = ray.remote(place.look)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not nodes:
        raise AndonError("the cluster has no CPUs; expected at least one node that works. Start nodes.")
    answers = [
        (node, look.options(num_cpus=0, scheduling_strategy=On(node["NodeID"], False)).remote(paths)) for node in nodes
    ]
    for node, answer in answers:
        try:
            version, missing = ray.get(answer)
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            continue  # the node has left the cluster
        except ray.exceptions.RayError as error:
            raise AndonError(
                f"node {node['NodeManagerAddress']}: andon does not start there: {_short(error)}. Install "
                f"andon[fleet] {andon.__version__} on every node."
            ) from None
        if missing:
            raise AndonError(missing)
        if version != andon.__version__:
            raise AndonError(
                f"node {node['NodeManagerAddress']} has andon {version}; this is {andon.__version__}. Install one "
                "version everywhere."
            )


def products(paths: Sequence[str], address: str = "", workers: int = 0) -> plant.Run:
    """Return a function that runs the work of each product as a task with its resources.

    A task whose process or node dies is started again, at most `retries` times. A product that cannot be
    finished has a result with status "failed".
    paths: what every node must have. address: see `connected`. workers: greatest number of CPUs at a time; 0: all.
    Errors, of the function: AndonError when a node lacks a path, or no node has the resources of a product.
    """

    def run(work: Callable[[Job], Json], jobs: Sequence[tuple[Job, Needs]]) -> Iterator[Json]:
        with connected(address, workers) as ray:
            check_nodes(ray, paths)
            for job, needs in jobs:
                _check_fits(ray, job, needs)
            remote, pending, running = ray.remote(work), list(jobs), dict[Any, tuple[Job, Needs]]()
            try:
                while pending or running:
                    busy = sum(needs.cpus for _, needs in running.values())
                    while pending and (not running or not workers or busy + pending[0][1].cpus <= workers):
                        job, needs = pending.pop(0)
                        options = {"num_cpus": needs.cpus, "num_gpus": needs.gpus, "memory": needs.memory_mb * MB}
                        task = remote.options(**options, max_retries=needs.retries).remote(job)
                        running[task], busy = (job, needs), busy + needs.cpus
                    ready, _ = ray.wait(list(running), timeout=POLL)
                    for task in ready:
                        yield _result(ray, task, running.pop(task)[0])
            finally:
                for task in running:
                    ray.cancel(task, force=True)

    return run


def _result(ray: Any, task: Any, job: Job) -> Json:
    try:
        result: Json = ray.get(task)
    except ray.exceptions.RayError as error:
        what = error.cause if isinstance(error, ray.exceptions.RayTaskError) else f"its process died: {_short(error)}"
        return {"product": job.name, "status": "failed", "error": str(what)}
    return result


def _check_fits(ray: Any, job: Job, needs: Needs) -> None:
    wanted = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": needs.memory_mb * MB}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(key, 0) >= amount for key, amount in wanted.items()) for node in nodes):
        have = "; ".join(
            f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs, {node.get('memory', 0) / MB:.0f} MB"
            for node in nodes
        )
        raise AndonError(
            f"product '{job.name}' needs {needs.cpus} CPUs, {needs.gpus:g} GPUs and {needs.memory_mb} MB; no node has "
            f"them all ({have}). Correct [resources] in the plan, or add a node."
        )


def inspecting(address: str = "", workers: int = 0) -> Run:
    """Return a function that inspects parts by Ray Data, on at most `workers` actors of one CPU; 0: on all CPUs.

    When a process or a node dies, the parts that it held are inspected again in the next pass.
    address: see `connected`. Errors, of the function: AndonError when a node lacks the folder of the pictures, and when
    parts are left after TRIES passes without a finished part.
    """

    def run(inspector: Inspector, parts: Parts, root: str) -> Iterator[tuple[int, bytes]]:
        if parts:
            with connected(address, workers) as ray:
                check_nodes(ray, [root] if root else [])
                yield from _passes(ray, inspector, parts, root, workers)

    return run


def _passes(ray: Any, inspector: Inspector, parts: Parts, root: str, workers: int) -> Iterator[tuple[int, bytes]]:
    left, held, idle = dict(parts), [ray.put(inspector)], 0
    while left:
        before, reason = len(left), "the processes died; often memory ran out"
        try:
            for answer in _pass(ray, left, held, root, workers):
                if answer["error"]:
                    reason = answer["error"]
                elif left.pop(answer["number"], None) is not None:
                    yield answer["number"], answer["rows"]
        except ray.exceptions.RayError as error:
            reason = _short(error)
        idle = idle + 1 if len(left) == before else 0
        if idle == TRIES:
            first = next(iter(left.values()))
            raise AndonError(
                f"{len(left)} of {len(parts)} parts could not be inspected in {TRIES} tries: {reason} The first has "
                f"the pictures from {first[0]} to {first[-1]}. Remove the cause and run the command again."
            )


def _pass(ray: Any, parts: Parts, held: list[Any], root: str, workers: int) -> Iterator[Json]:
    """Inspect the parts once. Parts of processes and nodes that die are left out."""
    from ray.data import ActorPoolStrategy, DataContext, from_items

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    size = max(1, min(workers or cpus, cpus, len(parts)))
    table = [{"number": number, "pictures": list(pictures)} for number, pictures in parts.items()]
    with warnings.catch_warnings(action="ignore"):  # Ray 2.60 has no other way to set max_restarts
        context = DataContext.get_current()
        context.max_errored_blocks = -1  # the next pass repeats them
        context.enable_progress_bars = context.print_on_execution_start = False
        results = from_items(table, override_num_blocks=len(table)).map_batches(
            Actor,
            fn_constructor_args=(held, root),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=1,
            compute=ActorPoolStrategy(size=size),
            max_restarts=-1,
            max_task_retries=0,  # a picture that kills its process must not be tried forever
        )
    yield from results.iter_rows()


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return few(lines[-1:] or [type(error).__name__])
