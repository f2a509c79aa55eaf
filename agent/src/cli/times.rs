//! Time stamps as RFC 3339 in UTC.

use jiff::Timestamp;

/// `2026-01-31T12:00:00Z` of seconds since the epoch and nanoseconds; what the calendar cannot express
/// (a damaged file system's dates) is the bare number with a `@`, as `date -d` takes it.
pub fn rfc3339(seconds: i64, nanoseconds: i32) -> String {
    match Timestamp::new(seconds, 0).and_then(|t| t.checked_add(jiff::Span::new().nanoseconds(nanoseconds))) {
        Ok(time) => time.to_string(),
        Err(_) => format!("@{seconds}"),
    }
}

/// `2026-01-31 12:00` for tables.
pub fn minute(rfc3339: &str) -> String {
    match (rfc3339.get(..10), rfc3339.get(11..16)) {
        (Some(date), Some(time)) if rfc3339.as_bytes()[10] == b'T' => format!("{date} {time}"),
        _ => rfc3339.to_owned(),
    }
}

/// A duration as people write it: `10s`, `2m`, `500ms`, `1m 30s`; a bare number is seconds.
pub fn parse_duration(text: &str) -> super::failure::Result<std::time::Duration> {
    let malformed = || {
        super::failure::Failure::usage(format!("'{text}' is not a duration"))
            .hint("write a number with ms, s, m or h: 500ms, 10s, 2m")
    };
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map(std::time::Duration::from_secs).map_err(|_| malformed());
    }
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| malformed())?;
    std::time::Duration::try_from(parsed).map_err(|_| malformed())
}

/// A moment in seconds since the epoch: a date, a date and time, or an age such as `2h`, counted back from `now`.
pub fn parse_moment(text: &str, now: u64) -> super::failure::Result<i64> {
    let malformed = || {
        super::failure::Failure::usage(format!("'{text}' is neither an age nor a moment"))
            .hint("write 90m, 2h or 3d, or 2026-01-31, or 2026-01-31T12:00:00Z")
    };
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time.as_second());
    }
    if let Ok(date) = text.parse::<jiff::civil::Date>() {
        let midnight = date.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| malformed())?;
        return Ok(midnight.timestamp().as_second());
    }
    let days = text.strip_suffix('d').and_then(|count| count.parse::<u64>().ok());
    let age = match days {
        Some(days) => days.checked_mul(86_400).ok_or_else(malformed)?,
        None => parse_duration(text).map_err(|_| malformed())?.as_secs(),
    };
    let moment = i128::from(now) - i128::from(age);
    i64::try_from(moment).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (-1, 0, "1969-12-31T23:59:59Z"),
            (-1, 1, "1969-12-31T23:59:59.000000001Z"),
            (4_102_444_800, 0, "2100-01-01T00:00:00Z"),
            (i64::MAX, 0, "@9223372036854775807"),
        ] {
            assert_eq!(rfc3339(seconds, nanoseconds), text);
        }
        assert_eq!(minute("2100-01-01T12:34:56.5Z"), "2100-01-01 12:34");
        assert_eq!(minute("@9223372036854775807"), "@9223372036854775807");
    }

    #[test]
    fn moments() {
        for (text, seconds) in [
            ("1970-01-02", 86_400),
            ("1970-01-02T00:00:01Z", 86_401),
            ("2h", 1_000_000 - 7200),
            ("3d", 1_000_000 - 3 * 86_400),
            ("100d", 1_000_000 - 8_640_000),
        ] {
            assert_eq!(parse_moment(text, 1_000_000).unwrap(), seconds, "{text}");
        }
        for text in ["", "yesterday", "99999999999999999999d", "2026-13-01"] {
            assert_eq!(parse_moment(text, 0).unwrap_err().exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in
            [("10s", 10_000), ("500ms", 500), ("2m", 120_000), ("3", 3000), ("0", 0), ("1m 30s", 90_000)]
        {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for text in ["", "x", "-1s", "10 parsecs", "99999999999999999999"] {
            assert_eq!(parse_duration(text).unwrap_err().exit_code(), 2, "{text}");
        }
    }
}
