"""Weights as people keep them: torch's files and safetensors, checkpoints around them, other names for their tensors.

A file is read by its content, and no code in it runs.
"""

import itertools
import pickle
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch._utils import _rebuild_tensor, _rebuild_tensor_v2

from self_sup_classes.provenance import Provenance
from utils.config import UserError
from utils.distributed import note_once
from utils.tensor_files import read_tensors

COUNTER = ".num_batches_tracked"  # of a BatchNorm: absent in files of before 2018, such as torchvision's ResNets
SHOWN = 3  # names of a list in a message
# How files begin that are taken for weights, and what they are.
_OTHERS = {
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"version https://git-lfs": "a pointer of Git LFS: git lfs pull fetches the file itself",
    b"<": "a web page: the download did not work",
    b"\x1f\x8b": "a gzip archive: unpack it",
}
# Marks the moving average of a network that lies beside it, as in MoCo, BYOL and DINO.
_AVERAGE = re.compile(r"(^|[._])(k|key|momentum|target|teacher|ema)([._]|$)")
_OF_A_MODULE = ("_modules", "_parameters", "_buffers")  # where a pickled nn.Module keeps its parts


# --- reading ---


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a file by name. Those in dicts inside it, or in a pickled network, have dotted names.

    It may be any file of torch.save or a safetensors file, whatever its suffix. Objects that were pickled beside the
    tensors are left out, and said. Raises UserError if the file is missing, damaged or something else.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the path of a file of weights, such as those under runs/.")
    found = _content(path)
    tensors = dict(_tensors(found, "", set()))
    if not tensors:
        raise UserError(f"{path} does not hold a state_dict: expected tensors by name, found {_kind(found)}.")
    return found if isinstance(found, Mapping) and found.keys() == tensors.keys() else tensors  # it may have attributes


def _content(path: Path) -> Any:
    """Return what a file holds: tensors in dicts and lists, and perhaps stand-ins for other objects."""
    with path.open("rb") as file:
        start = file.read(32)
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch, on protocols and sources
            return _read(path, start)
    except MemoryError:  # of a file that may be whole
        raise
    except Exception as error:  # torch raises many types for the many ways in which a file can be broken
        reason = re.sub(r"\x1b\[[\d;]*m", "", str(error)).partition("\n")[0].partition(". ")[0]
        found = next((kind for magic, kind in _OTHERS.items() if start.startswith(magic)), f"{reason or repr(error)}")
        raise UserError(
            f"{path} is damaged or not a state_dict that torch can read ({found}); give a file that "
            "torch.save(network.state_dict(), FILE) or safetensors wrote."
        ) from error


def _read(path: Path, start: bytes) -> Any:
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
        with safetensors.safe_open(path, "pt") as file:
            seen = Provenance.of_text(file.metadata() or {})
        state = OrderedDict(safetensors.torch.load_file(path))
        if seen is not None:
            seen.attach(state)
        return state
    try:
        return read_tensors(path)
    except pickle.UnpicklingError:
        return _without_objects(path)


class _StandIn(dict):
    """Stands for an object of any class that a pickle names: keeps a dict that it is given, and does nothing."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key
    dump_patches = False  # torch asks the class of a network in an old file

    def __init__(self, *arguments: object) -> None:
        super().__init__()

    def __call__(self, *arguments: object) -> "_StandIn":
        return self

    def __setstate__(self, state: object) -> None:
        self.update(state if isinstance(state, dict) else {})

    def append(self, *items: object) -> None:
        """Take the items of a list or a set, and forget them."""

    extend = add = append


# All that a pickle may call: what makes tensors of the bytes in the file.
_REBUILD: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch._tensor._rebuild_from_type_v2": lambda rebuild, kind, arguments, state: rebuild(*arguments),
}


def _without_objects(path: Path) -> Any:
    """Return the content of a file of torch.save with stand-ins for all objects that are not tensors, dicts or lists.

    A pickle says which functions to call; here it gets those of _REBUILD, or a stand-in, and nothing is imported.
    """
    left_out = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{module}.{name}"
            if full in _REBUILD:
                return lambda *arguments: _REBUILD[full](*arguments)  # which a pickle may change, unlike the original
            if module not in ("builtins", "__builtin__", "_codecs"):  # a set or bytes, for instance
                left_out.add(full)
            return _StandIn

    def load(file: Any, **arguments: Any) -> Any:
        return Unpickler(file, **arguments).load()

    with path.open("rb") as file:
        module = SimpleNamespace(__name__="pickle", Unpickler=Unpickler, load=load)
        found = torch.load(file, "cpu", pickle_module=module, weights_only=False)
    if left_out:
        note_once(f"{path}: only its tensors are read, not its pickled {_listed(sorted(left_out))}")
    return found


def _tensors(value: Any, name: str, outer: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in dicts, lists and stand-ins, with the keys on the way to them."""
    if isinstance(value, Tensor):
        if value.layout == torch.strided and not (value.is_quantized or value.is_complex() or value.is_meta):
            yield name, value
    elif isinstance(value, Mapping | list | tuple) and id(value) not in outer:
        outer.add(id(value))  # each is read once: an object may hold itself
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(inner, name if key in _OF_A_MODULE else f"{name}.{key}" if name else str(key), outer)


