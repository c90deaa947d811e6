"""many_files.py VERB DIRECTORY COUNT: create | list | stat | remove that many files in one directory; prints seconds and a check."""
import os
import sys
import time

verb, directory, count = sys.argv[1], sys.argv[2], int(sys.argv[3])


def name(i):
    # not in order: the directory's own order must not help
    return "file-%07d" % (i * 7919 % count)


begin = time.monotonic()
fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
if verb == "create":
    for i in range(count):
        f = os.open(name(i), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=fd)
        if i % 10 == 0:
            os.write(f, b"%d" % i)
        os.close(f)
    found = count
elif verb == "list":
    seen = set()
    with os.scandir(fd) as entries:
        found = 0
        for e in entries:
            found += 1
            seen.add(e.name)
    if len(seen) != found or seen != {"file-%07d" % i for i in range(count)}:
        sys.exit("the listing has %d names, %d different, not the %d that were made" % (found, len(seen), count))
elif verb == "stat":
    found = 0
    for i in range(count):
        s = os.stat(name(i), dir_fd=fd)
        found += s.st_nlink == 1 and s.st_size == (len(str(i)) if i % 10 == 0 else 0)
elif verb == "remove":
    for i in range(count):
        os.unlink(name(i), dir_fd=fd)
    found = count
    left = len(os.listdir(fd))
    if left:
        sys.exit("%d names are left" % left)
else:
    sys.exit(__doc__)
print("%d %.2f" % (found, time.monotonic() - begin))
