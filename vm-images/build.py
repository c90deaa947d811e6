#!/usr/bin/env python3
"""Builds a guest with a kernel initiator: Debian's stock kernel, and open-iscsi, e2fsprogs, sg3-utils, dmsetup, fio and busybox.

    build.py DIRECTORY

Writes `DIRECTORY/vmlinuz` and `DIRECTORY/initrd` from Debian's packages as apt gets them; nothing of this host's own gets in,
and nothing is installed on it. Needs neither root nor mounts. Does nothing when the directory holds what this recipe makes.
"""
import fcntl
import glob
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
KERNEL = "linux-image-cloud-amd64"
PACKAGES = ["busybox-static", "open-iscsi", "e2fsprogs", "util-linux", "sg3-utils", "dmsetup", "fio"]
PROGRAMS = ["busybox", "iscsid", "iscsiadm", "mke2fs", "e2fsck", "fstrim", "sg_persist", "sg_readcap", "sg_turs", "dmsetup", "fio"]
LINKS = {"mkfs.ext4": "mke2fs", "fsck.ext4": "e2fsck"}
#: In the order of loading; what they need comes by itself, what is built into the kernel is passed over.
MODULES = ["virtio_pci", "virtio_net", "virtio_console", "crc32c_generic", "crc32c_intel", "iscsi_tcp", "sd_mod", "sg",
           "scsi_dh_alua", "ext4", "dm_mod", "dm_multipath", "dm_round_robin", "dm_service_time", "dm_queue_length"]


def output(*cmd, **kwargs):
    return subprocess.run(cmd, check=True, stdout=subprocess.PIPE, text=True, **kwargs).stdout


def fetch(work):
    """Unpacks the packages: directories of the kernel and of everything else."""
    debs = os.path.join(work, "debs")
    os.makedirs(debs)
    image = re.search(r"Depends: (linux-image-\S+)", output("apt-cache", "depends", KERNEL)).group(1)
    closure = output("apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks",
                     "--no-replaces", "--no-enhances", *PACKAGES)
    libraries = sorted({line for line in closure.splitlines() if re.match(r"(lib|zlib1g)[^:]*$", line) and "perl" not in line})
    subprocess.run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", image, *PACKAGES, *libraries], cwd=debs, check=True,
                   stdout=subprocess.DEVNULL)
    kernel, tree = os.path.join(work, "kernel"), os.path.join(work, "tree")
    for deb in glob.glob(debs + "/*.deb"):
        to = kernel if os.path.basename(deb).startswith(image + "_") else tree
        subprocess.run(["dpkg-deb", "-x", deb, to], check=True)
    return kernel, tree


def files_below(tree):
    """Name to path of all that lies below; a file goes before a link of its name."""
    found = {}
    for directory, _, names in os.walk(tree):
        for name in names:
            path = os.path.join(directory, name)
            if name not in found or os.path.islink(found[name]):
                found[name] = path
    return found


def resolved(tree, path):
    """Follows links as if `tree` were the root."""
    while os.path.islink(path):
        to = os.readlink(path)
        path = os.path.join(tree, to.lstrip("/")) if to.startswith("/") else os.path.join(os.path.dirname(path), to)
    return path


def programs(tree, root):
    """Copies the programs, and the libraries that they name."""
    found = files_below(tree)
    wait = []
    for name in PROGRAMS:
        path = next(p for p in (os.path.join(tree, d, name) for d in ("bin", "sbin", "usr/bin", "usr/sbin")) if os.path.lexists(p))
        shutil.copy(resolved(tree, path), os.path.join(root, "bin", name))
        wait.append(os.path.join(root, "bin", name))
    shutil.copy(resolved(tree, found["ld-linux-x86-64.so.2"]), os.path.join(root, "lib64"))
    while wait:
        for name in re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-d", wait.pop(), stderr=subprocess.DEVNULL)):
            to = os.path.join(root, "lib", name)
            if not os.path.exists(to) and not name.startswith("ld-linux"):
                shutil.copy(resolved(tree, found[name]), to)
                wait.append(to)
    for applet in output(os.path.join(root, "bin/busybox"), "--list").split():
        if not os.path.lexists(os.path.join(root, "bin", applet)):
            os.symlink("busybox", os.path.join(root, "bin", applet))
    for link, to in LINKS.items():
        os.symlink(to, os.path.join(root, "bin", link))
    shutil.copy(os.path.join(tree, "etc/mke2fs.conf"), os.path.join(root, "etc"))


