//! What shells offer behind `@` and `:`: names of volumes and snapshots, and paths inside them and inside images.
//! Whatever goes wrong, nothing is offered and nothing said: the user is still writing.

use super::{
    Context,
    args::CompleteArgs,
    failure::Result,
    files::{Files, Located},
    names::{Container, FileSource, LATEST},
};
use fuse_view::{FileKind, walk};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

/// Entries of a directory that are looked at, and names that are offered, at most.
const MAX_ENTRIES: usize = 100_000;
const MAX_OFFERED: usize = 2000;

/// `cowslip __complete WORD`: one candidate a line, each the whole word.
pub fn run(context: &mut Context, args: &CompleteArgs) -> Result<()> {
    let word = args.word.as_bytes();
    let offered = match word.windows(2).position(|pair| pair == b":/") {
        Some(_) => paths(context, &args.word).unwrap_or_default(),
        None => names(context, word).unwrap_or_default(),
    };
    for candidate in offered.into_iter().take(MAX_OFFERED) {
        // A name with a line end in it cannot be told.
        if !candidate.contains(&b'\n') {
            context.out.bytes(&candidate)?;
            context.out.bytes(b"\n")?;
        }
    }
    Ok(())
}

/// Volumes, or the snapshots of one.
fn names(context: &Context, word: &[u8]) -> Result<Vec<Vec<u8>>> {
    let Ok(word) = std::str::from_utf8(word) else { return Ok(Vec::new()) };
    let reader = context.reader()?;
    let mut offered: Vec<String> = match word.split_once('@') {
        Some((volume, _)) => {
            let newest = [LATEST.to_owned()].into_iter();
            let snapshots = reader.history(volume)?.into_iter().rev().map(|snapshot| snapshot.name);
            newest.chain(snapshots).map(|name| format!("{volume}@{name}")).collect()
        }
        None => reader.volumes()?.into_iter().map(|volume| format!("{}@", volume.name)).collect(),
    };
    offered.retain(|candidate| candidate.starts_with(word));
    // One that is complete goes on with its files.
    if offered.len() == 1 && offered[0] == word && word.contains('@') {
        offered = vec![format!("{word}:/")];
    }
    Ok(offered.into_iter().map(String::into_bytes).collect())
}

/// The names in the directory that the word ends in.
fn paths(context: &Context, word: &OsStr) -> Result<Vec<Vec<u8>>> {
    let source = FileSource::parse(word)?;
    let end = source.path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    let (dir, start) = source.path.split_at(end);
    let before = match &source.container {
        Container::Snapshot(name) => name.to_string().into_bytes(),
        Container::Image(path) => path.as_os_str().as_bytes().to_vec(),
    };
    let whole = |name: &[u8], is_dir: bool| {
        let slash: &[u8] = if is_dir { b"/" } else { b"" };
        [&before[..], b":", dir, name, slash].concat()
    };
    let below = FileSource { path: dir.to_vec(), ..source.clone() };
    let mut offered = Vec::new();
    match Files::new().locate(context, &below)? {
        Located::Table(partitions) => {
            let names = partitions.into_iter().map(|partition| partition.directory);
            offered.extend(
                names.filter(|name| name.as_bytes().starts_with(start)).map(|n| whole(n.as_bytes(), true)),
            );
        }
        Located::Inside { view, path, .. } => {
            let found = walk::lookup_path(&*view, &path, true)?;
            let (mut cookie, mut looked_at) = (0, 0);
            while looked_at < MAX_ENTRIES && offered.len() < MAX_OFFERED {
                let batch = view.readdir(found, cookie, 1024)?;
                let Some(last) = batch.last() else { break };
                cookie = last.cookie;
                looked_at += batch.len();
                for entry in batch.iter().filter(|entry| entry.name.starts_with(start)) {
                    let kind = entry.kind.or_else(|| view.attr(entry.ino).ok().map(|attr| attr.kind));
                    offered.push(whole(&entry.name, kind == Some(FileKind::Dir)));
                }
            }
        }
    }
    offered.sort();
    Ok(offered)
}

/// What is added to the script that the grammar gives: words with `@` or `:` in them are completed by this program.
pub const BASH: &str = r#"
# Names of snapshots, and paths inside of them and of images. Readline cuts words at '@' and ':'.
_cowslip_words() {
    local line="${COMP_LINE:0:COMP_POINT}"
    local word="${line##*[[:space:]]}"
    case "$word" in
    *@* | *:*)
        local IFS=$'\n' before="${word%"${word##*[@:]}"}"
        COMPREPLY=($(command "$1" __complete -- "$word" 2>/dev/null))
        COMPREPLY=("${COMPREPLY[@]#"$before"}")
        compopt -o nospace -o filenames 2>/dev/null
        ;;
    *) _cowslip "$@" ;;
    esac
}
complete -F _cowslip_words -o nosort -o bashdefault -o default cowslip
"#;

/// See [`BASH`].
pub const ZSH: &str = r#"
# Names of snapshots, and paths inside of them and of images.
_cowslip_words() {
    if [[ "$PREFIX" == *[@:]* ]]; then
        local -a found
        found=("${(@f)$(command cowslip __complete -- "$PREFIX" 2>/dev/null)}")
        compadd -S '' -- "${found[@]}"
    else
        _cowslip "$@"
    fi
}
compdef _cowslip_words cowslip
"#;

/// See [`BASH`].
pub const FISH: &str = r#"
# Names of snapshots, and paths inside of them and of images.
complete -c cowslip -f -n "string match -qr '[@:]' -- (commandline -ct)" -a "(command cowslip __complete -- (commandline -ct) 2>/dev/null)"
"#;
