"""Sessions in numbers: they hold, cost nothing while nobody asks for anything, and end without a trace."""
import os
import resource
import time

import iscsi
from lib import GIB, KIB, MIB, Daemon, check, options, same, wait_for

SESSIONS = 1000
#: How long the target gives a login, in seconds.
LOGIN_SECONDS = 15
#: What a session may take at most, in bytes.
SESSION_BYTES = 256 * KIB


def ticks(pid):
    """Processor time of a process so far, in clock ticks."""
    with open("/proc/%d/stat" % pid) as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def one_by_one(sessions, logged_in=True):
    """Numbers and sessions; meanwhile the pings of those that are logged in (else: up to this one) are answered: without that they are
    taken for dead after a while."""
    last = time.monotonic()
    for n, session in enumerate(sessions):
        yield n, session
        if time.monotonic() - last > 3:
            for other in sessions if logged_in else sessions[:n + 1]:
                other.answer_pings()
            last = time.monotonic()


def resident(pid):
    with open("/proc/%d/statm" % pid) as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@options(seconds=120)
def test_a_thousand_sessions(t):
    """1,000 sessions at once: each serves, together they idle at no processor time and little memory, and they leave nothing behind."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    check(hard >= 2 * SESSIONS + 200, "this needs a limit of open files above %d", 2 * SESSIONS + 200)
    # what a shell gives: the daemon has to help itself
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    daemon = Daemon(t).start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    daemon.pool(size=GIB)
    daemon.cli("volume", "create", "tank/v", "64M")
    target = iscsi.Target(daemon)
    lun = target.lun("--volume", "tank/v")
    before, descriptors = resident(daemon.pid), len(os.listdir("/proc/%d/fd" % daemon.pid))
    # all of them at once, as after an outage
    begin = time.monotonic()
    sessions = [target.initiator("host%d" % n, isid=n + 1, login=False) for n in range(SESSIONS)]
    late = 0
    for n, session in one_by_one(sessions, logged_in=False):
        try:
            session.login(None, None, False)
        except OSError:
            # on a slow machine the time for a login is over before its turn comes: as any initiator, it comes again
            check(time.monotonic() - begin > LOGIN_SECONDS - 1, "login %d was cut off early", n)
            session.close()
            sessions[n], late = target.initiator("host%d" % n, isid=n + 1), late + 1
    t.step("%d sessions; %d had to come twice", len(sessions), late)
    same(len(target.sessions()), SESSIONS, "sessions shown")
    for session in sessions:
        session.answer_pings()
    for n, session in one_by_one(sessions):
        session.settle(lun).write(lun, 8 * n, b"%08d" % n * 512)
    t.step("all have written")
    taken = resident(daemon.pid) - before
    t.step("they take %.1f MiB", taken / MIB)
    check(taken < SESSIONS * SESSION_BYTES, "%d sessions take %.1f MiB", SESSIONS, taken / MIB)

    def idle():
        """Whether a few seconds pass without work; what was asked for just now may still be on its way to the devices."""
        at = ticks(daemon.pid)
        time.sleep(3)
        spent = ticks(daemon.pid) - at
        for session in sessions:
            session.answer_pings()
        t.step("%d ticks in 3 s", spent)
        return spent <= 3 * os.sysconf("SC_CLK_TCK") // 50
    wait_for(idle, 120, "1,000 idle sessions to take less than 2 % of a processor")
    for n, session in one_by_one(sessions):
        same(session.read(lun, 8 * n, 8), b"%08d" % n * 512, "session %d" % n)
    for session in sessions:
        session.close()
    wait_for(lambda: not target.sessions(), 60, "the sessions to be gone")
    wait_for(lambda: len(os.listdir("/proc/%d/fd" % daemon.pid)) <= descriptors + 8, 60, "their descriptors to be closed")
