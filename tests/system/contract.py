"""What the tests expect of the command line and its JSON, in one place.

The names of commands and options are promises to scripts. The tests read JSON only through this module, so that a changed
field is one change here and shows as such. A field that is missing fails the test with the fields that were there.
"""
import json
import os


class ContractError(AssertionError):
    """The program answered, but not in the agreed shape."""


#: Words `pool status` uses for a pool, or a device, that lacks nothing.
HEALTHY = {"ONLINE"}
#: The word for a pool that works with devices missing.
DEGRADED = "DEGRADED"

#: The word for a device that is there but not used, because it failed or missed something.
FAULTED = "FAULTED"

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
        self.path = pick(obj, "path")
        self.state = pick(obj, "state")
        self.read_errors = int(pick(obj, "read_errors"))
        self.write_errors = int(pick(obj, "write_errors"))
        self.checksum_errors = int(pick(obj, "checksum_errors"))
        self.size = int(pick(obj, "size_bytes"))
        self.allocated = int(pick(obj, "allocated_bytes"))

    def __repr__(self):
        return "%s %s r%d w%d c%d" % (self.path, self.state, self.read_errors, self.write_errors, self.checksum_errors)


class Status:
    """`qrvsa --json pool status NAME`."""

    def __init__(self, obj):
        self.health = pick(obj, "state")
        self.usable = int(pick(obj, "usable_bytes"))
        self.used = int(pick(obj, "used_bytes"))
        self.free = int(pick(obj, "free_bytes"))
        self.devices = [Device(d) for d in pick(obj, "devices")]
        self.at_risk = int(pick(obj, "bytes_degraded"))
        self.lost = int(pick(obj, "bytes_lost"))
        #: `FS:/path` each.
        self.damaged_files = list(pick(obj, "damaged_files"))
        self.rebuild = pick(obj, "rebuild")

    @property
    def healthy(self):
        return self.health in HEALTHY and all(d.state in HEALTHY for d in self.devices)

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
    """`qrvsa --json pool scrub NAME --wait`: the job at its end."""

    #: Exit status when problems were found that could not be repaired.
    FOUND_PROBLEMS = 4

    def __init__(self, obj):
        if pick(obj, "state") != "finished":
            raise ContractError("the scrub did not finish: %r" % (obj,))
        self.damaged = int(pick(obj, "errors_found"))
        self.repaired = int(pick(obj, "repaired"))
        self.unrepairable = self.damaged - self.repaired

    def __repr__(self):
        return "damaged %d, repaired %d, unrepairable %d" % (self.damaged, self.repaired, self.unrepairable)


class Fragment:
    """One column of one record of a file: where its bytes lie."""

    def __init__(self, obj):
        self.column = int(pick(obj, "column"))
        self.role = pick(obj, "role")
        self.device = str(pick(obj, "device"))
        self.offset = int(pick(obj, "device_offset"))
        self.length = int(pick(obj, "device_length"))

    def __repr__(self):
        return "column %d (%s): %s+%d,%d" % (self.column, self.role, self.device, self.offset, self.length)


class Record:
    """One record of a file and its fragments by column, data first."""

    def __init__(self, offset, length):
        self.offset, self.length, self.fragments = offset, length, []

    @property
    def striped(self):
        """Data and parity, not copies."""
        return any(f.role == "parity" for f in self.fragments)


def records(obj):
    """`qrvsa --json debug locate FILE`: the records of a file, in file order."""
    found = {}
    for f in pick(obj, "fragments", default=obj):
        at = int(pick(f, "file_offset"))
        found.setdefault(at, Record(at, int(pick(f, "length")))).fragments.append(Fragment(f))
    for record in found.values():
        record.fragments.sort(key=lambda f: f.column)
    return [found[at] for at in sorted(found)]


def pool_names(obj):
    """`qrvsa --json pool list`."""
    found = pick(obj, "pools", default=obj)
    return [p if isinstance(p, str) else str(pick(p, "name")) for p in found]


def config_text(settings):
    """The daemon's configuration file, TOML: `key = value` lines."""
    lines = []
    for key, value in settings.items():
        lines.append("%s = %s" % (key, json.dumps(value)))
    return "\n".join(lines) + "\n"


def helper_environment(socket):
    """What leads the mount helper to a daemon on a socket of its own: nothing else, so that PATH is empty."""
    return {"QRVSA_SOCKET": socket}
