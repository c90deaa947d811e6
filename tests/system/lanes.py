"""Lanes: runners side by side, each in a process of its own, that take one test after another from a common list.

A runner ends every process that descends from it, so lanes cannot share one. A lane is told the name of a test by a line on
its standard input and answers with a line of JSON; at the end of its input it cleans up, says where it kept logs, and ends.
"""
import collections
import json
import signal
import subprocess
import threading

import proc


class Lane:
    """One runner, and the pipe to it."""

    def __init__(self, command):
        # a session of its own: an interrupt from a terminal reaches the lanes through us, who waits for them; and a tree of mounts of
        # its own: whoever copies that holds mounts of his own lane only, and the numbers of a mount that went are not another's at once
        # where it may have that
        apart = ["unshare", "--mount", "--propagation", "private"]
        if subprocess.run([*apart, "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0:
            command = [*apart, *command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
                                        preexec_fn=lambda: proc.die_with_parent(signal.SIGTERM))
        self.kept = None

    def do(self, name):
        """Has the lane run a test: its answer, or None if the lane ends instead."""
        try:
            self.process.stdin.write(name + "\n")
            self.process.stdin.flush()
        except OSError:
            return None
        return self._hear()

    def _hear(self):
        """The next answer to a test, or None at the end of the lane."""
        for line in self.process.stdout:
            try:
                answer = json.loads(line)
            except ValueError:
                continue  # a line that was cut off
            if "kept" not in answer:
                return answer
            self.kept = answer["kept"]
        return None

    def end(self):
        """Lets the lane clean up and end; the directory of the logs it kept, or None."""
        try:
            self.process.stdin.close()
        except OSError:
            pass  # it has ended
        while self._hear():
            pass
        self.process.wait()
        return self.kept


def serve(runner, tests, lines, answers):
    """What a lane does: runs the tests that are named on `lines`, answers each with a line on `answers`."""
    failed = False

    def answer(**what):
        print(json.dumps(what), file=answers, flush=True)

    try:
        for line in lines:
            name = line.strip()
            seconds, complaint = runner.one(name, tests[name])
            failed = failed or complaint is not None
            answer(seconds=seconds, complaint=complaint,
                   reason=complaint and runner.reason(name, complaint), log=runner.tails(name) if complaint else [])
    finally:
        answer(kept=runner.finish(failed))


def unheard(why):
    """The answer for a test that nobody answered for."""
    return {"seconds": 0, "complaint": why, "reason": why, "log": []}


def spread(command, count, names, report):
    """Runs all of `names` in `count` lanes of `command`, and calls `report(name, answer)` for each as it ends, never two at a
    time. Returns the directories of kept logs. Whatever ends this ends the lanes, which clean up first."""
    todo, lock, stopped = collections.deque(names), threading.Lock(), threading.Event()

    def work(lane):
        while True:
            with lock:
                if not todo or stopped.is_set():
                    return
                name = todo.popleft()
            answer = lane.do(name)
            with lock:
                if stopped.is_set():
                    return
                report(name, answer or unheard("its runner ended"))
            if answer is None:
                return

    lanes, threads = [], []
    try:
        for _ in range(min(count, len(names))):
            lanes.append(Lane(command))
        for lane in lanes:
            threads.append(threading.Thread(target=work, args=(lane,)))
            threads[-1].start()
        for thread in threads:
            thread.join()
    except BaseException:
        stopped.set()
        for lane in lanes:
            lane.process.terminate()
        for thread in threads:
            thread.join()
        raise
    finally:
        kept = [lane.end() for lane in lanes]
    for name in todo:
        report(name, unheard("no runner was left for it"))
    return [each for each in kept if each]
