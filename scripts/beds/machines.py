"""What the beds are made of: Debian kernels, cross-built programs, and machines that run them."""

import os
import pathlib
import shutil
import subprocess
import threading
import time

from beds import debian
from beds.debian import BedError, say
from beds.initramfs import Initramfs

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BEDS = REPOSITORY / "scripts" / "beds"
ARM64 = REPOSITORY / "build" / "arm64"
ON_ARM64 = os.uname().machine == "aarch64"
# Where the VMM's shared libraries are: this host's own, or the cross compiler's and the sysroot's.
LIBRARY_FOLDERS = (("/usr/lib/aarch64-linux-gnu", "/lib/aarch64-linux-gnu") if ON_ARM64 else
                   ("/usr/aarch64-linux-gnu/lib", ARM64 / "sysroot/usr/lib/aarch64-linux-gnu"))
# The cross compiler brings its own C and C++ libraries; a second set would contradict its headers.
FROM_THE_COMPILER = ("libc6.*", "libgcc.*", "libstdc.*", "gcc-.*", "linux-libc-dev", "libcrypt.*")
GUEST_APPLETS = ("sh mount insmod cat echo grep sed dmesg sha256sum dd readlink basename devmem "
                 "sleep stty sync poweroff uname nproc rm touch")
OUTER_APPLETS = GUEST_APPLETS + " mv kill gzip base64"
# virtio_pci serves QEMU's own SMMU, which has PCI devices only.
GUEST_MODULES = ("virtio_mmio", "virtio_pci", "virtio_blk", "arm_smmuv3_pmu")


class Kernel:
    """Debian's arm64 kernel of one suite, with pages of 4 or 16 KiB: .image, .modules (folder),
    .release, .name, .answers_stalls."""

    def __init__(self, suite, page_kib=4):
        meta = "linux-image-arm64" + ("" if page_kib == 4 else f"-{page_kib}k")
        self.name = suite + ("" if page_kib == 4 else f"-{page_kib}k")
        self.folder = ARM64 / f"kernel-{self.name}"
        if not self.folder.exists():
            archive = debian.Archive(ARM64, suite)
            archive.update()
            package = [name for name in archive.dependencies(meta)
                       if name.startswith("linux-image-")]
            if not package:
                raise debian.NotInArchive(f"Debian {suite} has no {meta} package; "
                                          "choose another suite")
            debian.unpack(archive.download(package[:1]), self.folder)
        self.image = next(self.folder.glob("boot/vmlinuz-*"))
        self.release = self.image.name.split("-", 1)[1]
        # Since 6.10 a driver that nothing has configured for page faults leaves stalled DMA waiting.
        version = tuple(map(int, self.release.split(".")[:2]))
        settings = next(self.folder.glob("boot/config-*")).read_text()
        self.answers_stalls = version < (6, 10) or "CONFIG_IOMMU_IOPF=y" in settings
        self.modules = next(path for path in (self.folder / "lib/modules" / self.release,
                                              self.folder / "usr/lib/modules" / self.release)
                            if path.exists())


def busybox():
    """A static busybox for arm64."""
    folder = ARM64 / "busybox"
    if not folder.exists():
        archive = debian.Archive(ARM64, debian.host_codename())
        archive.update()
        debian.unpack(archive.download(["busybox-static"]), folder)
    return next(path for path in (folder / "bin/busybox", folder / "usr/bin/busybox")
                if path.exists())


def sysroot():
    """arm64 headers and libraries for cross-building; the C library stays the compiler's own."""
    folder = ARM64 / "sysroot"
    if not folder.exists():
        archive = debian.Archive(ARM64, debian.host_codename())
        archive.update()
        wanted = ["libhwloc-dev", "libfdt-dev", "libexpected-dev"]
        if not pathlib.Path("/usr/include/boost").exists():
            wanted.append("libboost-dev")
        debian.unpack(archive.download(archive.closure(wanted, FROM_THE_COMPILER)), folder)
        if "libboost-dev" not in wanted:
            # Boost's headers are the same for every architecture.
            (folder / "usr/include/boost").symlink_to("/usr/include/boost")
    return folder


def catch2():
    """The folder with the CMake package of Catch2 for arm64, for cross-building tests."""
    folder = ARM64 / "catch2"
    if not folder.exists():
        archive = debian.Archive(ARM64, debian.host_codename())
        archive.update()
        debian.unpack(archive.download(["catch2"]), folder)
    return next(folder.rglob("Catch2Config.cmake")).parent


def build(target):
    """Builds CMake target `target` for arm64 and returns the program's path."""
    debian.require_tools("cmake", "ninja")
    folder = ARM64 / "cmake"
    if not (folder / "build.ninja").exists():
        command = ["cmake", "-S", str(REPOSITORY), "-B", str(folder), "-G", "Ninja",
                   "-DCMAKE_BUILD_TYPE=Release", "-DVM_ACCEL_BUILD_TESTS=OFF",
                   "-DVM_ACCEL_BUILD_BENCHMARKS=OFF"]
        if not ON_ARM64:
            debian.require_tools("aarch64-linux-gnu-g++")
            command += [f"-DCMAKE_TOOLCHAIN_FILE={REPOSITORY}/cmake/aarch64-linux-gnu.cmake",
                        f"-DVM_ACCEL_SYSROOT={sysroot()}"]
        say("configuring the arm64 build")
        quietly(command, ARM64 / "configure.log")
    started = time.monotonic()
    say(f"building {target} for arm64")
    quietly(["cmake", "--build", str(folder), "--target", target], ARM64 / "build.log")
    say(f"built in {time.monotonic() - started:.1f} s")
    return next(path for path in folder.rglob(target)
                if path.is_file() and os.access(path, os.X_OK))


