"""Out-of-core map over chunks into a Zarr store: seeded per sample, parallel, resumable.

    store = PartialStore.open("out.zarr", length=8760, job=job, create=write_template)
    stream(compute, store, chunk=24, arrays={"tas": 1}, workers=4, progress="hours")
    store.finish()

Rows of a long axis are computed a chunk at a time and written where they belong; nothing is kept
in memory. Everything lives in `out.zarr.partial` until `finish` renames it, so that a run that is
killed leaves nothing that looks finished, and the same call again continues where it was.
"""

from core.progress import progress_bar
from core.streaming.run import Compute, stream
from core.streaming.store import Chunk, PartialStore

__all__ = ["Chunk", "Compute", "PartialStore", "progress_bar", "stream"]
