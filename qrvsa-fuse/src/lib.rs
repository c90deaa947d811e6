//! The QRVSA FUSE front end.
