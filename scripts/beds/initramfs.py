"""Packs initial file systems (newc cpio) for the beds' machines.

Kernel modules go in uncompressed and in dependency order: /modules/order lists them, each after the
ones its .modinfo section names under depends=. Shared libraries follow the NEEDED entries of the
programs that use them. No root rights and no cpio program are needed: a device node is a record.
"""

import lzma
import pathlib
import re
import shutil
import stat
import subprocess

from beds.debian import BedError


class Initramfs:
    """A growing archive; write() finishes it."""

    def __init__(self):
        self._parts = []
        self._inode = 0
        self._seen = set()
        for name in ("dev", "proc", "sys", "tmp", "bin", "lib"):
            self.directory(name)
        self.device("dev/console", 5, 1)
        self.device("dev/null", 1, 3)

    def _record(self, name, mode, data=b"", device=(0, 0)):
        # Header of 13 eight-digit hex fields; name and data are padded to 4 bytes each.
        self._inode += 1
        label = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(label), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + label
        self._parts += [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]

    def directory(self, name):
        for parent in (*reversed(pathlib.PurePosixPath(name).parents), name):
            if str(parent) not in (".", *self._seen):
                self._seen.add(str(parent))
                self._record(str(parent), stat.S_IFDIR | 0o755)

    def device(self, name, major, minor):
        self._record(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def link(self, name, target):
        self._record(name, stat.S_IFLNK | 0o777, target.encode())

    def file(self, name, data, executable=False):
        self.directory(str(pathlib.PurePosixPath(name).parent))
        self._record(name, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def busybox(self, program, applets):
        self.file("bin/busybox", pathlib.Path(program).read_bytes(), executable=True)
        for applet in applets.split():
            self.link(f"bin/{applet}", "busybox")

    def modules(self, tree, names):
        order = module_order(tree, names)
        for name, content in order.items():
            self.file(f"modules/{name}.ko", content)
        self.file("modules/order", "".join(f"{name}\n" for name in order).encode())

    def program(self, name, path, library_folders):
        """A dynamic program with its shared libraries in /lib."""
        self.file(name, pathlib.Path(path).read_bytes(), executable=True)
        for library, found in shared_libraries(path, library_folders).items():
            self.file(f"lib/{library}", found.read_bytes(), executable=True)

    def write(self, path):
        self._record("TRAILER!!!", 0)
        pathlib.Path(path).write_bytes(b"".join(self._parts))


def module_order(tree, names):
    """{module: bytes} of `names` and what they need, each after its dependencies.

    `tree` is a .../lib/modules/RELEASE folder. A module that is built into the kernel is left out;
    one that is neither there nor built in is an error.
    """
    tree = pathlib.Path(tree)
    files = {plain_name(path.name): path for path in tree.rglob("*.ko*")}
    built_in = {plain_name(line.rsplit("/", 1)[-1])
                for line in (tree / "modules.builtin").read_text().split()}
    order = {}

    def add(name):
        if name in order or name in built_in:
            return
        if name not in files:
            raise BedError(f"kernel module {name} is not in {tree}; pick a kernel that has it")
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in depends.group(1).decode().split(",") if depends else ():
            if needed:
                add(plain_name(needed))
        order[name] = content

    for name in names:
        add(plain_name(name))
    return order


def plain_name(file_name):
    return file_name.split(".ko")[0].replace("-", "_")


def shared_libraries(program, folders):
    """{soname: path} of every library `program` needs, directly or through another."""
    if shutil.which("readelf") is None:
        raise BedError("not found: readelf; run scripts/setup, which installs binutils")
    found, waiting = {}, [pathlib.Path(program)]
    while waiting:
        user = waiting.pop()
        dynamic = subprocess.run(["readelf", "--wide", "--dynamic", "--program-headers", str(user)],
                                 capture_output=True, text=True, check=True).stdout
        names = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
        names += [pathlib.PurePath(name).name
                  for name in re.findall(r"program interpreter: (\S+)\]", dynamic)]
        for name in names:
            if name in found:
                continue
            here = [pathlib.Path(folder) / name for folder in folders]
            path = next((path for path in here if path.exists()), None)
            if path is None:
                raise BedError(f"{user.name} needs {name}, which is in none of "
                               f"{', '.join(map(str, folders))}; add its package to the sysroot")
            found[name] = path
            waiting.append(path)
    return found
