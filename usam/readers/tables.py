"""Tables that Python holds: DataFrames of pandas, Tables and record batches of pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from usam.readers import ManifestError, Placed, Source, without_nothing

KNOWN = {
    "pandas": ("DataFrame",),
    "pyarrow": ("Table", "RecordBatch", "RecordBatchReader"),
}
MISSING = ("NAType", "NaTType")  # what pandas has in empty cells, beside None and NaN


class Tables(Source):
    """Each row is a map of its columns; an empty cell is no key at all. Paths are relative to the working directory."""

    @classmethod
    def opens(cls, source: Any) -> bool:
        """Objects of these packages, which are not imported for it."""
        package = type(source).__module__.partition(".")[0]
        return type(source).__name__ in KNOWN.get(package, ())

    def rows(self) -> Iterator[Placed]:
        """Each row with its number from 0."""
        table, name = self.source, type(self.source).__name__
        columns = [str(column) for column in getattr(table, "columns", ())] if hasattr(table, "iloc") else []
        if len(set(columns)) < len(columns):
            twice = next(column for column in columns if columns.count(column) > 1)
            raise ManifestError(f"{name}: the column '{twice}' stands there twice")
        for number, row in enumerate(_records(table)):
            yield f"{name}, row {number}", without_nothing(row)


def _records(table: Any) -> Iterator[dict[str, Any]]:
    if hasattr(table, "iloc"):  # pandas
        table = table.reset_index() if any(name is not None for name in table.index.names) else table
        for row in table.to_dict("records"):
            yield {str(key): value for key, value in row.items() if not _is_missing(value)}
    else:
        for batch in table if type(table).__name__ == "RecordBatchReader" else [table]:
            yield from batch.to_pylist()


def _is_missing(value: Any) -> bool:
    return type(value).__name__ in MISSING or (isinstance(value, float) and value != value)
