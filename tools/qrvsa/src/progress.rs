//! Waiting for a job, with progress: a bar on a terminal, now and then a line otherwise. Both on standard error, so that
//! standard output has the result only.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use qrvsa_api::{ApiError, Client, ErrorKind, JobInfo, JobKind, JobState};

use crate::show::job_progress;
use crate::ui::{clean, tell};

const POLL_MIN: Duration = Duration::from_millis(20);
const POLL_MAX: Duration = Duration::from_millis(500);
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Waits until a job ends.
pub fn wait(client: &Client, mut job: JobInfo) -> Result<JobInfo, ApiError> {
    let mut progress = Progress::new(std::io::stderr().is_terminal());
    let mut pause = POLL_MIN;
    let result = loop {
        progress.update(&job, Instant::now());
        if job.state.is_final() {
            break Ok(job);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL_MAX);
        match client.job(&job.id) {
            Ok(newer) => job = newer,
            Err(e) => match successor(client, &job, &e) {
                Some(newer) => job = newer,
                None => break Err(lost(&job, e)),
            },
        }
    };
    progress.end();
    result
}

/// The rebuild that has taken the place of one: another replacement began, and the pool rebuilds for both.
fn successor(client: &Client, job: &JobInfo, e: &ApiError) -> Option<JobInfo> {
    if e.kind != ErrorKind::NotFound || job.kind != JobKind::Rebuild {
        return None;
    }
    client.jobs().ok()?.into_iter().find(|other| other.kind == job.kind && other.pool == job.pool)
}

/// The daemon went away while the job was waited for.
fn lost(job: &JobInfo, e: ApiError) -> ApiError {
    if !matches!(e.kind, ErrorKind::Unreachable | ErrorKind::NotFound) {
        return e;
    }
    let what = format!("lost sight of the {} of {}: {}", job.kind, job.pool, e.message);
    ApiError::new(e.kind, what).with_hint(format!(
        "`qrvsa pool status {}` shows scrubs and rebuilds, which go on after a restart of the daemon; start a check again",
        job.pool
    ))
}

enum Progress {
    Bar(ProgressBar),
    Lines { last: Option<(Instant, JobState)> },
}

impl Progress {
    fn new(terminal: bool) -> Progress {
        if !terminal {
            return Progress::Lines { last: None };
        }
        let bar = ProgressBar::new(0);
        // What the bar shows is the daemon's own measure, in the message; it outlives this program.
        if let Ok(style) = ProgressStyle::with_template("{prefix} [{wide_bar:.cyan/blue}] {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Progress::Bar(bar)
    }

    fn update(&mut self, job: &JobInfo, now: Instant) {
        match self {
            Progress::Bar(bar) => {
                bar.set_length(job.total_bytes.max(1));
                bar.set_position(job.done_bytes.min(job.total_bytes));
                bar.set_prefix(format!("{} {}", job.kind, clean(&job.pool)));
                let paused = if job.state == JobState::Paused { "paused, " } else { "" };
                bar.set_message(format!("{paused}{}", job_progress(job)));
                bar.tick();
            }
            Progress::Lines { last } => {
                if let Some(line) = line(last, job, now) {
                    tell(&line);
                }
            }
        }
    }

    fn end(&mut self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// The line to print, if it is time for one: the first, one at each change of state, one every ten seconds.
fn line(last: &mut Option<(Instant, JobState)>, job: &JobInfo, now: Instant) -> Option<String> {
    if let Some((at, state)) = last
        && *state == job.state
        && now.duration_since(*at) < LINE_INTERVAL
    {
        return None;
    }
    *last = Some((now, job.state));
    Some(format!("{} {} {}: {}", job.kind, clean(&job.pool), job.state, job_progress(job)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(state: &str, done: u64) -> JobInfo {
        serde_json::from_str(&format!(
            r#"{{"id":"j","kind":"scrub","pool":"tank","state":"{state}","done_bytes":{done},"total_bytes":100,
            "rate_bytes_per_s":1024,"eta_s":61}}"#
        ))
        .unwrap()
    }

    #[test]
    fn lines_are_few() {
        let start = Instant::now();
        let mut last = None;
        let at = |s| start + Duration::from_secs(s);
        let first = line(&mut last, &job("running", 0), at(0)).unwrap();
        assert_eq!(first, "scrub tank running: 0% (0 B of 100 B), 1.00 KiB/s, 1m01s left, no errors");
        assert_eq!(line(&mut last, &job("running", 10), at(9)), None);
        assert!(line(&mut last, &job("running", 20), at(10)).unwrap().contains("20%"));
        assert_eq!(line(&mut last, &job("running", 30), at(19)), None);
        assert!(line(&mut last, &job("paused", 30), at(19)).unwrap().starts_with("scrub tank paused: 30%"));
        assert!(line(&mut last, &job("finished", 100), at(20)).unwrap().contains("finished"));
    }

    #[test]
    fn a_bar_takes_any_numbers() {
        let mut bar = Progress::new(true);
        for job in [job("running", 0), job("running", 500), job("from_the_future", 1)] {
            bar.update(&job, Instant::now());
        }
        bar.end();
    }
}
