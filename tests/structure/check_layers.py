#!/usr/bin/env python3
"""Checks how the headers of the library hang together, and prints one line per violation.

    check_layers.py ROOT          ROOT/include/vm_accel is checked; exit status 1 if a rule is broken
    check_layers.py --self-test   makes a small correct tree, breaks one rule at a time, and expects
                                  exactly that rule to be reported

The rules are the tables at the top of this file. Only the text of the headers is read: the
`#include` lines, the other preprocessor lines, and the code without its comments and strings.
"""
import pathlib
import re
import sys
import tempfile

# What each layer may include besides itself.
LAYERS = {
    "core": [],
    "spec": ["core"],
    "os": ["core"],
    "guest": ["core"],
    "topology": ["core", "os"],
    "smmu": ["core", "spec", "guest", "os"],
    "numa": ["core", "os", "topology"],
    "affinity": ["core", "os", "topology"],
    "hypervisor": ["core", "os", "guest"],
    "manager": ["core"],
}
# The same inside smmu/. What lies directly in smmu/ is the wiring: it may include all of them, and
# none of them may include it.
SMMU_PARTS = {
    "vocabulary": [],
    "caches": ["vocabulary"],
    "host": ["caches", "vocabulary"],
    "translation": ["caches", "vocabulary"],
    "control": ["caches", "vocabulary"],
}
EVERYTHING = "vm_accel.hpp"
PMR_ADAPTER = "numa/pmr_adapter.hpp"
EXHAUSTION = "os/exhaustion.hpp"

# Third-party headers: pattern, and the pattern of the headers that may include them.
FOREIGN = [
    (r"hwloc(\.h|/)", r"topology/", "hwloc is used in topology/ only"),
    (r"boost/lockfree/", r"smmu/host/lockfree_streams\.hpp$",
     "Boost.Lockfree is used in smmu/host/lockfree_streams.hpp only"),
    (r"boost/intrusive/", r"smmu/", "Boost.Intrusive is used in smmu/ only"),
    (r"boost/(?!lockfree/|intrusive/)", r"$^", "no other part of Boost is used"),
    (r"tl/", r"core/result\.hpp$", "tl::expected is named in core/result.hpp only"),
    (r"(sys|linux|asm|mach|Hypervisor)/|(unistd|fcntl|poll|sched|pthread|dirent|signal|windows"
     r"|numa|numaif|io|dlfcn)\.h$", r"os/", "a platform's headers are included in os/ only"),
    (r"(catch2|benchmark)/|libfdt", r"$^", "the library needs no test or example package"),
    (r"(format|cassert|assert\.h|iostream)$", r"$^",
     "not used in headers: <format> and <iostream> cost too much, assert changes with NDEBUG"),
]
# Where a condition on the platform or the compiler may stand.
CONDITIONAL = re.compile(r"os/|guest/copy\.hpp$")

# Code that no header may contain: pattern, the headers that may, what it is.
FORBIDDEN = [
    (r"\bvirtual\b|\boverride\b", PMR_ADAPTER, "no virtual functions"),
    (r"\bstd::(function|move_only_function|any)\b", None, "no type erasure"),
    (r"\bstd::(shared_ptr|make_shared)\b", None, "no shared_ptr: its deleter is called indirectly"),
    (r"\b(dynamic_cast|typeid)\b", None, "no run-time type information"),
    (r"(?<!static_)\bassert\s*\(|\bNDEBUG\b", None, "no assert, nothing that depends on NDEBUG"),
    (r"\bstrerror\s*\(", None, "strerror may share one buffer between threads"),
    (r"\bthrow\b|\bcatch\s*\(|\btry\s*\{", EXHAUSTION, "no exceptions"),
]
MACRO_PREFIX = "VM_ACCEL_"
MAX_LINES = 420
NAMES_TO_AVOID = re.compile(r"(^|[_/])(detail|impl|helpers?|utils?|common|misc)([_./]|$)")


