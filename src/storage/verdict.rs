//! What an error says about stored data, and what follows from it.
//!
//! Whatever cannot be opened or read is one of five things, and only the first of them may cost anything. To take
//! one for another is how data are lost: a newer form taken for damage is thrown away by every member that is
//! started with the version before, a full disk taken for a dead one ends a member that only had to wait. So there
//! is one judgement, and one table of what follows:
//!
//! | | at the start, alone | at the start, with others | in a chore of a running member |
//! |---|---|---|---|
//! | `Damage` | ends with a line | sets its data aside and starts blank | leaves that file alone, and rests |
//! | `Newer`, `Refused`, `Bug` | ends with a line | ends with a line | ends with a line |
//! | `Busy` | ends with a line | ends with a line | rests, and tries again |
//!
//! A line that ends a member at its start has changed nothing on the disk. A read for a client that finds damage
//! fails; what becomes of the member then is decided in `server/damage.rs`.
use std::io;

use rustix::io::Errno;

use super::reader::is_damage;

/// What an error says about stored data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Something that was confirmed is certainly damaged or lost.
    Damage,
    /// It is whole, and in a form that this version does not know.
    Newer,
    /// The system does not allow it, or the disk does not work: says nothing of what is on it.
    Refused,
    /// Something is used up or held by another for the moment.
    Busy,
    /// It is whole, of a form that this version knows, and yet it makes nothing of it: a fault of this program.
    Bug,
}

/// What follows at a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtStart {
    /// The member ends with one line; nothing is changed on the disk.
    End,
    /// What is there is set aside, and the member starts blank, to be filled by the others.
    SetAside,
}

impl Verdict {
    /// What an error of opening or reading says.
    pub fn of(error: &io::Error) -> Verdict {
        if let Some(finding) = error.get_ref().and_then(|inner| inner.downcast_ref::<Finding>()) {
            return finding.verdict;
        }
        if let Some(code) = error.raw_os_error() {
            return Self::of_code(code);
        }
        use io::ErrorKind::{InvalidData, NotFound, OutOfMemory, StorageFull, UnexpectedEof};
        match error.kind() {
            InvalidData | NotFound | UnexpectedEof => Verdict::Damage,
            OutOfMemory | StorageFull => Verdict::Busy,
            _ => Verdict::Refused,
        }
    }

    fn of_code(code: i32) -> Verdict {
        // Files that are not there or not what they were.
        const DAMAGE: [Errno; 4] = [Errno::NOENT, Errno::NOTDIR, Errno::ISDIR, Errno::INVAL];
        const BUSY: [Errno; 8] = [
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::AGAIN,
            Errno::INTR,
            Errno::BUSY,
        ];
        let is_one = |errors: &[Errno]| errors.iter().any(|error| error.raw_os_error() == code);
        match () {
            () if is_one(&DAMAGE) => Verdict::Damage,
            () if is_one(&BUSY) => Verdict::Busy,
            () => Verdict::Refused,
        }
    }

    /// What follows if this is why a member cannot open what it has. `has_others`: enough other members to fill it
    /// again.
    pub fn at_start(self, has_others: bool) -> AtStart {
        match self {
            Verdict::Damage if has_others => AtStart::SetAside,
            _ => AtStart::End,
        }
    }

    /// Whether a chore of a running member that failed for this reason rests and tries again, instead of ending the
    /// member.
    pub fn lets_a_chore_rest(self) -> bool {
        matches!(self, Verdict::Damage | Verdict::Busy)
    }
}

/// A verdict that only who found it can give, as an error of I/O.
#[derive(Debug)]
struct Finding {
    verdict: Verdict,
    what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Finding {}

impl Verdict {
    /// An error that carries this verdict; `what` is one line.
    pub fn error(self, what: impl Into<String>) -> io::Error {
        let kind = match self {
            Verdict::Damage | Verdict::Newer => io::ErrorKind::InvalidData,
            Verdict::Refused | Verdict::Bug => io::ErrorKind::Other,
            Verdict::Busy => io::ErrorKind::ResourceBusy,
        };
        io::Error::new(kind, Finding { verdict: self, what: what.into() })
    }
}

/// Whether there is no file descriptor left, in this process or on the machine.
pub fn is_out_of_files(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE].iter().any(|error| code == Some(error.raw_os_error()))
}

/// Whether the disk has no room.
pub(super) fn is_out_of_space(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    error.kind() == io::ErrorKind::StorageFull || code == Some(Errno::DQUOT.raw_os_error())
}

/// Whether a disk says that it cannot read what it holds: of one sector, and not of all.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    const CODES: [Errno; 5] = [Errno::IO, Errno::REMOTEIO, Errno::BADMSG, Errno::UCLEAN, Errno::NODATA];
    let code = error.raw_os_error();
    CODES.iter().any(|error| code == Some(error.raw_os_error()))
}

/// Reads again what could not be read: a disk may need a second try, and damage has consequences.
pub(super) fn with_second_try<T>(mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    read().or_else(|error| match is_unreadable(&error) || is_damage(&error) {
        true => read(),
        false => Err(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certainly_damaged_is_set_aside_and_only_if_others_have_it() {
        use Verdict::*;
        for verdict in [Damage, Newer, Refused, Busy, Bug] {
            assert_eq!(verdict.at_start(false), AtStart::End);
            let with_others = verdict.at_start(true);
            assert_eq!(with_others, if verdict == Damage { AtStart::SetAside } else { AtStart::End });
            assert_eq!(Verdict::of(&verdict.error("one line")), verdict);
        }
    }

    #[test]
    fn what_the_system_says_is_told_apart() {
        let of = |errno: Errno| Verdict::of(&errno.into());
        assert_eq!(of(Errno::NOENT), Verdict::Damage);
        for errno in [Errno::NOSPC, Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            assert_eq!(of(errno), Verdict::Busy, "{errno:?}");
        }
        for errno in [Errno::IO, Errno::ROFS, Errno::ACCESS] {
            assert_eq!(of(errno), Verdict::Refused, "{errno:?}");
        }
        assert!(Verdict::Busy.lets_a_chore_rest() && !Verdict::Refused.lets_a_chore_rest());
    }
}
