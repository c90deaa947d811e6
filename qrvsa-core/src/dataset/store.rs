//! The filesystem's [`Store`] on a dataset: transactions, items, contents, the intent log.

use std::cell::RefCell;
use std::ops::Range;

use super::Dataset;
use super::memtable::Growth;
use crate::error::Result;
use crate::fail;
use crate::fs::store::Store;
use crate::item::{Intent, Log, ObjectRef, SyncTicket, Usage, Value};
use crate::object::{Items, LogOp};
use crate::record::context::with_object;
use crate::tree::Key;
use crate::txg::entry;
use crate::txg::gate::Hold;
use crate::txg::log::ENTRY_BYTES_MAX;

/// Above this an fsync commits the transaction group instead of logging: writing the data once, to its place, is cheaper
/// than writing it to the log and again to its place.
const LOGGED_BYTES_MAX: u64 = 512 << 10;
/// Ticket that needs no waiting.
const DURABLE: SyncTicket = SyncTicket(0);
/// Ticket that asks for a commit.
const COMMIT: SyncTicket = SyncTicket(u64::MAX);

/// A transaction on a dataset.
pub struct Transaction<'a> {
    dataset: &'a Dataset,
    hold: Hold<'a>,
    changes: RefCell<Vec<u8>>,
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        let body = std::mem::take(&mut *self.changes.borrow_mut());
        if !body.is_empty() {
            let mut pending = self.dataset.pending.lock();
            pending.bytes += body.len() + 64;
            pending.entries.push((self.hold.txg(), body));
        }
        // the hold is released after this: the entry is there before the group can close
    }
}

impl Dataset {
    fn change(&self, tx: &Transaction<'_>, key: Key, value: Option<Value>, log: Log) {
        let mut logged = 0;
        if log != Log::WithObject {
            let keep = log == Log::KeepContentFields;
            let mut changes = tx.changes.borrow_mut();
            let before = changes.len();
            entry::encode_change(&mut changes, key, value.as_deref(), keep);
            logged = changes.len() - before;
        }
        // what waits for the log takes memory each time, an item that changes again does not
        let growth = self.items.open().set(key, value);
        self.host.account_items(Growth { bytes: growth.bytes + logged as i64, ..growth });
    }

    /// Begins a transaction without asking for admission (replay, internal work).
    pub(crate) fn begin_unchecked(&self) -> Transaction<'_> {
        Transaction { dataset: self, hold: self.host.gate().hold(), changes: RefCell::new(Vec::new()) }
    }

    /// Forgets namespace changes that a commit of `txg` made durable.
    pub(crate) fn trim_pending(&self, txg: u64) {
        let mut pending = self.pending.lock();
        pending.entries.retain(|(t, _)| *t > txg);
        pending.bytes = pending.entries.iter().map(|(_, b)| b.len() + 64).sum();
    }

    /// Queues everything that an fsync of the object has to make durable, as far as it lies in `range` (bytes). `None`: it
    /// is too much for the log.
    ///
    /// Data that lies together becomes one entry, and an entry is replayed as a whole or not at all: a write that was one
    /// call is never there in part.
    fn enqueue(
        &self,
        object: ObjectRef,
        range: Range<u64>,
        items: &[(Key, Option<Value>)],
    ) -> Result<Option<SyncTicket>> {
        let _order = self.log_order.lock();
        // holding the group open ties the entries to it: nothing they contain can be committed under an older number
        let tx = self.begin_unchecked();
        self.host.check_writable()?;
        let txg = tx.hold.txg();
        let pending_bytes = {
            let pending = self.pending.lock();
            if pending.entries.iter().any(|(_, b)| b.len() + 32 > ENTRY_BYTES_MAX) {
                return Ok(None);
            }
            pending.bytes as u64
        };
        let Some(left) = LOGGED_BYTES_MAX.checked_sub(pending_bytes) else { return Ok(None) };
        let unlogged = self.objects.take_unlogged(object, range, left);
        if unlogged.committing.is_some() || unlogged.too_much {
            // Part of it is being committed without ever having been logged: that commit, and the rest with the next.
            // Or it is too much. Nothing was taken: somebody else may log before that.
            return Ok(None);
        }
        let mut entries = Vec::new();
        {
            let mut pending = self.pending.lock();
            pending.bytes = 0;
            for (txg, body) in pending.entries.drain(..) {
                entries.push(entry::items_entry(self.id, txg, &body));
            }
        }
        let mut ops = unlogged.ops.into_iter().peekable();
        while let Some(op) = ops.next() {
            match op {
                LogOp::Write { txg, offset, data } => {
                    let mut end = offset + data.len() as u64;
                    let mut run = vec![data];
                    while let Some(LogOp::Write { data, .. }) =
                        ops.next_if(|op| matches!(op, LogOp::Write { txg: t, offset: o, .. } if *t == txg && *o == end))
                    {
                        end += data.len() as u64;
                        run.push(data);
                    }
                    entries.push(entry::write_entry(self.id, txg, object, offset, run.iter().map(|data| &data[..])));
                }
                LogOp::Punch { txg, range } => {
                    entries.push(entry::punch_entry(self.id, txg, object, range.start, range.end));
                }
            }
        }
        let mut body = Vec::new();
        for (key, value) in items {
            entry::encode_change(&mut body, *key, value.as_deref(), false);
        }
        if !body.is_empty() {
            entries.push(entry::items_entry(self.id, txg, &body));
        }
        let ticket = self.host.log().append(entries)?;
        Ok(Some(SyncTicket(ticket.number())))
    }

    /// As [`Store::log_object`] for a part of the contents: only bytes of `range` are put on their way. Other changes of
    /// the object, also earlier ones, may be lost where these are kept.
    ///
    /// # Errors
    /// As [`Store::log_object`].
    pub(crate) fn log_range(&self, object: ObjectRef, range: Range<u64>) -> Result<SyncTicket> {
        self.host.check_writable()?;
        Ok(self.enqueue(object, range, &[])?.unwrap_or(COMMIT))
    }
}