def modules(kernel, root):
    """Copies the modules and what they need, numbered in the order of loading."""
    found = {name[:-3].replace("-", "_"): path for name, path in files_below(kernel).items() if name.endswith(".ko")}
    order = []

    def add(name):
        if name in order or name not in found:
            return
        with open(found[name], "rb") as f:
            info = re.search(rb"\0depends=([^\0]*)\0", b"\0" + f.read())
        for needed in (info.group(1).decode().split(",") if info else []):
            add(needed.replace("-", "_"))
        order.append(name)
    for name in MODULES:
        add(name)
    for number, name in enumerate(order):
        shutil.copy(found[name], os.path.join(root, "lib/modules", "%02d-%s.ko" % (number, name)))


def archive(root, to):
    """A cpio archive in the `newc` format, everything owned by root."""
    with open(to, "wb") as out:
        def entry(number, name, mode, data):
            head = "070701" + "%08x" * 13 % (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
            for part in (head.encode() + name.encode() + b"\0", data):
                out.write(part + bytes(-len(part) % 4))
        number = 0
        for directory, directories, names in os.walk(root):
            for name in sorted(directories + names):
                path = os.path.join(directory, name)
                mode, data, number = os.lstat(path).st_mode, b"", number + 1
                if stat.S_ISLNK(mode):
                    data = os.readlink(path).encode()
                elif stat.S_ISREG(mode):
                    with open(path, "rb") as f:
                        data = f.read()
                entry(number, os.path.relpath(path, root), mode, data)
        entry(0, "TRAILER!!!", 0, b"")


def recipe():
    """What the result depends on."""
    digest = hashlib.sha256()
    for name in ("build.py", "init", "iscsid.conf"):
        with open(os.path.join(HERE, name), "rb") as f:
            digest.update(f.read())
    return digest.hexdigest()


def build(directory):
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = os.path.join(directory, "recipe")
        if os.path.exists(stamp) and open(stamp).read() == recipe():
            return
        work = os.path.join(directory, "work")
        shutil.rmtree(work, ignore_errors=True)
        kernel, tree = fetch(work)
        root = os.path.join(work, "root")
        for d in ("bin", "lib/modules", "lib64", "etc/iscsi", "proc", "sys", "dev", "tmp", "run", "var", "mnt", "root", "usr"):
            os.makedirs(os.path.join(root, d))
        for d in ("bin", "lib"):
            os.symlink("../" + d, os.path.join(root, "usr", d))
        os.symlink("bin", os.path.join(root, "sbin"))
        programs(tree, root)
        modules(kernel, root)
        shutil.copy(os.path.join(HERE, "init"), root)
        os.chmod(os.path.join(root, "init"), 0o755)
        shutil.copy(os.path.join(HERE, "iscsid.conf"), os.path.join(root, "etc/iscsi"))
        for name, text in (("passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("group", "root:x:0:\n"), ("hosts", "127.0.0.1 localhost\n"),
                           ("iscsi/initiatorname.iscsi", "InitiatorName=iqn.2026-01.test.guest:kernel\n")):
            with open(os.path.join(root, "etc", name), "w") as f:
                f.write(text)
        os.symlink("/proc/self/mounts", os.path.join(root, "etc/mtab"))
        archive(root, os.path.join(directory, "initrd"))
        shutil.copy(glob.glob(kernel + "/boot/vmlinuz-*")[0], os.path.join(directory, "vmlinuz"))
        shutil.rmtree(work)
        with open(stamp, "w") as f:
            f.write(recipe())


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    build(sys.argv[1])