def _kind(found: Any) -> str:
    if isinstance(found, Mapping):
        return f"a dict of {_listed([str(key) for key in found])}" if found else "an empty dict"
    return f"a {type(found).__name__}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


# --- which of the tensors are those of a network ---


@dataclass(frozen=True)
class Chosen:
    """The tensors of a file that are those of a network.

    weights   by the network's own names, and any that belong to its parts but have no place in it
    prefix    what their names in the file begin with
    left_out  how many others there are, by what their names begin with
    in_order  whether names say nothing, and the order of the tensors decides
    """

    weights: dict[str, Tensor]
    prefix: str
    left_out: dict[str, int]
    in_order: bool = False

    def note(self, source: str) -> str:
        """Return what was taken and left out, "" where a file holds the network alone."""
        parts = [f"{count} of {name}" for name, count in self.left_out.items()]
        taken = f"the tensors of {self.prefix} are taken" if self.prefix else ""
        if self.in_order:
            taken = f"its names are unknown, so its first {len(self.weights)} tensors are taken in their order"
        rest = f"left out {_listed(parts)}" if parts else ""
        return f"{source}: {'; '.join(filter(None, [taken, rest]))}" if taken or rest else ""


def choose(net: nn.Module, found: Mapping[str, Tensor], head: str, has_head: bool) -> Chosen:
    """Return the tensors that are those of a library's network `net`, wherever they lie in a file, for load_strictly.

    Names may begin with anything, such as "model." or "module.encoder_q."; the beginning is taken under which most
    names and shapes are those of `net`, and of equals a network rather than its moving average, then the first. Names
    may also be the places of the network's modules in a row ("0.weight", as lightly keeps them), or those of
    torchvision's DenseNet files. If no name is known, but the shapes agree in their order, the tensors are taken in
    that order, as timm's are for torchvision's EfficientNets.
    head      name of the last layer. The network has it (`has_head`), and then a file may say the name's first part
              only, or a place in it; or it does without, as an encoder, and then that of the file is left out
    """
    expected = net.state_dict()
    every = {name: name for name in expected}, _in_a_row(net, expected), _old_densenet(expected)
    namings = [naming for naming in every if naming]
    fits: Counter[tuple[int, str]] = Counter()
    for name, value in found.items():
        for which, naming in enumerate(namings):
            for prefix, rest in _splits(name):
                if rest in naming:
                    fits[which, prefix] += 1 + len(expected) * (value.shape == expected[naming[rest]].shape)
    if not fits:
        return _in_order(expected, found) or Chosen(dict(found), "", {})
    best = [place for place, score in fits.items() if score == max(fits.values())]
    which, prefix = next((place for place in best if not _AVERAGE.search(place[1])), best[0])
    naming, start = namings[which], f"{prefix}." if prefix else ""
    inside = {name.removeprefix(start): value for name, value in found.items() if name.startswith(start)}
    naming |= _head_elsewhere(inside, head) if has_head else {}
    tops = {name.partition(".")[0] for name in naming}
    own = [name for name in inside if name.partition(".")[0] in tops and (has_head or name.rpartition(".")[0] != head)]
    weights = {naming.get(name, name): inside[name] for name in own}
    taken = {start + name for name in own}
    rest = {name: value for name, value in found.items() if name not in taken}
    return Chosen(weights, prefix, _groups(rest, prefix))


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], source: str, description: str) -> None:
    """Load `state` into `net`; names and shapes must be the same, but for BatchNorm's counters, which may be absent.

    Otherwise raises UserError with the first differences: `source` does not fit a `description`, such as "resnet18 with
    1 input channel(s)". So it does if a weight is not finite.
    """
    expected = net.state_dict()
    if not expected.keys() & state.keys():
        hint = " timm's names need --backbone timm/NAME." if any("conv_stem." in key for key in state) else ""
        raise UserError(
            f"{source} does not fit a {description}: found {_listed([*state])}, expected {_listed([*expected])}.{hint}"
        )
    wrong = [
        f"{key}: found {_shape(state, key)}, expected {_shape(expected, key)}"
        for key in {**expected, **state}
        if _shape(state, key) != _shape(expected, key) and not (key.endswith(COUNTER) and key not in state)
    ]
    if wrong:
        raise UserError(
            f"{source} does not fit a {description}: {len(wrong)} of {len(expected)} tensors differ, first "
            f"{'; '.join(wrong[:SHOWN])}. Give the --backbone, --in-channels and classes that it was saved with."
        )
    if odd := [key for key, value in state.items() if not value.isfinite().all()]:
        raise UserError(
            f"{source} holds weights that are not finite, first in {odd[0]}; give those of another epoch or run."
        )
    counters = {key: torch.zeros_like(value) for key, value in expected.items() if key.endswith(COUNTER)}
    full = OrderedDict({**counters, **state})
    full._metadata = expected._metadata  # type: ignore[attr-defined]  # versions of modules, which some ask for
    net.load_state_dict(full, strict=True)


