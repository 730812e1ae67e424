"""The loader: shuffled batches from a random-access source, on Grain, at a position that a checkpoint can hold."""

import json

import grain
import numpy as np
from absl import flags

from data_pipeline.sources import Source

Record = dict[str, np.ndarray]


class Loader:
    """Iterator over batches (dicts of numpy arrays, leading axis b) with `get_state` and `set_state`.

    The state is the number of batches given out (what was only prefetched does not count) and what decides their order.
    A loader in that state goes on with exactly the batches that would have followed, also with other workers or another
    number of processes.
    """

    def __init__(self, batches: grain.MapDataset, num_workers: int, settings: dict[str, int | bool | None]):
        self._batches, self._num_workers, self._settings = batches, num_workers, settings
        self._start(0)

    def _start(self, num_batches: int) -> None:
        dataset = self._batches.slice(slice(num_batches, None)).to_iter_dataset(
            grain.ReadOptions(num_threads=1 if self._num_workers else 4, prefetch_buffer_size=4)
        )
        if self._num_workers:
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=2)
            )
        self._iterator, self._num_batches = iter(dataset), num_batches

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Record:
        batch = next(self._iterator)
        self._num_batches += 1
        return batch

    def get_state(self) -> bytes:
        """The present position, as JSON."""
        return json.dumps({"num_batches": self._num_batches, **self._settings}).encode()

    def set_state(self, state: bytes) -> None:
        """Goes to a position that `get_state` gave.

        Raises:
            ValueError: it was taken with another number of records, batch size, seed, order or number of epochs. Other data
                with as many records can't be told apart.
        """
        stored = json.loads(state)
        num_batches = stored.pop("num_batches")
        if stored != self._settings:
            raise ValueError(
                f"expected a position in data with {self._settings}, got one with {stored}; "
                "resume with the data and settings of the run, or start in a new directory"
            )
        self.close()
        self._start(num_batches)

    def close(self) -> None:
        """Ends worker processes and threads."""
        self._iterator.close()


class _ReadShare:
    """Reads this process's part of a global batch, given the indices of all of it."""

    def __init__(self, source: Source, share: slice):
        self.source, self.share = source, share

    def __call__(self, indices: np.ndarray) -> Record:
        records = [self.source[index] for index in indices[self.share].tolist()]
        return {name: np.stack([record[name] for record in records]) for name in records[0]}


def make_loader(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
    num_epochs: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
) -> Loader:
    """Makes a loader of `batch_size` records a batch in each process; an incomplete last batch is dropped.

    All processes walk through one global order, each epoch shuffled anew, and process i takes the i-th part of every
    global batch: the training data do not depend on the number of processes.

    Args:
        num_epochs: passes over the source; None repeats for ever.
        num_workers: worker processes; 0 reads in threads of this process.

    Raises:
        ValueError: sizes that make no batch.
    """
    global_size = batch_size * process_count
    if batch_size < 1 or not 0 <= process_index < process_count:
        raise ValueError(
            f"expected batch_size >= 1 and 0 <= process_index < process_count, got {batch_size}, {process_index} and "
            f"{process_count}; correct them"
        )
    if len(source) < global_size:
        raise ValueError(
            f"expected at least one batch ({global_size}) of records, got {len(source)}; add data or lower batch_size"
        )
    indices = grain.MapDataset.range(len(source)).seed(seed)
    if shuffle:
        indices = indices.shuffle()
    share = slice(process_index * batch_size, (process_index + 1) * batch_size)
    batches = indices.repeat(num_epochs).batch(global_size, drop_remainder=True).map(_ReadShare(source, share))
    if num_workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain hands absl flags on to its workers
    settings = {
        "num_records": len(source),
        "global_batch_size": global_size,
        "seed": seed,
        "shuffle": shuffle,
        "num_epochs": num_epochs,
    }
    return Loader(batches, num_workers, settings)
