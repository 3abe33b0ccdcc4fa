"""An annotator at 3D Slicer, as far as a server sees it: segments that are added, drawn, renamed, moved and sent.

Run as a program in MONAI Label's environment, random sequences go straight to the server's own code.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

BUNDLES = {"heart": {"left atrium": 1}, "hippocampus": {"anterior": 1, "posterior": 2}, "nfbs": {"brain": 1}}
OWNER = {name: bundle for bundle, classes in BUNDLES.items() for name in classes}
JUNK = ("Segment_1", "tumour", "anterior part")  # names that are no class
FORMATS = (".nii.gz", ".nrrd", ".seg.nrrd")
PERSONS = ("anna", "user-xyz")

Send = Callable[[Path, list[dict], str], bool]


@dataclass
class Viewer:
    """Segments in their order, each a name and its voxels; a voxel is of one segment at most.

    Attributes:
        image: file of the image.
        segments: name and mask (X, Y, Z).
        sent: bundle to what was last accepted of it, name of the class to mask.
        accepted: label maps that were accepted.
    """

    image: Path
    segments: list[list] = field(default_factory=list)
    sent: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    accepted: int = 0

    def __post_init__(self) -> None:
        self.shape = nib.load(self.image).shape

    def add(self, name: str) -> None:
        self.segments.append([name, np.zeros(self.shape, bool)])

    def draw(self, place: int, low: tuple[int, ...], size: int) -> None:
        box = tuple(slice(start, start + size) for start in low)
        for _, mask in self.segments:
            mask[box] = False
        self.segments[place][1][box] = True

    def show(self, labels: dict[str, int], array: np.ndarray) -> None:
        """A prediction: its segments in the place of those of the same names."""
        for name, value in labels.items():
            self.segments = [one for one in self.segments if one[0] != name]
            for _, mask in self.segments:
                mask[array == value] = False
            self.segments.append([name, array == value])

    def info(self) -> list[dict]:
        """What Slicer says of the segments: every one has its place as its number, drawn or not."""
        return [{"name": name, "idx": place} for place, (name, _) in enumerate(self.segments, 1)]

    def export(self, file: Path) -> Path:
        """The label map as Slicer saves it, by the suffix of the file."""
        source = nib.load(self.image)
        voxels = np.zeros(self.shape, np.uint8)
        for place, (_, mask) in enumerate(self.segments, 1):
            voxels[mask] = place
        if file.name.endswith(".nii.gz"):
            nib.save(nib.Nifti1Image(voxels, source.affine), file)
            return file
        named = file.name.endswith(".seg.nrrd")
        lps = np.diag([-1.0, -1, 1, 1]) @ source.affine
        lines = ["NRRD0004", "type: unsigned char", "dimension: 3", "space: left-posterior-superior",
                 "sizes: " + " ".join(map(str, self.shape)), "kinds: domain domain domain", "encoding: raw",
                 "space directions: " + " ".join("(" + ",".join(map(repr, map(float, c))) + ")" for c in lps[:3, :3].T),
                 "space origin: (" + ",".join(map(repr, map(float, lps[:3, 3]))) + ")"]  # fmt: skip
        for number, (name, _) in enumerate(self.segments if named else []):
            lines += [f"Segment{number}_Name:={name}", f"Segment{number}_LabelValue:={number + 1}"]
        file.write_bytes(("\n".join(lines) + "\n\n").encode() + voxels.tobytes(order="F"))
        return file

    def submit(self, file: Path, person: str, send: Send) -> None:
        """Send the label map; what must have come of it is kept in ``sent``."""
        drawn = [(name, mask) for name, mask in self.segments if mask.any()]
        right = bool(drawn) and all(name in OWNER for name, _ in drawn)
        assert send(self.export(file), self.info(), person) == right, f"{self.info()}: expected {right}"
        if not right:
            return
        self.accepted += 1
        for bundle in {OWNER[name] for name, _ in drawn}:
            classes = {name: np.zeros(self.shape, bool) for name in BUNDLES[bundle]}
            for name, mask in drawn:
                if name in classes:
                    classes[name] |= mask
            self.sent[bundle] = classes

    def wrong(self, bundle: str, label: Path, values: dict[str, int]) -> int:
        """Voxels of a stored label whose class is another than the one drawn."""
        voxels = np.asarray(nib.load(label).dataobj)
        kept = {name: voxels == value for name, value in values.items()}
        assert set(np.unique(voxels)) <= {0, *values.values()}
        return sum(int(np.count_nonzero(kept[name] != mask)) for name, mask in self.sent[bundle].items())


@dataclass
class Server:
    """What a sequence does to a server, over HTTP or not: functions of the image's id."""

    submit: Callable[[str], Send]
    stored: Callable[[str, str], tuple[Path, dict[str, int]]]  # image, bundle: file and class to value
    predict: Callable[[str, str], tuple[dict[str, int], np.ndarray]]
    train: Callable[[str], None]


