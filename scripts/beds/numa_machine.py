"""An emulated x86-64 machine with four NUMA nodes, Debian's kernel in it, and programs run there.

The processor is emulated too (with AMD's virtualisation, so /dev/kvm works inside), which makes the
machine the same everywhere; only its speed is not to be measured. All its processors take turns in
one thread of the emulator: with a thread each, QEMU 7.2 can hang while /dev/kvm is first opened,
and takes more time in all. Programs are this machine's own: they go in with their shared libraries.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import re
import shlex
import shutil
import subprocess

from beds import debian, machines
from beds.debian import BedError
from beds.initramfs import Initramfs

AMD64 = machines.REPOSITORY / "build" / "amd64"
EMULATOR = "qemu-system-x86_64"
META_PACKAGE = "linux-image-cloud-amd64"
LIBRARY_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/local/lib", "/lib64")
APPLETS = "sh mount insmod cat echo poweroff sleep mkdir stty ls nproc sed uname grep"
# A processor with nested pages for kvm_amd, without what the emulator warns that it lacks, and
# without cmpxchg16b: kernels that have it (6.12) now and then crash while booting in QEMU 7.2.
PROCESSOR = ("EPYC,+svm,+npt,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,"
             "-nrip-save,-xsavec,-cx16")
# What container engines refuse by default.
CONTAINER_CALLS = "get_mempolicy,set_mempolicy,mbind,move_pages,migrate_pages"


class NotHere(BedError):
    """This machine's programs do not run in the emulated one."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Nodes as (CPUs, MiB of memory), and the distances between them, row by row."""

    story: str
    nodes: tuple
    distances: tuple
    bandwidths: tuple = ()  # MiB/s that each node's memory gives its nearest CPUs, told by firmware
    latencies: tuple = ()  # ns, with bandwidths
    words: str = ""  # of the kernel command line

    def cpus(self, node):
        first = sum(count for count, _ in self.nodes[:node])
        return first, first + self.nodes[node][0] - 1


LAYOUTS = {
    # The way from 0 to 3 is longer than the way back, as firmware may say.
    "uneven": Layout("four nodes with CPUs, of different sizes; the firmware tells bandwidths",
                     ((2, 320), (1, 192), (1, 256), (1, 224)),
                     ((10, 16, 22, 31), (16, 10, 28, 22), (22, 28, 10, 14), (30, 22, 14, 10)),
                     bandwidths=(20480, 10240, 10240, 5120), latencies=(90, 90, 110, 110)),
    # Node 2 is a socket without memory, near 1; node 3 is memory behind a link, near 0. (The
    # kernel takes no bandwidths from firmware that has a node without memory.)
    "holes": Layout("a node without memory and a node without CPUs; CPU 3 is isolated",
                    ((2, 320), (2, 256), (1, 0), (0, 320)),
                    ((10, 20, 24, 17), (20, 10, 14, 28), (24, 14, 10, 30), (17, 28, 30, 10)),
                    words="isolcpus=3"),
}
# How a program is confined: {name: words of the command that goes before it}.
WAYS = {
    "free": "as the machine is",
    "cpuset:CPUS:NODES": "in a control group that has these CPUs and memory nodes only",
    "refusing:CALL,...": "with these system calls refused; refusing:container is what containers "
                         "refuse",
}


def prepare(suite=None):
    """(kernel image, modules folder, busybox, refuse-calls): downloaded or built once."""
    if os.uname().machine != "x86_64":
        raise NotHere("the machine with four nodes runs x86-64 programs, and this machine's are for "
                      + os.uname().machine)
    debian.require_tools(EMULATOR, "dpkg-deb", "strip")
    AMD64.mkdir(parents=True, exist_ok=True)
    with locked():
        image, modules = kernel(suite or debian.host_codename())
        return image, modules, busybox(), refuse_calls()


