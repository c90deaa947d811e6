//! Rows of a rebuild: from the previous place or from the other columns to the stale ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Job, Pool};
use crate::buf::{AlignedBuf, BLOCK_SIZE, BufSlice};
use crate::device::{IoBatch, Outcome, Request};
use crate::error::Result;
use crate::fail;
use crate::pool::group::Group;
use crate::record::erasure::Codec;
use crate::record::store::{LAST_READ_DEADLINE, READ_DEADLINE, WRITE_DEADLINE};

/// Members that have not answered a read of this rebuild in time: they are asked last, and only if they are needed.
pub(in crate::engine) type Late = BTreeSet<u16>;

impl Pool {
    /// Rebuilds some rows of the stale columns. The group's I/O lock is held exclusively. Rows that devices in service
    /// return errors for are counted as lost and passed over: whoever reads them is told by their checksums.
    ///
    /// # Errors
    /// `Degraded` when too few columns are in service; `Io` when too few have answered in time, and with those that have
    /// not the rows may be had.
    pub(super) fn rebuild_run(
        &self,
        job: &Job,
        group: &Group,
        stale: &[usize],
        row: u32,
        count: u32,
        late: &mut Late,
    ) -> Result<()> {
        let columns = group.columns.read().clone();
        let len = count as usize * BLOCK_SIZE;
        let width = usize::from(group.width);
        // a column that is still readable at its old place is copied, the others are decoded
        let mut have: Vec<Option<AlignedBuf>> = std::iter::repeat_with(|| None).take(columns.len()).collect();
        let mut tried: BTreeSet<usize> = BTreeSet::new();
        let mut unanswered: BTreeSet<usize> = BTreeSet::new();
        let mut failed = false;
        let others = (0..columns.len()).filter(|i| !stale.contains(i));
        let order: Vec<usize> = stale.iter().copied().chain(others).collect();
        loop {
            let copied = stale.iter().all(|i| have[*i].is_some());
            let good = have.iter().filter(|h| h.is_some()).count();
            if copied || good >= width {
                break;
            }
            let mut batch = IoBatch::new();
            let mut owners = Vec::new();
            let (mut deadline, mut last_chance) = (READ_DEADLINE, false);
            // before rows are given up, devices that have not answered in time get another chance
            for last in [false, true] {
                if !owners.is_empty() {
                    break;
                }
                last_chance = last;
                for i in &order {
                    if tried.contains(i) {
                        continue;
                    }
                    let Some((member, device, offset)) = self.records.locate(&columns[*i], row, false) else {
                        continue;
                    };
                    if (late.contains(&member.index) || member.is_silent()) != last {
                        continue;
                    }
                    if last && !member.is_silent() {
                        deadline = LAST_READ_DEADLINE;
                    }
                    tried.insert(*i);
                    batch.push(&device, Request::Read { offset, bufs: vec![AlignedBuf::zeroed(len)] });
                    owners.push((*i, member));
                    let asked = |i: &usize| have[*i].is_some() || owners.iter().any(|(o, _)| o == i);
                    if good + owners.len() >= width || stale.iter().all(asked) {
                        break;
                    }
                }
            }
            if owners.is_empty() && failed && count > 1 {
                let half = count / 2;
                self.rebuild_run(job, group, stale, row, half, late)?;
                return self.rebuild_run(job, group, stale, row + half, count - half, late);
            }
            if owners.is_empty() {
                let needed = self.space.with_rows(group, |r| !r.live.set_runs(row, row + count).is_empty())?;
                if !needed {
                    // freed meanwhile: at most a reader of an older state wants them
                    break;
                }
                // what may still be copied, or decoded with what may still come, is not given up
                let copies = stale.iter().any(|i| unanswered.contains(i));
                if copies || (!unanswered.is_empty() && good + unanswered.len() >= width) {
                    fail!(
                        Io,
                        "rows {row}+{count} of block group {}: only {good} of the {width} columns needed have been answered \
                         for in time; the rebuild begins again at the next import",
                        group.id
                    );
                }
                if failed {
                    job.lost.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(
                        group = group.id,
                        row,
                        "rebuild: only {good} of the {width} columns needed can be read"
                    );
                    break;
                }
                fail!(
                    Degraded,
                    "rows {row}+{count} of block group {}: only {good} of the {width} columns needed can be read",
                    group.id
                );
            }
            for (outcome, (i, member)) in batch.wait(deadline).into_iter().zip(owners) {
                match outcome {
                    Outcome::Done(mut bufs) => {
                        member.answered();
                        late.remove(&member.index);
                        have[i] = bufs.pop();
                    }
                    Outcome::Failed(error) => {
                        member.answered();
                        late.remove(&member.index);
                        failed = true;
                        job.errors.fetch_add(1, Ordering::Relaxed);
                        member.count(&member.read_errors);
                        tracing::warn!(device = %member.path(), "rebuild: read failed: {error}");
                    }
                    Outcome::TimedOut => {
                        job.errors.fetch_add(1, Ordering::Relaxed);
                        member.count(&member.read_errors);
                        tracing::warn!(device = %member.path(), "rebuild: read not answered in time");
                        late.insert(member.index);
                        if !last_chance {
                            tried.remove(&i);
                            continue;
                        }
                        unanswered.insert(i);
                        if deadline == LAST_READ_DEADLINE {
                            member.did_not_answer();
                        }
                    }
                }
            }
        }
        // if rows are lost, what can be copied is copied all the same
        let enough = have.iter().filter(|h| h.is_some()).count() >= width;
        let missing: Vec<usize> = stale.iter().copied().filter(|i| enough && have[*i].is_none()).collect();
        let mut outs: Vec<AlignedBuf> = missing.iter().map(|_| AlignedBuf::zeroed(len)).collect();
        if !missing.is_empty() {
            let present: Vec<(u8, &[u8])> =
                have.iter().enumerate().filter_map(|(i, h)| Some((i as u8, h.as_deref()?))).take(width).collect();
            let mut slots: Vec<(u8, &mut [u8])> =
                missing.iter().zip(&mut outs).map(|(i, o)| (*i as u8, &mut **o)).collect();
            Codec::get(group.width, group.parity).reconstruct(&present, &mut slots)?;
        }
        for (i, out) in missing.into_iter().zip(outs) {
            have[i] = Some(out);
        }
        let mut batch = IoBatch::new();
        let mut owners = Vec::new();
        for i in stale {
            let Some(bytes) = have[*i].take() else { continue };
            let place = columns[*i].place;
            let Some(member) = self.space.member(place.device) else { continue };
            let Some(device) = member.device() else { continue };
            let offset = self.space.offset(place, row);
            let slices = vec![BufSlice::whole(Arc::new(bytes))];
            batch.push(&device, Request::Write { offset, slices, durable: false });
            owners.push(member);
        }
        for (outcome, member) in batch.wait(WRITE_DEADLINE).into_iter().zip(owners) {
            let reason = match outcome {
                Outcome::Done(_) => continue,
                Outcome::Failed(error) => format!("rebuild: write failed: {error}"),
                Outcome::TimedOut => "rebuild: a write was not answered in time".to_owned(),
            };
            member.count(&member.write_errors);
            member.fail(&reason);
        }
        Ok(())
    }
}
