"""MetricsWriter on a real MONAI evaluator over real files."""

from __future__ import annotations

import json

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, EnsureChannelFirstd, Lambdad, LoadImaged

from decathlete.errors import WorkError
from decathlete.evaluation import MetricsWriter, evaluate

from .conftest import label_map, save

LABELS = {"background": 0, "head": 1, "tail": 2}


class AsItIs(torch.nn.Module):
    """A network that gives back its input: the image is the label map to be scored."""

    def forward(self, x):
        return x


def run(folders, output, keys=("image",), post=None, labels=LABELS, **options):
    """Evaluate the 'images' in folders[0] against folders[1]; returns the handler."""
    items = [
        {"image": str(path), "label": str(folders[1] / path.name), "case_id": path.name.split(".")[0]}
        for path in sorted(folders[0].glob("*.nii.gz"))
    ]
    chain = Compose([LoadImaged(list(keys)), EnsureChannelFirstd(list(keys))])
    writer = MetricsWriter(labels, output, **options)
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items, chain), batch_size=1),
        network=AsItIs(),
        postprocessing=post,
        val_handlers=[writer],
    ).run()
    return writer


@pytest.mark.parametrize("keys", [("image",), ("image", "label")], ids=["path", "loaded"])
def test_files_equal_those_of_evaluate(bundle, folders, tmp_path, keys):
    writer = run(folders, tmp_path / "handler", keys)
    expected = evaluate(bundle, *folders, output=tmp_path / "command")
    assert writer.summary.metrics_csv.read_text() == expected.metrics_csv.read_text()
    made, wanted = (json.loads(s.summary_json.read_text()) for s in (writer.summary, expected))
    assert made["classes"] == wanted["classes"]
    assert made["label_sha256"] == wanted["label_sha256"]


def test_reference_is_read_from_its_file_not_from_the_batch(folders, tmp_path):
    spoil = Lambdad(["label"], lambda x: x * 0, overwrite=True)
    assert run(folders, tmp_path / "out", ("image", "label"), spoil).summary.mean_dice == 0.875


def test_case_off_the_grid_is_named_after_the_rest_was_written(folders, tmp_path):
    save(folders[0] / "case_b.nii.gz", label_map()[:, :, :6])
    with pytest.raises(WorkError, match=r"1 of 2 cases could not be scored\. case_b: .*\(9 x 8 x 6 and 9 x 8 x 7\)"):
        run(folders, tmp_path / "out")
    values = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (values["cases"], list(values["failed"])) == (1, ["case_b"])