@contextlib.contextmanager
def locked():
    with open(AMD64 / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def kernel(suite):
    """Debian's kernel for machines in clouds: (image, modules)."""
    folder = AMD64 / f"kernel-{suite}"
    if not folder.exists():
        archive = debian.Archive(AMD64, suite, "amd64")
        archive.update()
        package = [name for name in archive.dependencies(META_PACKAGE)
                   if name.startswith("linux-image-")]
        if not package:
            raise debian.NotInArchive(f"Debian {suite} has no {META_PACKAGE} package")
        debian.unpack(archive.download(package[:1]), folder)
    image = next(folder.glob("boot/vmlinuz-*"))
    release = image.name.split("-", 1)[1]
    return image, next(path for path in (folder / "lib/modules" / release,
                                         folder / "usr/lib/modules" / release) if path.exists())


def next_suite():
    """The Debian release after this machine's, or None where the mirror has no such kernel."""
    suite = debian.next_codename(debian.host_codename())
    if suite is None or os.uname().machine != "x86_64":
        return None
    try:
        with locked():
            kernel(suite)
    except debian.NotInArchive:
        return None
    return suite


def busybox():
    folder = AMD64 / "busybox"
    if not folder.exists():
        archive = debian.Archive(AMD64, debian.host_codename(), "amd64")
        archive.update()
        debian.unpack(archive.download(["busybox-static"]), folder)
    return next(path for path in (folder / "bin/busybox", folder / "usr/bin/busybox")
                if path.exists())


def refuse_calls():
    program, source = AMD64 / "refuse-calls", machines.BEDS / "refuse-calls.cpp"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        debian.require_tools("g++")
        machines.quietly(["g++", "-std=c++20", "-static", "-Os", "-s", str(source), "-o",
                          str(program)], AMD64 / "refuse-calls.log")
    return program


def command_of(layout, image, initrd):
    """QEMU command: the machine of that layout."""
    cpus = sum(count for count, _ in layout.nodes)
    memory = sum(mib for _, mib in layout.nodes)
    words = [EMULATOR, "-nodefaults", "-nographic", "-no-reboot",
             "-M", "q35" + (",hmat=on" if layout.bandwidths else ""), "-accel", "tcg,thread=single", "-cpu", PROCESSOR,
             "-smp", f"{cpus},sockets={cpus}", "-m", str(memory)]
    with_cpus = [node for node, (count, _) in enumerate(layout.nodes) if count]
    for node, (count, mib) in enumerate(layout.nodes):
        text = f"node,nodeid={node}"
        if count:
            text += ",cpus={}-{}".format(*layout.cpus(node))
        if mib:
            words += ["-object", f"memory-backend-ram,id=ram{node},size={mib}M"]
            text += f",memdev=ram{node}"
        if layout.bandwidths:
            nearest = min(with_cpus, key=lambda other, to=node: layout.distances[to][other])
            text += f",initiator={node if count else nearest}"
        words += ["-numa", text]
    for source, row in enumerate(layout.distances):
        for target, distance in enumerate(row):
            words += ["-numa", f"dist,src={source},dst={target},val={distance}"]
    words += bandwidth_words(layout, with_cpus)
    return words + ["-serial", "stdio", "-kernel", str(image), "-initrd", str(initrd),
                    "-append", f"console=ttyS0 quiet panic=-1 {layout.words}"]


def bandwidth_words(layout, with_cpus):
    """ACPI HMAT: what every node with CPUs gets from every node with memory; less the farther."""
    words = []
    for source in with_cpus if layout.bandwidths else ():
        for target, (_, mib) in enumerate(layout.nodes):
            if not mib:
                continue
            ratio = layout.distances[source][target] / 10
            latency = int(layout.latencies[target] * ratio)
            bandwidth = max(1, int(layout.bandwidths[target] / ratio))
            words += ["-numa", f"hmat-lb,initiator={source},target={target},hierarchy=memory,"
                               f"data-type=access-latency,latency={latency}",
                      "-numa", f"hmat-lb,initiator={source},target={target},hierarchy=memory,"
                               f"data-type=access-bandwidth,bandwidth={bandwidth}M"]
    return words


def script_of(way, number, program, arguments):
    """The shell script that runs the program confined that way."""
    kind, _, rest = way.partition(":")
    words = " ".join(shlex.quote(word) for word in [f"/programs/{program}", *arguments])
    if kind == "free" and not rest:
        return f"exec {words}\n"
    if kind == "cpuset" and re.fullmatch(r"[0-9,-]+:[0-9,-]+", rest):
        cpus, nodes = rest.split(":")
        group = f"/sys/fs/cgroup/way{number}"
        return (f"mkdir {group} || exit 125\n"
                f"echo {cpus} > {group}/cpuset.cpus || exit 125\n"
                f"echo {nodes} > {group}/cpuset.mems || exit 125\n"
                f"echo $$ > {group}/cgroup.procs || exit 125\n"
                f"exec {words}\n")
    if kind == "refusing" and re.fullmatch(r"[a-z_,]+", rest):
        calls = CONTAINER_CALLS if rest == "container" else rest
        return f"exec /bin/refuse-calls {calls} {words}\n"
    raise BedError(f"no way to run a program: {way}; there are {', '.join(WAYS)}")


def pack(path, parts, program, arguments, ways):
    """The initial file system: the program with its libraries, and a script for each way."""
    _, modules, shell, refuse = parts
    archive = Initramfs()
    archive.busybox(shell, APPLETS)
    archive.modules(modules, ("kvm_amd",))
    archive.file("init", (machines.BEDS / "numa-init.sh").read_bytes(), executable=True)
    archive.file("bin/refuse-calls", refuse.read_bytes(), executable=True)
    stripped = path.with_name(program.name)
    shutil.copy(program, stripped)
    subprocess.run(["strip", str(stripped)], check=False)  # a script has nothing to strip
    archive.program(f"programs/{program.name}", stripped, LIBRARY_FOLDERS)
    archive.link("lib64", "lib")  # where programs look for the dynamic loader
    for number, way in enumerate(ways):
        archive.file(f"ways/{number:02}", script_of(way, number, program.name, arguments).encode(),
                     executable=True)
        archive.file(f"names/{number:02}", f"{way}\n".encode())
    archive.write(path)


def run(layout, program, arguments, ways, limit, suite=None):
    """Boots the machine once and runs the program in each of the ways; shows its console.

    Returns {way: (exit status or None, what it printed)}; None means that it did not end.
    """
    parts = prepare(suite)
    folder = machines.fresh_folder(AMD64 / f"run-{layout}-{os.getpid()}")
    try:
        pack(folder / "programs.cpio", parts, pathlib.Path(program), arguments, ways)
        text = machines.capture(command_of(LAYOUTS[layout], parts[0], folder / "programs.cpio"),
                                folder.with_name(f"console-{layout}.txt"), limit, {})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return outcomes(text, ways)


def outcomes(text, ways):
    """The console's text by way: {way: (exit status, output)}."""
    found = {way: (None, text) for way in ways}
    for part in re.split(r"^BED: run ", text, flags=re.M)[1:]:
        way, _, output = part.partition("\n")
        ended = re.search(r"^BED: exit status (\d+)$", output, re.M)
        found[way] = (int(ended[1]), output[:ended.start()]) if ended else (None, output)
    return found
