//! The commands against a real agent on a temporary pool, without devices, and against its pool once it ended.

mod common;
#[path = "../../tests/ring.rs"]
mod ring;

use common::{Ended, cowslip, eventually, tool};
use std::{
    ffi::OsStr,
    fs,
    io::Write,
    path::PathBuf,
    process::{Child, Stdio},
};

struct Agent {
    dir: tempfile::TempDir,
    process: Option<Child>,
}

impl Agent {
    fn new() -> Self {
        // A pool is opened with O_DIRECT, which a tmpfs may refuse.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut agent = Self { dir, process: None };
        let config = agent.path("config.toml");
        let place = agent.dir.path().display();
        fs::write(&config, format!("run_dir = '{place}/run'\ndevice_dir = '{place}/dev'\n")).unwrap();
        Self::ended(cowslip().args(["-q", "pool", "init", "--size", "256M"]).arg(agent.path("pool"))).with(0);
        agent.start();
        agent
    }

    fn start(&mut self) {
        let log = fs::File::create(self.path("log")).unwrap();
        let mut command = cowslip();
        command
            .args(["agent", "--transport", "none", "--snapshots", "none", "--config"])
            .arg(self.path("config.toml"));
        command.arg("--pool").arg(self.path("pool")).arg("--socket").arg(self.path("agent.sock"));
        for variable in ["NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC"] {
            command.env_remove(variable);
        }
        self.process = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        let ended = self.run(&["status", "--wait", "60s"]);
        assert_eq!(
            ended.code,
            Some(0),
            "{ended:?}\n{}",
            fs::read_to_string(self.path("log")).unwrap_or_default()
        );
    }

    fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        tool("kill", &["-TERM".as_ref(), process.id().to_string().as_ref()]);
        assert_eq!(
            process.wait().unwrap().code(),
            Some(0),
            "{}",
            fs::read_to_string(self.path("log")).unwrap()
        );
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ended(command: &mut std::process::Command) -> Ended {
        command.output().unwrap().into()
    }

    fn command(&self) -> std::process::Command {
        let mut command = cowslip();
        command.arg("--socket").arg(self.path("agent.sock")).current_dir(self.dir.path());
        command
    }

    fn run<S: AsRef<OsStr>>(&self, words: &[S]) -> Ended {
        Self::ended(self.command().args(words))
    }

    /// The same without an agent.
    fn rescue(&self, words: &[&str]) -> Ended {
        Self::ended(cowslip().arg("--pool").arg(self.path("pool")).args(words).current_dir(self.dir.path()))
    }

    fn json(&self, words: &[&str]) -> serde_json::Value {
        self.run(&[&["--json"], words].concat()).with(0).json()
    }

    /// Imports bytes as a volume.
    fn import(&self, name: &str, bytes: &[u8]) {
        let file = self.path("import.img");
        fs::write(&file, bytes).unwrap();
        self.run(&["volume", "import", name, "import.img"]).with(0);
        fs::remove_file(file).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        ring::remove(&self.path("run"));
    }
}

