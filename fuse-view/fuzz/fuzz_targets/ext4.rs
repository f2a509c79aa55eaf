#![no_main]
const TARGET: &str = "ext4";
include!("target.rs");