impl Store for Dataset {
    type Tx<'a> = Transaction<'a>;

    fn begin(&self, intent: Intent) -> Result<Transaction<'_>> {
        self.host.admit(intent)?;
        let tx = self.begin_unchecked();
        // under the hold: the group that ends the pool's service is the last with changes of anything
        self.host.check_writable()?;
        // as well: the group that closes after the dataset was marked is the last with changes of it
        if self.destroying() {
            fail!(NotFound, "'{}' was destroyed", self.name());
        }
        Ok(tx)
    }

    fn get(&self, key: Key) -> Result<Option<Value>> {
        self.items.get(key)
    }

    fn scan(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        self.items.scan(from, to, limit)
    }

    fn put(&self, tx: &Transaction<'_>, key: Key, value: Value, log: Log) {
        self.change(tx, key, Some(value), log);
    }

    fn delete(&self, tx: &Transaction<'_>, key: Key, log: Log) {
        self.change(tx, key, None, log);
    }

    fn new_object_id(&self) -> u64 {
        self.allocate_object()
    }

    fn read(&self, object: ObjectRef, offset: u64, buf: &mut [u8]) -> Result<()> {
        with_object(self.id, object.id, || self.objects.read(object, offset, buf))
    }

    fn write(&self, tx: &Transaction<'_>, object: ObjectRef, offset: u64, data: &[u8]) -> Result<()> {
        with_object(self.id, object.id, || self.objects.write(tx.hold.txg(), object, offset, data))
    }

    fn punch(&self, tx: &Transaction<'_>, object: ObjectRef, range: Range<u64>) -> Result<()> {
        with_object(self.id, object.id, || self.objects.punch(tx.hold.txg(), object, range))
    }

    fn next_data(&self, object: ObjectRef, offset: u64) -> Result<Option<u64>> {
        self.objects.next_data(object, offset)
    }

    fn next_hole(&self, object: ObjectRef, offset: u64) -> Result<u64> {
        self.objects.next_hole(object, offset)
    }

    fn allocated_bytes(&self, object: ObjectRef) -> Result<u64> {
        self.objects.allocated_bytes(object)
    }

    fn reap(&self, object: ObjectRef) {
        let hold = self.host.gate().hold();
        self.objects.reap(hold.txg(), object);
    }

    fn log_object(&self, object: ObjectRef, items: &[(Key, Option<Value>)]) -> Result<SyncTicket> {
        self.host.check_writable()?;
        Ok(self.enqueue(object, 0..u64::MAX, items)?.unwrap_or(COMMIT))
    }

    fn wait_durable(&self, ticket: SyncTicket) -> Result<()> {
        if ticket == DURABLE {
            return Ok(());
        }
        if ticket != COMMIT {
            match self.host.log().wait(crate::txg::log::Ticket::from_number(ticket.0)) {
                Ok(()) => return Ok(()),
                Err(e) if crate::txg::log::is_full(&e) => {}
                Err(e) => return Err(e),
            }
        }
        self.host.commit_now()
    }

    fn sync_all(&self) -> Result<()> {
        self.host.commit_now()
    }

    fn usage(&self) -> Usage {
        self.host.usage()
    }

    fn space_may_return(&self) -> bool {
        self.host.space_may_return()
    }

    fn now_ns(&self) -> i64 {
        self.host.env().clock.wall_ns()
    }

    fn hash_seed(&self) -> u64 {
        self.hash_seed
    }

    fn read_only(&self) -> bool {
        self.host.read_only()
    }
}
