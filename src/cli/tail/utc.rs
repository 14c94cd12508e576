//! Points in time as people read them.

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// After this many years the calendar repeats itself.
const CYCLE_YEARS: u64 = 400;
const CYCLE_DAYS: u64 = 146_097;

/// `ts_ms`, Unix milliseconds, as RFC 3339 in UTC: the same at every reader, whatever its time zone is.
pub fn rfc3339(ts_ms: u64) -> String {
    let mut days = ts_ms / DAY_MS;
    let mut year = 1970 + CYCLE_YEARS * (days / CYCLE_DAYS);
    days %= CYCLE_DAYS;
    while days >= year_days(year) {
        days -= year_days(year);
        year += 1;
    }
    let mut month = 1;
    while days >= month_days(year, month) {
        days -= month_days(year, month);
        month += 1;
    }
    let day = days + 1;
    let ms = ts_ms % DAY_MS;
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1000)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn year_days(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_what_the_calendar_says() {
        for (ts_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_790_000_001_200, "2026-09-21T14:13:21.200Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339(ts_ms), text);
        }
        // No time is too far away.
        assert!(rfc3339(u64::MAX).ends_with('Z'));
    }
}
