"""Whether a stream drifts: what is measured of its chunks, held against how it began."""

from __future__ import annotations


class Drift:
    """Whether a stream's colours leave those that it began with; `limit`: by which factor they may."""

    def __init__(self, limit: float):
        self.limit, self.rows = limit, []

    def observe(self, chunk: int, **measures: float) -> str | None:
        """measures: saturation, contrast and motion of a finished chunk. A sentence where one has left its range."""
        self.rows.append({"chunk": chunk, **measures})
        if len(self.rows) < 3:
            return None
        for name, limit in (("saturation", self.limit), ("contrast", self.limit), ("motion", 4 * self.limit)):
            now, first = measures[name], sum(row[name] for row in self.rows[:2]) / 2
            if first > 0 and not first / limit <= now <= first * limit:
                return f"the stream drifts: chunk {chunk} has {name} {now:.3g}, and the first two had {first:.3g}"
        return None

    def take_back(self, chunks: int) -> None:
        del self.rows[-chunks:]
