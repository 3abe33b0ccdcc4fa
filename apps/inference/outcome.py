"""What became of a prediction's inputs, reported once for all processes that shared them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from decathlete.distributed.sharing import Share
from decathlete.errors import DecathleteError


@dataclass
class PredictReport:
    """What became of each input, and of each file of the folders that were given.

    Attributes:
        done: label maps that were written.
        skipped: label maps that were there already, made of the same scans with the same weights and options.
        failed: input to the one line that says why it has no label map, or no DICOM SEG beside it.
        elsewhere: inputs whose label maps another process was making.
        left_out: what else lies in a folder that was given, to what kind of entry it is.
        warnings: input to what makes its label map doubtful, in sentences.
        compared: inputs that were compared with the training scans.
        unlike: those of them that look unlike the training scans, whether they have a label map or not.
    """

    done: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    elsewhere: list[Path] = field(default_factory=list)
    left_out: dict[Path, str] = field(default_factory=dict)
    warnings: dict[Path, list[str]] = field(default_factory=dict)
    compared: list[Path] = field(default_factory=list)
    unlike: list[Path] = field(default_factory=list)

    def fail(self, file: Path, error: Exception, more: str = "") -> None:
        """Keep the one line on what went wrong with an input."""
        text = str(error) if isinstance(error, DecathleteError) else f"{file}: {type(error).__name__}: {error}"
        self.failed[file] = " ".join(f"{text} {more}".split())

    def compare(self, file: Path, unlike: str | None, warnings: list[str]) -> None:
        """Keep how an input looks beside the training scans (``unlike``: why not like them; None: not known)."""
        if unlike is not None:
            self.compared.append(file)
        if unlike:
            self.unlike.append(file)
        if warnings:
            self.warnings[file] = warnings

    def gather(self, share: Share) -> bool:
        """Whether this process reports for all of them; the report then holds what all processes did."""
        own = (self.done, self.skipped, self.elsewhere, self.compared, self.unlike)
        failed, warnings = ([[str(path), said] for path, said in of.items()] for of in (self.failed, self.warnings))
        everybody = share.gather([*([str(path) for path in part] for part in own), failed, warnings])
        if share.size > 1 and everybody:
            for n, part in enumerate(own):
                part[:] = [Path(path) for path in dict.fromkeys(path for process in everybody for path in process[n])]
            made = set(self.done)  # a process that began late finds cases of its share that others had made by then
            self.skipped = [path for path in self.skipped if path not in made]
            self.failed, self.warnings = (
                {Path(path): said for process in everybody for path, said in process[n]} for n in (-2, -1)
            )
        return bool(everybody)

    def say(self, folder: Path, processes: int = 1) -> None:
        """Print the counts, and a line for each warning and each input that failed, on stderr."""
        parts = [f"{len(self.done)} predicted", f"{len(self.skipped)} present", f"{len(self.failed)} failed"]
        parts += [f"{len(self.left_out)} left out" + (f" ({_kinds(self.left_out)})" if self.left_out else "")]
        parts += [f"{len(self.elsewhere)} in progress elsewhere"] if self.elsewhere else []
        parts[-1] += f", by {processes} processes" if processes > 1 else ""
        print(f"decathlete: {folder}: {', '.join(parts)}. Not for clinical use.", file=sys.stderr)
        for file, sentences in self.warnings.items():
            for sentence in sentences:
                print(f"decathlete: {file}: {sentence}", file=sys.stderr)
        if self.unlike:
            looks = "scan looks" if len(self.compared) == 1 else "scans look"
            print(
                f"decathlete: {len(self.unlike)} of {len(self.compared)} {looks} unlike the training scans.",
                file=sys.stderr,
            )
        for message in self.failed.values():
            print(f"decathlete: {message}", file=sys.stderr)


def _kinds(left_out: Mapping[Path, str]) -> str:
    """``3 .json, 1 folder, 32 DICOM``."""
    return ", ".join(f"{number} {kind}" for kind, number in sorted(Counter(left_out.values()).items()))
