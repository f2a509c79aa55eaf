//! Files of disk images, without an agent: `ls`, `cat`, `restore`, `mount` on an ext4 image made here.

mod common;

use common::{cowslip, eventually, is_mounted, run, tool};
use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, symlink},
    },
    path::{Path, PathBuf},
    process::Stdio,
};

struct Image {
    dir: tempfile::TempDir,
    file: PathBuf,
}

impl Image {
    fn source(&self, path: &str) -> String {
        format!("{}:{path}", self.file.display())
    }
}

fn fill(tree: &Path) {
    fs::create_dir_all(tree.join("etc/app")).unwrap();
    fs::write(tree.join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
    fs::write(tree.join("etc/app/empty"), "").unwrap();
    fs::write(tree.join("big"), vec![b'x'; 3_000_000]).unwrap();
    symlink("hosts", tree.join("etc/link")).unwrap();
    fs::write(tree.join(OsStr::from_bytes(b"odd\xff")), "odd").unwrap();
}

/// An ext4 image; None, with the reason printed, where e2fsprogs is missing.
fn image() -> Option<Image> {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fill(&tree);
    let file = dir.path().join("disk.img");
    fs::File::create(&file).unwrap().set_len(32 << 20).unwrap();
    let arguments = ["-q", "-F", "-t", "ext4", "-d"].map(OsStr::new);
    let arguments = [&arguments[..], &[tree.as_os_str(), file.as_os_str()]].concat();
    if tool("mke2fs", &arguments).is_none() {
        common::skip("mke2fs is missing; install e2fsprogs");
        return None;
    }
    Some(Image { dir, file })
}

/// The same file system as the first partition of a disk with an MBR.
fn partitioned(image: &Image) -> PathBuf {
    const START_SECTOR: u32 = 2048;
    let content = fs::read(&image.file).unwrap();
    let sectors = u32::try_from(content.len() / 512).unwrap();
    let start = usize::try_from(START_SECTOR).unwrap() * 512;
    let mut disk = vec![0_u8; start + content.len()];
    disk[446 + 4] = 0x83;
    disk[446 + 8..446 + 12].copy_from_slice(&START_SECTOR.to_le_bytes());
    disk[446 + 12..446 + 16].copy_from_slice(&sectors.to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[start..].copy_from_slice(&content);
    let file = image.dir.path().join("parted.img");
    fs::write(&file, disk).unwrap();
    file
}

#[test]
fn ls_lists_names_sorted() {
    let Some(image) = image() else { return };
    let ended = run(["ls", &image.source("/etc")]).with(0);
    assert_eq!(ended.stdout, "app\nhosts\nlink\n");
    assert_eq!(ended.stderr, "");
    let root = run(["ls", &image.source("")]).with(0).stdout;
    assert_eq!(root, "big\netc\nlost+found\nodd\\xff\n");
    let file = run(["ls", &image.source("/etc/hosts")]).with(0).stdout;
    assert_eq!(file, "/etc/hosts\n");
}

#[test]
fn ls_long_has_a_header_and_targets() {
    let Some(image) = image() else { return };
    let text = run(["ls", "-l", &image.source("/etc")]).with(0).stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("MODE") && lines[0].ends_with("NAME"), "{text}");
    assert!(lines[1].starts_with("drwx"), "{text}");
    assert!(lines[2].contains(" 20 ") && lines[2].ends_with(" hosts"), "{text}");
    assert!(lines[3].starts_with("lrwxrwxrwx") && lines[3].ends_with(" link -> hosts"), "{text}");
}

#[test]
fn ls_json_streams_objects() {
    let Some(image) = image() else { return };
    let rows = run(["ls", "-R", "--json", &image.source("/")]).with(0).json_lines();
    let of = |path: &str| {
        rows.iter().find(|row| row["path"] == path).unwrap_or_else(|| panic!("{path}: {rows:?}"))
    };
    let hosts = of("/etc/hosts");
    assert_eq!(
        (&hosts["type"], &hosts["size_bytes"], &hosts["nlink"]),
        (&"file".into(), &20.into(), &1.into())
    );
    assert_eq!(hosts["mode"].as_str().unwrap().len(), 4);
    assert!(hosts["modified_at"].as_str().unwrap().ends_with('Z'));
    assert!(hosts["target"].is_null() && hosts["rdev"].is_null() && hosts.get("path_base64").is_none());
    assert_eq!(of("/etc/link")["target"], "hosts");
    assert_eq!(of("/odd\\xff")["path_base64"], "L29kZP8=");
    assert_eq!(of("/etc/app")["type"], "dir");
    let keys: Vec<&String> = hosts.as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 10, "{keys:?}");
}

