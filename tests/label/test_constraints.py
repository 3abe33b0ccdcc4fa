"""Versions of what `make label` installs."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_package_that_is_asked_for_has_its_version():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    needs = re.search(r"^LABEL_NEEDS := (.*)$", text, re.MULTILINE)[1].split()
    asked = [*needs, "monailabel", "pydicom-seg", "dcmqi", "torch", "monai"]
    lines = (ROOT / "constraints-label.txt").read_text().splitlines()
    pinned = {plain(line.partition("==")[0]) for line in lines if "==" in line}
    assert {plain(name) for name in asked} - pinned == set()
    assert [line for line in lines if not line.startswith("#") and "==" not in line] == []


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
