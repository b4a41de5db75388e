"""What scripts/demo runs: a stock Debian arm64 kernel boots in the VMM examples/linux_kvm_arm64,
and its own arm-smmu-v3 driver runs the disk behind our SMMU.

On an arm64 host with a usable /dev/kvm the VMM runs directly. Elsewhere it is built for arm64 and
runs under nested KVM in an emulated arm64 machine with two NUMA nodes. Kernel, busybox and arm64
libraries come from Debian's archive, once; they are unpacked under build/ and never installed.

Every claim is checked on the captured console. Exit status: 0 everything proved, 1 something
missing, 77 not possible here (the reason is printed as SKIP).
"""

import argparse
import base64
import dataclasses
import fcntl
import gzip
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from beds import claims, debian, machines  # noqa: E402  (the path above makes it importable)
from beds.debian import BedError, NotInArchive, say  # noqa: E402

DISK_BYTES = 2 << 20
GUEST_MEMORY_MIB = 256
SUSPEND_AFTER = 20  # requests: while the guest reads the disk for the first time
TARGET = "example_linux_kvm_arm64"
# What the guest's kernel is told about IOMMU domains, and the type it begins with.
IOMMU = {"strict": ("", "DMA"), "lazy": ("iommu.strict=0", "DMA-FQ"),
         "passthrough": ("iommu.passthrough=1", "identity")}
SAMPLES = ("sample-console.txt", "sample-console-full.txt", "sample-console-ats.txt",
           "sample-console-suspend.txt")


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vcpus", type=int, default=1, metavar="N", help="vCPUs of the guest (1)")
    parser.add_argument("--kernel-series", choices=("stable", "next"), default="stable",
                        help="kernel of this machine's Debian release, or of the one after it")
    parser.add_argument("--pages", type=int, choices=(4, 16), default=4, metavar="KIB",
                        help="page size of the guest's kernel, 4 or 16 (4); 16: of the first "
                             "release that has such a kernel")
    parser.add_argument("--iommu", choices=tuple(IOMMU), default="strict",
                        help="how the guest's kernel uses the SMMU at first (strict)")
    parser.add_argument("--features", choices=("stage1", "full"), default="stage1",
                        help="what our SMMU has: stage1, or full for all of the library (stage1)")
    parser.add_argument("--suspend", action="store_true",
                        help="suspend the machine in the middle of its I/O and go on in another "
                             "process")
    parser.add_argument("--record", nargs=2, metavar=("WORK", "FILE"),
                        help="the guest does that I/O only (read, write or mixed); its DMA is "
                             "recorded in FILE, for examples/policy_lab")
    parser.add_argument("--vmm", metavar="PATH", help="run this arm64 program, build nothing")
    parser.add_argument("--keep", action="store_true", help="keep disk and file systems of the run")
    parser.add_argument("--limit", type=int, default=240, metavar="SECONDS",
                        help="end a run that hangs after this long (240)")
    parser.add_argument("--reference", action="store_true",
                        help="boot the same guest on QEMU's own SMMUv3: checks the guest script")
    parser.add_argument("--self-test", action="store_true",
                        help="spoil a recorded console in many ways; each must be rejected")
    options = parser.parse_args()
    if options.record and options.record[0] not in ("read", "write", "mixed"):
        parser.error(f"--record: {options.record[0]} is not read, write or mixed")
    return options


def make_disk(path, size):
    """Random contents; returns the checksums before and after the guest's writes."""
    content = os.urandom(size)
    path.write_bytes(content)
    quarter = size // 4
    after = content[:2 * quarter] + content[:quarter] + content[3 * quarter:]
    return hashlib.sha256(content).hexdigest(), hashlib.sha256(after).hexdigest()


def choose_kernel(series, pages):
    codename = debian.host_codename()
    if series == "stable" and pages == 4:
        return machines.Kernel(codename)
    suites = [debian.next_codename(codename), f"{codename}-backports"]
    if series == "stable":
        suites.insert(0, codename)
    reasons = []
    for suite in filter(None, suites):
        try:
            return machines.Kernel(suite, pages)
        except NotInArchive as error:
            reasons.append(str(error))
    after = "" if series == "stable" else f" of the series after {codename}"
    print(f"SKIP: no kernel{after} with pages of {pages} KiB: {'; '.join(reasons)}")
    sys.exit(77)


