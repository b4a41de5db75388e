#!/usr/bin/env python3
"""The stages of scripts/test: each builds or runs something and counts single tests.

A test is a Catch test case, an entry of CTest, a header or file compiled on its own, a file looked
at by clang-tidy, or one claim that a run of the demo has proved. What prints `SKIP: reason` is
skipped, and only reasons that a line of scripts/allowed-skips.txt matches may be.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree

sys.dont_write_bytecode = True
ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "test"
SKIP = re.compile(r"^\s*SKIP: *(.+?)\s*$", re.M)
STARTED = time.monotonic()
JOBS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
# No command may hang: what runs longer is ended with all it started, and is a failure.
LIMIT, BUILD_LIMIT, EXPIRED = 15 * 60, 40 * 60, 124


def say(text):
    print(text, flush=True)


def elapsed():
    seconds = int(time.monotonic() - STARTED)
    return f"{seconds // 60}:{seconds % 60:02}"


class Results:
    """What passed, failed and was skipped, with the reasons. One thread's."""

    def __init__(self):
        self.passed, self.failed, self.skipped = 0, [], []
        lines = (ROOT / "scripts" / "allowed-skips.txt").read_text(encoding="utf-8").splitlines()
        self.allowed = [re.compile(line) for line in lines if line and not line.startswith("#")]

    def add(self, other):
        self.passed += other.passed
        self.failed += [name for name in other.failed if name not in self.failed]
        self.skipped += other.skipped

    def ok(self, count=1):
        self.passed += count

    def fail(self, name, text=""):
        if name in self.failed:  # two stages build the same target
            return
        self.failed.append(name)
        say(f"FAILED: {name}")
        if text.strip():
            say("\n".join("    " + line for line in text.strip().splitlines()[-60:]))

    def skip(self, name, *reasons):
        """One test, skipped in whole or in part; every reason that it printed must be allowed."""
        for reason in reasons:
            if not any(pattern.fullmatch(reason) for pattern in self.allowed):
                self.fail(name, f"skipped for a reason that is not on the list: {reason}")
                return
        self.skipped.append((name, reasons[0]))

    def cases(self, prefix, cases):
        """Counts test cases of a Catch report; true if one of them failed."""
        failures = 0
        for case in cases:
            overall = case.find("OverallResult")
            text = "".join(overall.findtext(tag) or "" for tag in ("StdOut", "StdErr")
                           ) if overall is not None else ""
            reasons = SKIP.findall(text)
            name = prefix + case.get("name", "?")
            if overall is None or overall.get("success") != "true":
                failures += 1
                self.fail(name, describe_failure(case))
            elif reasons:
                self.skip(name, *reasons)
            else:
                self.ok()
        return failures != 0


RUNNING = set()  # the process groups of commands that have not ended


def end_group(group):
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def run(command, env=None, progress=None, limit=LIMIT):
    """Runs a command and gives (exit status, output). Says a line every 20 seconds.

    After `limit` seconds the command and all its children are ended; the status is then EXPIRED.
    """
    process = subprocess.Popen([str(word) for word in command], cwd=ROOT, text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, errors="replace",
                               env={**os.environ, **(env or {})}, start_new_session=True)
    RUNNING.add(process.pid)
    expired = threading.Event()

    def end():
        expired.set()
        end_group(process.pid)

    timer = threading.Timer(limit, end)
    timer.daemon = True
    timer.start()
    output, last = [], time.monotonic()
    try:
        for line in process.stdout:
            output.append(line)
            if progress and time.monotonic() - last > 20:
                last = time.monotonic()
                say(f"  {elapsed()} {progress}: {line.strip()[:100]}")
        status = process.wait()
    finally:
        timer.cancel()
        RUNNING.discard(process.pid)
    if expired.is_set():
        return EXPIRED, "".join(output) + f"\nended: it still ran after {limit} s\n"
    return status, "".join(output)


