#!/usr/bin/env python3
"""Does docs/smmu-features.md tell the truth about files and tests?

Every row of its tables of features must name a header below include/vm_accel/smmu and a test case that
exist, every row of its table of traps a test case. check_features.py ROOT | --self-test
"""
import pathlib
import re
import sys

COLUMNS = ["feature", "built", "offered by", "section", "header", "test", "judge"]
TRAP_COLUMNS = ["trap", "test"]
CASES = re.compile(r'TEST_CASE\(\s*"((?:[^"\\]|\\.)*)"')


def rows(text, columns):
    """The rows of every table whose head has those columns."""
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells == columns:
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not set(line) <= set("|- "):
            yield cells


def mistakes(text, headers, cases):
    """`headers`: paths. `cases`: test file -> names."""
    found = []

    def check_test(what, test):
        file, _, name = test.partition(": ")
        if name not in cases.get(file, ()):
            found.append(f"{what}: no test case \"{name}\" in {file}")

    for cells in rows(text, TRAP_COLUMNS):
        check_test(cells[0], cells[-1])
    count = 0
    for cells in rows(text, COLUMNS):
        count += 1
        if len(cells) != len(COLUMNS):
            found.append(f"a row with {len(cells)} cells: {cells[0]}")
            continue
        feature, _, _, _, header, test, _ = cells
        if header not in headers:
            found.append(f"{feature}: no header {header}")
        check_test(feature, test)
    if count == 0:
        found.append("no table with the known columns")
    return found


def check(root):
    smmu = root / "include" / "vm_accel" / "smmu"
    headers = {str(path.relative_to(smmu)) for path in smmu.rglob("*.hpp")}
    cases = {str(path.relative_to(root / "tests")): CASES.findall(path.read_text(encoding="utf-8"))
             for path in (root / "tests").rglob("*_test.cpp")}
    found = mistakes((root / "docs" / "smmu-features.md").read_text(encoding="utf-8"), headers,
                     cases)
    print("\n".join(found) or "every row names a header and a test case that exist")
    return 1 if found else 0


def self_test():
    head = f"| {' | '.join(COLUMNS)} |\n|---|---|---|---|---|---|---|\n"
    good = head + "| a | yes | `a` | 1 | x.hpp | smmu/t_test.cpp: b: c | own |\n"
    headers, cases = {"x.hpp"}, {"smmu/t_test.cpp": ["b: c"]}
    judged = [mistakes(good, headers, cases) == [],
              mistakes(good.replace("x.hpp", "y.hpp"), headers, cases) != [],
              mistakes(good.replace("b: c", "b"), headers, cases) != [],
              mistakes(good.replace("t_test", "u_test"), headers, cases) != [],
              mistakes(good.replace("| own ", ""), headers, cases) != [],
              mistakes(good + "\n| trap | test |\n|---|---|\n| t | smmu/t_test.cpp: d |\n", headers,
                       cases) != [],
              mistakes("", headers, cases) != []]
    print("self-test:", judged)
    return 0 if all(judged) else 1


if __name__ == "__main__":
    sys.exit(self_test() if sys.argv[1] == "--self-test" else check(pathlib.Path(sys.argv[1])))
