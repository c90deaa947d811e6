//! The QRVSA iSCSI target. Nothing is here yet: the crate holds the place that the architecture gives it.
