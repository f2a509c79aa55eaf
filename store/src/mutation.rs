//! Deliberate bugs, one for each rule of `docs/durability.md`, so that its test can be seen to fail.
//!
//! They exist only with the feature `mutations`, which nothing but `make mutations` builds; without it every
//! question is answered "no" at compile time. `COWSLIP_MUTATION=name` switches one on. The bugs of the crates above are
//! here too: there is one table, and each crate asks it.

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Bug {
    /// What `COWSLIP_MUTATION` and `docs/durability.md` call it.
    pub name: &'static str,
    /// The hazards whose rule it takes away.
    pub hazards: &'static str,
    /// The package whose test catches it.
    pub package: &'static str,
    /// The test program in it, or [`COMPILER`].
    pub target: &'static str,
    /// A test's name or the beginning of some; what the compiler says.
    pub filter: &'static str,
    /// What it does.
    pub what: &'static str,
}

/// In the place of a test program: with `--cfg mutation="name"` the package does not compile.
pub const COMPILER: &str = "compiler";

/// Defines the bugs: a variant, then the fields of its [`Bug`].
macro_rules! mutations {
    ($($variant:ident $name:literal $hazards:literal $package:literal $target:literal $filter:literal $what:literal;)*) => {
        /// A deliberate bug.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutation { $( #[doc = $what] $variant, )* }

        impl Mutation {
            /// All of them.
            pub const ALL: &[Self] = &[$( Self::$variant ),*];

            /// Its row.
            pub fn bug(self) -> Bug {
                let [name, hazards, package, target, filter, what] = match self {
                    $( Self::$variant => [$name, $hazards, $package, $target, $filter, $what], )*
                };
                Bug { name, hazards, package, target, filter, what }
            }
        }
    };
}

