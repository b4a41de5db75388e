#!/usr/bin/env python3
"""Model checking: every model of this folder holds, and fails when one of its rules is left out.

  check.py            all models
  check.py NAME...    those of these names, such as "guard"

A model says in its first comment what must hold and, under "Fails with each of:", by which macros
a rule is left out. Each is then a run of its own, which must find an assertion violated or, where
the line ends with "never ends", somebody who waits for ever. Needs spin and a C compiler. The last
line is "models N, as expected N"; exit status 1 if the two differ.
"""
import os
import pathlib
import re
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parent
COMPILER = os.environ.get("CC", "cc")


def variants(text):
    """The macros that must make a model fail, and whether it then never ends."""
    listed = text.split("*/")[0].partition("Fails with each of:")[2]
    found = re.findall(r"^ \*   ([A-Z_]+) +(.*)$", listed, re.M)
    return [(macro, line.rstrip().endswith("never ends")) for macro, line in found]


def verify(model, macro, never_ends):
    """(what the search found, its number of states); raises RuntimeError if it did not work."""
    with tempfile.TemporaryDirectory(prefix="vm_accel-model-") as folder:
        def run(*command):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0 and command[0] != "./pan":
                raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")
            return done.stdout
        run("spin", "-a", *([f"-D{macro}"] if macro else []), str(model))
        run(COMPILER, "-O2", "-w", "-DSAFETY", "-o", "pan", "pan.c")
        # A run that must find a violated assertion is not content with an endless wait.
        output = run("./pan", "-m100000", *(["-E"] if macro and not never_ends else []))
    errors = re.search(r"errors: (\d+)", output)
    states = re.search(r"^ *(\d+) states, stored", output, re.M)
    if not errors or not states or "max search depth too small" in output:
        raise RuntimeError(output)
    for text in ("assertion violated", "invalid end state (at"):
        if text in output:
            return text.split(" (")[0], int(states[1])
    if errors[1] != "0":
        raise RuntimeError(output)
    return "holds", int(states[1])


def main():
    wanted = sys.argv[1:]
    total = good = 0
    for model in sorted(FOLDER.glob("*.pml")):
        if wanted and model.stem not in wanted:
            continue
        listed = variants(model.read_text(encoding="utf-8"))
        if not listed:
            sys.exit(f"{model.name}: its first comment lists nothing that it fails with")
        for macro, never_ends in [(None, False), *listed]:
            total += 1
            expected = ("holds" if macro is None else
                        "invalid end state" if never_ends else "assertion violated")
            try:
                found, states = verify(model, macro, never_ends)
            except (OSError, RuntimeError) as error:
                print(f"FAILED {model.stem} {macro or ''}: {error}")
                continue
            good += found == expected
            print(f"{'ok' if found == expected else 'WRONG':6} {model.stem} {macro or ''}: {found},"
                  f" {states} states", flush=True)
    print(f"models {total}, as expected {good}")
    return 0 if total == good and total > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
