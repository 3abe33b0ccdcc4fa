"""Whether a bundle's configs do anything but what a segmentation bundle needs: their code is read, none of it is run.

A MONAI config runs code: a text that begins with ``$`` is evaluated, ``_target_`` names what is called, ``imports``
what is imported. Each of these is compared here with what is known to be harmless. Expressions are read as syntax
trees. A name is followed to the object that it stands for, so that a module which a harmless one happens to import
(``monai.data.utils.os``) is not reached through it. What is not on the list is not harmless.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from string import Formatter
from types import ModuleType
from typing import Any, NamedTuple

from decathlete.bundle.description import Bundle
from decathlete.bundle.places import SUFFIXES, is_packaged
from decathlete.errors import TrustError, listed
from decathlete.files import atomic_write, files_sha256, lock


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Packages, and the parts of them of which every class and function is harmless but those that HARMFUL describes.
PARTS: dict[str, tuple[str, ...]] = {
    "monai": (
        *("data", "engines", "handlers", "inferers", "losses", "metrics", "networks", "optimizers", "transforms"),
        *("visualize", "utils.enums"),
        *("apps.deepedit", "apps.deepgrow", "apps.detection", "apps.nuclick", "apps.vista3d"),
    ),
    "torch": ("nn", "optim", "utils.data", "amp"),
    "ignite": ("engine", "metrics"),
    "numpy": ("linalg", "random", "fft"),
    "decathlete": ("data", "evaluation", "inference", "networks", "training", "transforms"),
}  # fmt: skip
HARMFUL = re.compile(
    "download|fetch|register_|perceptual|pickle|lmdb|mlflow|torchscript|torch_trt|onnx|export|save_state", re.IGNORECASE
)
# Packages that can do more than a config needs: each harmless name is listed.
NAMES = {
    "monai.utils": "ImageMetaKey convert_to_dst_type convert_to_numpy convert_to_tensor ensure_tuple ensure_tuple_rep "
    "ensure_tuple_size fall_back_tuple first get_seed set_determinism",
    "torch": "Generator Size Tensor abs all any arange argmax argmin as_tensor bfloat16 bool cat ceil "
    "channels_last channels_last_3d clamp concat device double exp flip float float16 float32 float64 "
    "floor full half inference_mode int int16 int32 int64 int8 isfinite isnan linspace load log "
    "logical_and logical_not logical_or long manual_seed max mean min no_grad nonzero ones permute round "
    "set_float32_matmul_precision sigmoid softmax sqrt squeeze stack std sum tensor transpose uint8 "
    "unique unsqueeze var where zeros",
    "torch.cuda": "current_device device_count empty_cache is_available set_device",
    "torch.cuda.amp": "GradScaler autocast",
    "torch.distributed": "barrier destroy_process_group get_rank get_world_size init_process_group is_available "
    "is_initialized is_nccl_available",
    "torch.distributed.elastic.multiprocessing.errors": "record",
    "numpy": "abs all any arange argmax argmin array asarray bool_ ceil clip concatenate diag dtype exp eye "
    "float16 float32 float64 floor full inf int16 int32 int64 int8 isin isnan linspace log logical_and "
    "logical_or max mean median min nan newaxis ones percentile pi prod quantile round sqrt stack std sum "
    "uint16 uint32 uint8 unique where zeros",
    "math": "ceil exp fabs floor inf isfinite isnan log log10 log2 nan pi pow prod sqrt",
    "os": "cpu_count sep",
    "os.path": "abspath basename dirname exists expanduser isdir isfile join normpath realpath splitext",
    "glob": "glob iglob",
    "pathlib": "Path PosixPath PurePath",
    "functools": "partial",
    "itertools": "chain count islice product repeat zip_longest",
    "operator": "itemgetter",
    "pandas": "read_csv",
    "decathlete.files": "nifti_files",
    "decathlete.label.stock": "publish",
    "decathlete.planning": "load_fitting matched_cases",
}  # fmt: skip
# Of our own packages, classes are parts of chains and of trainings; these are the functions that configs call.
OWN_FUNCTIONS = frozenset(
    ("datalist", "dataset_folder", "distributed", "frame_files", "head_files", "join_processes", "leave_processes",
     "nifti_files", "patient_folder", "sunnybrook_datalist")
)  # fmt: skip
BUILTINS = _words(
    "abs all any bool dict divmod enumerate filter float frozenset int isinstance len list map max min pow print "
    "range reversed round set slice sorted str sum tuple zip"
)
# What may be asked of a value whose kind is not known. `replace` is missing: that of a Path moves a file.
ATTRIBUTES = _words(
    # networks, tensors, arrays
    "affine any all argmax argmin astype bool clone cpu cuda detach device dim double dtype eval float half item "
    "load_state_dict long max mean meta min modules named_parameters ndim network numel numpy parameters permute "
    "requires_grad_ repeat reshape shape size squeeze state_dict sum to tolist train unsqueeze view zero_grad array T "
    # engines
    "add_event_handler attach batch epoch iteration max_epochs metrics optimizer output run state "
    # lists, dictionaries, texts
    "append copy count difference endswith extend get index intersection isdigit items join keys lower lstrip "
    "removeprefix removesuffix rsplit rstrip sort split startswith strip title union upper values zfill "
    # paths
    "absolute as_posix exists glob is_dir is_file iterdir joinpath name parent parents parts relative_to resolve "
    "rglob stem suffix suffixes with_name with_suffix"
)
SETTINGS = {"torch.backends.cudnn": ("benchmark", "deterministic", "allow_tf32", "enabled"),
            "torch.backends.cuda.matmul": ("allow_tf32",)}  # fmt: skip
# Arguments that let a file run code as it is read, and the values that do not.
SAFE_VALUES: dict[str, tuple[Any, ...]] = {"allow_pickle": (False,), "weights_only": (True,), "pickle_module": ()}
# Arguments in which MONAI looks up a dotted name, and where it looks a short one up; it calls what it finds.
LOOKED_UP = {"reader": "monai.data", "writer": "monai.data", "merger_cls": "monai.inferers.merger"}
LOOKS_UP = re.compile(
    "LoadImage|SaveImage|PatchInferer"
)  # their classes: components alone, so that arguments have names
PREDEFINED = {"monai": "monai", "torch": "torch", "np": "numpy", "numpy": "numpy"}  # by MONAI's parser
REFERENCE = re.compile(r"@(?:\w*)(?:(?:#|::)\w*)*")  # as MONAI's resolver finds them
PLACEHOLDER = "reference_of_the_config"
MACRO_FILE = re.compile(r"\.(json|ya?ml)\b", re.IGNORECASE)
PLAIN = (
    *(ast.Expression, ast.Constant, ast.BinOp, ast.BoolOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Subscript),
    *(ast.Slice, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.Starred, ast.JoinedStr, ast.FormattedValue, ast.ListComp),
    *(ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.Lambda, ast.arguments, ast.arg, ast.keyword),
    *(ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)  # fmt: skip


class Finding(NamedTuple):
    """A place of a config that is not known to be harmless."""

    id: str
    text: str
    reason: str


class _NotKnownError(Exception):
    """Why a piece of a config is not known to be harmless."""


def check_trust(folder: Path, config: Any) -> None:
    """Refuse a bundle that did not come with the package if its configs run more than what is known to be harmless.

    Args:
        folder: the bundle's folder.
        config: what is going to be parsed, as dictionaries and lists.

    Raises:
        TrustError: the places and what stands there, unless these very configs are trusted.
    """
    if is_packaged(folder):
        return
    found = findings(config | {"_meta_": Bundle(folder).metadata})
    if found and not is_trusted(folder):
        places = listed([f"{f.id}: {f.text[:80]}: {f.reason}" for f in found], most=3)
        raise TrustError(
            folder,
            "this bundle's configs run code that is not known to be harmless",
            places,
            "Read them, and pass --trust if you trust their author",
        )


def trust(folder: Path) -> None:
    """Keep that the configs of a bundle may run, for this user and until one of them changes."""
    file = _trust_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with lock(file):
        content = _trusted() | {_digest(folder): str(folder.resolve())}
        with atomic_write(file) as part:
            part.write_text(json.dumps(content, indent=1), encoding="utf-8")


def is_trusted(folder: Path) -> bool:
    """Whether this user has trusted the configs of a bundle as they are now."""
    return _digest(folder) in _trusted()


def _digest(folder: Path) -> str:
    return files_sha256(f for f in (folder / "configs").iterdir() if f.suffix.lstrip(".") in SUFFIXES)


def _trust_file() -> Path:
    """In the folder of the user's settings: ``decathlete`` in ``$XDG_CONFIG_HOME``, by default ``~/.config``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "decathlete" / "trusted_bundles.json"


