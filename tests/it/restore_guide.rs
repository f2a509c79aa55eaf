//! docs/restore.md, every command of it in order.

use crate::rig::{Ended, Rig, ended, tool, unmount};
use integration_tests::{binary, root};
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

/// Programs that the page's sentences show, besides its blocks.
const PROGRAMS: [&str; 4] = ["cowslip ", "cp -a ", "getfattr ", "ls /"];

/// A command of the page, and what it prints if that is shown.
#[derive(Debug)]
struct Step {
    command: String,
    printed: String,
}

/// Commands after a prompt in a block, and those between backticks in a sentence.
fn steps(page: &str) -> Vec<Step> {
    let (mut all, mut is_block): (Vec<Step>, _) = (Vec::new(), false);
    for line in page.lines() {
        if line.starts_with("```") {
            is_block = !is_block;
        } else if !is_block {
            let spans = line.split('`').skip(1).step_by(2);
            let commands = spans.filter(|span| PROGRAMS.iter().any(|program| span.starts_with(program)));
            all.extend(commands.map(|command| Step { command: command.into(), printed: String::new() }));
        } else if let Some(command) = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# ")) {
            // What it is for stands behind it.
            let command = command.split("   ").next().unwrap_or_default();
            all.push(Step { command: command.into(), printed: String::new() });
        } else {
            all.last_mut().expect("something printed it").printed += &format!("{line}\n");
        }
    }
    all
}

/// Words of what was printed; all dates and times are alike.
fn words(printed: &str) -> Vec<String> {
    let digits = |word: &str| word.replace(|c: char| c.is_ascii_digit(), "0");
    let of = |word: &str| match digits(word).as_str() {
        time @ ("0000-00-00" | "00:00") => time.to_owned(),
        _ => word.to_owned(),
    };
    printed.split_whitespace().map(of).collect()
}

/// What /etc/hosts held on Tuesday.
const TUESDAY: &str = "127.0.0.1 localhost\n10.0.0.2 mail\n";

/// Where a rig has the places that the page names.
const PLACES: [(&str, &str); 4] =
    [("/snapshots", "snapshots"), ("/srv/db", "srv"), ("/tmp", "tmp"), ("/var/lib/cowslip", "pool")];

/// A host with the volume, the snapshots and the images that the page speaks of.
fn host() -> Option<Rig> {
    let rig = Rig::new("1G")?;
    let device = rig.ext4("db", "64M");
    let etc = rig.mount(&device, "srv", "").join("etc");
    fs::create_dir(&etc).expect("the volume is writable");
    let hosts = etc.join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("the volume is writable");
    rig.ok("-q snapshot create db@monday");
    fs::write(&hosts, TUESDAY).expect("the volume is writable");
    rig.ok("-q snapshot create db@tuesday");
    fs::remove_file(&hosts).expect("the volume is writable");
    rig.ok("-q snapshot create db@wednesday");
    fs::create_dir(rig.path("tmp")).expect("a directory");
    for (image, fstab) in [("disk.img", "proc /proc proc\n"), ("old.img", ""), ("new.img", "none\n")] {
        partitioned(&rig, image, fstab);
    }
    Some(rig)
}

/// Runs a command of the page on that host.
fn run(rig: &Rig, command: &str) -> Ended {
    let here = |word: &str| {
        let place = PLACES.iter().find_map(|(place, ours)| Some((word.strip_prefix(place)?, ours)));
        place.map_or_else(|| word.to_owned(), |(rest, ours)| format!("{}{rest}", rig.path(ours).display()))
    };
    let line: Vec<String> = command.split(' ').map(here).collect();
    let program = binary("cowslip");
    let binaries = program.parent().expect("it lies in a directory").display();
    let path = format!("{binaries}:{}", std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("sh");
    shell.args(["-ec", &line.join(" ")]).current_dir(rig.path("")).env("PATH", path);
    shell.env_remove("COLUMNS").env("COWSLIP_SOCKET", rig.path("agent.sock"));
    ended(&mut shell)
}

/// The same, with the agent stopped meanwhile.
fn run_alone(rig: &Rig, command: &str) -> Ended {
    unmount(&rig.path("srv"));
    rig.stop_and_check();
    let ended = run(rig, command);
    rig.start();
    ended
}

/// A disk image of one partition, an ext4 with /etc/fstab.
fn partitioned(rig: &Rig, name: &str, fstab: &str) {
    let (start, sectors) = (2048u32, 32768u32);
    let tree = rig.path("of-image");
    fs::create_dir_all(tree.join("etc")).expect("a directory");
    fs::write(tree.join("etc/fstab"), fstab).expect("the directory is writable");
    let image = rig.path(name);
    let file = fs::File::create(&image).expect("the directory is writable");
    file.set_len(u64::from(start + sectors) * 512).expect("a sparse file");
    let offset = format!("offset={}", start * 512);
    let size = format!("{}k", sectors / 2);
    let [tree, path] = [tree, image].map(|path| path.display().to_string());
    tool("mkfs.ext4", ["-q", "-d", &tree, "-E", &offset, &path, &size]);
    // An entry of a table as of MBR: type 0x83, first sector, sectors.
    let mut entry = [0; 16];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&start.to_le_bytes());
    entry[12..].copy_from_slice(&sectors.to_le_bytes());
    file.write_all_at(&entry, 446)
        .and_then(|()| file.write_all_at(&[0x55, 0xaa], 510))
        .expect("it is written");
}

#[test]
fn every_command_in_order() {
    let page = fs::read_to_string(root().join("docs/restore.md")).expect("the page is there");
    let steps = steps(&page);
    assert!(steps.len() > 15, "{steps:?}");
    let Some(rig) = host() else { return };
    for Step { command, printed } in &steps {
        let ended = if command.contains("--pool") { run_alone(&rig, command) } else { run(&rig, command) };
        assert_eq!(ended.code, Some(0), "{command}: {ended:?}\n{}", rig.log());
        if !printed.is_empty() {
            assert_eq!(words(&ended.stdout), words(printed), "{command}");
        }
        if command.starts_with("cowslip restore db@tuesday:/etc/hosts") && !command.contains("/tmp") {
            assert_eq!(content(&rig, "srv/etc/hosts"), TUESDAY, "{command}");
        }
        println!("{command}\n{}", ended.stdout);
    }
    for back in ["tmp/etc/hosts", "tmp/hosts"] {
        assert_eq!(content(&rig, back), TUESDAY, "{back}");
    }
    for back in ["fstab", "etc.tar"] {
        assert!(rig.path(back).is_file(), "{back}");
    }
    rig.stop_and_check();
}

fn content(rig: &Rig, file: &str) -> String {
    fs::read_to_string(rig.path(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}
