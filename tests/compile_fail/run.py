#!/usr/bin/env python3
"""Compiles one file of this folder and compares with what it says about itself.

    run.py FILE COMPILER [FLAG...]

A file says `// expect: REGEX`: it must not compile, and one of its error lines must match. A file that
says `// expect: compiles` must compile; it is the control that shows that the flags are right.
"""
import re
import subprocess
import sys


def main(arguments):
    path, *command = arguments
    with open(path, encoding="utf-8") as file:
        said = re.findall(r"^// expect: (.+)$", file.read(), re.M)
    if len(said) != 1:
        print(f"{path}: needs one line '// expect: REGEX', has {len(said)}")
        return 1
    expected = said[0].strip()
    done = subprocess.run([*command, "-std=c++20", "-fsyntax-only", "-x", "c++", path],
                          capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if expected == "compiles":
        if done.returncode != 0:
            print(f"{path}: the control must compile:\n{output}")
        return 1 if done.returncode != 0 else 0
    if done.returncode == 0:
        print(f"{path}: compiles, but must fail with: {expected}")
        return 1
    # Notes and quoted source lines do not count: an error line must match.
    errors = [line for line in output.splitlines() if re.search(r"\berror: ", line)]
    for line in errors:
        if re.search(expected, line):
            return 0
    print(f"{path}: fails, but no error matches: {expected}\n{output}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
