"""A hundred texts that something might take for code, for a path or for the end of its place."""

from __future__ import annotations

TOUCH = "__import__('pathlib').Path('touched').touch()"  # in the working directory of a test

TEXTS = [
    # MONAI's expressions, references and macros
    f"${TOUCH}", f"$ {TOUCH}", f"$({TOUCH})", f"$[{TOUCH}][0]", "$import os", "$from os import system", "$", "$$",
    "$x$",
    "$@labels", "@labels", "@", "@bundle_root", "@labels::background", "@#labels", "@##x", "a @#x", "a@::b", "%", "%T1",
    "%labels", "%#x", "100%::x", "%train.yaml::labels", "%/etc/passwd.json", "x::y", "::", "a#b", "#", "# comment",
    "labels::1", "_target_", "_requires_", "_disabled_", "_mode_", "_meta_", "__local_refs['labels']",
    # YAML
    "a: b", "a:\nb", "- a", "? a", "!!python/object:os.system x", f"!!python/object/apply:eval [\"{TOUCH}\"]",
    "!x",
    "&a b", "*a", "<<", "<<: *a", "|", ">", "{a: 1}", "[a, b]", "{", "}", "]", ",", "null", "~", "yes", "1e3", "0x10",
    "2001-01-01", "---", "...", "a # b", f"x\nrun: \"${TOUCH}\"", f"x\r\nrun: \"${TOUCH}\"", f"x\rrun: '${TOUCH}'",
    f"x\u2028run: \"${TOUCH}\"", f"x\x85run: \"${TOUCH}\"", f"\"\nrun: \"${TOUCH}\"\nx: \"", "'", "\"", "\\", "\\n",
    "''",
    "\"\"", "'''", f"') or {TOUCH} or str('", f"\"}}\", \"run\": \"${TOUCH}\", \"x\": \"",
    # templates, shells, pages, paths
    "{{ 7 * 7 }}", "{% include 'train.yaml' %}", "{# x #}", "{{ plan.__class__ }}", "%s %(x)s {0}", "`id`", "$(id)",
    "; touch touched", "| touch touched", "<script>x</script>", "<!-- figures: -->", "../../x", "/etc/passwd", "a/b",
    "C:\\x", "=1+1",
    # what is not seen
    "", " ", "\t", " a", "a ", "\0", "a\0b", "\x1b[31mred", "a\x7fb", "\u202egnp.x", "a\u200bb", "\ufeffx", "\ud800",
    "\u2066a\u2069", "x" * 10_000, "é" * 3_000, "e\u0301", "😀", "²", "\n",
]  # fmt: skip
