#!/usr/bin/env python3
"""Compiles the C++ that README.md shows.

    check_readme.py README COMPILER [FLAG...]

The blocks become the body of one function, after their #include and using lines; what a reader has
to supply (a buffer, an address, what to do with an error) is declared before. Exit status 1 if they
do not compile, or if there are none.
"""
import re
import subprocess
import sys

SUPPLIED = """
#include <array>
#include <cstring>
#include <iostream>
[[maybe_unused]] static int report(const error& why) { std::cerr << why; return 1; }
static std::uint64_t descriptor_address, offset, value, address, length;
static unsigned size;
static const void* data;
static std::array<std::byte, 16> buffer;
int readme();
"""


def main():
    text = open(sys.argv[1], encoding="utf-8").read()
    blocks = re.findall(r"^```cpp\n(.*?)^```", text, re.M | re.S)
    lines = "\n".join(blocks).split("\n")
    top = [line for line in lines if re.match(r"#include|using ", line)]
    # An alias may go on over several lines, up to its semicolon.
    body, inside = [], False
    for line in lines:
        if inside or re.match(r"using accelerator", line):
            if inside:
                top.append(line)
            inside = not line.rstrip().endswith(";")
        elif line not in top:
            body.append(line)
    if not blocks:
        print("README shows no C++")
        return 1
    source = "\n".join(top[:2] + [SUPPLIED] + top[2:] + ["int readme() {"] + body +
                       ["(void)added; (void)disk; (void)served; return 0; }"])
    done = subprocess.run(sys.argv[2:] + ["-fsyntax-only", "-x", "c++", "-"], input=source,
                          text=True, capture_output=True, check=False)
    print(done.stderr, end="")
    return 1 if done.returncode != 0 else 0


if __name__ == "__main__":
    sys.exit(main())
