//! Task attributes (SAM-5 8.6): which commands may run while others of their logical unit are not finished.

use std::collections::VecDeque;

use crate::scsi::TaskAttribute;

struct Entry {
    serial: u64,
    lun: [u8; 8],
    ordered: bool,
    done: bool,
}

/// The tasks of one session that are not finished, in the order in which they came.
#[derive(Default)]
pub(crate) struct TaskOrder {
    entries: VecDeque<Entry>,
    ordered: usize,
}

impl TaskOrder {
    /// A task has come; serial numbers rise.
    pub(crate) fn came(&mut self, serial: u64, lun: [u8; 8], attribute: TaskAttribute) {
        let ordered = attribute == TaskAttribute::Ordered;
        self.ordered += usize::from(ordered);
        self.entries.push_back(Entry { serial, lun, ordered, done: false });
    }

    /// A task is finished or gone. Unknown ones are ignored.
    pub(crate) fn done(&mut self, serial: u64) {
        if let Ok(at) = self.entries.binary_search_by_key(&serial, |e| e.serial)
            && let Some(entry) = self.entries.get_mut(at)
            && !entry.done
        {
            entry.done = true;
            self.ordered -= usize::from(entry.ordered);
        }
        while self.entries.front().is_some_and(|e| e.done) {
            self.entries.pop_front();
        }
    }

    /// Whether a task that came (or comes now, with a higher serial number) may run.
    pub(crate) fn may_run(&self, serial: u64, lun: [u8; 8], attribute: TaskAttribute) -> bool {
        let earlier = || self.entries.iter().take_while(|e| e.serial < serial).filter(|e| !e.done && e.lun == lun);
        match attribute {
            TaskAttribute::HeadOfQueue => true,
            TaskAttribute::Ordered => earlier().next().is_none(),
            _ => self.ordered == 0 || !earlier().any(|e| e.ordered),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TaskAttribute::{HeadOfQueue, Ordered, Simple};

    #[test]
    fn ordered_tasks_are_fences() {
        let (a, b) = ([0; 8], [1; 8]);
        let mut order = TaskOrder::default();
        order.came(1, a, Simple);
        order.came(2, a, Ordered);
        order.came(3, a, Simple);
        order.came(4, b, Simple);
        assert!(order.may_run(1, a, Simple));
        assert!(!order.may_run(2, a, Ordered));
        assert!(!order.may_run(3, a, Simple));
        assert!(order.may_run(4, b, Simple));
        assert!(order.may_run(5, a, HeadOfQueue));
        order.done(1);
        assert!(order.may_run(2, a, Ordered));
        assert!(!order.may_run(3, a, Simple));
        order.done(2);
        order.done(2);
        assert!(order.may_run(3, a, Simple));
        assert!(!order.may_run(9, a, Ordered));
        order.done(3);
        assert!(order.may_run(9, a, Ordered));
        order.done(4);
        assert!(order.entries.is_empty());
        assert_eq!(order.ordered, 0);
    }
}
