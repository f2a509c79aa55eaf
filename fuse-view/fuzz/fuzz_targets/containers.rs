#![no_main]
const TARGET: &str = "containers";
include!("target.rs");
