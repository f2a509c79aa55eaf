//! What differs between snapshots, and the versions of a file over many: held against reading everything of each.

mod cost;
mod damage;
mod manifest;
mod oracle;
mod renames;
#[path = "../../../tests/skip.rs"]
mod skip;
mod snapshots;
