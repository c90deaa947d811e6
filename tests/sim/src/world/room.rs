//! Room: when a pool may say that it is full, and what has to be left when nothing happens any more.

use qrvsa_core::engine::Pool;
use qrvsa_core::pool::format::entries::{Class, MemberState};
use qrvsa_core::pool::format::layout::zone_count;

use super::{Inner, Verdict};
use crate::image::BLOCK;
use crate::model::Body;
use crate::session::Action;
use crate::volumes::Verb;

/// Room that a reserved volume has besides its size: for overwriting, and for its items.
const BESIDES_BYTES: u64 = 9 << 20;

/// Bytes that an operation adds at most.
pub(super) fn wanted_bytes(action: &Action) -> u64 {
    match action {
        Action::Write(_, _, len, _) => *len as u64,
        Action::Copy(_, _, len) => *len,
        _ => 0,
    }
}

/// Bytes that a deed adds at most, or has set aside.
pub(super) fn wanted_by(verb: &Verb) -> u64 {
    match verb {
        Verb::Create(spec) if spec.reserve => spec.size_bytes + BESIDES_BYTES,
        Verb::Resize(size) => *size,
        Verb::Write { len, .. } => *len as u64,
        _ => 0,
    }
}

impl Inner {
    /// Bytes of files and volumes, as blocks of the pool's own geometry.
    fn occupied(&self) -> u64 {
        let k = u64::from(self.geometry.data);
        let cost = |bytes: u64| bytes.div_ceil(BLOCK as u64).div_ceil(k) * k;
        let files = self.models.values().flat_map(|m| m.now.values()).map(|node| match &node.body {
            Body::File(bytes) => cost(bytes.len() as u64),
            _ => 0,
        });
        let volumes = self.volumes.values().map(|v| {
            let records = v.size.div_ceil(u64::from(v.spec.record_bytes));
            let besides = if v.spec.reserve { cost(BESIDES_BYTES) } else { 0 };
            records * cost(u64::from(v.spec.record_bytes)) + besides
        });
        files.sum::<u64>() + volumes.sum::<u64>()
    }

    /// An operation that wanted so many bytes more found no room. With all members there, that is true only of a pool of
    /// which more than half is taken.
    pub(super) fn is_crowded(&self, wanted_bytes: u64) -> Verdict<()> {
        let Some(session) = &self.session else { return Ok(()) };
        let space = &session.pool.space;
        let whole = |state| matches!(state, MemberState::Online | MemberState::Removed);
        if self.beyond || !space.members().iter().all(|m| whole(m.state())) {
            return Ok(());
        }
        let (occupied, capacity) = (self.occupied(), space.capacity());
        let k = u64::from(self.geometry.data);
        let wanted = wanted_bytes.div_ceil(BLOCK as u64).div_ceil(k) * k;
        if (occupied + wanted) * 2 > capacity.total {
            return Ok(());
        }
        Err(format!(
            "no room was found, when {occupied} blocks of {} were taken and {wanted} wanted: {capacity:?}, {} reserved, {} claimed",
            capacity.total,
            space.reserved(),
            space.claimed()
        ))
    }

    /// Right after an import. Where no device has suffered, every byte is right.
    pub(super) fn check_import(&mut self) -> Verdict<()> {
        if self.beyond || self.session.is_none() {
            return Ok(());
        }
        let pool = self.pool();
        let deep = self.tainted.is_empty();
        let report = pool.check(deep, &mut |_| true).map_err(|e| format!("the check after an import failed: {e}"))?;
        self.tell(|| format!("check, deep {deep}: {} problems", report.problem_count));
        if report.problem_count > 0 || report.unfinished.is_some() {
            let (count, texts) = (report.problem_count, report.problems.join("; "));
            return Err(format!("the check after an import found {count}: {texts} {:?}", report.unfinished));
        }
        Ok(())
    }
}

/// When nothing happens any more, all space is either used or free: no row and no zone is kept for nobody.
pub(super) fn is_accounted_for(pool: &Pool, reserved_volumes: bool) -> Verdict<()> {
    // what the last changes freed, what freeing it freed, and zones that columns were moved away from
    for i in 0..8 {
        if i >= 3 && !pool.space.has_pending_frees() {
            break;
        }
        pool.commit().map_err(|e| format!("a commit at the end failed: {e}"))?;
    }
    let (space, capacity) = (&pool.space, pool.space.capacity());
    if space.has_pending_frees() || capacity.pending != 0 {
        return Err(format!("nothing happens, and {} blocks that were freed do not come back", capacity.pending));
    }
    let claimed = space.claimed();
    if !reserved_volumes && claimed != 0 {
        return Err(format!("{claimed} blocks are set aside for volumes that are not there"));
    }
    let members = space.members();
    let mut held = vec![0u64; members.len()];
    for group in space.groups() {
        for place in group.columns.read().iter().flat_map(|c| std::iter::once(c.place).chain(c.previous)) {
            held[usize::from(place.device)] += 1;
        }
        let busy = group.zone_rows() - group.free_rows();
        if group.class != Class::Log && busy != group.used_rows() {
            let used = group.used_rows();
            return Err(format!("block group {}: {busy} rows are not free, {used} are used", group.id));
        }
    }
    // nobody asks for the zones of a member that has left
    for member in members.iter().filter(|m| m.state() != MemberState::Removed) {
        let (index, zones) = (member.index, u64::from(zone_count(member.size_bytes, space.zone_shift)));
        let (used, held) = (space.used_zones(index), held[usize::from(index)]);
        if used != held {
            return Err(format!("member {index}: {used} of {zones} zones are not free, groups have {held}"));
        }
    }
    // it is kept from one change to the next: nothing may change without its knowing
    let kept = space.capacity();
    space.discarded(Vec::new());
    if space.capacity() != kept {
        return Err(format!("the capacity is said to be {kept:?}, and is {:?}", space.capacity()));
    }
    Ok(())
}
