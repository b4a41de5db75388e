"""Packages of a foreign Debian suite or architecture, unpacked under build/ and never installed.

An `Archive` is one suite for one architecture with an apt state folder of its own: the machine's
own apt lists, dpkg database and packages are neither read nor changed. Package names and versions
come from the archive's metadata, so nothing here names a kernel version. apt itself checks
the signatures against the Debian archive keyring.
"""

import os
import pathlib
import re
import shutil
import subprocess

DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Debian's releases in order; the one after the host's is its "next series".
SERIES = ("bullseye", "bookworm", "trixie", "forky")


class BedError(Exception):
    """A bed cannot be set up; the text names the cause and the cure."""


class NotInArchive(BedError):
    """The mirror answered, and has no such suite or package."""


# How apt says that a mirror that answered lacks something.
ABSENT = re.compile(r"does not have a Release file|No packages found|Unable to locate package|"
                    r"has no installation candidate")


def say(message):
    print(f"-- {message}", flush=True)


def host_codename():
    """The Debian release of this machine, or bookworm where it is some other system."""
    try:
        text = pathlib.Path("/etc/os-release").read_text()
    except OSError:
        return "bookworm"
    match = re.search(r'^VERSION_CODENAME="?(\w+)', text, re.M)
    return match.group(1) if match and match.group(1) in SERIES else "bookworm"


def next_codename(codename):
    """The release after `codename`, or None where no later one is known."""
    later = SERIES[SERIES.index(codename) + 1:]
    return later[0] if later else None


def host_mirror():
    """The Debian mirror this machine uses already, so that a local mirror stays in use."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(CODENAME)"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return DEFAULT_MIRROR
    for line in lines.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] == "Debian" and words[2] == host_codename():
            return words[0].rstrip("/")
    return DEFAULT_MIRROR


def require_tools(*names):
    """Fails with one message that lists every tool that is missing."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise BedError(f"not found: {' '.join(missing)}; run scripts/setup, which installs them")


class Archive:
    def __init__(self, folder, suite, architecture="arm64"):
        self.folder = pathlib.Path(folder)
        self.suite = suite
        self.architecture = architecture
        self.state = self.folder / f"apt-{suite}"
        self.debs = self.folder / "debs"

    def _options(self):
        settings = {
            "Dir::Etc::sourcelist": self.state / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": self.state,
            "Dir::State::status": self.state / "status",
            "Dir::Cache": self.state / "cache",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "root",
            "APT::Default-Release": self.suite,
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            # Otherwise apt ends with status 0 although it could not reach the mirror.
            "APT::Update::Error-Mode": "any",
        }
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def _apt(self, tool, *arguments, cwd=None):
        command = [tool, *self._options(), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip()).splitlines()
            absent = ABSENT.search(done.stderr + done.stdout)
            kind = NotInArchive if absent else BedError
            raise kind(f"{tool} {' '.join(arguments)} ({self.suite}/{self.architecture}): "
                       f"{reason[0] if reason else 'no message'}; "
                       "check the network and the mirror")
        return done.stdout

    def update(self):
        """Reads the suite's package lists once; delete the state folder to read them again."""
        stamp = self.state / "updated"
        if stamp.exists():
            return
        require_tools("apt-get", "apt-cache", "dpkg-deb")
        for name in ("lists/partial", "cache/archives/partial"):
            (self.state / name).mkdir(parents=True, exist_ok=True)
        (self.state / "status").write_text("")
        signed = f" signed-by={KEYRING}" if os.path.exists(KEYRING) else ""
        (self.state / "sources.list").write_text(
            f"deb [arch={self.architecture}{signed}] {host_mirror()} {self.suite} main\n")
        say(f"reading the package lists of Debian {self.suite} for {self.architecture}")
        self._apt("apt-get", "update")
        stamp.touch()

    def _dependencies(self, packages, *how):
        """{package: its direct dependencies}, all alternatives of each."""
        out = self._apt("apt-cache", "depends", "--no-recommends", "--no-suggests", *how,
                        "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances",
                        *packages)
        found, names = {}, []
        for line in out.splitlines():
            if not line.startswith((" ", "<")):
                names = found.setdefault(line.strip(), [])
            elif re.match(r"\s*\|?(Pre)?Depends:", line):
                names.append(line.split(":", 1)[1].strip())
        return found

    def dependencies(self, package):
        """Direct dependencies of `package`, all alternatives of each."""
        return self._dependencies([package]).get(package, [])

    def closure(self, packages, without=()):
        """`packages` and all they need, except names that match one of `without`."""
        excluded = re.compile("|".join(without)) if without else None
        known = self._dependencies(packages, "--recurse")
        found, waiting = [], list(packages)
        while waiting:
            name = waiting.pop(0)
            if name in found or name.startswith("<") or (excluded and excluded.fullmatch(name)):
                continue
            found.append(name)
            waiting += known.get(name, [])
        return found

    def download(self, packages):
        """Paths of the .deb files of `packages`; only those not here yet are fetched.

        A mirror drops old versions, so package lists that are no longer true are read again once.
        """
        try:
            return self._download(packages)
        except BedError:
            (self.state / "updated").unlink(missing_ok=True)
            self.update()
            return self._download(packages)

    def _download(self, packages):
        self.debs.mkdir(parents=True, exist_ok=True)
        paths, missing = [], []
        for line in self._apt("apt-get", "--print-uris", "download", *packages).splitlines():
            words = line.split()
            if len(words) < 3 or not words[1].endswith(".deb"):
                continue
            path = self.debs / words[1]
            paths.append(path)
            if not path.exists() or path.stat().st_size != int(words[2]):
                missing.append((words[1].split("_")[0], int(words[2])))
        if missing:
            size = sum(size for _, size in missing) / 1e6
            say(f"downloading {', '.join(name for name, _ in missing)} ({size:.1f} MB)")
            self._apt("apt-get", "download", *(name for name, _ in missing), cwd=self.debs)
        return paths


def unpack(debs, target):
    """Unpacks .deb files under `target` (made afresh); nothing is installed, no script runs."""
    target = pathlib.Path(target)
    fresh = target.with_name(target.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for deb in debs:
        subprocess.run(["dpkg-deb", "-x", str(deb), str(fresh)], check=True)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return target
