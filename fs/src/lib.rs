//! A passthrough FUSE filesystem with handles that never repeat and an honest fsync.
