"""A second device for a machine that has none: tensors that say they are elsewhere, and are computed on the CPU.

Nothing may be computed of tensors of both devices but what CUDA allows (copies, numbers without dimensions, indices).
What is copied to the CPU without waiting is NaN there until its event has been waited for. Every copy between the two
and every wait for a value is written down.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import comfy.model_management
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

ROOT = Path(__file__).resolve().parents[1]
COMFYUI = Path(comfy.model_management.__file__).resolve().parents[1]
ROOMS = ("nodes", "sampling", "scoring", "l2r", "panel")
CPU = torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
# What cannot be given before the device has come to it.
WAITS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default,
         aten.is_nonzero.default}  # fmt: skip


class Event:
    """Everything that was sent before `record` has arrived after `synchronize`."""

    def record(self):
        self._before = list(_under_way)

    def synchronize(self):
        for each in self._before:
            if each in _under_way:
                target, content = _under_way.pop(each)
                target.copy_(content)


_under_way: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by id: where it is sent to, and what


class _Module(_DummyBackendModule):
    Event = Event


_setup_privateuseone_for_python_backend("elsewhere", _Module())
DEVICE = torch.device("elsewhere", 0)


class Elsewhere(torch.Tensor):
    """A tensor of the second device; `held` on the CPU is what it is computed with."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE, requires_grad=False,
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self):
        return f"Elsewhere({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


@dataclass(frozen=True)
class Crossing:
    """kind: "to host", "to host, not waited for", "to device" or "wait" (for a value). where: the
    function of this pack that did it."""

    kind: str
    where: str
    bytes: int


class SecondDevice(TorchDispatchMode):
    """Within it there is a second device; crossings: what went between the two, in order."""

    @property
    def crossings(self) -> list[Crossing]:
        return _crossings

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode these come whole
                return func.decompose(*args, **(kwargs or {}))
        return _computed(func, args, kwargs or {})


_crossings: list[Crossing] = []
_kernels = torch.library.Library("aten", "IMPL")  # for calls within torch that go past all modes


def _register(func):
    _kernels.impl(func, lambda *args, **kwargs: _computed(func, args, kwargs), "PrivateUse1")


for each in (aten.empty.memory_format, aten.empty_strided.default, aten.copy_.default, aten.resize_.default):
    _register(each)


def _computed(func, args, kwargs):
    flat = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    away = [each for each in flat if isinstance(each, Elsewhere)]
    device = kwargs.get("device")
    asked = device is not None and torch.device(device).type == DEVICE.type
    if not (away or asked):
        return func(*args, **kwargs)
    if func not in COPIES and func not in INDEXING:
        near = [each for each in flat if not isinstance(each, Elsewhere) and each.ndim]
        if near and away:
            shapes = ", ".join(f"{tuple(each.shape)} on {each.device}" for each in flat)
            raise RuntimeError(f"{func}: tensors of two devices: {shapes}")
    kind = _crossing(func, args, kwargs, away, device)
    if kind:
        _crossings.append(Crossing(kind, _where(), (flat[-1] if flat else args[0]).nbytes))
    wrappers = {id(each.held): each for each in away}
    held = tree_map(lambda each: each.held if isinstance(each, Elsewhere) else each, (args, kwargs))
    if "device" in kwargs:
        held[1]["device"] = CPU
    if func is aten._to_copy.default:
        source = held[0][0]
        if asked and id(source) in _under_way:  # the device does one after the other
            source = _under_way[id(source)][1]
        result = func(source, **{**held[1], "non_blocking": False})
    else:
        result = func(*held[0], **held[1])
    if kind == "to host, not waited for":
        _under_way[id(result)] = result, result.clone()
        return result.fill_(torch.nan)
    if kind == "wait" or (device is not None and not asked):
        return result
    return tree_map(lambda each: _wrapped(each, wrappers, flat), result)


def _wrapped(each, wrappers, flat):
    if not isinstance(each, torch.Tensor) or isinstance(each, Elsewhere):
        return each
    if id(each) in wrappers:
        return wrappers[id(each)]
    if any(each is one for one in flat):  # in place of a tensor of the CPU
        return each
    return Elsewhere(each)


def _crossing(func, args, kwargs, away, device) -> str | None:
    if func in WAITS or (func in INDEXING and any(
        each is not None and each.dtype == torch.bool for each in args[1]
    )):
        return "wait"
    if func in INDEXING and any(each is not None and not isinstance(each, Elsewhere) for each in args[1]):
        return "to device"
    if func is aten.copy_.default:
        to, source = args[:2]
        if isinstance(to, Elsewhere) == isinstance(source, Elsewhere) or source.ndim == 0 and isinstance(to, Elsewhere):
            return None if isinstance(to, Elsewhere) == isinstance(source, Elsewhere) else "to device"
        return "to device" if isinstance(to, Elsewhere) else "to host"
    if func is aten._to_copy.default and device is not None:
        there, here = torch.device(device).type == DEVICE.type, isinstance(args[0], Elsewhere)
        if there == here:
            return None
        if there:
            return "to device"
        return "to host, not waited for" if kwargs.get("non_blocking") else "to host"
    return None


def _where() -> str:
    frame = sys._getframe()
    while frame := frame.f_back:
        if place := _place(frame.f_code.co_filename):
            return place if place == "ComfyUI" else f"{place}:{frame.f_code.co_name}"
    return "the test"


@cache
def _place(file: str) -> str | None:
    path = Path(file).resolve()
    if COMFYUI in path.parents:
        return "ComfyUI"
    return path.relative_to(ROOT).as_posix() if ROOT in path.parents and path.parent.name in ROOMS else None


@contextmanager
def second_device(monkeypatch) -> Iterator[SecondDevice]:
    """ComfyUI takes the second device for its GPU, with memory without end."""
    management, plenty = comfy.model_management, 1 << 40
    fast = [name for name in vars(management) if name.endswith(("_use_fp16", "_use_bf16", "_compute"))]
    for name, value in {
        "get_torch_device": lambda: DEVICE,
        "get_free_memory": lambda dev=None, torch_free_too=False: (plenty, plenty) if torch_free_too else plenty,
        "get_total_memory": lambda dev=None, torch_total_too=False: (plenty, plenty) if torch_total_too else plenty,
        **dict.fromkeys(fast, lambda *_, **__: False),
        "vram_state": management.VRAMState.NORMAL_VRAM,
        "cpu_state": management.CPUState.GPU,
    }.items():  # fmt: skip
        monkeypatch.setattr(management, name, value)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        _crossings.clear()
        _under_way.clear()
        yield stack.enter_context(SecondDevice())
        management.unload_all_models()
