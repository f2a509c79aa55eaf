//! Whatever dies, and a node that loses its power. These break what other tests use, so they run alone, after them.

mod kills;
mod leader;
mod power;