class Build:
    """One build folder; configures once, and counts what does not compile."""

    def __init__(self, results, name, preset, *options):
        self.results, self.name, self.preset, self.options = results, name, preset, options
        self.folder = BUILD / name
        self.configured = False

    def configure(self):
        if not self.configured:
            status, output = run(["cmake", "--preset", self.preset, "-B", self.folder,
                                  *self.options])
            if status != 0:
                self.results.fail(f"{self.name}: configure", output)
                return False
            for line in output.splitlines():
                if line.startswith("-- examples/"):
                    say("  " + line[3:])
            self.configured = True
        return True

    def make(self, *targets):
        """True if all targets were built. A file that does not compile is a failed test."""
        if not self.configure():
            return False
        status, output = run(["cmake", "--build", self.folder, "-j", JOBS, "--target",
                              *(targets or ["all"]), "--", "-k", "0"],
                             progress=f"building {self.name}", limit=BUILD_LIMIT)
        if status == 0:
            return True
        broken = re.split(r"^FAILED: ", output, flags=re.M)[1:]
        for text in broken:
            first, _, rest = text.partition("\n")
            errors = [line for line in rest.splitlines() if re.search(
                r"error:|undefined reference|multiple definition|Error", line)]
            self.results.fail(f"{self.name}: {first.split()[0]}", "\n".join(errors[:8]) or rest)
        if not broken:
            self.results.fail(f"{self.name}: build", output)
        return False

    def catch(self, program, env=None, runner=()):
        """Runs a Catch program and counts its test cases; `runner` is put before its path."""
        path = self.folder / "tests" / program
        report = self.folder / f"{program}.xml"
        report.unlink(missing_ok=True)
        status, output = run([*runner, path, "-r", "xml", "-o", report], env,
                             f"{program} ({self.name})")
        prefix = f"{self.name}/{program}: "
        try:
            cases = list(ElementTree.parse(report).getroot().iter("TestCase"))
        except (OSError, ElementTree.ParseError):
            text = report.read_text(errors="replace") if report.exists() else ""
            names = re.findall(r'<TestCase name="([^"]*)"', text)
            last = f" in '{names[-1]}'" if names else ""
            how = f"ended after {LIMIT} s" if status == EXPIRED else f"died with status {status}"
            self.results.fail(f"{prefix}{how}{last}", output)
            return
        seen_failure = self.results.cases(prefix, cases)
        for reason in SKIP.findall(output):
            self.results.skip(prefix + "a test", reason)
        if not cases:
            self.results.fail(prefix + "no test case ran", output)
        elif status != 0 and not seen_failure:
            self.results.fail(f"{prefix}status {status} although every case passed", output)

    def ctest(self, *arguments):
        """Runs entries of CTest and counts them."""
        report = self.folder / "ctest.xml"
        report.unlink(missing_ok=True)
        _, output = run(["ctest", "--test-dir", self.folder, "-j", JOBS, "--output-junit", report,
                         "--no-tests=error", "--timeout", LIMIT, "--test-output-size-passed",
                         1 << 20, *arguments], progress=f"ctest ({self.name})", limit=BUILD_LIMIT)
        try:
            cases = list(ElementTree.parse(report).getroot().iter("testcase"))
        except (OSError, ElementTree.ParseError):
            self.results.fail(f"{self.name}: ctest {' '.join(arguments)}", output)
            return
        if not cases:
            self.results.fail(f"{self.name}: ctest {' '.join(arguments)} found no test", output)
        for case in cases:
            name, text = case.get("name"), case.findtext("system-out") or ""
            reasons = SKIP.findall(text)
            skipped = case.find("skipped") is not None and case.get("status") == "notrun"
            if reasons and (skipped or case.get("status") == "run"):
                self.results.skip(name, *reasons)
            elif case.get("status") == "run":
                self.results.ok()
            else:
                self.results.fail(name, text)


