#![no_main]
const TARGET: &str = "vfat";
include!("target.rs");