mutations! {
    NoLock "no-lock" "H1" "store" "files" "h1_one_owner_at_a_time"
        "The pool is opened without its lock.";
    PageCache "page-cache" "H3" "store" "files" "h3_no_write_waits_for_the_page_cache"
        "The pool is written through the host's page cache.";
    ManyWorkers "many-workers" "H3" "store" "queue" "h3_a_ring_makes_no_threads_while_it_serves"
        "The kernel makes threads for a ring's requests when they need one.";
    OneSync "one-sync" "H2, H8" "store" "crash" "nothing_acknowledged_is_lost"
        "A flush writes the records before the data is synced, and syncs once.";
    RecordBeforeData "record-before-data" "H2, H8" "store" "queue" "what_was_flushed_survives_power_loss_in_any_order"
        "A sync lets the records of writes that ended while it ran be written, too.";
    CutBeforeData "cut-before-data" "H2, H8" "store" "ordering" "h8_"
        "A cut's record is written before what went in place is synced.";
    ReissuedFree "reissued-free" "H6" "store" "hazards" "h6_"
        "A discard that comes again frees what the first one freed.";
    CoreDumped "core-dumped" "H7" "ublk-target" "it" "survival::h7_dies_without_a_core"
        "A server that crashes writes its memory to a file before it is gone.";
    WaitingLog "waiting-log" "H7" "ublk-target" "lib" "h7_"
        "A line of the log waits until somebody takes it.";
    ProgramPagedOut "program-paged-out" "H7" "ublk-target" "it" "survival::h7_the_program_stays_in_memory"
        "The server's program may be paged out.";
    JoinRunningSync "join-running-sync" "H10" "store" "ordering" "h10_"
        "A flush is answered by a sync that began before it.";
    IgnoreFailedSync "ignore-failed-sync" "H11" "store" "hazards" "h11_"
        "A failed sync fails one flush, and the next one is tried.";
    WriteAfterPoison "write-after-poison" "H12" "store" "hazards" "h12_"
        "Writes go on after an I/O error on metadata.";
    FuaUndurable "fua-undurable" "H9" "store" "crash" "nothing_acknowledged_is_lost"
        "FUA in place counts although the mapping is not durable.";
    AnyRing "any-ring" "H4" "store" "hazards" "h4_a_stale_ring_"
        "A ring of an earlier owner is replayed.";
    RingNotMissed "ring-not-missed" "H4" "store" "hazards" "h4_a_lost_ring_is_told"
        "A lost ring is taken for an empty one.";
    TornAppend "torn-append" "H5" "store" "lib" "h5_"
        "A record in the ring counts although its checksum is wrong.";
    RewrittenTail "rewritten-tail" "H13" "store" "crash" "nothing_acknowledged_is_lost"
        "A log block that is not full is written again with the next records.";
    StaleTail "stale-tail" "H14" "store" "ordering" "h14_"
        "A log block counts whatever lies before it, and whoever wrote it.";
    InPlaceAtomic "in-place-atomic" "H15" "store" "hazards" "h15_"
        "Blocks of an atomic volume are overwritten in place.";
    UncheckedNode "unchecked-node" "H16" "store" "bad_pools" "a_flipped_bit_in_metadata_is_told_or_harmless"
        "A map node is believed whatever its checksum says.";
    EarlySuperblock "early-superblock" "H17" "store" "crash" "nothing_acknowledged_is_lost"
        "The superblock is written before what it refers to is synced.";
    KeptSlot "kept-slot" "H17" "store" "crash" "nothing_acknowledged_is_lost"
        "Pages of the segment table are overwritten in place.";
    EarlyReuse "early-reuse" "H17, H18" "store" "ordering" "h17_"
        "A dropped block is free before the checkpoint that drops it is durable.";
    NoEpochWait "no-epoch-wait" "H18" "store" "ordering" "h18_"
        "A dropped block is free while reads begun before are under way.";
    ForeignBytes "foreign-bytes" "H19" "store" "crash" "nothing_acknowledged_is_lost"
        "The rest of a partly written new block is what was there before.";
    OpenGate "open-gate" "H20" "store" "ordering" "h20_"
        "A cut does not wait for writes under way.";
    NaiveDeletion "naive-deletion" "H21" "store" "hazards" "h21_"
        "Deleting a version frees what is not in its child, whatever its parent holds.";
    ForgottenCursor "forgotten-cursor" "H22" "store" "ordering" "h22_"
        "A merge takes the part of its origin that was already deleted for present.";
    OwnershipRegained "ownership-regained" "H23" "store" "hazards" "h23_"
        "A head owns the blocks of a deleted snapshot again.";
    PlaceIsIdentity "place-is-identity" "H24" "store" "hazards" "h24_"
        "The identity of a block is its place alone.";
    ReadRevoked "read-revoked" "H25" "store" "ordering" "h25_"
        "A deleted snapshot can still be read.";
    StaleChecksum "stale-checksum" "H26" "store" "integrity" "h26_"
        "A block keeps its checksum when it is dropped.";
    EarlySeal "early-seal" "H26" "store" "integrity" "h26_"
        "A block counts as sealed before its checksum is written.";
    TwoTruths "two-truths" "H27" "store" "crash" "nothing_acknowledged_is_lost"
        "A new volume is in memory, and in the log only by the next checkpoint.";
    ShrinkingRollback "shrinking-rollback" "H28" "store" "hazards" "h28_"
        "A rollback gives the volume its old size.";
    NoRangeExclusion "no-range-exclusion" "H29" "store" "hazards" "h29_"
        "Two changes of one block go on together.";
    BelievedBacking "believed-backing" "H30" "store" "hazards" "h30_"
        "Segments count as held by the host although it refused them.";
    EarlyPunch "early-punch" "H18, H31" "store" "crash" "nothing_acknowledged_is_lost"
        "Space goes back to the host before the checkpoint that gives it up is durable.";
    SplitDiscard "split-discard" "H35" "store" "hazards" "h35_"
        "A discard takes a record for each leaf, whatever is there.";
    BlindOrder "blind-order" "H36" "store" "ordering" "h36_"
        "Blocks are put in order although they were written meanwhile.";
    NoNodePromise "no-node-promise" "H32, H33" "store" "hazards" "h32_"
        "A write is admitted without room for the map nodes of its merge.";
    OversizedNode "oversized-node" "H34" "store" "compiler" "the entries of a leaf fill a block"
        "A leaf has one entry too many.";
    FlushNotImplemented "flush-not-implemented" "H37" "ublk-target" "it" "device::flush_errors_are_passed_on"
        "A flush that fails is answered as if there were none, and never asked for again.";
}

impl Mutation {
    /// Whether this bug is switched on.
    #[cfg(feature = "mutations")]
    #[must_use]
    pub fn on(self) -> bool {
        use std::sync::LazyLock;
        static CHOSEN: LazyLock<Option<Mutation>> = LazyLock::new(|| {
            let name = std::env::var("COWSLIP_MUTATION").ok()?;
            let known = Mutation::ALL.iter().copied().find(|m| m.bug().name == name);
            Some(known.unwrap_or_else(|| panic!("COWSLIP_MUTATION={name} is not known")))
        });
        *CHOSEN == Some(self)
    }

    /// Whether this bug is switched on: never in this build.
    #[cfg(not(feature = "mutations"))]
    #[must_use]
    pub const fn on(self) -> bool {
        false
    }
}