def prepare(options):
    """Everything that is downloaded or built; one demo at a time does this."""
    machines.ARM64.mkdir(parents=True, exist_ok=True)
    direct = machines.host_can_run_directly()
    with open(machines.ARM64 / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        debian.require_tools("dpkg-deb", *(() if direct else ("qemu-system-aarch64",)))
        kernel = choose_kernel(options.kernel_series, options.pages)
        machines.busybox()
        if options.reference:
            vmm = None
        elif options.vmm:
            vmm = pathlib.Path(options.vmm)
        else:
            vmm = machines.build(TARGET)
    return kernel, vmm, direct


def run(options, kernel, vmm, direct):
    """One run in a folder of its own; returns the console's text and the facts it is judged by."""
    name = "-".join([kernel.name, str(options.vcpus),
                     *([options.features] if options.features != "stage1" else []),
                     *([options.iommu] if options.iommu != "strict" else []),
                     *(["suspend"] if options.suspend else []),
                     *(["record"] if options.record else []),
                     *(["reference"] if options.reference else [])])
    folder = machines.REPOSITORY / "build" / "demo" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return run_in(machines.fresh_folder(folder), options, kernel, vmm, direct)


def run_in(folder, options, kernel, vmm, direct):
    before, after = make_disk(folder / "disk", DISK_BYTES)
    second_before, second_after = make_disk(folder / "pci-disk", DISK_BYTES // 4)
    full = options.features == "full"
    machines.pack_guest(kernel, folder / "guest.cpio", [machines.count_events()] if full else [])
    nodes = machines.host_nodes() if direct else 2
    words, domain = IOMMU[options.iommu]
    facts = claims.Facts(kernel=kernel.release, vcpus=options.vcpus, nodes=nodes,
                         memory=GUEST_MEMORY_MIB << 20, disk_before=before, disk_after=after,
                         second_before=second_before, second_after=second_after,
                         page_kib=options.pages, domain=domain, full=full, stalls=full and kernel.answers_stalls,
                         suspended=options.suspend, emulated=not direct)
    environment = {"DEMO_VCPUS": options.vcpus, "DEMO_NODES": nodes,
                   "DEMO_MEMORY": GUEST_MEMORY_MIB, "DEMO_TIMEOUT": options.limit,
                   "DEMO_OPTIONS": words, "DEMO_FEATURES": options.features,
                   "DEMO_STALLS": "--can-stall" if facts.stalls else "",
                   "DEMO_SUSPEND": SUSPEND_AFTER if options.suspend else "",
                   "DEMO_WORK": options.record[0] if options.record else ""}
    if options.reference:
        say(f"booting {kernel.release} on QEMU's own SMMUv3")
        command = machines.reference_machine(kernel, folder / "guest.cpio", folder, words)
        environment = {}
    elif direct:
        say(f"booting {kernel.release} in {vmm.name} on this host")
        shutil.copy(kernel.image, folder / "Image")
        shutil.copy(vmm, folder / "linux_kvm_arm64")
        command = ["sh", str(machines.BEDS / "run-vmm.sh"), str(folder)]
    else:
        say(f"booting {kernel.release} in {vmm.name} in an emulated arm64 machine")
        shutil.copy(kernel.image, folder / "Image")
        machines.pack_outer(folder / "outer.cpio", vmm, folder)
        command = machines.outer_machine(kernel, folder / "outer.cpio", environment)
        environment = {}
    started = time.monotonic()
    text = machines.capture(command, folder / "console.txt", options.limit + 20, environment)
    say(f"ran for {time.monotonic() - started:.1f} s; console in {folder}/console.txt")
    (folder / "facts.json").write_text(json.dumps(dataclasses.asdict(facts), indent=1) + "\n")
    if not options.keep:
        for path in folder.iterdir():
            if path.name not in ("console.txt", "facts.json"):
                path.unlink()
    return text, facts


def show(verdicts):
    """Prints one line per claim; returns how many are missing."""
    for claim, holds, evidence in verdicts:
        print(f"{'ok     ' if holds else 'MISSING'} {claim.text}: {evidence}")
    return sum(not holds for _, holds, _ in verdicts)


def self_test():
    trials, failures = 0, []
    for name in SAMPLES:
        head, text = (machines.BEDS / name).read_text().split("\n", 1)
        tried, wrong = claims.self_test(text, claims.Facts(**json.loads(head)))
        trials += tried
        failures += [f"{name}: {failure}" for failure in wrong]
    for failure in failures:
        print(f"WRONG {failure}")
    if failures:
        print(f"self-test: {len(failures)} of {trials} trials went wrong")
        return 1
    print(f"self-test: the {len(SAMPLES)} good consoles are accepted, "
          f"{trials - len(SAMPLES)} spoiled ones are rejected")
    return 0


def save_trace(text, path):
    """The trace that the VMM recorded, from the console into a file."""
    ended = re.search(r"^OUTER: linux_kvm_arm64 exit status 0$", text, re.M)
    packed = re.search(r"^OUTER: trace begin$(.*)^OUTER: trace end$", text, re.M | re.S)
    if ended is None or packed is None:
        print("no trace: the run did not end well")
        return 1
    trace = gzip.decompress(base64.b64decode(packed[1]))
    pathlib.Path(path).write_bytes(trace)
    print(f"recorded: {path}, {len(trace)} bytes, {trace.count(10)} lines")
    return 0


def main():
    options = arguments()
    if options.self_test:
        return self_test()
    kernel, vmm, direct = prepare(options)
    text, facts = run(options, kernel, vmm, direct)
    if options.record:
        return save_trace(text, options.record[1])
    verdicts = claims.judge(text, facts)
    if options.reference:
        verdicts = [verdict for verdict in verdicts if verdict[0].judge in claims.REFERENCE]
    missing = show(verdicts)
    if missing:
        print(f"not proved: {missing} of {len(verdicts)} claims missing")
        return 1
    if options.reference:
        print("proved: on QEMU's own SMMUv3 the guest script shows what it must, so a failure of "
              "the demo is not the script's")
        return 0
    where = "on this host's KVM" if direct else "under nested KVM in an emulated arm64 machine"
    print(f"proved: Debian's unmodified arm64 kernel {facts.kernel} booted with {facts.vcpus} "
          f"vCPU{'s' if facts.vcpus > 1 else ''} {where} in a VMM made of vm_accel's headers, its "
          "own driver ran two disks on two streams through our SMMU in identity, DMA-FQ and DMA "
          "domains with every checksum right, each at work while the other was rebound, and DMA it "
          "had not allowed moved nothing and was reported as the architecture says.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BedError as error:
        print(f"scripts/demo: {error}", file=sys.stderr)
        sys.exit(1)
