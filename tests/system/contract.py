"""What the tests expect of the command line and its JSON, in one place.

The names of commands and options are promises to scripts. The tests read JSON only through this module, so that a changed
field is one change here and shows as such. A field that is missing fails the test with the fields that were there.
"""
import os


class ContractError(AssertionError):
    """The program answered, but not in the agreed shape."""


#: Words `pool status` uses for a pool, or a device, that lacks nothing.
HEALTHY = {"ONLINE", "HEALTHY"}
#: The word for a pool that works with devices missing.
DEGRADED = "DEGRADED"

#: Exit status of a Rust program that panicked; never acceptable.
PANIC_EXIT = 101


def pick(obj, *names, default=ContractError):
    """The first of `names` that `obj` has."""
    for name in names:
        if isinstance(obj, dict) and name in obj:
            return obj[name]
    if default is ContractError:
        have = sorted(obj) if isinstance(obj, dict) else repr(obj)[:200]
        raise ContractError("none of %s in the JSON; it has %s" % ("/".join(names), have))
    return default


class Device:
    """One member of a pool as `pool status` shows it."""

    def __init__(self, obj):
        self.path = pick(obj, "path", "name", "device") or ""
        self.state = str(pick(obj, "state", "health")).upper()
        errors = pick(obj, "errors", default=obj)
        self.read_errors = int(pick(errors, "read_errors", "read"))
        self.write_errors = int(pick(errors, "write_errors", "write"))
        self.checksum_errors = int(pick(errors, "checksum_errors", "checksum"))
        self.size = int(pick(obj, "capacity_bytes", "capacity", "size_bytes", "size"))
        self.allocated = int(pick(obj, "allocated_bytes", "allocated"))

    def __repr__(self):
        return "%s %s r%d w%d c%d" % (self.path, self.state, self.read_errors, self.write_errors, self.checksum_errors)


class Status:
    """`qrvsa --json pool status NAME`."""

    def __init__(self, obj):
        obj = pick(obj, "pool", default=obj)
        self.raw = obj
        self.health = str(pick(obj, "health", "state")).upper()
        self.usable = int(pick(obj, "usable_bytes", "usable"))
        self.used = int(pick(obj, "used_bytes", "used"))
        self.free = int(pick(obj, "free_bytes", "free"))
        self.devices = [Device(d) for d in pick(obj, "devices")]
        damaged = pick(obj, "damaged_files", "damaged", "errors", default=[]) or []
        self.damaged_files = [d if isinstance(d, str) else str(pick(d, "path", "file")) for d in damaged]

    @property
    def healthy(self):
        return self.health in HEALTHY

    def device(self, path):
        """The member at `path`; its last known path counts."""
        real = os.path.realpath(path)
        for d in self.devices:
            if d.path == path or os.path.realpath(d.path) == real:
                return d
        raise ContractError("status does not name %s: %s" % (path, self.devices))

    def bad_devices(self):
        """Paths of members that are not healthy."""
        return sorted(d.path for d in self.devices if d.state not in HEALTHY)

    def __repr__(self):
        return "%s %s" % (self.health, self.devices)


class Scrub:
    """`qrvsa --json pool scrub NAME --wait`: what the pass found."""

    def __init__(self, obj):
        obj = pick(obj, "scrub", "result", default=obj)
        self.repaired = int(pick(obj, "repaired", "repaired_units"))
        self.unrepairable = int(pick(obj, "unrepairable", "unrepaired", "lost"))
        self.damaged = int(pick(obj, "damaged", "errors", "errors_found", default=self.repaired + self.unrepairable))

    def __repr__(self):
        return "damaged %d, repaired %d, unrepairable %d" % (self.damaged, self.repaired, self.unrepairable)


class Fragment:
    """One column of one record of a file: where its bytes lie."""

    def __init__(self, obj, column):
        self.column = int(pick(obj, "column", default=column))
        self.device = str(pick(obj, "device", "path"))
        self.offset = int(pick(obj, "offset", "device_offset"))
        self.length = int(pick(obj, "length", "bytes"))

    def __repr__(self):
        return "column %d: %s+%d,%d" % (self.column, self.device, self.offset, self.length)


class Record:
    """One record of a file and its fragments, data columns first."""

    def __init__(self, obj):
        self.offset = int(pick(obj, "file_offset", "offset"))
        self.length = int(pick(obj, "length", "bytes"))
        self.fragments = [Fragment(f, i) for i, f in enumerate(pick(obj, "fragments", "columns"))]


def records(obj):
    """`qrvsa --json debug locate FILE`: the records of a file, in file order."""
    found = pick(obj, "records", default=obj)
    if not isinstance(found, list):
        raise ContractError("debug locate gave no list of records: %r" % (obj,))
    return [Record(r) for r in found]


def pool_names(obj):
    """`qrvsa --json pool list`."""
    found = pick(obj, "pools", default=obj)
    return [p if isinstance(p, str) else str(pick(p, "name")) for p in found]


def config_text(settings):
    """The daemon's configuration file, TOML: `key = value` lines."""
    lines = []
    for key, value in settings.items():
        lines.append("%s = %s" % (key, value if isinstance(value, (int, float)) else '"%s"' % value))
    return "\n".join(lines) + "\n"


def helper_options(socket, *options):
    """The `-o` argument of mount(8) that leads the mount helper to a daemon on a socket of its own."""
    return ",".join(["socket=" + socket, *options])
