"""Write docs/messages.md: every message of the package, by part, with its remedy.

    python docs/make_messages.py

Read from the source: an error is ``Error(where, rule, found, remedy)``, and the rule is what a person searches for.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {  # folder or file, in the order of the page, and what a person was doing
    "apps/bundle.py": "Choosing a bundle",
    "apps/workflow.py": "Running a bundle",
    "apps/short_form.py": "Running a bundle",
    "apps/cli.py": "The command line",
    "apps/files.py": "Writing files",
    "apps/checkpoints.py": "Weights",
    "apps/data": "Data sets, caches and folds",
    "apps/planning": "`decathlete new`",
    "apps/training": "Training",
    "apps/inference": "Prediction",
    "apps/evaluation": "Scores",
    "apps/explore": "`decathlete explore`",
    "apps/view": "`decathlete view`",
    "apps/report": "Reports",
    "apps/dicom": "DICOM",
    "apps/label": "MONAI Label",
    "apps/demo.py": "`make demo`",
    "transforms": "Reading scans, and transforms",
    "networks": "Networks",
}
HEADER = """# Messages

Every message has four parts: where, the rule, what was found, and what to do. Here are the rules and remedies, for
searching; `...` stands for a name or a number. `docs/troubleshooting.md` has the ones that are met most, and what has
no message.

Written by `python docs/make_messages.py`.
"""
UNKNOWN = "..."


def main() -> None:
    """Write the page."""
    (ROOT / "docs" / "messages.md").write_text(page(), encoding="utf-8")


def page() -> str:
    """The page's text."""
    messages: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for part, title in PARTS.items():
        for file in sorted((ROOT / part).rglob("*.py")) if (ROOT / part).is_dir() else [ROOT / part]:
            messages[title] |= set(of_file(file))
    lines = [HEADER]
    for title, found in messages.items():
        if found:
            lines += [f"## {title}", "", "| rule | what to do |", "|---|---|"]
            lines += [f"| {rule} | {remedy} |" for rule, remedy in sorted(found)] + [""]
    return "\n".join(lines)


def of_file(path: Path) -> Iterator[tuple[str, str]]:
    """Rule and remedy of each error that a file raises; rules made up as a whole at run time are left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in error_names():
            keywords = {k.arg: k.value for k in node.keywords}
            rule = text_of(node.args[1] if len(node.args) > 1 else keywords.get("rule"))
            remedy = text_of(node.args[3] if len(node.args) > 3 else keywords.get("remedy"))
            if rule.strip(" .,()"):
                yield tidy(rule), "" if remedy == UNKNOWN else tidy(remedy)


def error_names() -> set[str]:
    """Names of the error classes."""
    tree = ast.parse((ROOT / "apps" / "errors.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def text_of(node: ast.expr | None) -> str:
    """A text as far as the source states it."""
    if node is None:
        return ""
    if isinstance(node, ast.Constant):
        return str(node.value or "")
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else UNKNOWN for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return " / ".join(part for part in (text_of(node.body), text_of(node.orelse)) if part)
    return UNKNOWN


def tidy(text: str) -> str:
    """On one line of a table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


if __name__ == "__main__":
    main()
