"""What each label map was made of, so that none is mistaken for one of another scan, weights or options.

A label map has a mark in its own header, which is written with it. ``predictions.json`` beside the maps holds the full
records; where one is missing, as after a kill, the mark alone decides.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib

from decathlete.distributed.sharing import add_to_json, read_json
from decathlete.errors import DataError, DecathleteError
from decathlete.files import file_sha256, files_sha256

if TYPE_CHECKING:
    from decathlete.inference.cases import Case

FILE = "predictions.json"
FORMAT = 1
# what a prediction reads of a config, and what in it changes no voxel
ROOTS = ("channels", "preprocessing", "network_def", "network", "inferer", "tta_axes", "postprocessing")
NO_VOXELS = {
    "bundle_root", "checkpoint", "dataset_dir", "device", "image_dir", "num_workers", "output_dir", "output_on",
    "output_postfix", "progress", "sw_batch_size", "sw_device",
}  # fmt: skip
LETTERS = {"probabilities": "p", "field": "f", "masked": "m", "dicom_seg": "s"}
SHOWN = 8  # letters of a hash in a message
_REFERENCE = re.compile(r"[@%](\w+)")
_MARK = re.compile(rb"decathlete .* ([0-9a-f]{16})(?:-([pfms]+))?; not for clinical use", re.DOTALL)


def config_sha256(config: Mapping[str, Any]) -> str:
    """Hash of what a prediction reads of an inference config, overrides in it, whatever device and paths it names."""
    read: dict[str, Any] = {}
    queue = [name for name in ROOTS if name in config]
    while queue:
        name = queue.pop()
        if name not in read:
            read[name] = _voxels_alone(config[name])
            names = _REFERENCE.findall(json.dumps(read[name], default=str))
            queue += [other for other in names if other in config and other not in NO_VOXELS]
    return hashlib.sha256(json.dumps(read, sort_keys=True, default=str).encode()).hexdigest()


def _voxels_alone(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _voxels_alone(part) for name, part in value.items() if name not in NO_VOXELS}
    return [_voxels_alone(part) for part in value] if isinstance(value, (list, tuple)) else value


def changes_voxels(name: str) -> bool:
    """Whether the override of an id may change a label map."""
    return not NO_VOXELS & set(re.split("::|#", name))


class Records:
    """The records of an output folder.

    Args:
        folder: of the label maps.
        origin: `decathlete.inference.Predictor.origin`.
        replace: label maps that were made otherwise are made again instead of being refused.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any], replace: bool = False) -> None:
        self.path, self.origin, self.replace = folder / FILE, dict(origin), replace
        earlier = read_json(self.path).get("cases")
        self.earlier: dict[str, Any] = earlier if isinstance(earlier, dict) else {}
        self.new: dict[str, Any] = {}
        self._inputs: dict[Path, tuple[list[Path], str, str]] = {}
        self._unsaved: dict[str, Any] = {}
        self._saved_at, self._saving_s = time.monotonic(), 0.0

    def is_settled(self, case: Case) -> bool:
        """Whether nothing is left to predict: the outputs are present, or `begin` is going to refuse them."""
        try:
            return self._is_present(case)
        except (DecathleteError, OSError):  # reported when its turn comes
            return True

    def begin(self, case: Case, again: bool = False) -> bool:
        """Whether all outputs of a case are present, made of this very scan, with these weights and options.

        If not, the scan's content is noted as it is now, before it is read.

        Args:
            case: about to be predicted.
            again: predict it even so.

        Raises:
            DataError: the existing label map was made otherwise, or nothing says how; or the scan is missing.
        """
        if not again and self._is_present(case):
            return True
        self.key(case)
        return False

    def _is_present(self, case: Case) -> bool:
        if not case.label.is_file():
            return False
        found, key = read_mark(case.label), self.key(case)
        if found is None or found[0] != key:
            if self.replace:
                return False
            raise DataError(
                case.label,
                "the existing label map was not made from this scan with these weights and options",
                self._difference(case, found[0] if found else None),
                "Pass --overwrite, or choose another --output",
            )
        return all(path.is_file() and (part == "label" or part in found[1]) for part, path in case.targets.items())

    def key(self, case: Case) -> str:
        """16 letters that identify what a label map is made of.

        Raises:
            DataError: the input is missing.
        """
        weights = sorted(w["sha256"] for w in self.origin["weights"])
        made_of = [self._input(case)[1], weights, self.origin["config_sha256"], self.origin["tta"]]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]

    def mark(self, case: Case) -> str:
        """Text for the headers of a case, whose files are about to be written; nothing of another record stays.

        Raises:
            DataError: the scan has changed since `begin`.
        """
        key, label, every = self.key(case), case.label, case.possible
        files, stamp, _ = self._inputs[case.file]
        if _stamp(files) != stamp:
            raise DataError(case.file, "the scan changed while it was predicted", "", "Run the same command again")
        parts = {part for part in case.targets if part in LETTERS}
        found = read_mark(label) if label.is_file() else None
        if found and found[0] == key:
            parts |= {part for part in found[1] if part in every and every[part].is_file()}
        elif found and (found[1] or len(case.targets) > 1 or case.contours):
            label.unlink()  # it vouches for no file that is written now, even if this process is killed in between
            for part in found[1] & every.keys():
                every[part].unlink(missing_ok=True)
        letters = "".join(letter for part, letter in LETTERS.items() if part in parts)
        return f"decathlete {self.origin['bundle'][:24]} {key}" + (f"-{letters}" if letters else "")

    def add(self, case: Case, statistics: Mapping[str, Any], unlike: str | None, warnings: Sequence[str]) -> None:
        """Keep the record of a label map that was written, for `save`.

        Args:
            case: of the label map.
            statistics: of each class.
            unlike: why its scan looks unlike the training scans; empty: it does not; None: not known.
            warnings: all that makes it doubtful.
        """
        stamp, digest = self._input(case)
        self.new[case.name] = self._unsaved[case.name] = {
            "key": self.key(case),
            "label": case.label.name,
            "label_stamp": _stamp([case.label]),
            "input": str(case.file.absolute()),
            "input_sha256": digest,
            "input_stamp": stamp,
            **self.origin,
            "statistics": dict(statistics),
            "unlike": unlike,
            "warnings": list(warnings),
        }

    def statistics(self, case: Case) -> dict[str, Any] | None:
        """Statistics of a present label map; None where they are not known, or the file has changed since."""
        return self._known(case).get("statistics")

    def unlike(self, case: Case) -> tuple[str | None, list[str]]:
        """Why the scan of a present label map looks unlike the training scans (None: not known), and all warnings."""
        known = self._known(case)
        return known.get("unlike"), known.get("warnings", [])

    def _known(self, case: Case) -> dict[str, Any]:
        """The record of a present label map; empty where there is none, or the file has changed since."""
        record = self._record(case)
        same = record.get("key") == self.key(case) and record.get("label_stamp") == _stamp([case.label])
        return record if same else {}

    def save(self) -> None:
        """Add this run's records to ``predictions.json``, which other processes write to as well."""
        if self._unsaved:
            start = time.monotonic()
            add_to_json(self._unsaved, self.path, under="cases", format=FORMAT)
            self._unsaved.clear()
            self._saved_at, self._saving_s = time.monotonic(), time.monotonic() - start

    def save_now_and_then(self) -> None:
        """`save`, if the last time is long ago: what a killed process has not saved is made again from the maps."""
        if time.monotonic() - self._saved_at > max(10.0, 20 * self._saving_s):  # a large file is written rarely
            self.save()

    def _record(self, case: Case) -> dict[str, Any]:
        record = self.new.get(case.name) or self.earlier.get(case.name)
        return record if isinstance(record, dict) else {}

    def _input(self, case: Case) -> tuple[str, str]:
        """Stamp and hash of an input; one whose stamp is that of its record is not read again."""
        file = case.file
        if file not in self._inputs:
            files, record = input_parts(file), self._record(case)
            stamp = _stamp(files)
            if record.get("input") == str(file.absolute()) and record.get("input_stamp") == stamp:
                digest = record["input_sha256"]
            else:
                digest = file_sha256(files[0]) if len(files) == 1 else files_sha256(files)
            self._inputs[file] = files, stamp, digest
        return self._inputs[file][1:]

    def _difference(self, case: Case, key: str | None) -> str:
        """How the record of a label map and this run differ, in words."""
        if key is None:
            return "no record of how it was made: by an earlier version, or another tool"
        old, new = self._record(case), {**self.origin, "input": str(case.file.absolute())}
        if old.get("key") != key:
            return f"another record, {key[:SHOWN]} instead of {self.key(case)[:SHOWN]}"
        digest, found = self._input(case)[1], []
        if old.get("bundle") != new["bundle"]:
            found.append(f"it was made with the bundle {old.get('bundle')}, not with {new['bundle']}")
        if (before := old.get("input_sha256", "")) != digest:
            moved = old.get("input") != new["input"]
            found.append(
                f"it was made from {old.get('input')} ({before[:SHOWN]}), not from {new['input']} ({digest[:SHOWN]})"
                if moved
                else f"the scan has changed since ({before[:SHOWN]} then, {digest[:SHOWN]} now)"
            )
        weights = [sorted(w["sha256"] for w in record.get("weights", ())) for record in (old, new)]
        if weights[0] != weights[1]:
            found.append(f"it was made with the weights {_weights(old)}, not with {_weights(new)}")
        if bool(old.get("tta")) != new["tta"]:
            found.append(f"it was made with{'out' * new['tta']} --tta, this run is with{'out' * (not new['tta'])}")
        if old.get("config_sha256") != new["config_sha256"]:
            was, now = old.get("options", {}), new["options"]
            changed = [
                f"--{name} was {_value(was, name)}, now {_value(now, name)}"
                for name in sorted({*was, *now})
                if was.get(name) != now.get(name)
            ]
            found += changed or ["the bundle's inference config has changed since"]
        return "; ".join(found)


