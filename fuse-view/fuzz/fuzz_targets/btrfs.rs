#![no_main]
const TARGET: &str = "btrfs";
include!("target.rs");
