"""A graphics card that is not there: tensors lie on the CPU, say that they are on ``cuda:0``, and tell what would wait.

No kernels, no memory, no streams: it shows tensors on two devices, and where a program would wait for a real card.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CARD = torch.device("cuda", 0)
COPIES = {"copy_", "_to_copy", "_copy_from"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
WAITS = {"nonzero", "masked_select", "_unique2", "bincount", "_local_scalar_dense", "equal", "is_nonzero"}
_device, _is_cuda = torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__


class Card:
    """Within it, ``cuda:0`` can be used.

    Attributes:
        log: what a real card would be waited for: ``("sync" or "copy", where)``.
        mixed: operations on tensors of two devices, which a real card refuses.
    """

    def __init__(self, monkeypatch: Any, capability: tuple[int, int] = (9, 0)) -> None:
        self.log: list[tuple[str, str]] = []
        self.mixed: list[str] = []
        self._on: dict[int, StorageWeakRef] = {}
        self._modes = [_Operations(self), _Calls(self)]
        self.free = [60 << 30]  # bytes, the last for ever
        answers: dict[str, Callable] = {
            "is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1,
            "current_device": lambda: 0, "_lazy_init": lambda: None, "synchronize": lambda device=None: None,
            "empty_cache": lambda: None, "get_device_name": lambda device=None: "none",
            "get_device_capability": lambda device=None: capability, "is_bf16_supported": lambda *a, **k: True,
            "max_memory_allocated": lambda device=None: 0, "memory_reserved": lambda device=None: 0,
            "memory_allocated": lambda device=None: 0, "manual_seed_all": lambda seed: None,
            "mem_get_info": lambda device=None: (self.free.pop(0) if len(self.free) > 1 else self.free[0], 80 << 30),
        }  # fmt: skip
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr(torch.cuda, "Event", _Event)
        monkeypatch.setattr(torch._C, "_cuda_init", lambda: None, raising=False)
        inner, group = torch.autocast.__init__, torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype

        def autocast(self: Any, device_type: str, dtype: Any = None, enabled: bool = True, **kwargs: Any) -> None:
            cpu = device_type == "cuda"
            inner(self, *(("cpu", torch.bfloat16, False) if cpu else (device_type, dtype, enabled)), **kwargs)

        def grouped(tensors: list, *args: Any, **kwargs: Any) -> dict:  # C++ sees where they lie
            found = group(tensors, *args, **kwargs)
            return {(CARD if self.has(v[0][0][0]) else d, t): v for (d, t), v in found.items()}

        monkeypatch.setattr(torch.autocast, "__init__", autocast)
        monkeypatch.setattr(torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", grouped)

    def __enter__(self) -> Card:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is on the card."""
        mark = self._on.get(tensor.untyped_storage()._cdata)
        return mark is not None and not mark.expired()

    def put(self, tensor: torch.Tensor, on: bool = True) -> torch.Tensor:
        """Say of a tensor that it is on the card, or not."""
        storage = tensor.untyped_storage()
        if on:
            self._on[storage._cdata] = StorageWeakRef(storage)
        else:
            self._on.pop(storage._cdata, None)
        return tensor

    def note(self, kind: str) -> None:
        """Log something that a card is waited for."""
        self.log.append((kind, where()))

    def move(self, tensor: torch.Tensor, on: bool, non_blocking: bool = False) -> torch.Tensor:
        """A copy of a tensor on the card, or from it."""
        self.note("sync" if not on else "" if non_blocking else "copy")
        return self.put(tensor.clone(), on)


class _Event:
    def __init__(self, **kwargs: Any) -> None: ...
    def record(self, *args: Any) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, other: Any) -> float:
        return 1.0


class _Operations(TorchDispatchMode):
    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        card, name = self.card, func._schema.name.split("::")[1]
        given = list(tensors((args, kwargs)))
        on = [card.has(tensor) for tensor in given]
        if any(on):
            if name in WAITS:
                card.note("sync")
            if name in INDEXING:
                places = [i for i in args[1] if i is not None]
                if any(i.dtype == torch.bool for i in places):
                    card.note("sync")
                if not all(card.has(i) for i in places):
                    card.note("copy")  # a tensor of places on the CPU, or a list
            elif name not in COPIES and any(t.ndim and not o for t, o in zip(given, on, strict=True)):
                card.mixed.append(f"{name} {[tuple(t.shape) for t in given]} {where()}")
        out = func(*args, **(kwargs or {}))
        inside = on[0] if given and (name in COPIES or (name.endswith("_") and name[0] != "_")) else any(on)
        if inside and name != "_local_scalar_dense":
            for tensor in tensors(out):
                card.put(tensor)
        return out


class _Calls(TorchFunctionMode):
    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        card, kwargs, name = self.card, dict(kwargs or {}), getattr(func, "__name__", "")
        own = args[0] if args and isinstance(args[0], torch.Tensor) else None
        on = own is not None and card.has(own)
        if func == _device:
            return CARD if on else func(*args)
        if func == _is_cuda:
            return on
        if name in ("numpy", "__array__") and on:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name == "pin_memory":
            return own
        if name == "__deepcopy__" and own is not None:
            return card.put(func(*args, **kwargs), on)
        if own is not None and name in ("cpu", "cuda"):
            return card.move(own, name == "cuda") if on != (name == "cuda") else own
        if own is not None and name == "to":
            return self._to(func, own, on, args, kwargs)
        if name in ("tensor", "as_tensor", "asarray"):
            device = kwargs.pop("device", None)
            out = func(*args, **kwargs)
            there = on if device is None else torch.device(device).type == "cuda"
            return card.move(out, there) if there != card.has(out) else out
        if kwargs.get("device") is not None:
            there = torch.device(kwargs["device"]).type == "cuda"
            out = func(*args, **{**kwargs, "device": "cpu"})
            return card.put(out, there) if isinstance(out, torch.Tensor) else out
        return func(*args, **kwargs)

    def _to(self, func: Any, own: torch.Tensor, on: bool, args: tuple, kwargs: dict) -> torch.Tensor:
        words = [*args[1:], kwargs.pop("device", None), kwargs.pop("dtype", None)]
        other = next((w for w in words if isinstance(w, torch.Tensor)), None)
        device = next((torch.device(w) for w in words if isinstance(w, (str, torch.device))), None)
        device = device if other is None else CARD if self.card.has(other) else torch.device("cpu")
        dtype = next((w for w in words if isinstance(w, torch.dtype)), None if other is None else other.dtype)
        non_blocking = kwargs.pop("non_blocking", False) or any(w is True for w in words)
        there = on if device is None else device.type == "cuda"
        out = self.card.move(own, there, non_blocking) if there != on else own
        return func(out, dtype or out.dtype, **kwargs)


def tensors(values: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested lists and dictionaries."""
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor))


def where() -> str:
    """The line of our code, or MONAI's, that is at work."""
    lines = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and "/tests/" not in f.filename]
    return " < ".join(f"{f.filename.rsplit('/', 2)[-1]}:{f.lineno}" for f in lines[:-4:-1])
