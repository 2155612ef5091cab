"""The search index: one LanceDB table in a local folder, rebuildable from SQL at any time.

Rows: project, run_id, language, interception_config, prompt_digest, started_ms, text, vector. A row is
replaced by (project, run_id), so that writing it again is harmless. All methods block; ``SearchIndex`` is
called from threads only (``search.service`` does). LanceDB costs a second and a hundred megabytes to import:
that is put off until something is indexed or sought.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
_VECTOR = "vector"
_TEXT = "text"
# Below this many rows a flat scan of 384 floats each takes a few milliseconds and finds everything.
FLAT_LIMIT_ROWS = 20_000
_ROWS_PER_PARTITION = 512
_PROBED_SHARE = 0.08
_MIN_PROBES = 12
# Readers that began before a compaction may still hold older files.
_KEEP_VERSIONS = timedelta(minutes=10)
_IN_CHUNK = 500


@dataclass(frozen=True)
class IndexRow:
    """One run in the index; ``vector`` has the model's dimension and unit length."""

    project: str
    run_id: str
    language: str
    interception_config: str
    prompt_digest: str
    started_ms: int
    text: str
    vector: Vectors


@dataclass(frozen=True)
class IndexHit:
    """One row that a search found; a higher score is better."""

    run_id: str
    prompt_digest: str
    started_ms: int
    score: float


@dataclass(frozen=True)
class IndexFilter:
    """Which rows a search may find; "" means all."""

    project: str
    language: str = ""
    interception_config: str = ""

    def sql(self) -> str:
        """The condition in Lance's SQL."""
        terms = [f"project = {_quote(self.project)}"]
        if self.language:
            terms.append(f"language = {_quote(self.language)}")
        if self.interception_config:
            terms.append(f"interception_config = {_quote(self.interception_config)}")
        return " AND ".join(terms)


