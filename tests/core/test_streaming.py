"""The same store however the work is split, killed or resumed; nothing that looks finished."""

import errno
import os

import numpy as np
import pytest
import torch
import zarr

from core.errors import AleatorError
from core.random import keyed_generator
from core.streaming import Chunk, PartialStore, stream

LENGTH = 130
JOB = {"seed": 3, "input": {"sha256": "abc"}}


def template(path, rows=1):
    group = zarr.open_group(path, mode="w")
    group.create_array("noise", shape=(2, LENGTH, 3), chunks=(1, rows, 3), dtype="f4")
    group.create_array("index", shape=(LENGTH,), chunks=(rows,), dtype="i8")
    group.create_array("lat", shape=(3,), dtype="f8")[:] = [50.0, 51.0, 52.0]


AXES = {"noise": 1, "index": 0}


def truth():
    rows = [
        [torch.randn(3, generator=keyed_generator(3, m, i)).numpy() for i in range(LENGTH)]
        for m in range(2)
    ]
    return np.asarray(rows), np.arange(LENGTH) ** 2


def make_compute(log=None, fail_at=None, error=None):
    """A function that is pickled by value: workers cannot import this file."""

    def compute(start, stop):
        import numpy as np
        import torch

        from core.random import keyed_generator

        if log is not None:
            with open(log, "a") as file:
                file.write(f"{start} {stop}\n")
        if fail_at is not None and start <= fail_at < stop:
            error()
        noise = [
            [
                torch.randn(3, generator=keyed_generator(3, m, i)).numpy()
                for i in range(start, stop)
            ]
            for m in range(2)
        ]
        return {"noise": np.asarray(noise), "index": np.arange(start, stop) ** 2}

    return compute


def open_store(path, **options):
    create = options.pop("create", template)
    return PartialStore.open(path, length=LENGTH, job=JOB, create=create, **options)


def assert_complete(path):
    group = zarr.open_group(path, mode="r")
    noise, index = truth()
    np.testing.assert_array_equal(group["noise"][:], noise)
    np.testing.assert_array_equal(group["index"][:], index)
    np.testing.assert_array_equal(group["lat"][:], [50, 51, 52])


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def scheduler():
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=":0"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_one_process_whatever_the_chunk(tmp_path, chunk):
    store = open_store(tmp_path / "out.zarr")
    assert stream(make_compute(), store, chunk=chunk, arrays=AXES) == LENGTH
    assert not (tmp_path / "out.zarr").exists()
    assert store.finish() == tmp_path / "out.zarr"
    assert os.listdir(tmp_path) == ["out.zarr"]
    assert_complete(tmp_path / "out.zarr")


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_dask_scheduler_gives_the_same(tmp_path, scheduler, chunk):
    store = open_store(tmp_path / "out.zarr")
    stream(make_compute(), store, chunk=chunk, arrays=AXES, scheduler=scheduler)
    assert_complete(store.finish())


