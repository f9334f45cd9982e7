"""The keys and values of the latents that a stream still sees: a rolling window behind a sink, allocated once."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

Slabs = list[tuple[torch.Tensor, torch.Tensor]]  # (k, v) by store and layer


@dataclass
class _Store:
    """Buffers of the conditionings that came in one call: by layer [len(keys) B, tokens, width]."""

    keys: tuple[int, ...]
    k: list[torch.Tensor]
    v: list[torch.Tensor]

    def rows(self, key: int) -> slice:
        items = len(self.k[0]) // len(self.keys)
        at = self.keys.index(key) * items
        return slice(at, at + items)


@dataclass
class _Opened:
    """A chunk's place in the cache; what its opening has evicted, where that is kept."""

    frames: int
    evicted: int = 0
    slabs: Slabs = field(default_factory=list)


class KVCache:
    """layers, tokens: of the network and of one latent. window: latents it has room for; sink: how many of the first
    are never evicted. depth: how many chunks can be taken back across evictions (their slabs wait on the CPU). spare:
    latents more of which there is room, for what is seen `beside` a chunk.

    A chunk is opened, written by as many forwards as it takes (each overwrites the one before), and committed. Because
    nothing before an open chunk is ever written to, leaving it uncommitted is the same as never having tried; `back`
    takes committed chunks back, and leaves the last of them open. held: latents in the cache; position: latents of the
    stream before the open chunk.
    """

    def __init__(self, layers: int, tokens: int, window: int, sink: int = 0, depth: int = 0, spare: int = 0):
        self.layers, self.tokens, self.window, self.sink, self.depth = layers, tokens, window, sink, depth
        self.spare = spare
        self.held = self.position = 0
        self._stores: list[_Store] = []
        self._open: _Opened | None = None
        self._history: deque[_Opened] = deque()

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for store in self._stores for tensors in (store.k, store.v) for t in tensors)

    @property
    def opened(self) -> int:
        """Latents of the open chunk, 0 where none is."""
        return self._open.frames if self._open else 0

    def open(self, frames: int) -> None:
        """Makes room for a chunk: evicts the oldest latents behind the sink."""
        if self._open is not None:
            if self._open.frames == frames:
                return
            self._undo_open()
        evicted = max(0, self.held + frames - self.window)
        self._open = _Opened(frames, evicted)
        if evicted:
            kept, end = slice(self.sink * self.tokens, (self.sink + evicted) * self.tokens), self.held * self.tokens
            for k, v in self._layers():
                if self.depth:
                    self._open.slabs.append((k[:, kept].to("cpu", copy=True), v[:, kept].to("cpu", copy=True)))
                for tensor in (k, v):
                    tensor[:, kept.start : end - (kept.stop - kept.start)] = tensor[:, kept.stop : end].clone()
            self.held -= evicted

    def commit(self) -> None:
        """The open chunk is what later ones see."""
        self.held += self._open.frames
        self.position += self._open.frames
        self._history.append(self._open)
        self._open = None
        while len(self._history) > self.depth + 1:
            self._history.popleft()
        for opened in list(self._history)[: -self.depth] if self.depth else self._history:
            opened.slabs = []

    def back(self, chunks: int) -> None:
        """Takes the last committed chunks back, at most `depth`; the first of them is open again."""
        if chunks > min(self.depth, len(self._history)):
            raise ValueError(f"the cache can take {self.depth} chunks back, not {chunks}")
        for _ in range(chunks):
            self._undo_open()
            self._open = self._history.pop()
            self.held -= self._open.frames
            self.position -= self._open.frames

    def clear(self) -> None:
        """Forgets what is held, and begins at latent 0 of the stream. The buffers stay."""
        self.held, self.position, self._open = 0, 0, None
        self._history.clear()

    def settle(self, position: int) -> None:
        """The next latent is number `position` of the stream, and nothing before it can be taken back."""
        self.position = position
        self._history.clear()

    def free(self) -> None:
        self.clear()
        self._stores.clear()

    def copy(self, device: torch.device | str) -> KVCache:
        """Another cache that holds the same, on this device; nothing before it can be taken back."""
        other = KVCache(self.layers, self.tokens, self.window, self.sink, self.depth, self.spare)
        other.held, other.position = self.held, self.position
        other._stores = [
            _Store(store.keys, *([t.to(device, copy=True) for t in side] for side in (store.k, store.v)))
            for store in self._stores
        ]
        return other

    def attend(
        self, layer: int, keys: Sequence[int], k: torch.Tensor, v: torch.Tensor, beside: bool = False,
        history: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the open chunk's k and v [len(keys) B, tokens, width] and gives those of all that it sees.

        keys: the conditioning of each part of the batch (0 positive, 1 negative). Buffers are made at the first call,
        in its type and on its device. beside: the chunk comes twice, as an x0 prediction and as noise (`spare` has room
        for it); history: whether it sees what is held. ValueError for tokens that are no latents of the chunk.
        """
        length, begin = self.opened * self.tokens * (1 + beside), self.held * self.tokens
        if k.shape[1] != length:
            raise ValueError(
                f"a chunk of {self.opened} latents has {length} tokens, but the model sees {k.shape[1]}: reference "
                "images and latents that are joined to the clip cannot be streamed. Take them out of the conditioning."
            )
        keys = tuple(keys)
        known = {key: store for store in self._stores for key in store.keys}
        if not known.keys() & set(keys):
            if self.held:
                raise ValueError(
                    "a conditioning appears that the chunks before did not have: keep CFG above 1, or at 1, for the "
                    "whole stream."
                )
            self._stores.append(self._allocate(keys, k))
            known |= dict.fromkeys(keys, self._stores[-1])
        end, store = begin + length, known[keys[0]]
        seen = slice(0 if history else begin, end)
        if store.keys == keys:
            store.k[layer][:, begin:end], store.v[layer][:, begin:end] = k, v
            return store.k[layer][:, seen], store.v[layer][:, seen]
        # The parts come in another order or number than at first, as ComfyUI does when memory runs low.
        parts = []
        for key, new_k, new_v in zip(keys, k.chunk(len(keys)), v.chunk(len(keys)), strict=True):
            store, rows = known[key], known[key].rows(key)
            store.k[layer][rows, begin:end], store.v[layer][rows, begin:end] = new_k, new_v
            parts.append((store.k[layer][rows, seen], store.v[layer][rows, seen]))
        if len(parts) == 1:
            return parts[0]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _allocate(self, keys: tuple[int, ...], like: torch.Tensor) -> _Store:
        shape = len(like), (self.window + self.spare) * self.tokens, like.shape[2]
        made = [torch.empty(shape, dtype=like.dtype, device=like.device) for _ in range(2 * self.layers)]
        return _Store(keys, made[: self.layers], made[self.layers :])

    def _layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [pair for store in self._stores for pair in zip(store.k, store.v, strict=True)]

    def _undo_open(self) -> None:
        opened, self._open = self._open, None
        if opened is None or not opened.evicted:
            return
        if not opened.slabs:
            raise ValueError("what this chunk has evicted was not kept")
        begin, length, end = (n * self.tokens for n in (self.sink, opened.evicted, self.held))
        for (k, v), slabs in zip(self._layers(), opened.slabs, strict=True):
            for tensor, slab in zip((k, v), slabs, strict=True):
                tensor[:, begin + length : end + length] = tensor[:, begin:end].clone()
                tensor[:, begin : begin + length] = slab
        self.held += opened.evicted