#[test]
fn cat_prints_files() {
    let Some(image) = image() else { return };
    assert_eq!(run(["cat", &image.source("/etc/hosts")]).with(0).stdout, "127.0.0.1 localhost\n");
    assert_eq!(run(["cat", &image.source("/etc/link")]).with(0).stdout, "127.0.0.1 localhost\n");
    assert_eq!(run(["cat", &image.source("/big")]).with(0).stdout.len(), 3_000_000);
    assert_eq!(
        run(["cat", &image.source("/etc/hosts"), &image.source("/etc/app/empty")]).with(0).stdout.len(),
        20
    );
    let missing = run(["cat", &image.source("/etc/none")]).with(3);
    assert!(missing.stderr.contains("/etc/none") && missing.stderr.contains("disk.img"), "{missing:?}");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let code =
        cowslip().args(["cat", &image.source("/big")]).stdout(full).stderr(Stdio::null()).status().unwrap();
    assert_eq!(code.code(), Some(5), "a full disk");
    let dir = run(["cat", &image.source("/etc")]).with(1);
    assert!(dir.stderr.contains("hint: list it"), "{dir:?}");
}

#[test]
fn a_path_that_is_not_utf8_can_be_named() {
    let Some(image) = image() else { return };
    let mut source = image.file.as_os_str().as_bytes().to_vec();
    source.extend_from_slice(b":/odd\xff");
    let ended = run([OsStr::new("cat"), OsStr::from_bytes(&source)]).with(0);
    assert_eq!(ended.stdout, "odd");
}

#[test]
fn restore_copies_and_never_replaces_unasked() {
    let Some(image) = image() else { return };
    let dest = image.dir.path().join("out");
    fs::create_dir(&dest).unwrap();
    let dest_text = dest.display().to_string();
    let source = image.source("/etc");
    let dry = run(["restore", "--dry-run", &source, &dest_text]).with(0);
    assert!(dry.stdout.starts_with("would restore 3 files and 2 directories"), "{dry:?}");
    assert_eq!(fs::read_dir(&dest).unwrap().count(), 0);
    let done = run(["restore", "--no-owner", "--json", &source, &dest_text]).with(0).json();
    assert_eq!((&done["files"], &done["dirs"], &done["dry_run"]), (&3.into(), &2.into(), &false.into()));
    assert_eq!(fs::read_to_string(dest.join("etc/hosts")).unwrap(), "127.0.0.1 localhost\n");
    assert_eq!(fs::read_link(dest.join("etc/link")).unwrap(), Path::new("hosts"));
    let again = run(["restore", &source, &dest_text]).with(4);
    assert!(again.stderr.contains("hint: --overwrite"), "{again:?}");
    fs::write(dest.join("etc/hosts"), "changed").unwrap();
    run(["-q", "restore", "--overwrite", "--no-owner", &source, &dest_text]).with(0);
    assert_eq!(fs::read_to_string(dest.join("etc/hosts")).unwrap(), "127.0.0.1 localhost\n");
    run(["restore", &image.source("/none"), &dest_text]).with(3);
    let nowhere = run(["restore", &source]).with(2);
    assert!(nowhere.stderr.contains("DEST"), "{nowhere:?}");
}

#[test]
fn partitions_are_directories() {
    let Some(image) = image() else { return };
    let disk = partitioned(&image).display().to_string();
    assert_eq!(run(["ls", &disk]).with(0).stdout, "p1\n");
    assert_eq!(run(["ls", &format!("{disk}:/p1/etc")]).with(0).stdout, "app\nhosts\nlink\n");
    assert_eq!(run(["cat", &format!("{disk}:/p1/etc/hosts")]).with(0).stdout, "127.0.0.1 localhost\n");
    let tree = run(["ls", "-R", "--json", &disk]).with(0).json_lines();
    assert_eq!(tree[0]["path"], "/p1");
    assert!(tree.iter().any(|row| row["path"] == "/p1/etc/hosts"), "{tree:?}");
    let wrong = run(["ls", &format!("{disk}:/etc")]).with(3);
    assert!(wrong.stderr.contains("it has p1"), "{wrong:?}");
    run(["mount", &disk, "/nonexistent"]).with(2);
}

#[test]
fn a_damaged_image_is_told_and_never_a_panic() {
    let Some(image) = image() else { return };
    let mut bytes = fs::read(&image.file).unwrap();
    // Everything behind the superblock, with the group descriptors and inodes.
    bytes[2048..2 << 20].fill(0xff);
    fs::write(&image.file, &bytes).unwrap();
    let ended = run(["ls", "-R", &image.source("/")]);
    assert_eq!(ended.code, Some(7), "{ended:?}");
    assert!(ended.stderr.starts_with("error: "), "{ended:?}");
}

