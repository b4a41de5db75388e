#!/usr/bin/env python3
"""Rejects indirect calls in x86-64 object files.

    check_dispatch.py clean OBJECT ROOT...     OBJECT holds the functions ROOT..., and no function of
                                               it calls or jumps to an address from a register or
                                               from memory
    check_dispatch.py control OBJECT           the negative control: every function whose name begins
                                               with `indirect_` is rejected, every other one is not

Objects are compiled with -fcf-protection=branch. Jump tables of switch statements then carry the
prefix `notrack`, which an indirect call or tail call never has, so the two cannot be confused.
Calls through the PLT are direct calls in the object.
"""
import re
import subprocess
import sys

FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
INSTRUCTION = re.compile(r"^\s+[0-9a-f]+:\t(.+)$")
INDIRECT = re.compile(r"^(?:bnd )?(?:call|jmp|lcall|ljmp)q?\s+\*")


def indirect_calls(path):
    """{function: [instruction, ...]} of every function in the object; the list is often empty."""
    text = subprocess.run(["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", path],
                          capture_output=True, text=True, check=True).stdout
    if "file format elf64-x86-64" not in text:
        raise SystemExit(f"{path}: not an x86-64 object")
    found, function = {}, None
    for line in text.splitlines():
        match = FUNCTION.match(line)
        if match:
            function = match.group(1)
            found.setdefault(function, [])
            continue
        match = INSTRUCTION.match(line)
        if match and INDIRECT.match(match.group(1)):
            found[function].append(match.group(1))
    return found


def check_clean(path, roots):
    functions = indirect_calls(path)
    wrong = 0
    for root in roots:
        if root not in functions:
            print(f"{path}: has no function {root}")
            wrong += 1
    for name, calls in functions.items():
        for call in calls:
            print(f"{path}: {name}: {call}")
            wrong += 1
    print(f"{len(functions)} functions, {wrong} violations")
    return wrong


def check_control(path):
    functions = indirect_calls(path)
    wrong, bad, good = 0, 0, 0
    for name, calls in functions.items():
        if name.startswith("indirect_"):
            bad += 1
            if not calls:
                print(f"{path}: {name} calls indirectly, and was not rejected")
                wrong += 1
        elif name.startswith("direct_"):
            good += 1
            if calls:
                print(f"{path}: {name} calls directly, and was rejected: {calls}")
                wrong += 1
    if bad < 6 or good < 2:
        print(f"{path}: {bad} indirect and {good} direct controls, expected 6 and 2 at least")
        wrong += 1
    print(f"{bad} indirect and {good} direct controls, {wrong} wrong")
    return wrong


def main(arguments):
    if len(arguments) >= 3 and arguments[0] == "clean":
        return 1 if check_clean(arguments[1], arguments[2:]) else 0
    if len(arguments) == 2 and arguments[0] == "control":
        return 1 if check_control(arguments[1]) else 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