def sequence(seed: int, image: Path, folder: Path, server: Server, steps: int = 12) -> tuple[int, int]:
    """Random steps of an annotator on one image: wrong voxels that were stored, and label maps that were accepted."""
    chance, wrong = random.Random(seed), 0
    viewer, name = Viewer(image), image.name.removesuffix(".nii.gz")
    for shown in OWNER:  # what Slicer makes of /info/
        viewer.add(shown)
    for step in range(steps):
        what = chance.choice(
            ["add", "delete", "rename", "move", "draw", "draw", "submit", "submit", "train", "predict"]
        )
        place = chance.randrange(len(viewer.segments)) if viewer.segments else None
        if what == "add" or place is None:
            viewer.add(chance.choice([*OWNER, *OWNER, *JUNK]))
        elif what == "delete":
            del viewer.segments[place]
        elif what == "rename":
            viewer.segments[place][0] = chance.choice([*OWNER, *OWNER, *JUNK])
        elif what == "move":
            chance.shuffle(viewer.segments)
        elif what == "draw":
            viewer.draw(place, tuple(chance.randrange(n - 4) for n in viewer.shape), 4)
        elif what == "submit":
            file = folder / f"{seed}_{step}{chance.choice(FORMATS)}"
            viewer.submit(file, chance.choice(PERSONS), server.submit(name))
            file.unlink()
        elif what == "predict":
            viewer.show(*server.predict(name, "hippocampus"))
        elif viewer.sent:
            server.train(chance.choice(sorted(viewer.sent)))
        wrong += sum(viewer.wrong(bundle, *server.stored(name, bundle)) for bundle in viewer.sent)
    return wrong, viewer.accepted


def in_process(studies: Path) -> Server:
    """The server's datastore and its reading of labels, without routes."""
    from decathlete.errors import DecathleteError
    from decathlete.label.classes import Classes
    from decathlete.label.studies import StudiesFolder, label_files

    store = StudiesFolder(studies, {1}, Classes(BUNDLES), watch=False)

    def submit(image: str) -> Send:
        def send(file: Path, info: list[dict], person: str) -> bool:
            try:
                with label_files(store, image, file, {"label_info": info}, None) as files:
                    for bundle, label in files.items():
                        store.save_label(image, str(label), "final", {"model": bundle, "client_id": person})
            except DecathleteError:
                return False
            return True

        return send

    def stored(image: str, bundle: str) -> tuple[Path, dict[str, int]]:
        [pair] = [pair for pair in store.pairs(bundle) if pair["case_id"] == image]
        tag = Path(pair["label"]).parent.name
        about = store.about(image, tag)
        assert about.bundle == bundle
        return Path(pair["label"]), dict(about.labels or {})

    def predict(image: str, bundle: str) -> tuple[dict[str, int], np.ndarray]:
        source = nib.load(store.get_image_uri(image))
        array = np.zeros(source.shape, np.uint8)
        array[3:9, 3:9, 3:9], array[9:12, 3:9, 3:9] = 1, 2
        file = studies.parent / "predicted.nii.gz"
        nib.save(nib.Nifti1Image(array, source.affine), file)
        store.save_label(image, str(file), "original", {"model": bundle, "params": {}})
        return BUNDLES[bundle], array

    return Server(submit, stored, predict, lambda bundle: store.refresh())


if __name__ == "__main__":
    studies_, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    images, server_ = sorted(studies_.glob("*.nii.gz")), in_process(studies_)
    found = {}
    for seed_ in range(first, first + count):
        for file_ in (studies_ / "labels").glob("*/*"):
            file_.unlink()
        server_.train("")
        found[seed_] = sequence(seed_, images[seed_ % len(images)], studies_.parent, server_)
    print(json.dumps(found))
