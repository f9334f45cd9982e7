"""Safetensors files of ours: a JSON description under one key of the metadata, and the tensors of one layout."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..trials.foreign import printable, quoted
from .documents import checked, parsed, replace_file, unreadable
from .fields import Fields, FileError, file_name

MOST_HEADER = 4 << 20  # bytes of names, shapes and description: ViCLIP-L/14 has 0.1 million
NUMBERS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Weights:
    """An open file. shapes: of its tensors, by name, known before any is read. get: reads one. description: what the
    file says of itself, None where it says nothing."""

    file: str
    way_out: str
    shapes: Mapping[str, tuple[int, ...]]
    get: Callable[[str], Tensor]
    description: Fields | None = None

    def load_into(
        self, model: nn.Module, names: Mapping[str, str], misfit: str, dtype: torch.dtype = torch.float32
    ) -> None:
        """Fills a model that was made on the meta device. names: the model's name of each tensor that it takes. misfit:
        what is said of a file whose tensors are not the model's; FileError then comes before anything is read."""
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        there = {ours: self.shapes[name] for name, ours in names.items()}
        for name in sorted(wanted.keys() ^ there.keys()):
            problem = "is missing" if name in wanted else "is one too many"
            raise FileError(f"{self.file} {misfit}: the tensor {quoted(name)} {problem}. {self.way_out}")
        for name, shape in wanted.items():
            if there[name] != shape:
                raise FileError(
                    f"{self.file} {misfit}: the tensor '{name}' is of shape {list(there[name])}, and the rest asks for "
                    f"{list(shape)}. {self.way_out}"
                )
        model.load_state_dict({ours: self.get(name).to(dtype) for name, ours in names.items()}, assign=True)

    def finite(self, name: str, tensor: Tensor) -> Tensor:
        if not torch.isfinite(tensor).all():
            problem = f"the tensor {quoted(name)} holds NaN or infinity"
            raise FileError(f"{self.file} cannot be used: {problem}. {self.way_out}")
        return tensor


@contextmanager
def open_weights(path: Path, key: str, what: str, way_out: str, most: int) -> Iterator[Weights]:
    """A safetensors file of at most `most` bytes. key: of its description. Raises FileError, also for a file that turns
    out damaged while it is open."""
    checked(path, most, what, way_out)
    name = file_name(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if len(start) == 8 and (header := struct.unpack("<Q", start)[0]) > MOST_HEADER:
            problem = f"a header of {header} bytes; at most {MOST_HEADER} are read"
            raise FileError(f"{name} is no whole safetensors file ({problem}). {way_out}")
        with safe_open(path, "pt") as file:
            shapes = {}
            for each in file.keys():
                described = file.get_slice(each)
                if described.get_dtype() not in NUMBERS:
                    raise FileError(
                        f"{name} cannot be used: the tensor {quoted(each)} is of type {described.get_dtype()}, "
                        f"and {', '.join(sorted(NUMBERS))} are read. {way_out}"
                    )
                shapes[each] = tuple(described.get_shape())
            weights = Weights(name, way_out, shapes, file.get_tensor, _description(file.metadata(), key, name, way_out))
            yield weights
    except SafetensorError as error:
        raise FileError(f"{name} is no whole safetensors file ({printable(str(error))}). {way_out}") from None
    except OSError as error:
        raise unreadable(path, error, way_out) from None


def _description(metadata: Mapping[str, str] | None, key: str, file: str, way_out: str) -> Fields | None:
    if key not in (metadata or {}):
        return None
    try:
        return Fields(parsed(metadata[key]), file, way_out)
    except ValueError as error:
        raise FileError(f"{file}: its description '{key}' is damaged ({printable(str(error))}). {way_out}") from None


def write_weights(path: Path, tensors: Mapping[str, Tensor], key: str, description: Mapping[str, object]) -> None:
    """Raises OSError where they cannot be written; what was there before then stays."""

    def write(part: Path) -> None:
        try:
            save_file(dict(tensors), part, {key: json.dumps(description)})
        except SafetensorError as error:  # a full disk, too
            raise OSError(printable(str(error))) from None

    replace_file(path, write)
