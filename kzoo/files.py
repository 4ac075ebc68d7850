"""Files that are there whole or not at all."""

import contextlib
import os
import pathlib
import re


@contextlib.contextmanager
def atomic(path):
    """Opens a binary file that appears under `path` when the context ends without an error.

    It is written beside its place, flushed to the disk and renamed; after an error, a full disk
    included, `path` is what it was before.

    Args:
        path: where; its folder must exist.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def merge_section(path, header, name, section):
    """Puts a generated section into a Markdown file, in the place of its older one.

    Sections are in alphabetical order of their names; the file is replaced at once, or not at all.

    Args:
        path: the file; it need not exist.
        header: the text above the first section.
        name: of the section, letters, digits and "_".
        section: its Markdown.
    """
    path = pathlib.Path(path)
    text = path.read_text("utf-8") if path.exists() else ""
    found = re.findall(r"<!-- begin (\w+) -->\n(.*?)\n<!-- end \1 -->", text, re.DOTALL)
    sections = dict(found) | {name: section}
    blocks = [f"<!-- begin {k} -->\n{sections[k]}\n<!-- end {k} -->\n" for k in sorted(sections)]
    with atomic(path) as file:
        file.write("\n".join([header, *blocks]).encode())