def describe_failure(case):
    """The first failed expressions of a Catch test case."""
    lines = []
    for node in case.iter():
        if node.tag == "Expression" and node.get("success") == "false":
            lines.append(f"{node.get('filename')}:{node.get('line')}: "
                         f"{(node.findtext('Original') or '').strip()}")
            lines.append("  with " + (node.findtext("Expanded") or "").strip())
        elif node.tag in ("Exception", "Failure", "FatalErrorCondition"):
            lines.append(f"{node.get('filename')}:{node.get('line')}: {(node.text or '').strip()}")
    return "\n".join(lines[:20])


class Stages:
    def __init__(self, results, options):
        self.results, self.options = results, options
        gcc = shutil.which("g++-12")
        if not gcc and not options.list:
            gcc = "g++"
            results.fail("GCC 12", "there is no g++-12, so this run takes g++; scripts/setup test "
                         "installs it")
        self.release = Build(results, "release", "release", f"-DCMAKE_CXX_COMPILER={gcc}")
        self.dev = Build(results, "dev", "dev", f"-DCMAKE_CXX_COMPILER={gcc}")
        self.asan = Build(results, "asan-ubsan", "asan-ubsan")
        self.tsan = Build(results, "tsan", "tsan")
        self.lone = Build(results, "no-exceptions", "no-exceptions",
                          f"-DCMAKE_CXX_COMPILER={gcc}")

    def main_build(self):
        return self.dev if self.options.quick else self.release

    # ---- the stages, in order ----------------------------------------------------------------
    def packages(self):
        """the packages that the tests need are installed"""
        status, output = run(["scripts/setup", "--check", "test", "demo"])
        if status == 0:
            self.results.ok()
        else:
            self.results.fail("packages", output)

    def unit(self):
        """GCC 12, optimised, warnings are errors: unit, concurrent and static tests"""
        build = self.main_build()
        if not build.configure():
            return
        if build.make("static_tests"):
            self.results.ok(len(list((ROOT / "tests" / "static").glob("*.cpp"))))
        for program in ("unit_tests", "concurrent_tests"):
            if build.make(program):
                build.catch(program)

    def compile_fail(self):
        """what must not compile does not, for the stated reason"""
        if self.main_build().configure():
            self.main_build().ctest("-R", "^compile_fail")

    def structure(self):
        """layers, two units, NDEBUG layout, one-file headers, no indirect call, memory costs"""
        if self.main_build().make("structure_programs"):
            self.main_build().ctest("-R", "^(structure|dispatch|costs)")

    def consumers(self):
        """projects that use the library as a folder and installed"""
        if self.main_build().configure():
            self.main_build().ctest("-R", "^consumer")

    def programs(self):
        """examples on recorded and generated input"""
        if self.main_build().configure() and self.main_build().make("examples/all"):
            self.main_build().ctest(
                "-E", "^(unit_tests|concurrent_tests)$|^(compile_fail|structure|dispatch|costs|consumer)")

    def benchmarks(self):
        """the benchmarks build, and measure what they say; for a moment, so no figures come of it"""
        bench = Build(self.results, "bench", "bench",
                      "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG", *self.release.options)
        if not bench.make():
            return
        for path in sorted((bench.folder / "bench").glob("bench_*")):
            if path.is_file() and os.access(path, os.X_OK):
                status, output = run([path, "--benchmark_min_time=0.001"], progress=path.name)
                wrong = [line for line in output.splitlines() if "ERROR OCCURRED" in line and
                         not re.search("the kernel has no|is not installed|lacks|no membarrier", line)]
                if status == 0 and not wrong:
                    self.results.ok()
                else:
                    self.results.fail(path.name, "\n".join(wrong) or output)

    def lone_headers(self):
        """every header alone: GCC without exceptions and RTTI, Clang with them"""
        count = len(list((ROOT / "include").rglob("*.hpp")))
        if not self.lone.configure():
            return
        before = len(self.results.failed)
        built = self.lone.make()
        broken = self.results.failed[before:]
        if built:
            self.results.ok(count)
        elif broken and all("/lone_headers.dir/" in name for name in broken):
            self.results.ok(max(0, count - len(broken)))

        def by_clang(source):
            return source, run(["clang++-19", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra",
                                "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror",
                                f"-I{ROOT / 'include'}", source])

        lone = sorted((self.lone.folder / "tests" / "structure" / "lone").glob("*.cpp"))
        known = {str(path.relative_to(ROOT / "include")).replace("/", ".") + ".cpp"
                 for path in (ROOT / "include").rglob("*.hpp")}
        with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
            for source, (status, output) in pool.map(
                    by_clang, [path for path in lone if path.name in known]):
                if status == 0:
                    self.results.ok()
                else:
                    self.results.fail(f"clang++-19: {source.name}", output)

    def sanitizers(self):
        """clang-19 with AddressSanitizer and UndefinedBehaviorSanitizer: unit and concurrent"""
        for program in ("unit_tests", "concurrent_tests"):
            if self.asan.make(program):
                self.asan.catch(program, {"ASAN_OPTIONS": "detect_stack_use_after_return=1",
                                          "UBSAN_OPTIONS": "print_stacktrace=1"})

    def threads(self):
        """clang-19 with ThreadSanitizer: concurrent tests"""
        if self.tsan.make("concurrent_tests"):
            self.tsan.catch("concurrent_tests", {"TSAN_OPTIONS": "halt_on_error=1"})

    def models(self):
        """spin: models of the TLB entry's and the guards' protocols hold, and fail without a rule"""
        status, output = run(["tests/models/check.py"], progress="models")
        counts = re.search(r"^models (\d+), as expected (\d+)$", output, re.M)
        if status == 0 and counts:
            self.results.ok(int(counts[1]))
        else:
            self.results.fail("tests/models/check.py", output)

    def formatting(self):
        """clang-format-19 changes nothing"""
        paths = [path for path in sources() if path.endswith((".cpp", ".hpp"))]
        status, output = run(["clang-format-19", "--dry-run", "--Werror", *paths])
        wrong = sorted(set(re.findall(r"^(.+?):\d+:\d+: error:", output, re.M)))
        for path in wrong:
            self.results.fail(f"format: {path}")
        if status != 0 and not wrong:
            self.results.fail("clang-format-19", output)
        elif not wrong:
            self.results.ok()

    def tidy(self):
        """clang-tidy-19 finds nothing in the headers"""
        if not self.asan.configure():
            return
        entries = json.loads((self.asan.folder / "compile_commands.json").read_text())
        known = {entry["file"] for entry in entries}
        for path in ("tests/structure/two_units_other.cpp", "tests/dispatch/hot_paths.cpp"):
            if str(ROOT / path) not in known:
                self.results.fail(f"tidy: {path} is not compiled")
                continue
            status, output = run(["clang-tidy-19", "--quiet", "-p", self.asan.folder,
                                  "--warnings-as-errors=*", path], progress=f"tidy {path}")
            if status == 0:
                self.results.ok()
            else:
                self.results.fail(f"tidy: {path}", "\n".join(
                    line for line in output.splitlines() if "error:" in line))

    def demo(self):
        """a stock arm64 Linux boots in our VMM, its driver on our SMMU"""
        variants = [["--self-test"], [], ["--vcpus", "2"], ["--iommu", "lazy"],
                    ["--iommu", "passthrough", "--kernel-series", "next"],
                    ["--features", "full", "--pages", "16"],
                    ["--features", "full", "--vcpus", "2", "--suspend"]]
        if self.options.all:
            variants += [["--reference"], ["--vcpus", "2", "--kernel-series", "next"],
                         ["--pages", "16"], ["--features", "full"], ["--suspend"],
                         ["--features", "full", "--kernel-series", "next"]]
        for variant in variants:
            name = " ".join(["scripts/demo", *variant])
            say(f"  {elapsed()} {name}")
            status, output = run(["scripts/demo", *variant], progress=name)
            reasons = SKIP.findall(output)
            claims = re.findall(r"^ok +(.+)$", output, re.M)
            missing = re.findall(r"^MISSING +(.+)$", output, re.M)
            self.results.ok(len(claims))
            for claim in missing:
                self.results.fail(f"{name}: {claim}")
            if status == 0 and not missing:
                if not claims:
                    self.results.ok()
                say("  " + output.strip().splitlines()[-1])
            elif status == 77 and reasons:
                self.results.skip(name, *reasons)
            else:
                self.results.fail(name, output)

    def judge(self, *command):
        """Runs a comparison with something that nobody here wrote, or plants defects under one.

        It ends with "cases N, different N", which is one test, or "mutants N, caught N".
        """
        name = " ".join(command)
        say(f"  {elapsed()} {name}")
        limit = BUILD_LIMIT if "--mutants" in command else LIMIT
        status, output = run(command, progress=name, limit=limit)
        reasons = SKIP.findall(output)
        cases = re.search(r"^cases (\d+), different 0$", output, re.M)
        mutants = re.search(r"^mutants (\d+), caught (\d+)$", output, re.M)
        if status == 0 and cases and int(cases[1]) > 0:
            self.results.ok()
            say("  " + cases[0])
        elif status == 0 and mutants and int(mutants[1]) == int(mutants[2]) > 0:
            self.results.ok(int(mutants[2]))
            say("  " + mutants[0])
        elif status == 77 and reasons:
            self.results.skip(name, *reasons)
        else:
            self.results.fail(name, output)

    def walk_oracle(self):
        """random tables walked by an emulated processor and by the library: the same answers"""
        self.judge("scripts/walk_oracle", "--seed", "20250601", "--cases", "500000")

    def differential(self):
        """random configurations, DMA and invalidations on QEMU's SMMUv3 and on ours"""
        self.judge("scripts/differential", "--seed", "20250602", "--cases", "100000")

    def arm64(self):
        """the tests of KVM and of this system's calls, built for arm64, in an emulated machine"""
        from beds import debian, machines  # here, as only this stage needs them
        layers = "affinity;hypervisor;numa;os;topology"
        options = ["-DVM_ACCEL_BUILD_EXAMPLES=OFF", f"-DVM_ACCEL_TEST_LAYERS={layers}"]
        if not machines.ON_ARM64:
            try:
                sysroot, catch2 = machines.sysroot(), machines.catch2()
            except debian.BedError as error:
                self.results.fail("arm64: packages", str(error))
                return
            options += [f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/cmake/aarch64-linux-gnu.cmake",
                        f"-DVM_ACCEL_SYSROOT={sysroot}", f"-DCatch2_DIR={catch2}"]
        build = Build(self.results, "arm64", "release", *options)
        if not build.make("unit_tests"):
            return
        for tests in ("[kvm]", "[kernel]~[kvm]"):
            name = f"arm64: unit_tests {tests}"
            status, output = run(["scripts/on-arm64", build.folder / "tests" / "unit_tests", tests],
                                 progress=name)
            # The console shows each of the program's lines behind a bar, and in colours.
            text = re.sub(r"^   \| |\x1b\[[0-9;]*m", "", output, flags=re.M)
            totals = re.search(r"^test cases: +(\d+) \| +(?:(\d+) passed)?", text, re.M)
            good = re.search(r"^All tests passed \(.* in (\d+) test cases?\)", text, re.M)
            reasons = SKIP.findall(text)
            if status == 0 and good:
                self.results.ok(max(0, int(good[1]) - len(reasons)))
            else:
                self.results.ok(int(totals[2] or 0) if totals else 0)
                self.results.fail(name, text)
            for reason in reasons:
                self.results.skip(name, reason)

    def numa_guests(self):
        """the tests of KVM and of this system's calls on four NUMA nodes, free and confined"""
        from beds import numa_machine  # here, as only this stage needs it
        build = self.main_build()
        if not build.configure() or not build.make("unit_tests"):
            return
        machines = [("uneven", ["free", "cpuset:2-3:1-2", "refusing:container", "refusing:mbind"]),
                    # CPUs of three nodes, one of them with memory that is allowed.
                    ("holes", ["free", "cpuset:1-4:0,3"])]
        suites = [()]
        if self.options.all:
            suites += [("--kernel-of", later)
                       for later in [numa_machine.next_suite()] if later is not None]
        for suite in suites:
            for layout, ways in machines:
                command = ["scripts/on-numa", *suite, "--layout", layout, "--limit", 600,
                           *(word for way in ways for word in ("--as", way)),
                           build.folder / "tests" / "unit_tests", "-r", "xml", "[kernel],[kvm]"]
                name = " ".join(["numa_guests:", *suite[1:], layout])
                status, output = run(command, progress=name)
                if status == 77:
                    self.results.skip(name, *SKIP.findall(output))
                    continue
                text = re.sub(r"^   \| ", "", output, flags=re.M)
                for way, (ended, printed) in numa_machine.outcomes(text, ways).items():
                    self.guest_cases(f"{name} {way}: ", ended, printed)

    def guest_cases(self, prefix, status, printed):
        """Counts the cases of a Catch report that came over a machine's console."""
        report = re.search(r"<\?xml .*</Catch>", printed, re.S)
        try:
            cases = list(ElementTree.fromstring(report[0]).iter("TestCase")) if report else []
        except ElementTree.ParseError as error:
            self.results.fail(f"{prefix}not a report: {error}", printed)
            return
        before = len(self.results.skipped)
        failed = self.results.cases(prefix, cases)
        if not cases or status is None or (status != 0 and not failed):
            self.results.fail(f"{prefix}status {status} with {len(cases)} cases", printed)
        say(f"  {elapsed()} {prefix}{len(cases)} cases, "
            f"{len(self.results.skipped) - before} skipped")

    def windows(self):
        """only with --all: portable tests and programs built for Windows, run under Wine"""
        status, output = run(["scripts/setup", "--check", "windows"])
        if status != 0:
            self.results.fail("windows: packages", f"{output}scripts/setup windows installs them")
            return
        layers = "affinity;core;guest;hypervisor;manager;numa;os;smmu;topology"
        build = Build(self.results, "windows", "release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
                      f"-DVM_ACCEL_TEST_LAYERS={layers}",
                      f"-DCMAKE_TOOLCHAIN_FILE={ROOT}/cmake/x86_64-w64-mingw32.cmake")
        if build.make("unit_tests"):
            build.catch("unit_tests.exe", runner=["scripts/on-windows"])
        # What each program must end with, and say.
        programs = [
            ("windows_whpx", [], 77, r"^SKIP: WHPX: WinHvPlatform\.dll is not there; switch on the "
                                     r"Windows feature"),
            ("windows_whpx", ["--backend", "software"], 0, r"^206 checks passed, 0 failed"),
            ("host_report", ["2"], 0, r"binding preferred.*pages 4096 on node 0, 0 absent"),
            ("quick_start", [], 0, r"pinned as planned")]
        for name, arguments, wanted, words in programs:
            told = " ".join(["windows:", name, *arguments])
            if not build.make(f"example_{name}"):
                continue
            found = next(build.folder.glob(f"examples/**/example_{name}.exe"))
            status, output = run(["scripts/on-windows", found, *arguments], progress=told)
            if status == wanted and re.search(words, output, re.M):
                self.results.ok()
            else:
                self.results.fail(told, f"status {status}, not {wanted} with '{words}'\n{output}")

    def macos(self):
        """only with --all: compiled and linked for macOS, compiled for iOS, with zig; nothing is run"""
        status, output = run(["scripts/on-macos"], progress="on-macos", limit=BUILD_LIMIT)
        reasons = SKIP.findall(output)
        self.results.ok(len(re.findall(r"^ok  ", output, re.M)))
        failed = re.findall(r"^FAILED (.+)$", output, re.M)
        for name in failed:
            self.results.fail(f"on-macos: {name}")
        if status == 77 and reasons:
            self.results.skip("scripts/on-macos", *reasons)
        elif status != 0 and not failed:
            self.results.fail("scripts/on-macos", output)

    def slower(self):
        """only with --all: planted defects, a second compiler, repeated concurrent tests"""
        status, output = run([ROOT / "scripts" / "mutants"], progress="planted defects")
        counts = re.search(r"^(\d+) caught, (\d+) escaped", output, re.M)
        if status == 0 and counts:
            self.results.ok(int(counts[1]))
        else:
            self.results.fail("scripts/mutants", output)
        self.judge("scripts/walk_oracle", "--mutants")
        self.judge("scripts/differential", "--mutants")
        self.judge("scripts/fuzz", "--mutants")
        clang = Build(self.results, "clang", "release", "-DCMAKE_CXX_COMPILER=clang++-19")
        if clang.make("unit_tests", "concurrent_tests", "static_tests"):
            clang.catch("unit_tests")
            for _ in range(10):
                clang.catch("concurrent_tests")
        if self.tsan.make("concurrent_tests"):
            for _ in range(5):
                self.tsan.catch("concurrent_tests", {"TSAN_OPTIONS": "halt_on_error=1"})


