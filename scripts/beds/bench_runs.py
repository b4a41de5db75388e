"""Builds bench/, runs its programs and gathers figures."""
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time

import count_instructions

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "bench"
# What the targets are about, the longest first; then the rest of bench/.
PROGRAMS = ["translate", "threads", "misses", "invalidation", "commands", "copies", "policies",
            "memory", "numa_prefault", "numa_plans", "object_pool"]
OTHERS = ["topology"]
FULL = {"repetitions": 7, "seconds": 0.03}
QUICK = {"repetitions": 3, "seconds": 0.004}


class BenchError(Exception):
    pass


class ProgramFailed(Exception):
    """One program; the others can still be run."""


def claims():
    """(program, its claim) for each program."""
    for name in PROGRAMS + OTHERS:
        text = (ROOT / "bench" / f"{name}.cpp").read_text(encoding="utf-8")
        comment = []
        for line in text.splitlines():
            if not line.startswith("///") or line == "///":
                break
            comment.append(line[3:].strip())
        yield name, " ".join(comment).removeprefix("Claim: ")


def compiler():
    found = subprocess.run(["g++-12", "--version"], capture_output=True, text=True)
    return "g++-12" if found.returncode == 0 else "g++"


def build(programs):
    print(f"building bench/ with {compiler()} -O2", flush=True)
    for command in (["cmake", "--preset", "bench", "-B", BUILD,
                     f"-DCMAKE_CXX_COMPILER={compiler()}", "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -DNDEBUG"],
                    ["cmake", "--build", BUILD, "--target", "bench_instructions",
                     *(f"bench_{name}" for name in programs)]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            raise BenchError("bench/ does not build:\n" + (done.stdout + done.stderr)[-4000:])


def machine():
    model = ""
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"],
                            capture_output=True, text=True).stdout.strip()
    return {"processor": model or platform.processor() or platform.machine(),
            "threads": os.cpu_count(), "system": f"{platform.system()} {platform.release()}",
            "compiler": version.splitlines()[0] if version else compiler(), "commit": commit,
            "date": time.strftime("%Y-%m-%d"), "load": round(os.getloadavg()[0], 2)}


def short_name(name):
    """Without what only says how it was measured."""
    return re.sub(r"/(iterations:\d+|manual_time|real_time|process_time|repeats:\d+)", "", name)


def nanoseconds(entry):
    """What one iteration takes. A single thread's processor time, so that what else runs on the
    machine is left out as far as possible; elapsed time where threads meet."""
    if "typical_ns" in entry:
        return entry["typical_ns"]
    unit = {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}[entry["time_unit"]]
    elapsed = "/real_time" in entry["name"] or "/manual_time" in entry["name"]
    return entry["real_time" if elapsed else "cpu_time"] * unit


COUNTERS = ("bytes_per_entry", "bytes_per_stream", "bytes_of_all", "hit_rate", "bytes_per_second",
            "items_per_second", "translations/s")


def gather(name, text, rows, failures):
    """Adds the medians of one program's JSON to `rows`: {program/benchmark: {...}}."""
    samples = {}
    for entry in json.loads(text)["benchmarks"]:
        if entry.get("run_type") == "aggregate":
            continue
        key = f"{name}/{short_name(entry['name'])}"
        if entry.get("error_occurred"):
            failures.append(f"{key}: {entry.get('error_message', 'error')}")
            continue
        samples.setdefault(key, []).append(entry)
    # In the order of the program, not in the random order of the run.
    for key, entries in sorted(samples.items(), key=lambda item: (
            item[1][0]["family_index"], item[1][0]["per_family_instance_index"])):
        times = [nanoseconds(entry) for entry in entries]
        row = {"ns": statistics.median(times), "least_ns": min(times), "most_ns": max(times),
               "repetitions": len(times)}
        for counter in COUNTERS:
            if counter in entries[0]:
                row[counter] = statistics.median(entry[counter] for entry in entries)
        rows[key] = row


def run(name, words, how):
    """The program's JSON, empty if nothing is to be run."""
    program = BUILD / "bench" / f"bench_{name}"
    filters = []
    if words and not any(word in name for word in words):
        listed = subprocess.run([program, "--benchmark_list_tests"], capture_output=True, text=True)
        chosen = [line for line in listed.stdout.splitlines() if any(w in line for w in words)]
        if not chosen:
            return ""
        filters = ["--benchmark_filter=^(" + "|".join(map(re.escape, chosen)) + ")$"]
    done = subprocess.run(
        [program, "--benchmark_format=json", f"--benchmark_min_time={how['seconds']}",
         f"--benchmark_repetitions={how['repetitions']}",
         "--benchmark_enable_random_interleaving=true", *filters],
        capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise ProgramFailed(f"bench_{name}: status {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def measure(words=(), quick=False):
    how = QUICK if quick else FULL
    programs = PROGRAMS + ([] if quick else OTHERS)
    build(programs)
    results = {"machine": machine(), "quick": quick, "rows": {}, "instructions": {}, "failures": []}
    if results["machine"]["load"] > 0.5:
        print(f"the machine is busy (load {results['machine']['load']}): expect noise", flush=True)
    started = time.monotonic()
    for name in programs:
        before = time.monotonic()
        try:
            text = run(name, words, how)
        except ProgramFailed as failure:
            results["failures"].append(str(failure))
            print(f"  {failure}", flush=True)
            continue
        if not text:
            continue
        gather(name, text, results["rows"], results["failures"])
        print(f"  {name}: {time.monotonic() - before:.0f} s", flush=True)
    if not words or any("instructions".startswith(word) for word in words):
        results["instructions"] = count_instructions.count(BUILD / "bench" / "bench_instructions")
    results["seconds"] = round(time.monotonic() - started)
    if not results["rows"] and not results["instructions"]:
        raise BenchError("no benchmark has such a name")
    return results


def save(path, results, targets):
    path.write_text(json.dumps({**results, "targets": targets}, indent=1) + "\n", encoding="utf-8")


def load(path):
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: {error}") from error
    results.pop("targets", None)
    return results


if __name__ == "__main__":
    sys.exit("scripts/bench is what to run")
