"""Build steps that setup.cfg cannot declare: the line that gives ``python -m monai.bundle run`` its short form, and
the README without links into the checkout, which lead nowhere on a package index."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import zipfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

# Python runs this line at every start, so it only looks at the words of the command line. The name sorts behind the
# file by which an editable install makes `decathlete` known.
PTH_NAME = "decathlete_short_form.pth"
PTH_LINE = (
    "import sys; any('monai.bundle' in word for word in sys.orig_argv) and "
    "__import__('decathlete.short_form', fromlist=['install']).install()\n"
)


class BuildWithPth(build_py):
    """Put the line into the wheel's root, from where pip installs it and removes it again."""

    def run(self) -> None:
        """Build the packages, then write the line beside them."""
        super().run()
        if not self.editable_mode:
            Path(self._pth()).write_text(PTH_LINE)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the built files, the line's included."""
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else [self._pth()])]

    def _pth(self) -> str:
        return os.path.join(self.build_lib, PTH_NAME)


class EditableWithPth(editable_wheel):
    """Put the line into the small wheel that stands for an editable install; setuptools has no step for it."""

    def run(self) -> None:
        """Make the wheel, then add the line to it."""
        super().run()
        for wheel in Path(self.dist_dir).glob("*editable*.whl"):
            add_to_wheel(wheel, PTH_NAME, PTH_LINE.encode())


def add_to_wheel(wheel: Path, name: str, content: bytes) -> None:
    """Write a wheel anew with one more file at its root, listed in its RECORD, unless it has the file."""
    if name in zipfile.ZipFile(wheel).namelist():
        return
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                data += f"{name},sha256={digest},{len(content)}\n".encode()
            new.writestr(entry, data)
        new.writestr(name, content)
    part.replace(wheel)


def without_relative_links(text: str) -> str:
    """Markdown whose pictures of the checkout are left out, and whose links into it are names of files."""
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)([^)]+)\)", r"\1 (`\2`)", text)


setup(
    long_description=without_relative_links(Path("README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    cmdclass={"build_py": BuildWithPth, "editable_wheel": EditableWithPth},
)
