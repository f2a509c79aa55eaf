//! The kinds of damage that e2fsprogs has cases for, by its names, made here by debugfs: what is hit is an error, and
//! the rest stays readable.

use crate::common::exercise::exercise;
use crate::common::support::{MemoryImage, workdir};
use crate::damage::small_image;
use crate::jbd2::debugfs;
use fuse_view::fs::open;
use std::sync::Arc;

/// What is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Everything: a reader does not need what is damaged.
    All,
    /// All but so many answers.
    AllBut(usize),
    /// Nothing: the file system is refused.
    Nothing,
    /// Everything that was written before the journal, told as partial.
    Partial,
}

/// Name of the case of e2fsprogs, or what is damaged; commands for debugfs; what is left.
const KINDS: &[(&str, &[&str], Left)] = &[
    ("f_badroot", &["sif <2> mode 0"], Left::Nothing),
    ("f_noroot", &["clri <2>"], Left::Nothing),
    ("f_root_is_a_file", &["sif <2> mode 0100644"], Left::Nothing),
    ("f_illitable", &["set_bg 0 inode_table 0xFFFFFF"], Left::Nothing),
    ("f_illbbitmap", &["set_bg 0 block_bitmap 0", "set_bg 1 block_bitmap 0xFFFFFF"], Left::All),
    ("f_illibitmap", &["set_bg 0 inode_bitmap 0"], Left::All),
    ("f_baddir", &["sif deep/level0 mode 0170644"], Left::AllBut(400)),
    ("f_badorphan", &["ssv last_orphan 99999999"], Left::All),
    ("f_orphan_loop", &["ssv last_orphan 30", "sif <30> dtime 30"], Left::All),
    ("f_badsymlinks", &["sif links/sym2 size 100000"], Left::AllBut(3)),
    ("f_badsymlink_empty", &["sif links/sym2 size 0"], Left::AllBut(3)),
    ("f_extent_bad_magic", &["sif files/a block[0] 0"], Left::AllBut(6)),
    ("f_extent_too_deep", &["sif files/a block[1] 0x90004"], Left::AllBut(6)),
    ("f_extent_oobounds", &["sif files/len65536 block[5] 0xFFFFFFF"], Left::AllBut(6)),
    ("f_extent_zero_len", &["sif files/len65536 block[4] 0"], Left::AllBut(6)),
    ("f_dup", &["sif files/len4096 block[5] 100", "sif files/len4097 block[5] 100"], Left::All),
    ("f_bad_file_acl", &["sif attributes/small file_acl 99999999"], Left::AllBut(3)),
    ("f_file_acl_high", &["sif attributes/small file_acl 5"], Left::AllBut(3)),
    ("f_no_links", &["sif files/len4096 links_count 0"], Left::AllBut(6)),
    ("fewer links than names", &["sif links/first links_count 2"], Left::All),
    ("f_extra_isize", &["sif files/len4096 extra_isize 255"], Left::AllBut(6)),
    ("f_size_high", &["sif files/len4096 size 0x8000000000001000"], Left::AllBut(6)),
    ("f_baddir2", &["zap_block -f names -o 28 -l 60 -p 0xFF 0"], Left::AllBut(200)),
    ("f_salvage_dir", &["zap_block -f removed -o 200 -l 12 -p 0 0"], Left::AllBut(200)),
    ("f_badname", &["zap_block -f removed -o 32 -l 8 -p 0x2F 0"], Left::AllBut(200)),
    ("f_badjourblks", &["sif <8> block[5] 0xFFFFFFF", "feature needs_recovery"], Left::Partial),
    ("f_badjour_magic", &["sif <8> block[0] 0", "feature needs_recovery"], Left::Partial),
    ("f_clear_jour", &["clri <8>", "feature needs_recovery"], Left::Partial),
    ("f_jour_is_a_dir", &["sif <8> mode 040755", "feature needs_recovery"], Left::Partial),
    ("f_jour_short", &["sif <8> size 4096", "feature needs_recovery"], Left::Partial),
    ("f_jour_zero", &["zap_block -f <8> -p 0 0", "feature needs_recovery"], Left::Partial),
];

#[test]
fn kinds_of_e2fsprogs() {
    let Some(whole) = small_image("-t ext4 -b 1024 -O ^metadata_csum,uninit_bg -J size=1") else { return };
    // Without checksums of groups their fields can be changed one by one.
    let Some(plain) = small_image("-t ext4 -b 1024 -O ^metadata_csum,^uninit_bg -J size=1") else { return };
    let all = exercise(plain.clone());
    assert_eq!(all.1, 0);
    let dir = workdir();
    let path = dir.path().join("image");
    let mut findings = Vec::new();
    for &(name, commands, left) in KINDS {
        std::fs::write(&path, &plain).unwrap();
        let commands: Vec<String> = commands.iter().map(|&command| command.to_owned()).collect();
        debugfs(&path, &commands);
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes != plain, "{name}: nothing was changed");
        if let Some(finding) = look(bytes, left, all.0) {
            findings.push(format!("{name}: {finding}"));
        }
    }
    assert!(findings.is_empty(), "{findings:#?}");
    // Where descriptors have checksums, a wrong one is not believed.
    std::fs::write(&path, &whole).unwrap();
    debugfs(&path, &["set_bg 0 checksum 0".into()]);
    assert!(open(Arc::new(MemoryImage(std::fs::read(&path).unwrap()))).is_err());
}

/// What is wrong with what is left of a damaged image; `all` answers were good before.
fn look(bytes: Vec<u8>, left: Left, all: usize) -> Option<String> {
    let opened = match open(Arc::new(MemoryImage(bytes.clone()))) {
        Err(e) => return (left != Left::Nothing).then(|| e.to_string()),
        Ok(_) if left == Left::Nothing => return Some("it is opened".into()),
        Ok(opened) => opened,
    };
    if opened.replay().starts_with("partial") != (left == Left::Partial) {
        return Some(opened.replay());
    }
    let (good, bad) = exercise(bytes);
    let lost = all.saturating_sub(good);
    let as_meant = match left {
        Left::AllBut(most) => lost <= most && bad > 0,
        _ => lost == 0 && bad == 0,
    };
    (!as_meant).then(|| format!("{lost} answers lost, {bad} errors"))
}