def _trusted() -> dict[str, str]:
    try:
        content = json.loads(_trust_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def findings(config: Any) -> list[Finding]:
    """Places of a config that are not known to be harmless, in its order; nothing of it is evaluated.

    Args:
        config: the content of a bundle's configs and metadata, as dictionaries and lists.
    """
    names, found = dict(PREDEFINED), []
    places = list(_walk(config, ""))
    for place, value in places:  # an import binds its name for every expression
        if (statement := _import(value)) is not None:
            found += _judged(place, value, lambda s=statement: _bind(names, s))
    for place, value in places:
        if isinstance(value, dict):
            found += _judged(place, value.get("_target_"), lambda v=value: _component(v, names))
        elif isinstance(value, str) and value.startswith("%"):
            found += _judged(place, value, lambda v=value: _macro(v))
        elif isinstance(value, str) and value.startswith("$") and _import(value) is None:
            found += _judged(place, value, lambda v=value: _Expression(names).judge(v[1:]))
    return found


def _walk(config: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every value of a config with its id."""
    yield place, config
    children = (
        config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, (list, tuple)) else ()
    )
    for key, value in children:
        yield from _walk(value, f"{place}::{key}" if place else str(key))


def _judged(place: str, text: Any, judge: Any) -> list[Finding]:
    try:
        judge()
    except _NotKnownError as error:
        return [Finding(place, str(text), str(error))]
    return []


def _import(text: Any) -> ast.Import | ast.ImportFrom | None:
    """The import statement that a text is, None if it is something else or more than that."""
    if not isinstance(text, str) or not text.startswith("$") or "import" not in text:
        return None
    try:
        statements = ast.parse(text[1:]).body
    except (SyntaxError, ValueError):
        return None
    return statements[0] if len(statements) == 1 and isinstance(statements[0], (ast.Import, ast.ImportFrom)) else None


def _bind(names: dict[str, str], statement: ast.Import | ast.ImportFrom) -> None:
    if len(statement.names) > 1:
        raise _NotKnownError("imports several names at once")
    alias = statement.names[0]
    whole = alias.name
    if isinstance(statement, ast.ImportFrom):
        if statement.level or not statement.module:
            raise _NotKnownError("imports from beside it")
        whole = f"{statement.module}.{alias.name}"
    if not _leads_to_known(whole):
        _known(whole.split("."))  # raises unless it is a harmless name
    name = alias.asname or alias.name
    if names.setdefault(name, whole) != whole:
        raise _NotKnownError(f"'{name}' already stands for {names[name]}")


def _leads_to_known(dotted: str) -> bool:
    """Whether harmless names lie below a module."""
    parts = [f"{package}.{part}" for package, several in PARTS.items() for part in several]
    return any(f"{known}.".startswith(f"{dotted}.") for known in [*parts, *NAMES, *SETTINGS]) or (
        any(dotted.startswith(f"{part}.") for part in parts) and isinstance(_object(dotted), ModuleType)
    )


def _known(chain: Sequence[str]) -> int:
    """How many words of a dotted name make the name of something harmless.

    Raises:
        _NotKnownError: none of them do.
    """
    dotted = ".".join(chain)
    for count in range(2, len(chain) + 1):
        home, name = ".".join(chain[: count - 1]), chain[count - 1]
        if name in NAMES.get(home, "").split():
            return count
        if any(f"{home}.".startswith(f"{chain[0]}.{part}.") for part in PARTS.get(chain[0], ())):
            found = _object(f"{home}.{name}")
            if isinstance(found, ModuleType):
                continue
            if found is None and isinstance(_object(home), ModuleType) and not hasattr(_object(home), name):
                return len(chain)  # there is no such name: a slip, for others to report
            if found is None or name.startswith("_") or HARMFUL.search(name) or not _is_of(found, chain[0], name):
                break
            return count
    raise _NotKnownError(f"{dotted} is not on the list")


@cache
def _object(dotted: str) -> Any:
    """What a dotted name stands for, as long as the way leads through modules of its own package; else None."""
    package, *words = dotted.split(".")
    try:
        found: Any = import_module(package)
        for count, word in enumerate(words, 1):
            if word.startswith("_") or not isinstance(found, ModuleType) or found.__name__.split(".")[0] != package:
                return None
            below = getattr(found, word, None)
            found = import_module(".".join([package, *words[:count]])) if below is None else below
    except ImportError:
        return None
    if isinstance(found, ModuleType) and found.__name__.split(".")[0] != package:
        return None
    return found


def _is_of(found: Any, package: str, name: str) -> bool:
    """Whether an object was made in a package, and not imported there from elsewhere."""
    home = getattr(found, "__module__", None) or type(found).__module__
    if package == "decathlete":
        return home.startswith("decathlete.") and (isinstance(found, type) or name in OWN_FUNCTIONS)
    return home.split(".")[0] in (package, "torch", "numpy")


def _component(config: dict, names: dict[str, str]) -> None:
    """Judge a dictionary: its target, its mode, and arguments that would let a file run code."""
    for key, safe in SAFE_VALUES.items():
        if key in config and not any(config[key] is value for value in safe):
            raise _NotKnownError(f"{key} lets a file run code")
    if "_debug_" in config or str(config.get("_mode_", "default")) not in ("default", "callable"):
        raise _NotKnownError("starts a debugger")
    for key, home in LOOKED_UP.items():
        several = config.get(key)
        for value in several if isinstance(several, list) else [several]:
            if isinstance(value, str):
                _target(value, names, partial(_below, home))
    if "_target_" in config:
        if not isinstance(target := config["_target_"], str):
            raise _NotKnownError("calls what is no name")
        _target(target, names, _monai_names)


def _below(home: str, short: str) -> list[str]:
    """What MONAI takes a short name for: a name of ``home``, else a module or a builtin."""
    return [f"{home}.{short}"] if _object(f"{home}.{short}") is not None else _no_name(short)


def _target(target: str, names: dict[str, str], full_names: Callable[[str], list[str]]) -> None:
    """Judge the name of what is called."""
    if target.startswith(("@", "%")):
        raise _NotKnownError("calls what another place names")
    if target.startswith("$"):
        try:
            words = _chain(ast.parse(target[1:], mode="eval").body)
        except (SyntaxError, ValueError):
            raise _NotKnownError("is no Python expression") from None
        if words is None or words[0] not in names:  # a text that is put together would be taken for a name
            raise _NotKnownError("calls what is only known when it runs")
        several = [".".join([names[words[0]], *words[1:]])]
    else:
        several = [target] if "." in target else full_names(target)
    for name in several:
        if _known(words := name.split(".")) != len(words):
            raise _NotKnownError(f"{name} is not on the list")


def _monai_names(component: str) -> list[str]:
    """Full names of what MONAI's parser takes for a short name."""
    modules = _locator().get_component_module_name(component)
    if not modules:
        return _no_name(component)
    return [f"{module}.{component}" for module in ([modules] if isinstance(modules, str) else modules)]


def _no_name(word: str) -> list[str]:
    """Nothing, if a word stands for nothing at all: a slip, which is for others to report.

    Raises:
        _NotKnownError: Python has a builtin or finds a module of that name.
    """
    try:
        found = hasattr(builtins, word) or find_spec(word) is not None
    except (ImportError, ValueError):
        found = True
    if found:
        raise _NotKnownError(f"{word} is not on the list")
    return []


@cache
def _locator() -> Any:
    from monai.bundle import ComponentLocator

    return ComponentLocator()


def _macro(text: str) -> None:
    if MACRO_FILE.search(text):
        raise _NotKnownError("reads another file")


def _chain(node: ast.AST) -> list[str] | None:
    """The words of a dotted name, None for anything else."""
    words: list[str] = []
    while isinstance(node, ast.Attribute):
        words.append(node.attr)
        node = node.value
    return [node.id, *reversed(words)] if isinstance(node, ast.Name) else None


class _Expression:
    """Judges one expression of a config.

    Args:
        names: what the config's imports bind, name to dotted name.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def judge(self, text: str) -> None:
        """Raise ``_NotKnownError`` unless the expression is known to be harmless."""
        try:
            tree = ast.parse(REFERENCE.sub(PLACEHOLDER, text.lstrip(" \t")), mode="eval")
        except (SyntaxError, ValueError, RecursionError):
            raise _NotKnownError("is no Python expression") from None
        self.local = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
        self.local |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        if hidden := sorted(self.local & ({*self.names, PLACEHOLDER} | BUILTINS)):
            raise _NotKnownError(f"gives '{hidden[0]}' another meaning")
        self._value(tree)

    def _value(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Name, ast.Attribute)):
            self._name(node)
        elif isinstance(node, ast.Call):
            self._call(node)
        elif isinstance(node, PLAIN):
            for child in ast.iter_child_nodes(node):
                self._value(child)
        else:
            raise _NotKnownError(f"{type(node).__name__} is not on the list")

    def _name(self, node: ast.Name | ast.Attribute) -> None:
        chain = _chain(node)
        if chain is None or chain[0] in self.local or chain[0] == PLACEHOLDER:
            if isinstance(node, ast.Attribute):
                self._attributes([node.attr])
                self._value(node.value)
        elif chain[0] in self.names:
            full = [*self.names[chain[0]].split("."), *chain[1:]]
            count = _known(full)
            if LOOKS_UP.match(full[count - 1]):
                raise _NotKnownError(f"{full[count - 1]} calls what its arguments name")
            self._attributes(full[count:])
        elif chain[0] in BUILTINS:
            self._attributes(chain[1:])
        elif hasattr(builtins, chain[0]) or chain[0].startswith("_"):
            raise _NotKnownError(f"{chain[0]} is not on the list")

    @staticmethod
    def _attributes(words: Sequence[str]) -> None:
        for word in words:
            if word not in ATTRIBUTES:
                raise _NotKnownError(f".{word} is not on the list")

    def _call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg is None and not isinstance(keyword.value, ast.Dict):
                raise _NotKnownError("passes arguments that cannot be seen")
        self._arguments(node)
        chain = _chain(node.func)
        if chain == ["setattr"]:
            self._setting(node)
        elif isinstance(node.func, ast.Attribute) and node.func.attr in ("format", "replace"):
            self._text_method(node.func)
        else:
            self._value(node.func)
        if chain and ".".join([self.names.get(chain[0], chain[0]), *chain[1:]]) == "torch.load" and len(node.args) > 2:
            raise _NotKnownError("pickle_module lets a file run code")
        settings = node.args[1:] if chain == ["setattr"] else [*node.args]
        for child in [*settings, *(k.value for k in node.keywords)]:
            self._value(child)

    @staticmethod
    def _arguments(node: ast.Call) -> None:
        """Refuse arguments that would let a file run code, given by name or in a dictionary."""
        for part in ast.walk(node):
            pairs: list[tuple[Any, ast.AST]] = []
            if isinstance(part, ast.keyword):
                pairs = [(part.arg, part.value)]
                if part.arg is None and isinstance(part.value, ast.Dict):
                    for key, given in zip(part.value.keys, part.value.values, strict=True):
                        if not isinstance(key, ast.Constant):
                            raise _NotKnownError("passes arguments that cannot be seen")
                        pairs.append((key.value, given))
            for name, value in pairs:
                safe = SAFE_VALUES.get(name) if isinstance(name, str) else None
                if safe is not None and not (isinstance(value, ast.Constant) and any(value.value is s for s in safe)):
                    raise _NotKnownError(f"{name} lets a file run code")

    def _setting(self, node: ast.Call) -> None:
        """``setattr`` is harmless for cuDNN's switches."""
        chain = _chain(node.args[0]) if node.args else None
        home = ".".join([self.names.get(chain[0], "?"), *chain[1:]]) if chain else "?"
        name = node.args[1].value if len(node.args) == 3 and isinstance(node.args[1], ast.Constant) else None
        if name not in SETTINGS.get(home, ()):
            raise _NotKnownError("setattr is not on the list")

    def _text_method(self, function: ast.Attribute) -> None:
        """Methods that are harmless for texts alone."""
        text = function.value
        if function.attr == "replace":
            if not _is_text(text):
                raise _NotKnownError(".replace is not on the list: that of a path moves a file")
        elif not (isinstance(text, ast.Constant) and isinstance(text.value, str) and _has_plain_fields(text.value)):
            raise _NotKnownError(".format is not on the list for this text")
        self._value(text)


def _is_text(node: ast.AST) -> bool:
    return (
        (isinstance(node, ast.Constant) and isinstance(node.value, str))
        or isinstance(node, ast.JoinedStr)
        or (isinstance(node, ast.Call) and _chain(node.func) in (["str"],))
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "replace"
            and _is_text(node.func.value))
    )  # fmt: skip


def _has_plain_fields(text: str) -> bool:
    """Whether the fields of a text to be formatted name arguments, and nothing inside of them."""
    try:
        fields = list(Formatter().parse(text))
    except ValueError:
        return False
    return all(re.fullmatch(r"\w*", name or "") and "{" not in (form or "") for _, name, form, _ in fields)
