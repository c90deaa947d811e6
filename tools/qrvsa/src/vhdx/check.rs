//! `vhdx check` and `vhdx repair`.

use std::path::Path;

use qrvsa_api::ApiError;
use qrvsa_core::ErrorKind;
use qrvsa_core::device::size::format_size;
use qrvsa_core::env::Environment;
use qrvsa_core::vhdx::HostFile;
use qrvsa_core::vhdx::check::{Finding, Report, Severity, check_file};
use qrvsa_core::vhdx::repair::{Action, repair_file};
use serde_json::{Value, json};

use super::failed;
use super::progress::Bar;
use crate::ui::{clean, print, print_json, tell};

/// Exit codes of both.
const CLEAN: u8 = 0;
const VIOLATIONS: u8 = 1;
const UNREADABLE: u8 = 2;

/// Runs `vhdx check`.
pub fn check(path: &Path, json: bool) -> Result<u8, ApiError> {
    let bar = Bar::new("check");
    let result = check_file(path, &mut |done, total| bar.update(done, total));
    drop(bar);
    let report = match result {
        Ok(report) => report,
        Err(e) if e.kind() == ErrorKind::Busy => return Err(failed(&e)),
        Err(e) => return Ok(unreadable(path, &e, json)),
    };
    if json {
        print_json(&report_json(path, &report));
    } else {
        print(&report_text(path, &report));
    }
    Ok(if report.is_clean() { CLEAN } else { VIOLATIONS })
}

/// Runs `vhdx repair`.
pub fn repair(path: &Path, dry_run: bool, json: bool) -> Result<u8, ApiError> {
    let file = match HostFile::open(path, !dry_run) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), ErrorKind::Busy | ErrorKind::ReadOnly) => return Err(failed(&e)),
        Err(e) => return Ok(unreadable(path, &e, json)),
    };
    let bar = Bar::new("repair");
    let result = repair_file(&file, &Environment::system(), dry_run, &mut |done, total| bar.update(done, total));
    drop(bar);
    let repaired = match result {
        Ok(repaired) => repaired,
        Err(e) if e.kind() == ErrorKind::Invalid => return Ok(unreadable(path, &e, json)),
        Err(e) => return Err(failed(&e)),
    };
    if json {
        let mut answer = report_json(path, &repaired.after);
        answer["dry_run"] = dry_run.into();
        answer["actions"] = repaired.actions.iter().map(action_json).collect();
        print_json(&answer);
    } else {
        let verb = if dry_run { "would repair" } else { "repaired" };
        let line =
            |a: &Action| format!("{verb}: {} at {:#x}: {} [{}]\n", clean(&a.structure), a.offset, a.done, a.code);
        let actions: String = repaired.actions.iter().map(line).collect();
        print(&format!("{actions}{}", report_text(path, &repaired.after)));
    }
    Ok(if repaired.after.is_clean() { CLEAN } else { VIOLATIONS })
}

fn unreadable(path: &Path, e: &qrvsa_core::Error, json: bool) -> u8 {
    let error = failed(e);
    tell(&format!("qrvsa: {}: {error}", clean(&path.display().to_string())));
    if json {
        print_json(&json!({
            "file": path.display().to_string(),
            "result": "unreadable",
            "kind": error.kind,
            "message": error.message,
            "hint": error.hint,
        }));
    }
    UNREADABLE
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "code": finding.code,
        "severity": finding.severity.name(),
        "structure": finding.structure,
        "offset": finding.offset,
        "what": finding.what,
        "advice": finding.advice,
    })
}

fn action_json(action: &Action) -> Value {
    json!({ "code": action.code, "structure": action.structure, "offset": action.offset, "done": action.done })
}

fn report_json(path: &Path, report: &Report) -> Value {
    let facts = &report.facts;
    json!({
        "file": path.display().to_string(),
        "result": if report.is_clean() { "clean" } else { "violations" },
        "errors": report.count(Severity::Error),
        "leaks": report.count(Severity::Leak),
        "remarks": report.count(Severity::Remark),
        "findings": report.findings.iter().map(finding_json).collect::<Vec<_>>(),
        "counts": report.counts,
        "file_bytes": facts.file_bytes,
        "disk_bytes": facts.disk_bytes,
        "block_bytes": facts.block_bytes,
        "differencing": facts.differencing,
        "replayed_log_entries": facts.replayed_entries,
        "blocks": facts.blocks,
        "leaked_bytes": facts.leaked_bytes,
        "complete": facts.complete,
    })
}

fn report_text(path: &Path, report: &Report) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        out.push_str(&clean(&finding.to_string()));
        out.push('\n');
    }
    for (code, count) in &report.counts {
        if *count > Report::MAX_PER_CODE {
            out.push_str(&format!("{code}: {} more are not listed\n", count - Report::MAX_PER_CODE));
        }
    }
    let (errors, leaks) = (report.count(Severity::Error), report.count(Severity::Leak));
    let name = clean(&path.display().to_string());
    let summary = match (errors, leaks) {
        (0, 0) => "clean".to_owned(),
        (0, _) => format!("{} of space are lost", format_size(report.facts.leaked_bytes)),
        (errors, 0) => format!("{errors} violations"),
        (errors, _) => format!("{errors} violations, {} of space are lost", format_size(report.facts.leaked_bytes)),
    };
    let walked = if report.facts.complete { "" } else { "; not everything could be looked at" };
    out.push_str(&format!("{name}: {summary}, {} blocks in use{walked}\n", report.facts.blocks));
    out
}
