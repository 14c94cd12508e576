//! Entry points for fuzzing: one for each kind of bytes that come from outside.
//!
//! Each takes any bytes at all. It panics if what they say is neither refused nor taken for what it is: that is what
//! the fuzzer in `fuzz/` looks for, and what `tests/fuzz` tries with a few thousand inputs in every run of the tests.
//! Nothing of a member calls any of this.

use crate::{api, engine, raft, router, state, storage};

/// One kind of bytes.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Inputs that are taken: what a search begins with.
    pub examples: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 11] = [
    // Requests and frames of clients.
    Target { name: "requests", run: api::fuzzing::serve_requests, examples: api::fuzzing::requests },
    Target { name: "bodies", run: api::fuzzing::read_body, examples: api::fuzzing::bodies },
    Target { name: "web_socket", run: api::fuzzing::read_frames, examples: api::fuzzing::frames },
    // What members say to each other.
    Target { name: "handshake", run: raft::fuzzing::shake_hands, examples: raft::fuzzing::handshakes },
    Target { name: "peer", run: read_peer_message, examples: peer_messages },
    // What clusters do.
    Target { name: "pull", run: router::fuzzing::read_request, examples: router::fuzzing::requests },
    Target { name: "answer", run: router::fuzzing::read_answer, examples: router::fuzzing::answers },
    // What is stored.
    Target { name: "log", run: storage::fuzzing::open_log, examples: storage::fuzzing::logs },
    Target { name: "files", run: storage::fuzzing::read_file, examples: storage::fuzzing::files },
    Target { name: "checkpoint", run: state::fuzzing::restore, examples: state::fuzzing::checkpoints },
    Target {
        name: "commands",
        run: state::fuzzing::apply_commands,
        examples: state::fuzzing::rows_of_commands,
    },
];

/// Messages of rooms above consensus begin with this.
const HIGHER: u8 = 0x80;

fn read_peer_message(bytes: &[u8]) {
    match bytes.split_first() {
        Some((what, rest)) if what & HIGHER != 0 => {
            engine::fuzzing::read_message(&[&[what & !HIGHER][..], rest].concat());
        }
        _ => raft::fuzzing::read_message(bytes),
    }
}

fn peer_messages() -> Vec<Vec<u8>> {
    let mut messages = engine::fuzzing::messages();
    messages.iter_mut().for_each(|message| message[0] |= HIGHER);
    messages.extend(raft::fuzzing::messages());
    messages
}

/// Runs the target of this name. Panics if there is none.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target").run)(bytes);
}
