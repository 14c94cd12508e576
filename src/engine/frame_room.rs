//! Frames of streams while they wait for their readers: what they hold together is bounded (C-LIMIT-16).
//!
//! A reader that is slow has its frame for as long as it likes, so frames that are not small have to find room before their
//! page is read. Where there is none a reader gets small ones, and waits for nobody; only a record that is larger than that
//! waits.

use std::sync::Arc;

use bytes::Bytes;

/// The room that a reader's frames have, whoever shares it.
pub trait FrameRoom: Send + Sync {
    /// Takes so many bytes of it; `false` if there are not so many.
    fn take(&self, bytes: usize) -> bool;

    fn give_back(&self, bytes: usize);
}

/// Room that was taken; dropping it gives it back.
pub(super) struct FrameHold {
    room: Arc<dyn FrameRoom>,
    bytes: usize,
}

impl FrameHold {
    pub fn take(room: &Arc<dyn FrameRoom>, bytes: usize) -> Option<Self> {
        room.take(bytes).then(|| FrameHold { room: room.clone(), bytes })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts for `frame` from now on, until nobody has anything of it any more.
    pub fn keep_for(mut self, frame: Bytes) -> Bytes {
        match self.bytes.checked_sub(frame.len()) {
            Some(too_many) => self.room.give_back(too_many),
            // A little, for what records are written with. Its room was found before it was known.
            None if self.room.take(frame.len() - self.bytes) => {}
            None => return Bytes::from_owner(Held { frame, _hold: self }),
        }
        self.bytes = frame.len();
        Bytes::from_owner(Held { frame, _hold: self })
    }
}

impl Drop for FrameHold {
    fn drop(&mut self) {
        self.room.give_back(self.bytes);
    }
}

struct Held {
    frame: Bytes,
    _hold: FrameHold,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Room(AtomicUsize);

    impl FrameRoom for Room {
        fn take(&self, bytes: usize) -> bool {
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
        }

        fn give_back(&self, bytes: usize) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_frame_counts_as_what_it_is_until_the_last_of_it_is_gone() {
        // C-LIMIT-16
        let room = Arc::new(Room(AtomicUsize::new(100)));
        let left = || room.0.load(Ordering::Relaxed);
        let shared: Arc<dyn FrameRoom> = room.clone();
        let hold = FrameHold::take(&shared, 80).unwrap();
        assert!(FrameHold::take(&shared, 21).is_none());
        let frame = hold.keep_for(Bytes::from(vec![b'x'; 30]));
        assert_eq!(left(), 70);
        let rest = frame.slice(29..);
        drop(frame);
        assert_eq!((left(), &rest[..]), (70, &b"x"[..]));
        drop(rest);
        assert_eq!(left(), 100);
        drop(FrameHold::take(&shared, 100));
        assert_eq!(left(), 100);
    }
}
