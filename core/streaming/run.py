"""Map a function over chunks of rows, in this process or on Dask, writing into a partial store.

Each task computes its rows, writes them, then marks them done; only its name travels back. Tasks
are handed out as others end, two for each thread, so that memory does not grow with the length.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import AleatorError
from core.progress import progress_bar
from core.streaming.store import Chunk, PartialStore

if TYPE_CHECKING:
    from distributed import Client

Compute = Callable[[int, int], Mapping[str, np.ndarray]]
"""compute(start, stop) -> name -> rows start:stop of that array, along its streamed axis."""


def stream(
    compute: Compute,
    store: PartialStore,
    *,
    chunk: int,
    arrays: Mapping[str, int],
    workers: int = 1,
    scheduler: str | None = None,
    progress: str | None = None,
) -> int:
    """Compute what is missing of a store.

    Args:
        compute: rows of every array, a function of (start, stop) alone. Beyond one process it is
            pickled once and kept by each worker, so an object that loads its model on first use
            loads it once a worker; give it the model's path rather than the model. Values are
            stored as they are: scaling or filling that readers undo is for `compute` to do.
        store: where rows go.
        chunk: rows of a task, a multiple of every Zarr chunk (or shard) along the streamed axis,
            so that no two tasks write the same piece.
        arrays: name of each array that `compute` returns -> its streamed axis.
        workers: processes on this machine; 1 computes in this process, without Dask.
        scheduler: "tcp://...", a running Dask scheduler, whose workers share the filesystem.
        progress: unit for the progress on stderr, e.g. "hours"; silent if None.

    Returns:
        rows computed by this call; the store may have had the others already.

    Raises:
        AleatorError: the arrays do not fit, the disk is full, a worker died, or the scheduler
            cannot be reached. What is done stays for the next call.
    """
    if workers < 1:
        raise AleatorError(f"workers={workers}: at least one is needed")
    check_alignment(store, chunk, arrays)
    with store.lock():
        missing = store.missing(chunk)
        rows = sum(map(len, missing))
        write = functools.partial(write_chunk, store=store, arrays=dict(arrays))
        with progress_bar(store.length, progress, done=store.length - rows) as advance, _clear():
            for finished in _execute(compute, write, missing, workers, scheduler):
                advance(len(finished))
    return rows


def check_alignment(store: PartialStore, chunk: int, arrays: Mapping[str, int]) -> None:
    """Make sure that arrays have the right length, and that no two tasks share a Zarr chunk.

    Raises:
        AleatorError: naming the array.
    """
    import zarr

    if chunk < 1:
        raise AleatorError(f"chunk={chunk}: at least one row is needed")
    group = zarr.open_group(store.data, mode="r")
    for name, axis in arrays.items():
        array = group.get(name)
        if not isinstance(array, zarr.Array) or not -array.ndim <= axis < array.ndim:
            raise AleatorError(f"{store.data}: no array {name!r} with an axis {axis}")
        if array.shape[axis] != store.length:
            raise AleatorError(
                f"array {name!r} has {array.shape[axis]} rows on axis {axis}, not {store.length}"
            )
        piece = (array.shards or array.chunks)[axis]
        if chunk % piece and chunk < store.length:
            raise AleatorError(
                f"chunk={chunk}: array {name!r} is stored in pieces of {piece} rows; "
                f"use a multiple of {piece}"
            )


def write_chunk(
    compute: Compute, chunk: Chunk, *, store: PartialStore, arrays: Mapping[str, int]
) -> Chunk:
    """Compute the rows of one chunk, write them, mark them done.

    Raises:
        ValueError: `compute` returned other names or shapes than it should.
        AleatorError: the store is not visible from here.
    """
    import zarr

    if not store.data.exists():
        raise AleatorError(
            f"{store.data} is not there: it was removed, or this worker does not share the "
            "filesystem; write to a folder that all workers see"
        )
    result = compute(chunk.start, chunk.stop)
    if set(result) != set(arrays):
        raise ValueError(f"compute returned {sorted(result)}, expected {sorted(arrays)}")
    group = zarr.open_group(store.data, mode="r+")
    for name, axis in arrays.items():
        array: Any = group[name]
        axis %= array.ndim
        shape = (*array.shape[:axis], len(chunk), *array.shape[axis + 1 :])
        if result[name].shape != shape:  # Zarr would broadcast
            raise ValueError(f"compute returned {name} {result[name].shape}, expected {shape}")
        array[(*[slice(None)] * axis, slice(chunk.start, chunk.stop))] = result[name]
    store.mark(chunk)
    return chunk


Write = Callable[[Compute, Chunk], Chunk]
CONNECT_SECONDS = 10


def _execute(
    compute: Compute, write: Write, chunks: list[Chunk], workers: int, scheduler: str | None
) -> Iterator[Chunk]:
    if not chunks:
        return
    if workers == 1 and scheduler is None:
        for chunk in chunks:
            yield write(compute, chunk)
        return
    import cloudpickle

    # pickled once: Dask would send a copy of it, pickled anew, with every task
    payload = cloudpickle.dumps(compute)
    with _client(min(workers, len(chunks)), scheduler) as client:
        from distributed import as_completed

        queue = iter(chunks)
        submit = functools.partial(client.submit, _task, payload, write, pure=False)
        slots = 2 * sum(client.nthreads().values())
        running = as_completed([submit(chunk) for chunk in itertools.islice(queue, slots)])
        for future in running:
            yield future.result()
            for chunk in itertools.islice(queue, 1):
                running.add(submit(chunk))


def _task(payload: bytes, write: Write, chunk: Chunk) -> Chunk:
    return write(_thaw(payload), chunk)


@functools.lru_cache(maxsize=1)
def _thaw(payload: bytes) -> Compute:
    """One object a worker: whatever it loads on first use stays loaded."""
    import cloudpickle

    return cloudpickle.loads(payload)


@contextlib.contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Client]:
    import logging

    import dask
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS)
            client.wait_for_workers(1, timeout=60)
        except (OSError, ValueError) as error:
            raise AleatorError(
                f"scheduler {scheduler}: no answer, or no worker joined it ({error}); "
                "start `dask scheduler` and `dask worker`, or leave the address out"
            ) from error
        with client:
            yield client
        return
    # Dask's own limit would kill a worker at its share of memory though others are idle; results
    # never pile up here. One retry: a worker that dies twice on a chunk dies always.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=None,
            dashboard_address=":0",  # a free port: two runs at once do not quarrel
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextlib.contextmanager
def _clear() -> Iterator[None]:
    """Turn what can go wrong around the computation into one clear line."""
    kept = "what is done is kept: the same command continues"
    try:
        yield
    except Exception as error:
        kind = type(error).__name__  # by name: distributed is not imported in one process
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AleatorError(
                f"the disk is full ({error.filename or error.strerror}); free some space; {kept}"
            ) from error
        if kind == "KilledWorker":
            raise AleatorError(
                "a worker died twice on the same rows, most likely for want of memory; "
                f"use a smaller chunk or fewer workers; {kept}"
            ) from error
        if kind in ("CommClosedError", "FutureCancelledError", "CancelledError"):
            raise AleatorError(f"lost the scheduler or its workers ({error}); {kept}") from error
        raise
