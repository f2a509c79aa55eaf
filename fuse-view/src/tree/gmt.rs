//! `@GMT-YYYY.MM.DD-HH.MM.SS`: the names by which Samba's vfs_shadow_copy2 finds snapshots by their time.

const SECONDS_A_DAY: i64 = 86_400;
/// Years that four digits hold.
const YEARS: std::ops::RangeInclusive<i64> = 1..=9999;

/// The name of a moment, seconds since the epoch; None: no year of four digits.
pub fn name(seconds: i64) -> Option<String> {
    let (days, second) = (seconds.div_euclid(SECONDS_A_DAY), seconds.rem_euclid(SECONDS_A_DAY));
    let (year, month, day) = date(days);
    YEARS.contains(&year).then(|| {
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        format!("@GMT-{year:04}.{month:02}.{day:02}-{hour:02}.{minute:02}.{second:02}")
    })
}

/// The moment that a name stands for; None: it is no such name.
pub fn moment(text: &[u8]) -> Option<i64> {
    let digits = std::str::from_utf8(text.strip_prefix(b"@GMT-")?).ok()?;
    let mut parts = digits.split(['.', '-']).map(|part| part.parse::<i64>().ok());
    let mut next = || parts.next().flatten();
    let (year, month, day) = (next()?, next()?, next()?);
    let (hour, minute, second) = (next()?, next()?, next()?);
    if !YEARS.contains(&year) || !(1..=12).contains(&month) {
        return None;
    }
    let days = days_before(year, month) + day - 1;
    let seconds = days * SECONDS_A_DAY + hour * 3600 + minute * 60 + second;
    // Other spellings of a moment are no names.
    (name(seconds)?.as_bytes() == text).then_some(seconds)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from the epoch to the first of a month.
fn days_before(year: i64, month: i64) -> i64 {
    let before = year - 1;
    let leap_days = before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400);
    // 719,162 days lie between the first day of year 1 and that of 1970.
    before * 365 + leap_days - 719_162 + (1..month).map(|month| days_in(year, month)).sum::<i64>()
}

/// Year, month and day of a day counted from the epoch.
fn date(days: i64) -> (i64, i64, i64) {
    // At most one year off: 400 years have 146,097 days.
    let mut year = 1970 + (days * 400).div_euclid(146_097);
    while days_before(year, 1) > days {
        year -= 1;
    }
    while days_before(year + 1, 1) <= days {
        year += 1;
    }
    let mut month = 1;
    while month < 12 && days_before(year, month + 1) <= days {
        month += 1;
    }
    (year, month, days - days_before(year, month) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_moments() {
        for (seconds, text) in [
            (0, "@GMT-1970.01.01-00.00.00"),
            (-1, "@GMT-1969.12.31-23.59.59"),
            (951_782_399, "@GMT-2000.02.28-23.59.59"),
            (951_782_400, "@GMT-2000.02.29-00.00.00"),
            (4_107_542_400, "@GMT-2100.03.01-00.00.00"),
            (1_795_321_845, "@GMT-2026.11.22-04.30.45"),
        ] {
            assert_eq!(name(seconds).as_deref(), Some(text));
            assert_eq!(moment(text.as_bytes()), Some(seconds));
        }
        for seconds in (-10_000_000_000..20_000_000_000_i64).step_by(99_999_989) {
            assert_eq!(moment(name(seconds).unwrap().as_bytes()), Some(seconds));
        }
        assert_eq!(name(i64::MAX / 1000), None);
        for text in
            ["", "@GMT-", "@GMT-2026.11.22-04.30", "@GMT-2026.13.01-00.00.00", "@GMT-2026.2.3-04.05.06"]
        {
            assert_eq!(moment(text.as_bytes()), None, "{text}");
        }
    }
}
