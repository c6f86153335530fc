"""Published scores, to stand beside runs on the very same dataset: `published.yaml` has them, with their sources."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Source:
    """Where figures were read.

    Attributes:
        name: in two or three words, for the head of a column.
        title: authors, title and venue, or the file read.
        year: of the publication, or of the version read.
        url: where to read it.
    """

    name: str
    title: str
    year: int
    url: str


@dataclass(frozen=True)
class Column:
    """One method as one source reports it.

    Attributes:
        method: as printed.
        algorithm: what `algo=` calls it here; None if it is not in this package.
        source: who printed it.
        where: the table within the source.
        seeds: behind every figure; None if that was not read.
        protocol: whose runs, and what was averaged.
        environment: in which the policies were scored.
        scores: dataset string -> normalised score.
        spreads: dataset string -> what is printed after the score's +-; empty if nothing is.
    """

    method: str
    algorithm: str | None
    source: Source
    where: str
    seeds: int | None
    protocol: str
    environment: str
    scores: Mapping[str, float]
    spreads: Mapping[str, float]

    @property
    def citation(self) -> str:
        """One line: the source, the table in it, seeds and protocol."""
        seeds = "seeds not stated here" if self.seeds is None else f"{self.seeds} seeds"
        return f"{self.source.title}, {self.where}; {seeds}; {self.protocol}; scored in {self.environment}"


@functools.cache
def published() -> tuple[Column, ...]:
    """All columns, in the order of the file.

    Raises:
        ValueError: a row has not as many figures as its table has datasets.
    """
    content = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(FILE)))
    sources = {key: Source(**fields) for key, fields in content["sources"].items()}
    columns = []
    for table in content["tables"]:
        datasets = table["datasets"]
        for row in table["rows"]:
            for name in ("scores", "spreads"):
                if len(row.get(name, datasets)) != len(datasets):
                    raise ValueError(
                        f"{FILE.name}: {name} of {row['method']} from {table['source']}, {table['where']}, are "
                        f"{len(row[name])}, expected one for each of {len(datasets)} datasets"
                    )
            columns.append(
                Column(
                    row["method"],
                    row["algorithm"],
                    sources[table["source"]],
                    table["where"],
                    row["seeds"],
                    table["protocol"],
                    table["environment"],
                    dict(zip(datasets, row["scores"], strict=True)),
                    dict(zip(datasets, row["spreads"], strict=True)) if "spreads" in row else {},
                )
            )
    return tuple(columns)


def columns_for(datasets: Iterable[str]) -> list[Column]:
    """Those that have a figure for one of these dataset strings."""
    wanted = set(datasets)
    return [column for column in published() if wanted & set(column.scores)]