def quietly(command, log):
    """Runs a command with its output in `log`; on failure shows the errors in it, or its end."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        lines = log.read_text(errors="replace").splitlines()
        shown = [line for line in lines if "error:" in line or "Error" in line][:20] or lines[-20:]
        raise BedError("\n".join([f"{command[0]} failed (whole log in {log}):", *shown]))


def count_events():
    """A static arm64 program that counts events of a performance monitor."""
    program, source = ARM64 / "count-events", BEDS / "count-events.cpp"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        compiler = "g++" if ON_ARM64 else "aarch64-linux-gnu-g++"
        debian.require_tools(compiler)
        quietly([compiler, "-std=c++20", "-static", "-Os", "-s", str(source), "-o", str(program)],
                ARM64 / "count-events.log")
    return program


def pack_guest(kernel, path, programs=()):
    """The initial file system of the guest that drives the disks behind the SMMU."""
    archive = Initramfs()
    archive.busybox(busybox(), GUEST_APPLETS)
    archive.modules(kernel.modules, GUEST_MODULES)
    archive.file("init", (BEDS / "guest-init.sh").read_bytes(), executable=True)
    for program in programs:
        archive.file(f"bin/{program.name}", program.read_bytes(), executable=True)
    archive.write(path)


def pack_outer(path, vmm, folder):
    """The initial file system of the machine that runs the VMM: `folder`'s files under /demo."""
    archive = Initramfs()
    archive.busybox(busybox(), OUTER_APPLETS)
    archive.file("init", (BEDS / "outer-init.sh").read_bytes(), executable=True)
    archive.file("demo/run-vmm.sh", (BEDS / "run-vmm.sh").read_bytes(), executable=True)
    for name in ("Image", "guest.cpio", "disk", "pci-disk"):
        archive.file(f"demo/{name}", (folder / name).read_bytes())
    if vmm is not None:
        archive.program("demo/linux_kvm_arm64", vmm, LIBRARY_FOLDERS)
    archive.write(path)


def pack_programs(path, programs):
    """The initial file system of a machine that runs `programs`: {name: path}."""
    archive = Initramfs()
    archive.busybox(busybox(), OUTER_APPLETS)
    archive.file("init", (BEDS / "programs-init.sh").read_bytes(), executable=True)
    for name, program in programs.items():
        archive.program(f"programs/{name}", program, LIBRARY_FOLDERS)
    archive.write(path)


def outer_machine(kernel, initrd, environment, machine="", memory=(512, 512), distance=20):
    """QEMU command: an arm64 machine with EL2 for KVM, two processors and two NUMA nodes.

    `environment` reaches the first process; `machine` adds to QEMU's -M, such as ",iommu=smmuv3";
    `memory` is in MiB of each node. The nodes are told by the device tree.
    """
    return ["qemu-system-aarch64", "-nodefaults", "-nographic", "-no-reboot",
            "-M", f"virt,virtualization=on,gic-version=3,acpi=off{machine}", "-cpu", "cortex-a76",
            "-smp", "2", "-m", str(sum(memory)),
            "-object", f"memory-backend-ram,id=ram0,size={memory[0]}M",
            "-object", f"memory-backend-ram,id=ram1,size={memory[1]}M",
            "-numa", "node,nodeid=0,cpus=0,memdev=ram0",
            "-numa", "node,nodeid=1,cpus=1,memdev=ram1",
            "-numa", f"dist,src=0,dst=1,val={distance}",
            "-serial", "stdio", "-kernel", str(kernel.image), "-initrd", str(initrd),
            "-append", "console=ttyAMA0 quiet panic=-1 " +
            " ".join(f"{key}={value}" for key, value in environment.items())]


def reference_machine(kernel, initrd, folder, words):
    """QEMU command: the same guest with QEMU's own SMMUv3 in place of ours."""
    return ["qemu-system-aarch64", "-nodefaults", "-nographic", "-no-reboot",
            "-M", "virt,iommu=smmuv3,gic-version=3,acpi=off", "-cpu", "cortex-a76",
            "-smp", "1", "-m", "256",
            *(word for name in ("disk", "pci-disk") for word in (
                "-drive", f"file={folder / name},format=raw,if=none,id={name}",
                "-device", f"virtio-blk-pci,drive={name},disable-legacy=on,iommu_platform=on")),
            "-serial", "stdio", "-kernel", str(kernel.image), "-initrd", str(initrd),
            "-append", f"console=ttyAMA0 quiet panic=-1 {words}"]


def capture(command, log, limit, environment):
    """Runs a machine, shows its lines as they come, keeps them in `log`; returns the whole text.

    A machine that has not finished after `limit` seconds is ended; the text then lacks what the
    checks look for, and says why.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, env={
                                   **os.environ, **{k: str(v) for k, v in environment.items()}})
    expired = []

    def end():
        expired.append(True)
        process.kill()

    timer = threading.Timer(limit, end)
    timer.start()
    text = []
    with open(log, "w") as out:
        for raw in process.stdout:
            line = raw.decode(errors="replace").replace("\r", "").rstrip("\n")
            text.append(line)
            out.write(line + "\n")
            out.flush()
            print(f"   | {line}", flush=True)
        process.wait()
        timer.cancel()
        if expired:
            text.append(f"DEMO: ended after {limit} s")
            out.write(text[-1] + "\n")
            say(f"the machine did not finish within {limit} s and was ended")
    return "\n".join(text) + "\n"


def host_can_run_directly():
    """True on an arm64 host whose /dev/kvm this user may open."""
    return ON_ARM64 and os.access("/dev/kvm", os.R_OK | os.W_OK)


def host_nodes():
    """NUMA nodes the guest's memory is split over on this host: two where it has two."""
    return min(2, len(list(pathlib.Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1)


def fresh_folder(path):
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