def read_mark(path: Path) -> tuple[str, set[str]] | None:
    """Key of a label map and the parts that were made with it; None where it has no mark."""
    try:
        text = nib.load(path).header["descrip"].tobytes()
    except Exception:  # whatever is there, it is not ours
        return None
    match = _MARK.match(text)
    if match is None:
        return None
    letters = (match[2] or b"").decode()
    return match[1].decode(), {part for part, letter in LETTERS.items() if letter in letters}


def input_parts(file: Path) -> list[Path]:
    """Files that an input is made of: the slices of a series, both files of a pair, else the file itself."""
    files = [file]
    if file.is_dir():
        from decathlete.io.series import series_files

        files = series_files(file)
    elif (match := re.fullmatch(r"(.+)\.(hdr|img)(\.gz)?", file.name, re.IGNORECASE)) is not None:
        pair = re.compile(re.escape(match[1]) + r"\.(hdr|img)(\.gz)?", re.IGNORECASE)
        files = sorted(path for path in file.parent.iterdir() if pair.fullmatch(path.name)) or files
    return files


def _stamp(files: Sequence[Path]) -> str:
    """What changes with the content of files, without reading them: sizes and times, hashed."""
    facts: list[tuple[Any, ...]] = []
    for path in files:
        s = path.stat() if path.exists() else None  # a link into nowhere is refused where its content is hashed
        facts.append((path.name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) if s else (path.name,))
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _weights(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{w['path']} ({w['sha256'][:SHOWN]})" for w in record.get("weights", ())) or "unknown"


def _value(options: Mapping[str, Any], name: str) -> str:
    return json.dumps(options[name]) if name in options else "not given"