/// An image with data, holes and a length that is no multiple of a block.
fn image() -> Vec<u8> {
    let mut image = vec![0_u8; (3 << 20) + 512];
    image[..5].copy_from_slice(b"first");
    image[(2 << 20) - 1..(2 << 20) + 9].fill(7);
    image[(3 << 20) + 511] = 9;
    image
}

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn volumes_and_snapshots_live_their_lives() {
    let agent = Agent::new();
    let created = agent.json(&["volume", "create", "db", "--size", "20M", "--label", "team=web"]);
    assert_eq!((&created["name"], &created["size_bytes"]), (&"db".into(), &(20 << 20).into()));
    assert_eq!(created["labels"]["team"], "web");
    let mut names = keys(&created);
    names.sort_unstable();
    let expected = "attached created_at device exclusive_bytes id labels name origin size_bytes snapshots transport used_bytes";
    assert_eq!(names, expected.split(' ').collect::<Vec<_>>());
    agent.run(&["volume", "create", "db", "--size", "20M"]).with(4);
    let table = agent.run(&["volume", "list"]).with(0).stdout;
    assert!(table.starts_with("NAME  SIZE") && table.lines().count() == 2, "{table}");

    agent.run(&["volume", "resize", "db", "24M"]).with(0);
    agent.run(&["volume", "resize", "db", "20M"]).with(2);
    let snapshots = agent.json(&["snapshot", "create", "db@one"]);
    let snapshot = &snapshots.as_array().unwrap()[0];
    let mut names = keys(snapshot);
    names.sort_unstable();
    let expected = "clones consistency created_at exclusive_bytes id labels name size_bytes volume";
    assert_eq!(names, expected.split(' ').collect::<Vec<_>>());
    assert_eq!((&snapshot["consistency"], &snapshot["size_bytes"]), (&"detached".into(), &(24 << 20).into()));
    agent.run(&["snapshot", "create", "db@one"]).with(4);
    agent.run(&["snapshot", "create", "none@one"]).with(3);
    assert_eq!(agent.json(&["snapshot", "show", "db@latest"])["name"], "one");

    agent.run(&["clone", "db@one", "copy"]).with(0);
    assert_eq!(agent.json(&["volume", "show", "copy"])["origin"], "db@one");
    agent.run(&["rollback", "db@one"]).with(0);
    agent.run(&["volume", "rename", "copy", "other"]).with(0);
    agent.run(&["volume", "show", "copy"]).with(3);
    agent.run(&["volume", "delete", "other"]).with(0);
    agent.run(&["volume", "create", "third", "--from", "db@one"]).with(0);
    agent.run(&["volume", "delete", "db"]).with(0);
    let listed = agent.json(&["snapshot", "list"]);
    assert_eq!(listed[0]["volume"], "db", "a snapshot outlives its volume");
    agent.run(&["snapshot", "delete", "db@none"]).with(3);
    agent.run(&["snapshot", "delete", "db@one"]).with(0);
    assert_eq!(agent.json(&["snapshot", "list"]), serde_json::json!([]));
}

#[test]
fn several_snapshots_are_taken_and_deleted_together() {
    let agent = Agent::new();
    for name in ["a", "b"] {
        agent.run(&["volume", "create", name, "--size", "4M"]).with(0);
    }
    let taken = agent.json(&["snapshot", "create", "a@s", "b@s"]);
    assert_eq!(taken.as_array().unwrap().len(), 2);
    let names: Vec<String> = (0..20).map(|i| format!("a@n{i}")).collect();
    for name in &names {
        agent.run(&["-q", "snapshot", "create", name]).with(0);
    }
    let all: Vec<&str> = ["snapshot", "delete"].into_iter().chain(names.iter().map(String::as_str)).collect();
    agent.run(&[&all[..], &["a@none"]].concat()).with(3);
    assert_eq!(agent.json(&["snapshot", "list", "a"]).as_array().unwrap().len(), 21, "nothing was deleted");
    agent.run(&all).with(0);
    assert_eq!(agent.json(&["snapshot", "list", "a"]).as_array().unwrap().len(), 1);
}

#[test]
fn images_go_in_and_out_unchanged() {
    let agent = Agent::new();
    let image = image();
    let digest = blake3::hash(&image).to_hex().to_string();
    fs::write(agent.path("in.img"), &image).unwrap();
    let imported = agent.json(&["volume", "import", "v", "in.img", "--digest", &digest]);
    assert_eq!(
        (&imported["blake3"], &imported["total_bytes"]),
        (&digest.as_str().into(), &image.len().into())
    );
    assert_eq!(imported["volume"]["size_bytes"], (3 << 20) + 4096);
    agent.run(&["volume", "import", "v", "in.img"]).with(4);
    agent.run(&["snapshot", "create", "v@s"]).with(0);

    let whole = [image, vec![0; 4096 - 512]].concat();
    let digest = blake3::hash(&whole).to_hex().to_string();
    let told = agent.run(&["volume", "export", "v@s", "out.img"]).with(0);
    assert_eq!((told.stdout.as_str(), told.stderr), ("", format!("{digest}  out.img\n")));
    assert!(fs::read(agent.path("out.img")).unwrap() == whole);
    agent.run(&["volume", "export", "v@s", "out.img"]).with(4);
    agent.run(&["volume", "export", "--force", "v", "out.img"]).with(0);
    agent.run(&["volume", "export", "v", "out.img.zst"]).with(0);
    agent.run(&["-q", "volume", "import", "packed", "out.img.zst"]).with(0);
    let output = agent.command().args(["-q", "volume", "export", "packed", "-"]).output().unwrap();
    assert!(output.status.success() && output.stdout == whole);
    agent.run(&["volume", "export", "v", "/dev/full"]).with(5);
    agent.run(&["volume", "export", "v@none", "none.img"]).with(3);
    assert!(!agent.path("none.img").exists());
}

