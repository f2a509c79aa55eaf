//! Owners and groups as they are shown: numbers of the host that wrote the files, told as those of this one.

/// Numbers that are shown as others. Those in no range stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap(Vec<Range>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    from: u32,
    to: u32,
    count: u32,
}

impl IdMap {
    /// Of `FROM:TO:COUNT` each, as in user namespaces; the first range that has a number counts. None: it is not of
    /// that form, or leaves the 32 bits.
    pub fn parse<'a>(ranges: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let range = |text: &str| {
            let mut numbers = text.split(':').map(|number| number.trim().parse::<u32>().ok());
            let (from, to, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
            // The last number means no owner at all.
            let fits = |start: u32| start.checked_add(count).is_some();
            (numbers.next().is_none() && count > 0 && fits(from) && fits(to)).then_some(Range {
                from,
                to,
                count,
            })
        };
        ranges.into_iter().map(range).collect::<Option<_>>().map(Self)
    }

    /// The number that is shown for `id`.
    pub fn shown(&self, id: u32) -> u32 {
        let range = self.0.iter().find(|range| id >= range.from && id - range.from < range.count);
        range.map_or(id, |range| range.to + (id - range.from))
    }
}

/// Both maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners {
    /// Users.
    pub users: IdMap,
    /// Groups.
    pub groups: IdMap,
}

/// Bytes before the entries of an access list (acl(5) as an extended attribute, version 2).
const ACL_HEAD: usize = 4;
/// Bytes of an entry: tag, permissions, number.
const ACL_ENTRY: usize = 8;
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

impl Owners {
    /// The value of an extended attribute with the numbers in access lists as they are shown.
    pub fn shown_acl(&self, name: &[u8], mut value: Vec<u8>) -> Vec<u8> {
        if !name.starts_with(b"system.posix_acl_") || *self == Self::default() {
            return value;
        }
        for entry in value.get_mut(ACL_HEAD..).unwrap_or_default().chunks_exact_mut(ACL_ENTRY) {
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            let shown = match u16::from_le_bytes([entry[0], entry[1]]) {
                ACL_USER => self.users.shown(id),
                ACL_GROUP => self.groups.shown(id),
                _ => continue,
            };
            entry[4..].copy_from_slice(&shown.to_le_bytes());
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_a_range_move_with_it() {
        let map = IdMap::parse(["0:100000:10", "1000:0:1"]).unwrap();
        for (id, shown) in
            [(0, 100_000), (9, 100_009), (10, 10), (1000, 0), (1001, 1001), (u32::MAX, u32::MAX)]
        {
            assert_eq!(map.shown(id), shown);
        }
        assert_eq!(IdMap::parse([]), Some(IdMap::default()));
        for text in ["", "0", "0:1", "0:1:0", "0:1:2:3", "a:b:c", "4294967295:0:1", "0:1:4294967295"] {
            assert_eq!(IdMap::parse([text]), None, "{text}");
        }
    }

    #[test]
    fn access_lists_are_told_alike() {
        let owners =
            Owners { users: IdMap::parse(["5:50:1"]).unwrap(), groups: IdMap::parse(["5:500:1"]).unwrap() };
        let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &[7, 0], &id.to_le_bytes()].concat();
        let list = |ids: [u32; 3]| {
            let entries = [entry(0x01, ids[0]), entry(ACL_USER, ids[1]), entry(ACL_GROUP, ids[2])];
            [&[2, 0, 0, 0][..], &entries.concat()].concat()
        };
        let shown = owners.shown_acl(b"system.posix_acl_access", list([5, 5, 5]));
        assert_eq!(shown, list([5, 50, 500]));
        assert_eq!(owners.shown_acl(b"user.x", list([5, 5, 5])), list([5, 5, 5]));
        assert_eq!(owners.shown_acl(b"system.posix_acl_access", vec![1, 2]), [1, 2]);
    }
}
