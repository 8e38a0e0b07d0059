//! x
pub mod apt;
