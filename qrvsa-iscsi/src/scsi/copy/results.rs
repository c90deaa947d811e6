//! What became of copies: RECEIVE COPY RESULTS, RECEIVE COPY STATUS, RECEIVE ROD TOKEN INFORMATION (SPC-4 6.24 to 6.28).

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::{COPY_BYTES_MAX, CSCD_MAX, DESCRIPTOR_BYTES_MAX, SEGMENTS_MAX};
use crate::scsi::bytes::{be32, clamp32, len32};
use crate::scsi::call::{Call, Outcome};
use crate::scsi::sense::Sense;

/// Which list identifiers a copy was named by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of 1 byte.
    #[default]
    Short,
    /// Of 4 bytes.
    Long,
}

/// How a copy went.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    pub kind: Kind,
    pub list_id: u32,
    /// Service action that it was started by.
    pub service: u8,
    pub segments: u16,
    pub bytes: u64,
    pub block: u32,
    /// All went well, but there was less to copy than asked for.
    pub partial: bool,
    pub failure: Option<Sense>,
    pub token: Option<Vec<u8>>,
}

/// Reports kept; the oldest go first.
const REPORTS_MAX: usize = 256;

/// The reports of a target, by session.
#[derive(Debug, Default)]
pub(crate) struct Results {
    reports: Mutex<VecDeque<(u16, Report)>>,
}

impl Results {
    pub(super) fn put(&self, tsih: u16, report: Report) {
        let mut reports = self.reports.lock();
        reports.retain(|(who, r)| *who != tsih || r.kind != report.kind || r.list_id != report.list_id);
        if reports.len() >= REPORTS_MAX {
            reports.pop_front();
        }
        reports.push_back((tsih, report));
    }

    fn get(&self, tsih: u16, kind: Kind, list_id: u32) -> Option<Report> {
        let reports = self.reports.lock();
        reports.iter().find(|(who, r)| *who == tsih && r.kind == kind && r.list_id == list_id).map(|(_, r)| r.clone())
    }

    pub(crate) fn forget(&self, tsih: u16) {
        self.reports.lock().retain(|(who, _)| *who != tsih);
    }
}

fn finish(call: &Call, mut out: Vec<u8>) -> Outcome {
    out.truncate(usize::try_from(be32(call.cdb, 10)).unwrap_or(usize::MAX));
    Ok(out)
}

/// RECEIVE COPY RESULTS, COPY STATUS.
pub(crate) fn copy_status(call: &Call) -> Outcome {
    let id = u32::from(call.cdb[2]);
    let report = call.units.copy_results().get(call.nexus.tsih, Kind::Short, id).ok_or(Sense::cdb_field(2, 7))?;
    let mut out = vec![0, 0, 0, 8, if report.failure.is_some() { 2 } else { 1 }];
    out.extend(report.segments.to_be_bytes());
    // in KiB
    out.push(1);
    out.extend(clamp32(report.bytes >> 10).to_be_bytes());
    finish(call, out)
}

/// The part that RECEIVE COPY STATUS and RECEIVE ROD TOKEN INFORMATION share, after the length.
fn status_body(report: &Report) -> Vec<u8> {
    let sense = report.failure.map(|s| s.encode(true)).unwrap_or_default();
    let status = match (&report.failure, report.partial) {
        (Some(_), _) => 2,
        (None, true) => 3,
        (None, false) => 1,
    };
    let mut out = vec![report.service & 0x1f, status, 0, 1, 0, 0, 0, 0];
    out.push(if report.failure.is_some() { 2 } else { 0 });
    let length = u8::try_from(sense.len()).unwrap_or(0);
    out.extend([length, length]);
    // the count is in logical blocks with tokens, else in bytes
    let (unit, count) = match report.block {
        0 => (0, report.bytes),
        block => (0xf1, report.bytes / u64::from(block)),
    };
    out.push(unit);
    out.extend(count.to_be_bytes());
    out.extend(report.segments.to_be_bytes());
    out.extend([0; 6]);
    out.extend(sense);
    out
}

/// RECEIVE COPY STATUS (LID4).
pub(crate) fn copy_status_lid4(call: &Call) -> Outcome {
    let id = be32(call.cdb, 2);
    let report = call.units.copy_results().get(call.nexus.tsih, Kind::Long, id).ok_or(Sense::cdb_field(2, 7))?;
    let body = status_body(&report);
    let mut out = len32(body.len()).to_vec();
    out.extend(body);
    finish(call, out)
}

/// RECEIVE ROD TOKEN INFORMATION.
pub(crate) fn token_information(call: &Call) -> Outcome {
    let id = be32(call.cdb, 2);
    let report = call.units.copy_results().get(call.nexus.tsih, Kind::Long, id).ok_or(Sense::cdb_field(2, 7))?;
    let mut body = status_body(&report);
    match &report.token {
        Some(token) => {
            body.extend(len32(2 + token.len()));
            body.extend([0, 0]);
            body.extend(token);
        }
        None => body.extend([0; 4]),
    }
    let mut out = len32(body.len()).to_vec();
    out.extend(body);
    finish(call, out)
}

/// RECEIVE COPY RESULTS, OPERATING PARAMETERS.
pub(crate) fn operating_parameters(call: &Call) -> Outcome {
    let mut out = vec![0; 44];
    // list identifiers need not be given
    out[4] = 1;
    out[8..10].copy_from_slice(&CSCD_MAX.to_be_bytes());
    out[10..12].copy_from_slice(&SEGMENTS_MAX.to_be_bytes());
    out[12..16].copy_from_slice(&DESCRIPTOR_BYTES_MAX.to_be_bytes());
    out[16..20].copy_from_slice(&clamp32(COPY_BYTES_MAX).to_be_bytes());
    out[34..36].copy_from_slice(&16u16.to_be_bytes());
    out[36] = 16;
    // granularity of segments: 512 bytes
    out[37] = 9;
    let codes = [0x02, 0xe4];
    out[43] = 2;
    out.extend(codes);
    let available = len32(out.len() - 4);
    out[..4].copy_from_slice(&available);
    finish(call, out)
}
