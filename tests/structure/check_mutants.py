#!/usr/bin/env python3
"""Can every known defect still be planted, and does no name stand for two?

Each list of scripts/beds/*_mutants.py names lines of include/vm_accel; each must be there exactly
once. check_mutants.py ROOT | --self-test
"""
import importlib
import pathlib
import sys

sys.dont_write_bytecode = True


def mistakes(which, mutants, text_of):
    """`text_of`: a file's text, or "" if there is none."""
    names = [mutant[0] for mutant in mutants]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{which}: two defects are called \"{name}\""
    for name, path, line, defect, *_ in mutants:
        count = text_of(path).count(line)
        if count != 1:
            yield f"{which}: \"{name}\": its line is {count} times in {path}: {line}"
        elif line == defect:
            yield f"{which}: \"{name}\": the defect is the line as it is"


def self_test():
    files = {"a.hpp": "one;\ntwo;\ntwo;\n"}
    wrong = [("gone", "a.hpp", "three;", ""), ("twice", "a.hpp", "two;", ""),
             ("nowhere", "b.hpp", "one;", ""), ("same", "a.hpp", "one;", "one;"),
             ("same", "a.hpp", "one;", "")]
    found = list(mistakes("list", wrong, lambda path: files.get(path, "")))
    good = list(mistakes("list", wrong[4:], lambda path: files.get(path, "")))
    return 0 if len(found) == 5 and not good else print("\n".join(found)) or 1


def main():
    if sys.argv[1] == "--self-test":
        return self_test()
    root = pathlib.Path(sys.argv[1])
    sys.path.insert(0, str(root / "scripts" / "beds"))

    def text_of(path):
        file = root / "include" / "vm_accel" / path
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    lists = sorted(path.stem for path in (root / "scripts" / "beds").glob("*_mutants.py"))
    found = [line for name in lists
             for line in mistakes(name, importlib.import_module(name).MUTANTS, text_of)]
    print("\n".join(found) or f"all can be planted: {', '.join(lists)}")
    return 1 if found or not lists else 0


if __name__ == "__main__":
    sys.exit(main())
