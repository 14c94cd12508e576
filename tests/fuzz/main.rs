//! Bytes from outside: whatever comes is refused or taken for what it is, nothing panics, and nobody has this program
//! keep much more memory than he sends. `fuzz/` looks for longer, at the same entry points.
//!
//! C-LIMIT-16 bounds the memory of what clients send.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use antiphon::fuzzing::{TARGETS, Target};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Counts what each thread holds, and the most that it held.
struct Counting;

thread_local! {
    static HELD_BYTES: Cell<isize> = const { Cell::new(0) };
    static MOST_BYTES: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // While a thread ends there is nothing to count with.
    let _ = HELD_BYTES.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = MOST_BYTES.try_with(|most| most.set(most.get().max(held.get())));
    });
}

// SAFETY: it is the system's allocator, which is told what it is told.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What any input may have the program hold: a connection, a disk, a state.
const BASE_BYTES: usize = 8 << 20;
/// What each byte of it may have it hold beside that.
const BYTES_PER_BYTE: usize = 400;

fn run(target: &Target, bytes: &[u8]) {
    let before = HELD_BYTES.with(Cell::get);
    MOST_BYTES.with(|most| most.set(before));
    (target.run)(bytes);
    let held = (MOST_BYTES.with(Cell::get) - before) as usize;
    let allowed = BASE_BYTES + BYTES_PER_BYTE * bytes.len();
    let name = target.name;
    assert!(held <= allowed, "{name} held {held} bytes for {} bytes of input", bytes.len());
}

fn named(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("there is one of that name")
}

/// What is done to an example.
#[derive(Debug, Clone)]
enum Change {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    /// Numbers are eight bytes or varints: the greatest there are.
    Largest(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        4 => (at(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        1 => at().prop_map(Change::Cut),
        2 => (at(), vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        2 => (at(), 1usize..12).prop_map(|(at, count)| Change::Remove(at, count)),
        1 => (at(), 1usize..40).prop_map(|(at, count)| Change::Repeat(at, count)),
        1 => at().prop_map(Change::Largest),
    ]
}

fn changed(example: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = example.to_vec();
    for change in changes {
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len();
        match change {
            Change::Set(at, byte) => bytes[at.index(length)] = *byte,
            Change::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Change::Cut(at) => bytes.truncate(at.index(length)),
            Change::Insert(at, more) => {
                let at = at.index(length);
                bytes.splice(at..at, more.iter().copied());
            }
            Change::Remove(at, count) => {
                let at = at.index(length);
                bytes.drain(at..(at + count).min(length));
            }
            Change::Repeat(at, count) => {
                let at = at.index(length);
                let part = bytes[at..(at + count).min(length)].to_vec();
                bytes.splice(at..at, part);
            }
            Change::Largest(at) => {
                let at = at.index(length);
                bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
            }
        }
    }
    bytes
}

/// One test per target, so that each says its name, and they run side by side.
macro_rules! targets {
    ($($name:ident: $cases:literal;)*) => { $(
        mod $name {
            use super::*;

            fn target() -> &'static Target {
                named(stringify!($name))
            }

            #[test]
            fn examples_are_taken() {
                let examples = (target().examples)();
                assert!(!examples.is_empty());
                examples.iter().for_each(|example| run(target(), example));
            }

            proptest! {
                #![proptest_config(ProptestConfig {
                    cases: $cases,
                    failure_persistence: None,
                    // The same each time: what others find is the fuzzer's.
                    rng_seed: RngSeed::Fixed(1),
                    ..ProptestConfig::default()
                })]

                #[test]
                fn changed_examples_are_refused_or_taken_for_what_they_are(
                    which: prop::sample::Index, changes in vec(change(), 1..6),
                ) {
                    let examples = (target().examples)();
                    run(target(), &changed(&examples[which.index(examples.len())], &changes));
                }

                #[test]
                fn any_bytes_are_refused_or_taken_for_what_they_are(
                    what in 0u8..24, bytes in vec(prop_oneof![1 => 0u8..4, 1 => any::<u8>()], 0..200),
                ) {
                    run(target(), &bytes);
                    run(target(), &[&[what][..], &bytes].concat());
                }
            }
        }
    )*

        #[test]
        fn each_target_is_tried() {
            let tried = [$(stringify!($name)),*];
            assert!(TARGETS.iter().map(|target| target.name).eq(tried));
        }
    };
}

targets! {
    requests: 200;
    bodies: 1000;
    web_socket: 1000;
    handshake: 500;
    peer: 2000;
    pull: 1000;
    answer: 1000;
    log: 300;
    files: 500;
    checkpoint: 1000;
    commands: 300;
}
