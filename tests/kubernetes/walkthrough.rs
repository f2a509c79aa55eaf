//! docs/kubernetes.md, every block of it in order, to the letter, on a cluster that has nothing yet.

use crate::cluster::{Cluster, NODES};
use integration_tests::rig::Ended;
use integration_tests::{forget_package, root};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

/// A block of the page: what is indented by four spaces. A comment before it says what it is, if it is no script.
#[derive(Debug, PartialEq, Eq)]
enum Block {
    /// Commands of the administrator.
    Script(String),
    /// The same, on every node.
    OnNodes(String),
    /// Commands after `$`, each with what it prints.
    Shown(Vec<(String, String)>),
    /// The content of a file.
    File(String, String),
    /// Not run, and why.
    Left(String),
}

impl Block {
    fn new(comment: Option<&str>, text: String) -> Self {
        match comment {
            None if text.starts_with("$ ") => Self::Shown(shown(&text)),
            None => Self::Script(text),
            Some("on every node") => Self::OnNodes(text),
            Some(other) => {
                if let Some(name) = other.strip_prefix("the file ") {
                    return Self::File(name.to_owned(), text);
                }
                let why = other.strip_prefix("not run: ");
                Self::Left(why.unwrap_or_else(|| panic!("what does this mean: {other}")).to_owned())
            }
        }
    }
}

/// Commands and what they print.
fn shown(text: &str) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("$ "), all.last_mut()) {
            (Some(command), _) => all.push((command.to_owned(), String::new())),
            (None, Some((_, printed))) => *printed += &format!("{line}\n"),
            (None, None) => panic!("printed by no command: {line}"),
        }
    }
    all
}

fn blocks(page: &str) -> Vec<Block> {
    let (mut all, mut comment, mut text) = (Vec::new(), None, String::new());
    // One more line, at which the last block ends.
    for line in page.lines().chain([""]) {
        if let Some(line) = line.strip_prefix("    ") {
            text += &format!("{line}\n");
            continue;
        }
        if !text.is_empty() {
            all.push(Block::new(comment.take(), std::mem::take(&mut text)));
        }
        if !line.is_empty() {
            comment = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
        }
    }
    all
}

/// Words of what was printed; ages are all the same.
fn words(printed: &str) -> Vec<String> {
    let is_age = |word: &str| {
        word.len() > 1
            && word.chars().rev().enumerate().all(|(n, c)| if n == 0 { c == 's' } else { c.is_ascii_digit() })
    };
    printed
        .split_whitespace()
        .map(|word| if is_age(word) { "AGE".to_owned() } else { word.to_owned() })
        .collect()
}

/// Where the page is followed: `deploy/` of this tree, and the definitions as their project has them.
struct Desk {
    dir: tempfile::TempDir,
    cluster: &'static Cluster,
}

impl Desk {
    fn new(cluster: &'static Cluster) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let definitions = crate::cache().join("definitions");
        assert!(definitions.join("kustomization.yaml").is_file(), "tests/kubernetes/build brings them");
        symlink(root().join("deploy"), dir.path().join("deploy")).expect("a link");
        fs::create_dir_all(dir.path().join("client/config")).expect("a directory");
        symlink(definitions, dir.path().join("client/config/crd")).expect("a link");
        Self { dir, cluster }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, script: &str, node: Option<u32>) -> String {
        let mut shell = match node {
            Some(node) => self.cluster.inside(node, "sh"),
            None => self.cluster.beside("sh"),
        };
        // The driver's image is built.
        forget_package(&mut shell);
        let ended: Ended =
            shell.current_dir(self.dir.path()).args(["-ec", script]).output().expect("a shell runs").into();
        assert_eq!(ended.code, Some(0), "{script}: {ended:?}");
        ended.stdout
    }

    fn follow(&self, block: &Block) {
        match block {
            Block::Script(script) => {
                self.run(script, None);
            }
            Block::OnNodes(script) => {
                for node in NODES {
                    self.run(script, Some(node));
                }
            }
            Block::Shown(all) => {
                for (command, printed) in all {
                    assert_eq!(words(&self.run(command, None)), words(printed), "{command}");
                }
            }
            Block::File(name, content) => {
                fs::write(self.path(name), content).expect("the directory is writable");
            }
            Block::Left(why) => println!("not run: {why}"),
        }
    }
}

#[test]
fn every_block_in_order() {
    let Some(cluster) = Cluster::running() else { return };
    let page = fs::read_to_string(root().join("docs/kubernetes.md")).expect("the page is there");
    let blocks = blocks(&page);
    assert!(blocks.iter().filter(|block| !matches!(block, Block::Left(_))).count() > 15, "{blocks:?}");
    let desk = Desk::new(cluster);
    for block in &blocks {
        desk.follow(block);
    }
    let left = cluster.get("pvc,pods,volumesnapshots");
    assert_eq!(left["items"].as_array().map(Vec::len), Some(0), "{left}");
}

#[test]
fn blocks_are_told_apart() {
    let page = "Text\n\n    one\n    two\n\nText:\n<!-- on every node -->\n\n    three\n\nText\n\n    $ four\n    4s five\n    $ six\n\n\
                <!-- the file f -->\n\n    seven\n\n<!-- not run: why -->\n\n    eight";
    let text = str::to_owned;
    let expected = [
        Block::Script(text("one\ntwo\n")),
        Block::OnNodes(text("three\n")),
        Block::Shown(vec![(text("four"), text("4s five\n")), (text("six"), String::new())]),
        Block::File(text("f"), text("seven\n")),
        Block::Left(text("why")),
    ];
    assert_eq!(blocks(page), expected);
    assert_eq!(words("NAME AGE\nx  18s"), words("NAME  AGE\nx 3s\n"));
    assert_ne!(words("x y"), words("x z"));
}