def without_comments_and_strings(text):
    """Keeps the line structure; a string becomes "" and a comment becomes nothing."""
    pattern = re.compile(
        r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'""", re.S)

    def keep(match):
        token = match.group(0)
        if token.startswith(("/", "//")):
            return "\n" * token.count("\n")
        return token[0] * 2

    # An include path is no string: <...> is untouched, and "..." is a violation of its own.
    return pattern.sub(keep, text)


def layer_of(name):
    return name.split("/")[0] if "/" in name else None


def is_smmu_wiring(name):
    return re.fullmatch(r"smmu/\w+\.hpp", name) is not None


def check_edge(name, target, report):
    """`name` includes <vm_accel/target>."""
    if target == EVERYTHING:
        report(name, "layer", "no header includes vm_accel.hpp")
        return
    if name == EVERYTHING:
        return
    if target == PMR_ADAPTER:
        report(name, "pmr-adapter", "only users and vm_accel.hpp include numa/pmr_adapter.hpp")
    here, there = layer_of(name), layer_of(target)
    if here not in LAYERS or there not in LAYERS:
        return  # reported as an unknown layer
    if here != there and there not in LAYERS[here]:
        report(name, "layer", f"{here}/ may not include {there}/ ({target})")
    if here == there == "smmu" and not is_smmu_wiring(name):
        part, other = name.split("/")[1], target.split("/")[1]
        if is_smmu_wiring(target):
            report(name, "smmu-part", f"no part includes {target}")
        elif part in SMMU_PARTS and other in SMMU_PARTS:
            if part != other and other not in SMMU_PARTS[part]:
                report(name, "smmu-part", f"smmu/{part}/ may not include smmu/{other}/ ({target})")


def check_header(name, text, headers, report):
    lines = text.split("\n")
    code = without_comments_and_strings(text)
    code_lines = code.split("\n")

    if name != EVERYTHING:
        if layer_of(name) not in LAYERS:
            report(name, "layer", "is in no layer")
        if layer_of(name) == "smmu" and not is_smmu_wiring(name) and (
                name.split("/")[1] not in SMMU_PARTS):
            report(name, "smmu-part", "is in no part of smmu/: " + ", ".join(SMMU_PARTS))
        # A header that only includes others needs no namespace.
        has_code = any(line.strip() and not line.lstrip().startswith("#") for line in code_lines)
        if has_code and not re.search(r"^namespace vm_accel::inline v\d+\b", code, re.M):
            report(name, "namespace", "nothing in namespace vm_accel::inline vN")
    if NAMES_TO_AVOID.search(name):
        report(name, "name", "detail, helper, util and their kin say nothing")
    if len(lines) - 1 > MAX_LINES:
        report(name, "length", f"{len(lines) - 1} lines, at most {MAX_LINES}")
    if not lines[0].startswith("///"):
        report(name, "docstring", "the first line must begin the header's story with ///")
    if code.count("#pragma once") != 1:
        report(name, "pragma", "#pragma once must stand there once")

    includes = []
    for number, (line, stripped) in enumerate(zip(lines, code_lines), 1):
        if not stripped.lstrip().startswith("#"):
            continue
        directive = re.match(r"\s*#\s*(\w+)\s*(.*)", stripped)
        word, rest = directive.group(1), directive.group(2)
        where = f"line {number}: "
        if word == "include":
            path = re.match(r"\s*#\s*include\s*([<\"])([^>\"]+)[>\"]", line)
            if not path:
                report(name, "include", where + "include a header by its name")
                continue
            quote, target = path.groups()
            if quote == '"':
                report(name, "include", where + f"write <vm_accel/...>, not \"{target}\"")
                continue
            if target.startswith("vm_accel/"):
                target = target[len("vm_accel/"):]
                includes.append(target)
                if target not in headers:
                    report(name, "include", where + f"there is no header {target}")
                check_edge(name, target, report)
            for pattern, allowed, why in FOREIGN:
                if re.match(pattern, target) and not re.match(allowed, name):
                    report(name, "foreign", where + f"<{target}>: {why}")
        elif word in ("define", "undef"):
            macro = re.match(r"\w+", rest).group(0)
            if not macro.startswith(MACRO_PREFIX):
                report(name, "macro", where + f"{macro} does not start with {MACRO_PREFIX}")
        elif word in ("if", "ifdef", "ifndef", "elif", "elifdef", "elifndef"):
            names = set(re.findall(r"[A-Za-z_]\w*", rest)) - {"defined"}
            strange = sorted(n for n in names if not n.startswith(MACRO_PREFIX))
            if strange and not CONDITIONAL.match(name):
                report(name, "platform", where + f"depends on {', '.join(strange)}; "
                       "conditions on platform or compiler belong in os/")
    for pattern, exempt, why in FORBIDDEN:
        if name == exempt:
            continue
        for match in re.finditer(pattern, code):
            number = code.count("\n", 0, match.start()) + 1
            report(name, "forbidden", f"line {number}: {match.group(0).strip()}: {why}")
    return includes


def check_cycles(graph, report):
    state = {}

    def visit(name, path):
        if state.get(name) == "done":
            return
        if name in path:
            circle = path[path.index(name):] + [name]
            report(name, "cycle", " -> ".join(circle))
            return
        for target in graph.get(name, []):
            visit(target, path + [name])
        state[name] = "done"

    for name in sorted(graph):
        visit(name, [])


def check_tree(root):
    """Gives [(header, rule, text)] for the tree below root/include/vm_accel."""
    base = pathlib.Path(root) / "include" / "vm_accel"
    headers = {p.relative_to(base).as_posix(): p for p in sorted(base.rglob("*.hpp"))}
    violations = []

    def report(name, rule, text):
        violations.append((name, rule, text))

    if not headers:
        report(str(base), "tree", "no headers here")
    for path in sorted(base.rglob("*")):
        if path.is_file() and path.suffix != ".hpp":
            report(path.relative_to(base).as_posix(), "tree", "not a header")
    graph = {name: check_header(name, path.read_text(encoding="utf-8"), headers, report)
             for name, path in headers.items()}
    check_cycles(graph, report)
    if EVERYTHING in headers:
        for name in headers:
            if name != EVERYTHING and name not in graph[EVERYTHING]:
                report(EVERYTHING, "complete", f"does not include {name}")
    else:
        report(EVERYTHING, "complete", "is missing")
    return violations, len(headers)


# ---- negative control ---------------------------------------------------------------------------
def header(includes=(), body="struct s;", first="/// A story.", namespace="vm_accel::inline v0",
           pragma="#pragma once"):
    lines = [first, pragma] + [f"#include <{i}>" for i in includes]
    return "\n".join(lines + [f"namespace {namespace} {{", body, "}", ""])


def correct_tree():
    tree = {
        "core/a.hpp": header(body="// virtual in a comment, assert(x), NDEBUG\n"
                             "inline constexpr auto text = \"virtual throw std::function\";\n"
                             "static_assert(0xff'ff > 'a');"),
        "core/result.hpp": header(["tl/expected.hpp"]),
        "spec/b.hpp": header(["vm_accel/core/a.hpp"]),
        "os/c.hpp": header(["vm_accel/core/a.hpp", "unistd.h"],
                           "#if defined(__linux__)\n#define VM_ACCEL_HAS_X 1\n#endif"),
        "guest/d.hpp": header(["vm_accel/core/a.hpp"], "#if VM_ACCEL_HAS_X\n#endif"),
        "guest/copy.hpp": header([], "#if defined(__SANITIZE_THREAD__)\n#endif"),
        "topology/e.hpp": header(["vm_accel/os/c.hpp", "hwloc.h"]),
        "smmu/vocabulary/f.hpp": header(["vm_accel/spec/b.hpp", "vm_accel/guest/d.hpp"]),
        "smmu/caches/g.hpp": header(["vm_accel/smmu/vocabulary/f.hpp",
                                     "boost/intrusive/list.hpp"]),
        "smmu/translation/h.hpp": header(["vm_accel/smmu/caches/g.hpp"]),
        "smmu/control/i.hpp": header(["vm_accel/smmu/vocabulary/f.hpp"]),
        "smmu/host/j.hpp": header(["vm_accel/smmu/caches/g.hpp"]),
        "smmu/host/lockfree_streams.hpp": header(["boost/lockfree/queue.hpp"]),
        "smmu/smmu.hpp": header(["vm_accel/smmu/host/j.hpp", "vm_accel/smmu/control/i.hpp",
                                 "vm_accel/smmu/translation/h.hpp"]),
        "numa/k.hpp": header(["vm_accel/topology/e.hpp"]),
        "numa/pmr_adapter.hpp": header(["vm_accel/numa/k.hpp"], "struct p { virtual ~p(); };"),
        "affinity/l.hpp": header(["vm_accel/topology/e.hpp"]),
        "hypervisor/m.hpp": header(["vm_accel/guest/d.hpp", "vm_accel/os/c.hpp"]),
        "manager/n.hpp": header(["vm_accel/core/a.hpp"]),
    }
    tree["vm_accel.hpp"] = header([f"vm_accel/{name}" for name in tree])
    return tree


def including(path):
    return lambda text: text.replace("#pragma once", f"#pragma once\n#include {path}")


def saying(line):
    return lambda text: text.replace("struct s;", line)


# (what, header to change, change, rule that must be reported)
BREAKS = [
    ("core includes os", "core/a.hpp", including("<vm_accel/os/c.hpp>"), "layer"),
    ("spec includes guest", "spec/b.hpp", including("<vm_accel/guest/d.hpp>"), "layer"),
    ("guest includes os", "guest/d.hpp", including("<vm_accel/os/c.hpp>"), "layer"),
    ("topology includes guest", "topology/e.hpp", including("<vm_accel/guest/d.hpp>"), "layer"),
    ("smmu includes topology", "smmu/smmu.hpp", including("<vm_accel/topology/e.hpp>"), "layer"),
    ("numa includes affinity", "numa/k.hpp", including("<vm_accel/affinity/l.hpp>"), "layer"),
    ("affinity includes numa", "affinity/l.hpp", including("<vm_accel/numa/k.hpp>"), "layer"),
    ("hypervisor includes smmu", "hypervisor/m.hpp", including("<vm_accel/smmu/smmu.hpp>"),
     "layer"),
    ("manager names a backend", "manager/n.hpp", including("<vm_accel/hypervisor/m.hpp>"),
     "layer"),
    ("a header includes everything", "manager/n.hpp", including("<vm_accel/vm_accel.hpp>"),
     "layer"),
    ("vocabulary includes caches", "smmu/vocabulary/f.hpp",
     including("<vm_accel/smmu/caches/g.hpp>"), "smmu-part"),
    ("caches include translation", "smmu/caches/g.hpp",
     including("<vm_accel/smmu/translation/h.hpp>"), "smmu-part"),
    ("translation includes control", "smmu/translation/h.hpp",
     including("<vm_accel/smmu/control/i.hpp>"), "smmu-part"),
    ("control includes host", "smmu/control/i.hpp", including("<vm_accel/smmu/host/j.hpp>"),
     "smmu-part"),
    ("host includes the wiring", "smmu/host/j.hpp", including("<vm_accel/smmu/smmu.hpp>"),
     "smmu-part"),
    ("another part of the SMMU", "smmu/extra/x.hpp", lambda _: header(), "smmu-part"),
    ("a new layer", "extra/x.hpp", lambda _: header(), "layer"),
    ("two headers in a circle", "core/result.hpp", including("<vm_accel/core/a.hpp>"), None),
    ("hwloc outside topology", "numa/k.hpp", including("<hwloc.h>"), "foreign"),
    ("lockfree outside its header", "smmu/host/j.hpp", including("<boost/lockfree/queue.hpp>"),
     "foreign"),
    ("another part of Boost", "core/a.hpp", including("<boost/optional.hpp>"), "foreign"),
    ("intrusive outside smmu", "numa/k.hpp", including("<boost/intrusive/list.hpp>"), "foreign"),
    ("a platform header outside os", "numa/k.hpp", including("<sys/mman.h>"), "foreign"),
    ("expected named elsewhere", "spec/b.hpp", including("<tl/expected.hpp>"), "foreign"),
    ("format", "core/a.hpp", including("<format>"), "foreign"),
    ("a quoted include", "core/a.hpp", including('"b.hpp"'), "include"),
    ("a header that is not there", "core/result.hpp", including("<vm_accel/core/no.hpp>"),
     "include"),
    ("a platform condition", "spec/b.hpp", saying("#if defined(__linux__)\n#endif"), "platform"),
    ("a compiler condition", "spec/b.hpp", saying("#ifdef __clang__\n#endif"), "platform"),
    ("a macro without prefix", "spec/b.hpp", saying("#define LIKELY(x) x"), "macro"),
    ("a virtual function", "spec/b.hpp", saying("struct v { virtual void f(); };"), "forbidden"),
    ("std::function", "spec/b.hpp", saying("std::function<void()> f;"), "forbidden"),
    ("assert", "spec/b.hpp", saying("inline void f() { assert(true); }"), "forbidden"),
    ("strerror", "spec/b.hpp", saying("inline auto t = std::strerror(1);"), "forbidden"),
    ("throw", "spec/b.hpp", saying("inline void f() { throw 1; }"), "forbidden"),
    ("dynamic_cast", "spec/b.hpp", saying("auto p = dynamic_cast<int*>(q);"), "forbidden"),
    ("the pmr adapter included", "numa/other.hpp",
     lambda _: header(["vm_accel/numa/pmr_adapter.hpp"]), "pmr-adapter"),
    ("too long", "spec/b.hpp", lambda text: text + "\n" * MAX_LINES, "length"),
    ("no docstring", "spec/b.hpp", lambda text: text.replace("/// A", "// A"), "docstring"),
    ("no pragma once", "spec/b.hpp", lambda text: text.replace("#pragma once", ""), "pragma"),
    ("another namespace", "spec/b.hpp", lambda text: text.replace("inline v0", "inner"),
     "namespace"),
    ("a helper", "core/string_helpers.hpp", lambda _: header(), "name"),
    ("a source file", "core/a.cpp", lambda _: "int x;", "tree"),
    ("forgotten in vm_accel.hpp", "core/forgotten.hpp", lambda _: header(), "complete"),
]


def write_tree(root, tree):
    for name, text in tree.items():
        path = pathlib.Path(root) / "include" / "vm_accel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def self_test():
    failed = 0
    with tempfile.TemporaryDirectory() as root:
        write_tree(root, correct_tree())
        violations, _ = check_tree(root)
        if violations:
            failed += 1
            print("FAILED: the correct tree is refused:", *violations, sep="\n  ")
    for what, name, change, rule in BREAKS:
        tree = correct_tree()
        if rule is None:  # a circle takes two changes
            rule = "cycle"
            tree["core/a.hpp"] = including("<vm_accel/core/result.hpp>")(tree["core/a.hpp"])
        tree[name] = change(tree.get(name, ""))
        with tempfile.TemporaryDirectory() as root:
            write_tree(root, tree)
            violations, _ = check_tree(root)
        # A new header is missing from vm_accel.hpp too, and a broken edge may close a circle.
        other = {found for _, found, _ in violations} - {rule, "complete", "cycle"}
        if not any(found == rule for _, found, _ in violations) or other:
            failed += 1
            print(f"FAILED: {what}: expected '{rule}', reported {violations}")
    print(f"{len(BREAKS) + 1 - failed} of {len(BREAKS) + 1} self-tests passed")
    return failed


def main(arguments):
    if arguments == ["--self-test"]:
        return 1 if self_test() else 0
    if len(arguments) != 1:
        print(__doc__)
        return 2
    violations, count = check_tree(arguments[0])
    for name, rule, text in violations:
        print(f"include/vm_accel/{name}: [{rule}] {text}")
    print(f"{count} headers checked, {len(violations)} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