def _in_a_row(net: nn.Module, expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Return {name in nn.Sequential(*net.children()): name in net}."""
    places = {name: str(place) for place, (name, _) in enumerate(net.named_children())}
    return {f"{places[top]}.{rest}": name for name in expected for top, _, rest in [name.partition(".")]}


def _old_densenet(expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Return {name in torchvision's file: name in net} of a DenseNet, {} of others: its layers had a dot more."""
    names = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): name for name in expected}
    return {} if all(old == name for old, name in names.items()) else names


def _in_order(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Chosen | None:
    """Return the tensors in their order if their shapes are those expected, and at most a head follows, else None.

    Counters do not count, and the first convolution may see another number of channels.
    """
    own, theirs = ([name for name in tensors if not name.endswith(COUNTER)] for tensors in (expected, found))
    shapes = [(expected[mine].shape, found[other].shape) for mine, other in zip(own, theirs, strict=False)]
    agree = len(shapes) == len(own) and all(a[0:1] == b[0:1] and a[2:] == b[2:] for a, b in shapes[:1])
    if not agree or any(a != b for a, b in shapes[1:]) or len(theirs) - len(own) not in (0, 2):
        return None
    weights = {mine: found[other] for mine, other in zip(own, theirs, strict=False)}
    return Chosen(weights, "", _groups({name: found[name] for name in theirs[len(own) :]}, ""), in_order=True)


def _head_elsewhere(inside: Mapping[str, Tensor], head: str) -> dict[str, str]:
    """Return {name in the file: name in the network} of the head, where it is the only layer in its place."""
    top = head.partition(".")[0]
    names = [name for name in inside if name.partition(".")[0] == top]
    leaves = {name.rpartition(".")[2]: name for name in names}
    return {leaves[leaf]: f"{head}.{leaf}" for leaf in leaves} if len(names) == 2 == len(leaves) else {}


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield ("", "a.b"), ("a", "b") of "a.b"."""
    parts = name.split(".")
    return ((".".join(parts[:k]), ".".join(parts[k:])) for k in range(len(parts)))


def _groups(rest: Mapping[str, Tensor], prefix: str) -> dict[str, int]:
    """Return how many tensors there are by the beginning of their names; {} if all are zeros, as an untrained head."""
    if not any(value.any() for value in rest.values()):
        return {}
    counts: Counter[str] = Counter()
    for name in rest:
        inside = bool(prefix) and name.startswith(f"{prefix}.")
        parts = name.split(".")[: len(prefix.split(".")) + inside]
        short = parts if inside else [*itertools.takewhile(lambda part: not part.isdigit(), parts)]
        counts[".".join(short or parts)] += 1
    return dict(counts)


def _shape(tensors: Mapping[str, Tensor], key: str) -> str:
    return str(tuple(tensors[key].shape)) if key in tensors else "nothing"
