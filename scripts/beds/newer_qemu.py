"""qemu-system-aarch64 of a later Debian suite, unpacked under build/ and never installed.

Debian 12's QEMU models stage 1 of the SMMU only and walks nested tables wrongly; what serves as
an oracle has to be newer. The program brings its own C library and its own dynamic loader, so
this machine's libraries are not used:

    command = newer_qemu.command() + ["-M", "virt", ...]
"""

import fcntl
import os
import pathlib
import re
import subprocess

from beds import debian
from beds.debian import BedError, say

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "build" / "newer-qemu"
PACKAGE = "qemu-system-arm"
PROGRAM = "usr/bin/qemu-system-aarch64"
NEEDED = (9, 2)  # the first whose walker has every feature that the oracles use
LOADERS = {"x86_64": "usr/lib64/ld-linux-x86-64.so.2", "aarch64": "usr/lib/ld-linux-aarch64.so.1"}


def _loader(root):
    """The dynamic loader among the unpacked packages."""
    machine = os.uname().machine
    if machine not in LOADERS:
        raise BedError(f"a newer QEMU can be unpacked on {', '.join(LOADERS)}, not on {machine}; "
                       "give the path of one that is installed")
    for path in (root / LOADERS[machine], root / LOADERS[machine].removeprefix("usr/")):
        if path.exists():
            return path
    raise BedError(f"{root} has no dynamic loader; delete the folder and try again")


def _architecture():
    """This machine's architecture as Debian calls it."""
    debian.require_tools("dpkg")
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True,
                          check=True).stdout.strip()


def _prefix(root):
    """The command of an unpacked QEMU: loader, its libraries, the program, its data."""
    architecture = os.uname().machine + "-linux-gnu"
    libraries = f"{root}/usr/lib/{architecture}:{root}/lib/{architecture}"
    return [str(_loader(root)), "--library-path", libraries, str(root / PROGRAM),
            "-L", str(root / "usr/share/qemu")]


def _version(prefix):
    """(major, minor) of a QEMU; raises BedError if it does not run."""
    done = subprocess.run([*prefix, "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"version (\d+)\.(\d+)", done.stdout)
    if done.returncode or not match:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise BedError(f"{prefix[0]} does not start QEMU: {lines[0] if lines else 'no message'}; "
                       f"delete {FOLDER} and try again")
    return int(match.group(1)), int(match.group(2))


def _unpack(suite):
    """The folder with QEMU of `suite` and all that it needs, downloaded if it is not there yet."""
    root = FOLDER / suite
    if not (root / PROGRAM).exists():
        archive = debian.Archive(FOLDER, suite, _architecture())
        archive.update()
        debian.unpack(archive.download(archive.closure([PACKAGE])), root)
    return root


def command(path=None):
    """The words that start qemu-system-aarch64 of a later suite than this machine's.

    `path` is a program to use instead. Raises debian.NotInArchive where the mirror answers and has
    no later suite, and BedError where it cannot be read or the program does not run.
    """
    if path:
        prefix = [str(path)]
        if _version(prefix) < NEEDED:
            raise BedError(f"{path} is older than {NEEDED[0]}.{NEEDED[1]}; give a newer one")
        return prefix
    codename = debian.host_codename()
    try:
        return _from_archive(codename)
    except debian.NotInArchive as error:
        raise debian.NotInArchive(f"no QEMU of the series after {codename}: {error}") from error


def _from_archive(codename):
    suite = debian.next_codename(codename)
    if suite is None:
        raise debian.NotInArchive("no later Debian suite is known; give the path of a QEMU")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another oracle may be unpacking it
        prefix = _prefix(_unpack(suite))
    version = _version(prefix)
    if version < NEEDED:
        raise debian.NotInArchive(f"Debian {suite} has QEMU {version[0]}.{version[1]}, older than "
                                  f"{NEEDED[0]}.{NEEDED[1]}; give the path of a newer one")
    say(f"QEMU {version[0]}.{version[1]} of Debian {suite}")
    return prefix
