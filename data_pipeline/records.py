"""Records on disk: a TFDS data set of ArrayRecord files, read and written without TensorFlow.

`tfds.builder_from_directory(folder)` reads the same folder.
"""

import contextlib
import io
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipeline.schema import FIELDS, RecordSpec, validate_record
from data_pipeline.sources import RecordSource
from pidiff_jax.locations import local_path

NOTES = ("caption", "picture")
Record = Mapping[str, np.ndarray | str | int]


class PidiffRecords(tfds.core.GeneratorBasedBuilder):
    """The fields of data_pipeline/schema.py, with the caption and the picture's name as notes for people."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, splits: Mapping[str, Iterable[Record]], spec: RecordSpec, notes: Mapping[str, Any], **kwargs):
        self._splits, self._spec, self._notes = splits, spec, notes
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {field.name: _feature(self._spec.shape(field), field.dtype, field.meaning) for field in FIELDS}
        features |= {name: tfds.features.Text() for name in NOTES}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Portraits for training an identity adapter: latents, W+ codes, caption tokens, face masks.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(self._notes),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {name: self._generate_examples(name, records) for name, records in self._splits.items()}

    def _generate_examples(self, split: str, records: Iterable[Record]) -> Iterator[tuple[int, dict]]:
        index = -1
        for index, record in enumerate(records):
            notes = {name: record.get(name, "") for name in NOTES}
            arrays = _without_notes(record)
            try:
                validate_record(arrays, self._spec)
            except ValueError as error:
                raise ValueError(f"record {index} ({notes['picture'] or 'unnamed'}): {error}") from None
            yield index, {**arrays, **notes}
        if index < 0:
            raise _empty(split)


def _feature(shape: tuple[int, ...], dtype: type, meaning: str) -> tfds.features.FeatureConnector:
    if not shape:
        return tfds.features.Scalar(dtype, doc=meaning)
    # As bytes they are read ten times faster.
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes", doc=meaning)


def write_records(
    directory: str | Path,
    splits: Mapping[str, Iterable[Record]],
    metadata: Mapping[str, Any] | None = None,
    finish: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Writes a data set whose folder appears only when it is complete.

    splits: name (usually "train" and "validation") -> records: the fields of the schema, and strings `caption` and
        `picture` where known. They are read once, one after the other; the first record sets the sizes of all.
    metadata: how the data were made; JSON-compatible, kept beside them.
    finish: is given the folder when its records are complete, before it appears: to add files of its own.

    Raises:
        FileExistsError: `directory` exists.
        ValueError: a record does not fit the schema or the first record, or a split is empty.
    """
    directory = local_path(directory, "the records").absolute()
    if directory.exists():
        raise FileExistsError(
            f"expected a new folder for records, got {directory}, which exists; choose another or move it away"
        )
    spec, splits = _take_spec({name: iter(records) for name, records in splits.items()})
    directory.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{directory.name}.partial-", dir=directory.parent))
    try:
        builder = PidiffRecords(splits=splits, spec=spec, notes=dict(metadata or {}), data_dir=str(workplace))
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS would talk about downloads
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        finish(Path(builder.data_dir))
        Path(builder.data_dir).rename(directory)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _take_spec(splits: dict[str, Iterator[Record]]) -> tuple[RecordSpec, dict[str, Iterator[Record]]]:
    """Sizes of the first record, and the splits from that record on."""
    name, records = next(iter(splits.items()))
    first = next(records, None)
    if first is None:
        raise _empty(name)
    return RecordSpec.of(_without_notes(first)), splits | {name: itertools.chain([first], records)}


def _without_notes(record: Record) -> Record:
    return {name: value for name, value in record.items() if name not in NOTES}


def _empty(split: str) -> ValueError:
    return ValueError(f"expected records in every split, got none in {split}; give more pictures")


def open_records(directory: str | Path, split: str) -> RecordSource:
    """Opens one split of a data set for random access; the records have the fields of the schema and nothing else.

    Raises:
        FileNotFoundError: there is no data set at `directory`, or files of it are missing.
        ValueError: it has no such split, or lacks fields of the schema.
    """
    directory = local_path(directory, "the records")
    if not (directory / "dataset_info.json").is_file():
        raise FileNotFoundError(
            f"expected a folder of records with dataset_info.json, found none at {directory}; see docs/data.md"
        )
    builder = tfds.builder_from_directory(str(directory))
    splits = builder.info.splits
    if split not in splits:
        raise ValueError(
            f"expected a split of {sorted(splits)} in {directory}, got {split!r}; prepare it or correct the name"
        )
    if missing := [field.name for field in FIELDS if field.name not in builder.info.features]:
        raise ValueError(
            f"expected records with {', '.join(missing)} in {directory}, got none; prepare the records again"
        )
    if missing := [path.name for path in map(Path, splits[split].filepaths) if not path.is_file()]:
        raise FileNotFoundError(
            f"expected the files {', '.join(missing)} in {directory}, got none; copy the whole folder"
        )
    fields = {field.name: np.dtype(field.dtype) for field in FIELDS}
    return RecordSource(builder.as_data_source(split=split), fields, builder.info.metadata or {})