def test_two_worker_processes_write_the_very_same_files(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        store = open_store(tmp_path / name)
        stream(make_compute(), store, chunk=7, arrays=AXES, workers=workers)
        store.finish()
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_worker_loads_its_model_once(tmp_path, scheduler):
    log = str(tmp_path / "loads")

    class Lazy:
        model = None

        def __call__(self, start, stop):
            if self.model is None:
                with open(log, "a") as file:
                    file.write("load\n")
                self.model = 2
            import numpy as np

            return {"index": np.arange(start, stop) ** self.model}

    store = open_store(tmp_path / "out.zarr")
    stream(Lazy(), store, chunk=5, arrays={"index": 0}, scheduler=scheduler)
    assert open(log).read() == "load\n"
    np.testing.assert_array_equal(zarr.open_group(store.data)["index"][:], truth()[1])


@pytest.mark.parametrize("later", [5, 10, 40])
def test_resume_computes_only_what_is_missing_with_any_chunk(tmp_path, later):
    def boom():
        raise RuntimeError("a bug")

    log = tmp_path / "log"
    with pytest.raises(RuntimeError, match="a bug"):
        stream(
            make_compute(fail_at=72, error=boom),
            open_store(tmp_path / "out.zarr"),
            chunk=10,
            arrays=AXES,
        )
    store = open_store(tmp_path / "out.zarr")
    assert store.done() == [Chunk(0, 70)]
    assert stream(make_compute(log), store, chunk=later, arrays=AXES) == 60
    starts = [int(line.split()[0]) for line in log.read_text().splitlines()]
    assert min(starts) == 70
    assert_complete(store.finish())


def test_another_job_is_refused_and_said_which_key(tmp_path):
    open_store(tmp_path / "out.zarr")
    for job, said in (
        ({**JOB, "seed": 4}, "seed=3, this run has 4"),
        ({**JOB, "members": 8}, "members=None, this run has 8"),
        ({"seed": 3}, "input="),
    ):
        with pytest.raises(AleatorError, match=said):
            PartialStore.open(tmp_path / "out.zarr", length=LENGTH, job=job, create=template)
    with pytest.raises(AleatorError, match="length=130, this run has 131"):
        PartialStore.open(tmp_path / "out.zarr", length=131, job=JOB, create=template)


def test_no_resume_starts_afresh(tmp_path):
    store = open_store(tmp_path / "out.zarr")
    stream(make_compute(), store, chunk=50, arrays=AXES)
    assert store.missing(50) == []
    (store.work / "mine").write_text("kept with the run")
    assert (open_store(tmp_path / "out.zarr").work / "mine").exists()
    fresh = PartialStore.open(
        tmp_path / "out.zarr", length=LENGTH, job={"seed": 9}, create=template, resume=False
    )
    assert fresh.missing(50) == [Chunk(0, 50), Chunk(50, 100), Chunk(100, 130)]
    assert not list(fresh.work.iterdir())
    assert not zarr.open_group(fresh.data)["index"][:].any()


def test_killed_while_creating_starts_afresh(tmp_path):
    def interrupted(path):
        template(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_store(tmp_path / "out.zarr", create=interrupted)
    store = open_store(tmp_path / "out.zarr")
    stream(make_compute(), store, chunk=64, arrays=AXES)
    assert_complete(store.finish())


def test_an_existing_output_is_not_touched_unless_told(tmp_path):
    out = tmp_path / "out.zarr"
    store = open_store(out)
    stream(make_compute(), store, chunk=64, arrays=AXES)
    out.mkdir()
    (out / "precious").touch()
    with pytest.raises(AleatorError, match=r"out\.zarr exists"):
        store.finish()
    with pytest.raises(AleatorError, match=r"out\.zarr exists"):
        open_store(out)
    assert os.listdir(out) == ["precious"]
    open_store(out, overwrite=True).finish()
    assert_complete(out)
    assert os.listdir(tmp_path) == ["out.zarr"]


def test_an_incomplete_store_does_not_finish(tmp_path):
    store = open_store(tmp_path / "out.zarr")
    store.mark(Chunk(0, 100))
    with pytest.raises(AleatorError, match="30 of 130 rows are missing"):
        store.finish()
    assert not (tmp_path / "out.zarr").exists()


def test_marks_of_different_chunkings_merge(tmp_path):
    store = open_store(tmp_path / "out.zarr")
    for chunk in (Chunk(0, 20), Chunk(5, 10), Chunk(20, 24), Chunk(40, 130)):
        store.mark(chunk)
    assert store.done() == [Chunk(0, 24), Chunk(40, 130)]
    assert store.missing(10) == [Chunk(24, 30), Chunk(30, 40)]


def test_what_zarr_left_when_it_was_killed_is_swept(tmp_path):
    store = open_store(tmp_path / "out.zarr")
    stream(make_compute(), store, chunk=64, arrays=AXES)
    expected = {*files(store.data)}
    (store.data / "index" / "c" / f"3.{'0a' * 16}.partial").write_bytes(b"half")
    assert set(files(store.finish())) == expected


def test_export_to_another_format_is_atomic_too(tmp_path):
    def export(group, path):
        np.save(path.open("wb"), zarr.open_group(group)["index"][:])

    def killed(group, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    store = open_store(tmp_path / "out.npy")
    stream(make_compute(), store, chunk=64, arrays=AXES)
    with pytest.raises(KeyboardInterrupt):
        store.finish(killed)
    assert os.listdir(tmp_path) == ["out.npy.partial"]
    open_store(tmp_path / "out.npy").finish(export)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), truth()[1])
    assert os.listdir(tmp_path) == ["out.npy"]


def test_a_folder_of_someone_else_is_not_wiped(tmp_path):
    folder = tmp_path / "out.zarr.partial"
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(AleatorError, match=r"someone else \(thesis.tex\)"):
        open_store(tmp_path / "out.zarr", resume=False)
    assert (folder / "thesis.tex").exists()


def test_two_runs_do_not_write_the_same_output(tmp_path):
    store = open_store(tmp_path / "out.zarr")

    def compute(start, stop):
        with pytest.raises(AleatorError, match="another run is writing"):
            open_store(tmp_path / "out.zarr", resume=False)
        with pytest.raises(AleatorError, match="another run is writing"):
            store.finish()
        return {"index": np.arange(start, stop)}

    assert stream(compute, store, chunk=130, arrays={"index": 0}) == LENGTH


def test_a_filesystem_without_locks_is_trusted(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    store = open_store(tmp_path / "out.zarr")
    stream(make_compute(), store, chunk=64, arrays=AXES)
    assert_complete(store.finish())


def test_chunks_that_share_a_zarr_chunk_are_refused(tmp_path):
    def by_eight(path):
        template(path, rows=8)

    store = open_store(tmp_path / "out.zarr", create=by_eight)
    with pytest.raises(AleatorError, match="'noise' is stored in pieces of 8 rows; use a mult"):
        stream(make_compute(), store, chunk=12, arrays=AXES)
    with pytest.raises(AleatorError, match="no array 'tas'"):
        stream(make_compute(), store, chunk=8, arrays={"tas": 0})
    with pytest.raises(AleatorError, match="'noise' has 3 rows on axis 2, not 130"):
        stream(make_compute(), store, chunk=8, arrays={"noise": 2})
    assert store.done() == []
    stream(make_compute(), store, chunk=16, arrays=AXES)
    assert_complete(store.finish())


def test_shards_are_the_pieces_that_must_not_be_shared(tmp_path):
    def sharded(path):
        group = zarr.open_group(path, mode="w")
        group.create_array("index", shape=(LENGTH,), chunks=(2,), shards=(20,), dtype="i8")

    store = open_store(tmp_path / "out.zarr", create=sharded)
    with pytest.raises(AleatorError, match="pieces of 20 rows"):
        stream(make_compute(), store, chunk=10, arrays={"index": 0})


def test_rows_of_another_shape_are_not_broadcast(tmp_path):
    store = open_store(tmp_path / "out.zarr")
    with pytest.raises(ValueError, match=r"index \(1,\), expected \(10,\)"):
        stream(lambda a, b: {"index": np.zeros(1)}, store, chunk=10, arrays={"index": 0})
    assert store.done() == []


def test_a_full_disk_is_one_clear_line_and_resumes(tmp_path, monkeypatch):
    store = open_store(tmp_path / "out.zarr")
    write = zarr.Array.__setitem__

    def full(array, where, value):
        if where[0] == slice(20, 30):
            raise OSError(errno.ENOSPC, "No space left on device", "out.zarr")
        write(array, where, value)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__setitem__", full)
        with pytest.raises(AleatorError, match=r"disk is full .*the same command continues"):
            stream(make_compute(), store, chunk=10, arrays=AXES)
    assert store.done() == [Chunk(0, 20)]
    assert stream(make_compute(), store, chunk=10, arrays=AXES) == LENGTH - 20
    assert_complete(store.finish())


def test_a_worker_that_dies_is_one_clear_line(tmp_path):
    def die():
        import os

        os._exit(1)

    store = open_store(tmp_path / "out.zarr")
    with pytest.raises(AleatorError, match=r"died twice.*smaller chunk"):
        stream(make_compute(fail_at=40, error=die), store, chunk=10, arrays=AXES, workers=2)
    assert Chunk(40, 50) in store.missing(10)
    stream(make_compute(), store, chunk=10, arrays=AXES)
    assert_complete(store.finish())


def test_a_scheduler_that_is_not_there_is_named(tmp_path, monkeypatch):
    store = open_store(tmp_path / "out.zarr")
    monkeypatch.setattr("core.streaming.run.CONNECT_SECONDS", 1)
    with pytest.raises(AleatorError, match=r"tcp://127\.0\.0\.1:9: no answer"):
        stream(make_compute(), store, chunk=10, arrays=AXES, scheduler="tcp://127.0.0.1:9")


def test_tasks_in_flight_are_bounded(tmp_path, scheduler, monkeypatch):
    from distributed import Client

    alive, most = [], []
    submit = Client.submit

    def counting(client, *args, **kwargs):
        future = submit(client, *args, **kwargs)
        alive.append(future)
        most.append(sum(not f.done() for f in alive))
        return future

    monkeypatch.setattr(Client, "submit", counting)
    store = open_store(tmp_path / "out.zarr")
    stream(make_compute(), store, chunk=2, arrays=AXES, scheduler=scheduler)
    assert len(alive) == 65
    assert max(most) <= 2
