//! A point in time as templates print it.

use serde::{Deserialize, Serialize};

/// Seconds since 1970 as a date and time of day in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "u64", into = "u64")]
pub struct Moment {
    unix: u64,
    year: u64,
    /// 0 to 11.
    month: usize,
    /// 1 to 31.
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    /// 0 is Sunday.
    weekday: usize,
    /// 1 to 366.
    day_of_year: u64,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl From<u64> for Moment {
    fn from(seconds: u64) -> Self {
        Self::from_unix(seconds)
    }
}

impl From<Moment> for u64 {
    fn from(moment: Moment) -> Self {
        moment.unix
    }
}

impl Moment {
    /// The moment `seconds` after the beginning of 1970, leap seconds not counted.
    #[must_use]
    pub fn from_unix(seconds: u64) -> Self {
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": years begin in March, eras of 400 years.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = (from_march + 2) % 12;
        let year = era * 400 + year_of_era + u64::from(month < 2);
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        // March begins on day 60, or 61 of a leap year; January and February end the shifted year.
        let day_of_year = if month < 2 { of_year - 305 } else { of_year + 60 + u64::from(leap) };
        Self {
            unix: seconds,
            year,
            month: month as usize,
            day,
            hour: of_day / 3_600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
            weekday: ((days + 4) % 7) as usize,
            day_of_year,
        }
    }

    /// Fills in a format of Python's `strftime` in English; a `-` after `%` drops leading zeros. Directives that are not
    /// known stay as they are.
    pub(super) fn format(&self, format: &str) -> String {
        let (mut out, mut rest) = (String::new(), format);
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            let tail = &rest[at + 1..];
            let (bare, tail) = tail.strip_prefix('-').map_or((false, tail), |tail| (true, tail));
            let Some(directive) = tail.chars().next() else {
                rest = &rest[at..];
                break;
            };
            rest = &tail[directive.len_utf8()..];
            let number = |n: u64, width: usize| format!("{n:0width$}", width = if bare { 0 } else { width });
            let hour_12 = (self.hour + 11) % 12 + 1;
            out.push_str(&match directive {
                'Y' => self.year.to_string(),
                'y' => number(self.year % 100, 2),
                'm' => number(self.month as u64 + 1, 2),
                'd' => number(self.day, 2),
                'e' => format!("{:2}", self.day),
                'j' => number(self.day_of_year, 3),
                'H' => number(self.hour, 2),
                'I' => number(hour_12, 2),
                'M' => number(self.minute, 2),
                'S' => number(self.second, 2),
                'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
                'B' => MONTHS[self.month].to_owned(),
                'b' | 'h' => MONTHS[self.month][..3].to_owned(),
                'A' => WEEKDAYS[self.weekday].to_owned(),
                'a' => WEEKDAYS[self.weekday][..3].to_owned(),
                'F' => self.format("%Y-%m-%d"),
                'T' => self.format("%H:%M:%S"),
                'D' | 'x' => self.format("%m/%d/%y"),
                'R' => self.format("%H:%M"),
                'X' => self.format("%H:%M:%S"),
                'c' => self.format("%a %b %e %H:%M:%S %Y"),
                'w' => self.weekday.to_string(),
                'u' => ((self.weekday + 6) % 7 + 1).to_string(),
                'U' => number((self.day_of_year + 6 - self.weekday as u64) / 7, 2),
                'W' => number((self.day_of_year + 6 - (self.weekday as u64 + 6) % 7) / 7, 2),
                'f' => "000000".to_owned(),
                // A time that knows no zone prints none.
                'Z' | 'z' => String::new(),
                '%' => "%".to_owned(),
                other => format!("%{}{other}", if bare { "-" } else { "" }),
            });
        }
        out + rest
    }
}

#[cfg(test)]
mod tests {
    use super::Moment;

    #[test]
    fn dates_of_the_calendar() {
        let said = |seconds| Moment::from_unix(seconds).format("%a %F %T %j");
        assert_eq!(said(0), "Thu 1970-01-01 00:00:00 001");
        assert_eq!(said(951_782_399), "Mon 2000-02-28 23:59:59 059");
        assert_eq!(said(951_868_800), "Wed 2000-03-01 00:00:00 061");
        assert_eq!(said(1_735_603_200), "Tue 2024-12-31 00:00:00 366");
        assert_eq!(said(4_107_542_400), "Mon 2100-03-01 00:00:00 060");
        let _ = Moment::from_unix(u64::MAX).format("%A %B");
    }

    #[test]
    fn directives() {
        let m = Moment::from_unix(1_773_500_966);
        assert_eq!(
            m.format("%d %b %Y|%B %-d, %y|%A %I:%M %p|%-m|%e|%%|%q|%-"),
            "14 Mar 2026|March 14, 26|Saturday 03:09 PM|3|14|%|%q|%-"
        );
        assert_eq!(m.format("%"), "%");
        assert_eq!(m.format("é%é"), "é%é");
    }
}