ALL = ["packages", "formatting", "unit", "compile_fail", "structure", "consumers", "programs",
       "benchmarks", "lone_headers", "sanitizers", "threads", "tidy", "models", "walk_oracle",
       "differential", "numa_guests", "arm64", "demo"]
QUICK = ["formatting", "unit", "compile_fail", "structure"]
# Each keeps one core busy: what follows one another in a run is done as many at a time as there are.
ONE_CORE = {"tidy", "models", "walk_oracle", "differential", "numa_guests"}
SLOWER = ["windows", "macos", "slower"]


def sources():
    """The files of the repository, also those not committed yet."""
    status, output = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"])
    if status != 0:
        return [str(path.relative_to(ROOT)) for folder in ("include", "tests", "bench", "examples")
                for path in (ROOT / folder).rglob("*")]
    return [line for line in output.splitlines() if (ROOT / line).is_file()]


def groups(names):
    """The stages in order; what may run side by side is one group."""
    group = []
    for name in names:
        if group and not (name in ONE_CORE and group[-1] in ONE_CORE):
            yield group
            group = []
        group.append(name)
    yield group


def one_stage(name, number, options):
    """Runs a stage, and gives its results."""
    results = Results()
    stage = getattr(Stages(results, options), name)
    say(f"== {elapsed()} [{number}] {name}: {stage.__doc__}")
    try:
        stage()
    except OSError as error:
        results.fail(name, str(error))
    passed, failed, skipped = results.passed, len(results.failed), len(results.skipped)
    if passed + failed + skipped == 0:
        results.fail(f"{name}: counted no test")
    say(f"   {name}: {passed} passed, {failed} failed, {skipped} skipped")
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--stage", action="append", choices=ALL + SLOWER, metavar="NAME")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    results = Results()
    names = options.stage or (QUICK if options.quick else ALL + (SLOWER if options.all else []))
    if options.list:
        for name in ALL + SLOWER:
            print(f"{name:14}{getattr(Stages, name).__doc__}")
        return 0
    pool = concurrent.futures.ThreadPoolExecutor(JOBS)
    for group in groups(names):
        for part in pool.map(lambda name: one_stage(
                name, f"{names.index(name) + 1}/{len(names)}", options), group):
            results.add(part)
    say(f"== {elapsed()} done")
    for name, reason in results.skipped:
        say(f"skipped: {name}: {reason}")
    for name in results.failed:
        say(f"failed: {name}")
    say(f"{results.passed} passed, {len(results.failed)} failed, {len(results.skipped)} skipped")
    return 1 if results.failed or results.passed == 0 else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # the commands are in sessions of their own and do not get it
        for group in list(RUNNING):
            end_group(group)
        os._exit(130)