class SearchIndex:
    """Vectors and words of production prompts."""

    def __init__(self, folder: Path, *, model_fingerprint: str, dimension: int) -> None:
        self._folder = folder
        self._dimension = dimension
        # Vectors of two models share no space: another model gets another table.
        self._name = f"runs_{model_fingerprint}"
        self._write_lock = threading.Lock()
        self._table: Any = None
        self._probes = 0

    def _schema(self) -> Any:
        import pyarrow as pa

        return pa.schema(
            [
                ("project", pa.string()),
                ("run_id", pa.string()),
                ("language", pa.string()),
                ("interception_config", pa.string()),
                ("prompt_digest", pa.string()),
                ("started_ms", pa.int64()),
                (_TEXT, pa.string()),
                (_VECTOR, pa.list_(pa.float32(), self._dimension)),
            ]
        )

    @property
    def exists(self) -> bool:
        """Whether there is a table, readable or not."""
        return (self._folder / f"{self._name}.lance").is_dir()

    @property
    def table_name(self) -> str:
        """Name of the table; tells the model apart."""
        return self._name

    def open(self, *, repair: bool = False) -> None:
        """Opens the table or makes an empty one.

        Args:
            repair: Throw away a folder that cannot be read. Whoever opens then compares ``count`` with the
                state in SQL and embeds again what is missing.
        """
        with self._write_lock:
            try:
                self._table = self._open_table()
                self._table.count_rows()
            except (OSError, RuntimeError, ValueError):
                if not repair:
                    raise
                shutil.rmtree(self._folder, ignore_errors=True)
                self._table = self._open_table()
            self._probes = self._read_probes()

    def _open_table(self) -> Any:
        import lancedb

        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = lancedb.connect(str(self._folder))
        names = database.list_tables().tables
        for name in names:
            if name != self._name:
                database.drop_table(name)
        if self._name in names:
            return database.open_table(self._name)
        return self._make_table(database, None)

    def _make_table(self, database: Any, rows: Any) -> Any:
        from lancedb.index import FTS, Bitmap, BTree

        mode = "create" if rows is None else "overwrite"
        table = database.create_table(self._name, data=rows, schema=self._schema(), mode=mode)
        table.create_index(
            _TEXT,
            # Prompts come in many languages: segmentation by ICU, neither stemming nor stop words of one.
            config=FTS(base_tokenizer="icu", stem=False, remove_stop_words=False, ascii_folding=True),
        )
        table.create_index("run_id", config=BTree())
        table.create_index("prompt_digest", config=BTree())
        for column in ("project", "language", "interception_config"):
            table.create_index(column, config=Bitmap())
        return table

    def clear(self) -> None:
        """Drops all rows and indices."""
        with self._write_lock:
            self._table = None
            shutil.rmtree(self._folder, ignore_errors=True)
            self._table = self._open_table()

    def count(self, project: str | None = None) -> int:
        """Rows, of one project or of all."""
        rows: int = self._table.count_rows(f"project = {_quote(project)}" if project is not None else None)
        return rows

    def upsert(self, rows: Sequence[IndexRow]) -> None:
        """Writes rows, replacing those of the same run."""
        if not rows:
            return
        import pyarrow as pa

        schema = self._schema()
        vectors = np.ascontiguousarray(np.stack([row.vector for row in rows]), dtype=np.float32)
        columns: dict[str, Any] = {
            field.name: [getattr(row, field.name) for row in rows]
            for field in schema
            if field.name != _VECTOR
        }
        columns[_VECTOR] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self._dimension)
        with self._write_lock:
            (
                self._table.merge_insert(["project", "run_id"])
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .execute(pa.table(columns, schema=schema))
            )

    def known(self, project: str, run_ids: Sequence[str]) -> dict[str, tuple[str, str, str]]:
        """(prompt digest, language, interception config) of those of the runs that are in the index."""
        found: dict[str, tuple[str, str, str]] = {}
        for start in range(0, len(run_ids), _IN_CHUNK):
            names = ", ".join(_quote(run_id) for run_id in run_ids[start : start + _IN_CHUNK])
            rows = (
                self._table.search()
                .where(f"project = {_quote(project)} AND run_id IN ({names})")
                .select(["run_id", "prompt_digest", "language", "interception_config"])
                .limit(None)
                .to_arrow()
                .to_pylist()
            )
            for row in rows:
                found[row["run_id"]] = (row["prompt_digest"], row["language"], row["interception_config"])
        return found

    def delete(self, project: str, run_ids: Sequence[str]) -> None:
        """Removes runs; unknown ones are no error."""
        for start in range(0, len(run_ids), _IN_CHUNK):
            names = ", ".join(_quote(run_id) for run_id in run_ids[start : start + _IN_CHUNK])
            with self._write_lock:
                self._table.delete(f"project = {_quote(project)} AND run_id IN ({names})")

    def vectors_of(self, digests: Sequence[str]) -> dict[str, Vectors]:
        """Known vectors by prompt digest, so that a prompt is embedded once however often it is run."""
        found: dict[str, Vectors] = {}
        for start in range(0, len(digests), _IN_CHUNK):
            names = ", ".join(_quote(digest) for digest in digests[start : start + _IN_CHUNK])
            table = (
                self._table.search()
                .where(f"prompt_digest IN ({names})")
                .select(["prompt_digest", _VECTOR])
                .limit(None)
                .to_arrow()
            )
            matrix = self._matrix(table)
            for row, digest in enumerate(table["prompt_digest"].to_pylist()):
                found.setdefault(digest, matrix[row])
        return found

    def nearest(self, vector: Vectors, where: IndexFilter, limit: int) -> list[IndexHit]:
        """Rows by cosine similarity to a unit vector, best first; score is the cosine (-1 to 1)."""
        query = (
            self._table.search(vector, vector_column_name=_VECTOR)
            .distance_type("cosine")
            .where(where.sql(), prefilter=True)
            .select(["run_id", "prompt_digest", "started_ms", "_distance"])
            .limit(limit)
        )
        if self._probes:
            query = query.nprobes(self._probes)
        rows = query.to_arrow().to_pylist()
        return [
            IndexHit(row["run_id"], row["prompt_digest"], row["started_ms"], 1.0 - row["_distance"])
            for row in rows
        ]

    def matching(self, text: str, where: IndexFilter, limit: int) -> list[IndexHit]:
        """Rows that share words with the text, best first; score is BM25."""
        from lancedb.query import MatchQuery

        rows = (
            # mypy does not see the defaults of a pydantic dataclass.
            self._table.search(MatchQuery(text, _TEXT), query_type="fts")  # type: ignore[call-arg]
            .where(where.sql(), prefilter=True)
            .select(["run_id", "prompt_digest", "started_ms", "_score"])
            .limit(limit)
            .to_arrow()
            .to_pylist()
        )
        return [
            IndexHit(row["run_id"], row["prompt_digest"], row["started_ms"], row["_score"]) for row in rows
        ]

    def project_vectors(self, project: str) -> dict[str, Vectors]:
        """Vector of each distinct prompt of a project, by prompt digest."""
        table = (
            self._table.search()
            .where(f"project = {_quote(project)}")
            .select(["prompt_digest", _VECTOR])
            .limit(None)
            .to_arrow()
        )
        matrix = self._matrix(table)
        return {digest: matrix[row] for row, digest in enumerate(table["prompt_digest"].to_pylist())}

    def compact(self, *, flat_limit_rows: int = FLAT_LIMIT_ROWS) -> None:
        """Merges small files, folds new rows into the indices, and indexes vectors once there are many."""
        from lancedb.index import IvfFlat

        with self._write_lock:
            rows = self._table.count_rows()
            indexed = any(_VECTOR in entry.columns for entry in self._table.list_indices())
            if rows > flat_limit_rows and not indexed:
                self._table.create_index(
                    _VECTOR,
                    config=IvfFlat(
                        distance_type="cosine", num_partitions=max(8, rows // _ROWS_PER_PARTITION)
                    ),
                )
            self._table.optimize(cleanup_older_than=_KEEP_VERSIONS)
            self._probes = self._read_probes()

    def purge(self, *, flat_limit_rows: int = FLAT_LIMIT_ROWS) -> None:
        """Writes everything anew and removes all older files: deleted texts are in none of them any more.

        A deletion by itself only marks rows; data files and word lists keep the text until rewritten.
        """
        import lancedb

        with self._write_lock:
            rows = self._table.search().limit(None).to_arrow().select(self._schema().names)
            self._table = self._make_table(lancedb.connect(str(self._folder)), rows)
        self.compact(flat_limit_rows=flat_limit_rows)
        with self._write_lock:
            self._table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)

    def refresh(self) -> None:
        """Sees what another process has compacted."""
        self._table.checkout_latest()
        self._probes = self._read_probes()

    def close(self) -> None:
        """Lets go of the table."""
        with self._write_lock:
            self._table = None

    def _read_probes(self) -> int:
        """How many partitions a search looks into; 0 without a vector index."""
        for entry in self._table.list_indices():
            if _VECTOR in entry.columns:
                return max(_MIN_PROBES, int(_PROBED_SHARE * entry.num_indexed_rows / _ROWS_PER_PARTITION))
        return 0

    def _matrix(self, table: Any) -> Vectors:
        column = table[_VECTOR].combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat, dtype=np.float32).reshape(table.num_rows, self._dimension)


def _quote(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
