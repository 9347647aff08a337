"""Results as the columns of a Parquet or text file, written block by block.

They are written from the first row to the last, so that blocks have to come in C order.
"""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitloss._command_line.blocks import Array, Block
from logitloss._command_line.files import Output
from logitloss._command_line.formats import TableFormat


class TableOutput(Output):
    def __init__(
        self,
        path: Path,
        form: TableFormat,
        names: list[str],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        super().__init__(path)
        if len(shape) not in (1, 2):
            raise ValueError(f"{path}: a table has one or two axes; the logits have shape {shape}")
        try:
            import pyarrow
        except ImportError as error:
            raise ValueError(
                f"{path}: writing it needs pyarrow: pip install 'logitloss[tables]'"
            ) from error
        self._form = form
        self._dtype = dtype
        self._shape = shape
        try:
            kind = pyarrow.from_numpy_dtype(dtype)
        except NotImplementedError as error:
            raise ValueError(f"{path}: a table cannot hold {dtype}; a .npy file can") from error
        self._schema = pyarrow.schema([(name, kind) for name in names])
        self._parts_of_rows: list[Array] = []
        self._compressed: gzip.GzipFile | None = None
        self._writer: Any = None

    def open(self) -> None:
        super().open()
        with self._errors_name_the_path():
            self._writer = self._open_writer()

    def _open_writer(self) -> Any:
        if self._form.delimiter is None:
            from pyarrow import parquet

            return parquet.ParquetWriter(self._file, self._schema)
        from pyarrow import csv

        if self._form.codec:
            self._compressed = gzip.GzipFile("", "wb", 6, self._file)
        return csv.CSVWriter(
            self._compressed or self._file,
            self._schema,
            write_options=csv.WriteOptions(delimiter=self._form.delimiter),
        )

    def __setitem__(self, block: Block, values: npt.ArrayLike) -> None:
        self._parts_of_rows.append(np.asarray(values, self._dtype))
        if block[-1].stop == self._shape[-1] or len(self._shape) == 1:
            self._write_rows(np.concatenate(self._parts_of_rows, axis=-1))
            self._parts_of_rows = []

    def _write_rows(self, rows: Array) -> None:
        import pyarrow

        columns = [rows] if rows.ndim == 1 else [column.copy() for column in rows.T]
        with self._errors_name_the_path():
            self._writer.write_batch(pyarrow.record_batch(columns, schema=self._schema))

    def complete(self) -> None:
        with self._errors_name_the_path():
            self._writer.close()
            if self._compressed:
                self._compressed.close()
        super().complete()

    def discard(self) -> None:
        if self._form.delimiter is None and self._writer is not None:
            # Otherwise it writes to the closed file when it is collected, and complains.
            self._writer.is_open = False
        super().discard()
