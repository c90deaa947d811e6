"""synced_writer.py DIRECTORY SEED: works for ever and says what is durable; verify with `--verify DIRECTORY ACKS`.

Three kinds of promise, each acknowledged by a line on stdout only after the call that makes it durable has returned:
  `append N`      log.bin holds N records of 512 bytes (fsync)
  `file N`        fN exists with its whole content (written, fsync, renamed from a temporary name, directory fsync)
  `replace N`     current holds version N or a later one, never a mixture (temporary, fsync, rename, directory fsync)
"""
import hashlib
import os
import random
import sys


def record(i):
    h = hashlib.sha512(b"record %d" % i).digest()
    return h * 8


def body(seed, i):
    r = random.Random(seed * 1_000_003 + i)
    return b"%012d" % i + r.randbytes(r.choice([0, 100, 5000, 40_000] * 4 + [300_000]))


def version(i):
    return b"%012d" % i + hashlib.sha256(b"%d" % i).digest() * 2000


def fsync_dir(fd):
    os.fsync(fd)


def put(directory, name, data, dirfd):
    tmp = os.path.join(directory, name + ".tmp")
    fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
    os.rename(tmp, os.path.join(directory, name))
    os.fsync(dirfd)


def work(directory, seed):
    r = random.Random(seed)
    dirfd = os.open(directory, os.O_RDONLY)
    log = os.open(os.path.join(directory, "log.bin"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.fsync(dirfd)
    n = 0
    with open(os.path.join(directory, "log.bin"), "rb") as f:
        while f.read(512) == record(n):
            n += 1
    # what follows was never acknowledged: a record of which a part is there, or zeros
    os.ftruncate(log, n * 512)
    files = len([x for x in os.listdir(directory) if x.startswith("f") and not x.endswith(".tmp")])
    current = 0
    try:
        current = int(open(os.path.join(directory, "current"), "rb").read(12)) + 1
    except OSError:
        pass
    junk = 0
    while True:
        for _ in range(r.randrange(1, 8)):
            for _ in range(r.randrange(1, 4)):
                os.write(log, record(n))
                n += 1
            os.fsync(log)
            print("append", n, flush=True)
        put(directory, "f%06d" % files, body(seed, files), dirfd)
        print("file", files, flush=True)
        files += 1
        put(directory, "current", version(current), dirfd)
        print("replace", current, flush=True)
        current += 1
        # unsynced noise around it: may survive or not, must not disturb
        with open(os.path.join(directory, "junk%d" % (junk % 5)), "wb") as f:
            f.write(os.urandom(r.randrange(1, 300_000)))
        if r.random() < 0.3:
            os.unlink(os.path.join(directory, "junk%d" % (junk % 5)))
        junk += 1


def verify(directory, seed, acks):
    """Sentences on broken promises."""
    wrong = []
    last = {"append": 0, "file": -1, "replace": -1}
    for line in acks:
        kind, n = line.split()
        last[kind] = max(last[kind], int(n))
    data = b""
    if last["append"] or os.path.exists(os.path.join(directory, "log.bin")):
        with open(os.path.join(directory, "log.bin"), "rb") as f:
            data = f.read()
    if len(data) < last["append"] * 512:
        wrong.append("log.bin has %d bytes, %d records were acknowledged" % (len(data), last["append"]))
    for i in range(len(data) // 512):
        if data[i * 512:(i + 1) * 512] != record(i):
            if i < last["append"]:
                wrong.append("record %d of log.bin, acknowledged, is wrong" % i)
            elif data[i * 512:(i + 1) * 512].strip(b"\0"):
                # behind the last fsync a record may be missing (zeros), never foreign
                wrong.append("record %d of log.bin, not acknowledged, holds foreign bytes" % i)
            break
    names = set(os.listdir(directory))
    for i in range(last["file"] + 1):
        name = "f%06d" % i
        if name not in names:
            wrong.append("%s, acknowledged, is missing" % name)
        else:
            with open(os.path.join(directory, name), "rb") as f:
                if f.read() != body(seed, i):
                    wrong.append("%s, acknowledged, is wrong" % name)
    # a file that is there by its final name was fsynced before the rename: it has to be whole
    for name in names:
        if name.startswith("f") and not name.endswith(".tmp") and int(name[1:]) > last["file"]:
            with open(os.path.join(directory, name), "rb") as f:
                if f.read() != body(seed, int(name[1:])):
                    wrong.append("%s, renamed but not yet acknowledged, is not whole" % name)
    if last["replace"] >= 0:
        with open(os.path.join(directory, "current"), "rb") as f:
            data = f.read()
        i = int(data[:12] or b"-1")
        if i < last["replace"]:
            wrong.append("current is version %d, %d was acknowledged" % (i, last["replace"]))
        elif data != version(i):
            wrong.append("current is a mixture")
    return wrong


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
