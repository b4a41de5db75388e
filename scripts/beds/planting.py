"""Known defects, planted in a copy of the library's headers, for tests that judge the judges."""

import contextlib
import pathlib
import shutil
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Unplantable(Exception):
    """The line that a defect replaces is no longer in the source, or there more than once."""


@contextlib.contextmanager
def planted(path, line, defect):
    """A folder with a copy of include/ in which `line` of vm_accel/`path` reads `defect`."""
    source = (REPOSITORY / "include" / "vm_accel" / path).read_text(encoding="utf-8")
    if source.count(line) != 1:
        raise Unplantable(f"its line is {source.count(line)} times in {path}: {line}")
    with tempfile.TemporaryDirectory(prefix="vm_accel-mutant-") as temporary:
        folder = pathlib.Path(temporary)
        shutil.copytree(REPOSITORY / "include", folder / "include")
        target = folder / "include" / "vm_accel" / path
        target.write_text(source.replace(line, defect), encoding="utf-8")
        yield folder