#[test]
fn an_import_that_fails_leaves_no_volume() {
    let agent = Agent::new();
    fs::write(agent.path("in.img"), image()).unwrap();
    let wrong = "0".repeat(64);
    let ended = agent.run(&["volume", "import", "v", "in.img", "--digest", &wrong]).with(7);
    assert!(ended.stderr.contains("digest"), "{ended:?}");
    agent.run(&["volume", "show", "v"]).with(3);
    agent.run(&["volume", "import", "v", "in.img", "--size", "1M"]).with(2);
    agent.run(&["volume", "import", "v", "none.img"]).with(3);
    fs::write(agent.path("bad.zst"), b"no zstd").unwrap();
    agent.run(&["volume", "import", "v", "bad.zst"]).with(1);
    agent.run(&["volume", "show", "v"]).with(3);
}

#[test]
fn an_interrupted_import_leaves_no_volume() {
    let agent = Agent::new();
    let mut child = agent
        .command()
        .args(["volume", "import", "v", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than is on its way at once: when it is written, the import is under way and the signal is caught.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&vec![1; 24 << 20]).unwrap();
    tool("kill", &["-INT".as_ref(), child.id().to_string().as_ref()]);
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    eventually("the volume goes", || agent.run(&["volume", "show", "v"]).code == Some(3));
    agent.run(&["volume", "create", "v", "--size", "4M"]).with(0);
}

#[test]
fn standard_input_is_an_image_too() {
    let agent = Agent::new();
    let mut child =
        agent.command().args(["volume", "import", "v", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&image()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(agent.json(&["volume", "show", "v"])["size_bytes"], (3 << 20) + 4096);
}

#[test]
fn status_events_and_doctor_tell() {
    let agent = Agent::new();
    agent.run(&["volume", "create", "db", "--size", "4M"]).with(0);
    let status = agent.json(&["status"]);
    assert_eq!((&status["volumes"], &status["snapshots"]), (&1.into(), &0.into()));
    assert_eq!(status["agent"]["transport"], "none");
    assert_eq!(status["agent"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["agent"]["pid"], agent.process.as_ref().unwrap().id());
    assert!(status["agent"]["started_at"].as_str().unwrap().ends_with('Z'));
    assert_eq!(status["pool"]["state"], "ok");
    for field in ["path", "size_bytes", "used_bytes", "free_bytes"] {
        assert!(!status["pool"][field].is_null(), "{field}");
    }
    let text = agent.run(&["status"]).with(0).stdout;
    assert!(text.contains("volumes       1, 0 attached"), "{text}");
    assert_eq!(agent.json(&["pool", "show"])["state"], "ok");

    let events = agent.run(&["events", "--json"]).with(0).json_lines();
    let created =
        events.iter().find(|event| event["kind"] == "volume_created").expect("an event of the volume");
    assert_eq!((&created["volume"], &created["severity"]), (&"db".into(), &"info".into()));
    assert!(agent.run(&["events"]).with(0).stdout.contains(" volume_created db: "));
    let findings = agent.run(&["doctor", "--json"]).json();
    let first = &findings.as_array().unwrap()[0];
    assert_eq!((&first["name"], &first["level"]), (&"agent".into(), &"ok".into()));
}

#[test]
fn events_are_followed_as_they_happen() {
    let agent = Agent::new();
    let mut child =
        agent.command().args(["events", "--follow", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    agent.run(&["volume", "create", "db", "--size", "4M"]).with(0);
    let seen = lines.any(|line| line.unwrap().contains(r#""kind":"volume_created""#));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(seen);
}

#[test]
fn without_devices_attach_is_not_supported() {
    let agent = Agent::new();
    agent.run(&["volume", "create", "db", "--size", "4M"]).with(0);
    let ended = agent.run(&["volume", "attach", "db"]).with(8);
    assert!(ended.stderr.contains("hint: "), "{ended:?}");
    agent.run(&["volume", "detach", "db"]).with(0);
    agent.run(&["volume", "attach", "none"]).with(3);
}

#[test]
fn an_attached_pool_is_not_opened_twice() {
    let agent = Agent::new();
    let ended = agent.rescue(&["volume", "list"]).with(4);
    assert!(ended.stderr.contains("hint: "), "{ended:?}");
    Agent::ended(cowslip().args(["pool", "init"]).arg(agent.path("pool"))).with(4);
}

#[test]
fn without_the_agent_its_pool_can_be_read() {
    let mut agent = Agent::new();
    let image = image();
    agent.import("db", &image);
    agent.run(&["snapshot", "create", "db@one"]).with(0);
    let with_agent = (agent.json(&["volume", "list"]), agent.json(&["snapshot", "list"]));
    agent.stop();
    let rescued = |words: &[&str]| agent.rescue(&[&["--json"], words].concat()).with(0).json();
    assert_eq!((rescued(&["volume", "list"]), rescued(&["snapshot", "list"])), with_agent);
    assert_eq!(rescued(&["volume", "show", "db"])["snapshots"], serde_json::json!(["one"]));
    assert_eq!(rescued(&["snapshot", "show", "db@latest"])["name"], "one");
    assert!(rescued(&["status"])["agent"].is_null());
    for source in ["db@one", "db"] {
        agent.rescue(&["volume", "export", "--force", source, "out.img"]).with(0);
        assert!(fs::read(agent.path("out.img")).unwrap()[..image.len()] == image);
    }
    let pool = agent.path("pool").display().to_string();
    let checked = Agent::ended(cowslip().args(["--json", "pool", "check", &pool])).with(0).json();
    assert_eq!((&checked["clean"], &checked["findings"]), (&true.into(), &serde_json::json!([])));
    for what in ["superblock", "catalog"] {
        let dumped = Agent::ended(cowslip().args(["pool", "dump", &pool, what])).with(0);
        assert!(!dumped.stdout.is_empty(), "{what}");
    }
    Agent::ended(cowslip().args(["pool", "dump", &pool, "nonsense"])).with(2);
}

#[test]
fn a_damaged_pool_is_told() {
    let mut agent = Agent::new();
    agent.import("db", &image());
    agent.stop();
    let pool = agent.path("pool");
    let file = fs::File::options().write(true).open(pool.join("pool.cowslip")).unwrap();
    // Behind the superblocks and the log: map nodes and data of a small, new pool.
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xff; 8 << 20], 8 << 20).unwrap();
    let text = Agent::ended(cowslip().args(["pool", "check"]).arg(&pool)).with(7);
    assert!(!text.stdout.is_empty(), "each finding is a line: {text:?}");
    assert!(text.stderr.contains("is damaged") && text.stderr.contains("hint: "), "{text:?}");
    let json = Agent::ended(cowslip().args(["--json", "pool", "check"]).arg(&pool)).with(7);
    assert_eq!(json.json()["clean"], false);
    assert_eq!(json.json_error()["kind"], "damaged");
}

#[test]
fn files_of_a_snapshot_without_mounting_anything() {
    let mut agent = Agent::new();
    let tree = agent.path("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
    let file = agent.path("fs.img");
    fs::File::create(&file).unwrap().set_len(32 << 20).unwrap();
    let arguments = ["-q", "-F", "-t", "ext4", "-d"].map(OsStr::new);
    if tool("mke2fs", &[&arguments[..], &[tree.as_os_str(), file.as_os_str()]].concat()).is_none() {
        common::skip("mke2fs is missing; install e2fsprogs");
        return;
    }
    agent.run(&["-q", "volume", "import", "files", "fs.img"]).with(0);
    agent.run(&["-q", "snapshot", "create", "files@one"]).with(0);
    let check = |run: &dyn Fn(&[&str]) -> Ended, dest: &str| {
        assert_eq!(run(&["ls", "files@latest:/etc"]).with(0).stdout, "hosts\n");
        assert_eq!(run(&["cat", "files@one:/etc/hosts"]).with(0).stdout, "127.0.0.1 localhost\n");
        run(&["cat", "files@one:/etc/none"]).with(3);
        run(&["cat", "files@none:/etc/hosts"]).with(3);
        run(&["-q", "restore", "--no-owner", "files@one:/etc/hosts", dest]).with(0);
        assert_eq!(fs::read_to_string(agent.path(dest)).unwrap(), "127.0.0.1 localhost\n");
    };
    check(&|words| agent.run(words), "one");
    let nowhere = agent.run(&["restore", "files@one:/etc/hosts"]).with(3);
    assert!(nowhere.stderr.contains("is not mounted"), "{nowhere:?}");
    agent.stop();
    let agent = &agent;
    let check = |dest: &str| {
        assert_eq!(agent.rescue(&["ls", "files@latest:/etc"]).with(0).stdout, "hosts\n");
        agent.rescue(&["-q", "restore", "--no-owner", "files@one:/etc/hosts", dest]).with(0);
        assert_eq!(fs::read_to_string(agent.path(dest)).unwrap(), "127.0.0.1 localhost\n");
    };
    check("two");
}

/// Imports an ext4 image of `tree` into volume `db`, over what it holds, and cuts `db@name`.
fn put_files(agent: &Agent, tree: &std::path::Path, name: &str) -> bool {
    let image = agent.path(&format!("{name}.img"));
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let options = ["-q", "-F", "-t", "ext4", "-d"].map(OsStr::new);
    if tool("mke2fs", &[&options[..], &[tree.as_os_str(), image.as_os_str()]].concat()).is_none() {
        common::skip("mke2fs is missing; install e2fsprogs");
        return false;
    }
    let image = image.display().to_string();
    agent.run(&["-q", "volume", "import", name, &image]).with(0);
    agent.run(&["-q", "snapshot", "create", &format!("{name}@s")]).with(0);
    true
}

#[test]
fn files_are_found_followed_and_compared() {
    let mut agent = Agent::new();
    let tree = agent.path("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/hosts"), "one").unwrap();
    fs::write(tree.join("etc/gone.conf"), "x").unwrap();
    if !put_files(&agent, &tree, "a") {
        return;
    }
    fs::write(tree.join("etc/hosts"), "two and more").unwrap();
    fs::remove_file(tree.join("etc/gone.conf")).unwrap();
    fs::write(tree.join("etc/new"), vec![1; 200_000]).unwrap();
    put_files(&agent, &tree, "b");

    let found = agent.run(&["find", "a@s:/etc", "--name", "*.conf"]).with(0).stdout;
    assert_eq!(found, "/etc/gone.conf\n");
    let found =
        agent.run(&["--json", "find", "b@s", "--size", "+100K", "--type", "file"]).with(0).json_lines();
    assert_eq!((found.len(), &found[0]["path"]), (1, &"/etc/new".into()));
    assert_eq!(agent.run(&["find", "b@s", "--newer", "2999-01-01"]).with(0).stdout, "");
    agent.run(&["find", "b@s:/none"]).with(3);

    // Two volumes share nothing, and can be compared all the same.
    let said = agent.run(&["diff", "a@s", "b@s:/etc"]).with(0).stdout;
    assert_eq!(said, "D /etc/gone.conf\nM /etc/hosts\nA /etc/new\n");
    let rows = agent.run(&["--json", "diff", "a@s", "b@s"]).with(0).json_lines();
    let row = rows.iter().find(|row| row["path"] == "/etc/hosts").unwrap();
    assert_eq!((&row["change"], &row["size_bytes"], &row["from"]), (&"M".into(), &12.into(), &().into()));
    agent.run(&["diff", "a@s", "b@s:/none"]).with(3);
    agent.run(&["diff", "a@s:/x", "b@s:/y"]).with(2);
    agent.run(&["diff", "a@s", "a@none"]).with(3);

    agent.run(&["-q", "snapshot", "create", "a@t"]).with(0);
    assert_eq!(agent.run(&["diff", "a@s", "a@t"]).with(0).stdout, "");
    for pool in [false, true] {
        if pool {
            agent.stop();
        }
        let path = agent.path("pool").display().to_string();
        let run = |words: &[&str]| match pool {
            true => Agent::ended(cowslip().args(["--pool", &path]).args(words)),
            false => agent.run(words),
        };
        let rows = run(&["--json", "versions", "a:/etc/hosts"]).with(0).json_lines();
        assert_eq!(rows.len(), 1, "{rows:?}");
        let row = &rows[0];
        assert_eq!(
            (&row["snapshot"], &row["last_snapshot"], &row["snapshots"]),
            (&"s".into(), &"t".into(), &2.into())
        );
        assert_eq!((&row["change"], &row["file"]["size_bytes"]), (&"first".into(), &3.into()));
        let text = run(&["versions", "a:/etc/hosts"]).with(0).stdout;
        assert!(
            text.lines().nth(1).is_some_and(|line| line.starts_with("s  ") && line.contains(" first ")),
            "{text}"
        );
        run(&["versions", "a:/none"]).with(3);
        run(&["versions", "none:/etc"]).with(3);
        assert_eq!(run(&["diff", "a@s", "a@t"]).with(0).stdout, "");
    }
}
