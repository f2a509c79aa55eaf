//! The processes that parse images for the agent and for commands: who they are.

use api::{Error, ErrorKind, Result};
use fuse_view::worker::Options;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// The user that an installation makes for them.
const OWN: &str = "cowslip-view";
/// Whoever has no rights, where there is no such user.
const NOBODY: (u32, u32) = (65534, 65534);

/// How they are started. Only root can make them somebody else.
pub fn options(user: Option<&str>) -> Result<Options> {
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let user = if is_root { Some(find(user)?) } else { None };
    Ok(Options { user, ..Options::default() })
}

/// User and group of a name or number.
fn find(user: Option<&str>) -> Result<(u32, u32)> {
    let table = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let Some(user) = user else { return Ok(in_table(&table, OWN).unwrap_or(NOBODY)) };
    let number = user.parse().ok().map(|number| (number, number));
    in_table(&table, user).or(number).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("snapshots_user: no user `{user}` in /etc/passwd")).hint(
            format!(
                "create it with `useradd --system --shell /usr/sbin/nologin {user}`, or leave the key out"
            ),
        )
    })
}

/// passwd(5): `name:password:uid:gid:…`.
fn in_table(table: &str, user: &str) -> Option<(u32, u32)> {
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let is = fields.first() == Some(&user) || fields.get(2) == Some(&user);
        if is { Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)) } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let table = "root:x:0:0::/root:/bin/sh\nview:x:993:990::/:/bin/false\nbroken\nodd:x:a:b\n";
        assert_eq!(in_table(table, "view"), Some((993, 990)));
        assert_eq!(in_table(table, "993"), Some((993, 990)));
        for absent in ["vie", "7", "odd", "broken", ""] {
            assert_eq!(in_table(table, absent), None, "{absent}");
        }
        assert_eq!(find(Some("4123456789")).unwrap(), (4_123_456_789, 4_123_456_789));
        let error = find(Some("no such user")).unwrap_err();
        assert!(error.message.contains("`no such user`"), "{error}");
    }
}
