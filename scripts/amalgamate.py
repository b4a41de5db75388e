#!/usr/bin/env python3
"""Makes one header of many.

    amalgamate.py smmu OUTPUT   the SMMU and what it needs: core, spec, os, guest, smmu
    amalgamate.py all OUTPUT    the whole library

Headers are written in the order of their includes, each once; `#include <vm_accel/...>` lines
and `#pragma once` fall away. Other includes stay where they are, since some stand behind a
condition on the platform.
"""
import pathlib
import re
import sys

LAYERS = {
    "smmu": ("core", "spec", "os", "guest", "smmu"),
    "all": ("core", "spec", "os", "guest", "topology", "smmu", "numa", "affinity", "hypervisor",
            "manager"),
}
OWN_INCLUDE = re.compile(r"^\s*#\s*include\s*<vm_accel/([^>]+)>")


def ordered(root, layers):
    """The headers of the layers, each after all that it includes."""
    names = [path.relative_to(root).as_posix()
             for layer in layers for path in sorted((root / layer).rglob("*.hpp"))]
    done, order = set(), []

    def visit(name):
        if name in done:
            return
        done.add(name)
        if name.split("/")[0] not in layers:
            raise SystemExit(f"amalgamate.py: {name} is in none of {', '.join(layers)}")
        for line in (root / name).read_text(encoding="utf-8").splitlines():
            match = OWN_INCLUDE.match(line)
            if match:
                visit(match.group(1))
        order.append(name)

    for name in names:
        visit(name)
    return order


def main(arguments):
    if len(arguments) != 2 or arguments[0] not in LAYERS:
        print(__doc__)
        return 2
    repository = pathlib.Path(__file__).resolve().parent.parent
    root = repository / "include" / "vm_accel"
    licence = (repository / "LICENSE").read_text(encoding="utf-8").strip()
    out = ["/// vm_accel in one file, made by scripts/amalgamate.py. Change the headers, not this.", "//"]
    out += [("// " + line).rstrip() for line in licence.splitlines()]
    out += ["#pragma once", ""]
    for name in ordered(root, LAYERS[arguments[0]]):
        out.append(f"// ---- vm_accel/{name} ----")
        out += [line for line in (root / name).read_text(encoding="utf-8").splitlines()
                if not OWN_INCLUDE.match(line) and line.strip() != "#pragma once"]
        out.append("")
    target = pathlib.Path(arguments[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(out), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