#[test]
fn mount_shows_the_files_until_umount() {
    let Some(image) = image() else { return };
    if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        common::skip("/dev/fuse cannot be used; `modprobe fuse`");
        return;
    }
    let dir = image.dir.path().join("mnt");
    fs::create_dir(&dir).unwrap();
    let arguments = ["mount".as_ref(), image.file.as_os_str(), dir.as_os_str()];
    run(arguments).with(0);
    let _guard = Unmount(dir.clone());
    assert!(is_mounted(&dir));
    assert_eq!(fs::read_to_string(dir.join("etc/hosts")).unwrap(), "127.0.0.1 localhost\n");
    assert!(fs::write(dir.join("etc/hosts"), "x").is_err(), "the mount is read only");
    run(["umount".as_ref(), dir.as_os_str()]).with(0);
    eventually("the mount goes", || !is_mounted(&dir));
    run(["umount".as_ref(), dir.as_os_str()]).with(3);
}

#[test]
fn a_mount_in_the_foreground_ends_with_a_signal() {
    let Some(image) = image() else { return };
    if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        common::skip("/dev/fuse cannot be used; `modprobe fuse`");
        return;
    }
    let dir = image.dir.path().join("mnt");
    fs::create_dir(&dir).unwrap();
    let mut child = cowslip().args(["mount", "--foreground"]).arg(&image.file).arg(&dir).spawn().unwrap();
    let _guard = Unmount(dir.clone());
    eventually("the mount comes", || is_mounted(&dir));
    let pid = child.id().to_string();
    assert!(tool("kill", &["-INT".as_ref(), pid.as_ref()]).is_some());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(!is_mounted(&dir));
}

/// Leaves no mount behind when a test fails.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        if is_mounted(&self.0) {
            tool("umount", &["-l".as_ref(), self.0.as_os_str()]);
        }
    }
}

#[test]
fn export_writes_an_archive_that_tar_reads() {
    let Some(image) = image() else { return };
    let archive = image.dir.path().join("out.tar");
    run(["-q", "export", &image.source("/"), "--tar", archive.to_str().unwrap()]).with(0);
    // Nothing is replaced.
    run(["-q", "export", &image.source("/"), "--tar", archive.to_str().unwrap()]).with(4);
    let out = image.dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let words = ["-xf", archive.to_str().unwrap(), "-C", out.to_str().unwrap()].map(OsStr::new);
    tool("tar", &words).expect("tar reads it");
    assert_eq!(fs::read_to_string(out.join("etc/hosts")).unwrap(), "127.0.0.1 localhost\n");
    assert_eq!(fs::read(out.join("big")).unwrap(), vec![b'x'; 3_000_000]);
    assert_eq!(fs::read_link(out.join("etc/link")).unwrap(), Path::new("hosts"));
    assert_eq!(fs::read(out.join(OsStr::from_bytes(b"odd\xff"))).unwrap(), b"odd");
    // In whole seconds: what made the image keeps no more.
    let time = |path: &Path| fs::metadata(path).unwrap().mtime();
    assert_eq!(time(&out.join("etc/hosts")), time(&image.dir.path().join("tree/etc/hosts")));

    let listed = cowslip().args(["export", &image.source("/etc"), "--tar", "-"]).output().unwrap();
    assert!(listed.status.success());
    let archive = image.dir.path().join("etc.tar");
    fs::write(&archive, listed.stdout).unwrap();
    let listed = tool("tar", &["-tf", archive.to_str().unwrap()].map(OsStr::new)).unwrap().stdout;
    let mut names: Vec<&str> = std::str::from_utf8(&listed).unwrap().lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["etc/", "etc/app/", "etc/app/empty", "etc/hosts", "etc/link"]);
    run(["export", &image.source("/none"), "--tar", "-"]).with(3);
}

#[test]
fn shells_complete_paths_inside_of_images() {
    let Some(image) = image() else { return };
    let file = image.file.display();
    let offered = run(["__complete", "--", &image.source("/et")]).with(0).stdout;
    assert_eq!(offered, format!("{file}:/etc/\n"));
    let offered = run(["__complete", "--", &image.source("/etc/")]).with(0).stdout;
    assert_eq!(offered, format!("{file}:/etc/app/\n{file}:/etc/hosts\n{file}:/etc/link\n"));
    // What cannot be completed is not, and nothing is said.
    for word in ["/none:/x", "db@x:/etc/", "db@", ""] {
        let ended = run(["--socket", "/nonexistent/agent.sock", "__complete", "--", word]).with(0);
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""), "{word}");
    }
    let script = image.dir.path().join("completions.bash");
    fs::write(&script, run(["completions", "bash"]).with(0).stdout).unwrap();
    let program = env!("CARGO_BIN_EXE_cowslip");
    let line = format!("cowslip cat {}", image.source("/etc/h"));
    let bash = format!(
        "source '{}'; COMP_LINE='{line}' COMP_POINT={} COMP_WORDS=(cowslip cat x) COMP_CWORD=2; \
         _cowslip_words '{program}' x cat; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        line.len()
    );
    let out = tool("bash", &["-c", &bash].map(OsStr::new)).expect("bash takes the script");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "/etc/hosts\n");
}
