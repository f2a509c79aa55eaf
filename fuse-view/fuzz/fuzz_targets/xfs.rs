#![no_main]
const TARGET: &str = "xfs";
include!("target.rs");
