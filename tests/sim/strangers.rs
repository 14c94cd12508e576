//! Strangers: they answer at the addresses of members that are down, and call members that are up. They know
//! everything but the cluster's secret, and nothing that they say may end a member.

use std::sync::Arc;
use std::time::Duration;

use antiphon::raft::PeerStream;
use antiphon::storage::sim_disk::Dice;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::seeded::Throw;
use crate::world::World;

/// How long a stranger listens before it says something else, or goes.
const PATIENCE: Duration = Duration::from_millis(700);
/// First bytes of an acceptor's words, as in `raft/handshake.rs`.
const REFUSED: u8 = 0;
const ACCEPTED: u8 = 1;
const REPLACED: u8 = 2;
const CHALLENGE: u8 = 3;

/// A stranger calls a member.
pub fn call(world: &Arc<World>, number: usize, dice: &mut Dice) {
    let Some(stream) = world.net.stranger(number) else { return };
    world.trace.note(format_args!("fault: a stranger calls m{}", number + 1));
    tokio::spawn(talk(Box::new(stream), dice.fork()));
}

/// Says what a stranger says on a connection, whoever began it.
pub async fn talk(mut stream: Box<dyn PeerStream>, mut dice: Dice) {
    for _ in 0..dice.between(1, 4) {
        let mut heard = vec![0; 4096];
        let told = timeout(PATIENCE, stream.read(&mut heard)).await;
        match told {
            Ok(Ok(count)) if count > 0 => heard.truncate(count),
            Ok(_) => return,
            Err(_) => heard.clear(),
        }
        let said = words(&heard, &mut dice);
        if stream.write_all(&said).await.is_err() {
            return;
        }
    }
}

/// What it says to what it heard.
fn words(heard: &[u8], dice: &mut Dice) -> Vec<u8> {
    let random = |count: u64, dice: &mut Dice| (0..count).map(|_| dice.roll() as u8).collect::<Vec<u8>>();
    let words = match dice.below(8) {
        // A verdict that nobody gave, with and without what would prove it.
        0 => [&[REPLACED][..], &u64::MAX.to_le_bytes()].concat(),
        1 => [&[REPLACED][..], &u64::MAX.to_le_bytes(), &random(32, dice)].concat(),
        2 => [&[CHALLENGE][..], &random(16, dice)].concat(),
        3 => [&[REFUSED][..], "\u{1b}[2J\n".repeat(40).as_bytes()].concat(),
        4 => [&[ACCEPTED][..], &random(60, dice)].concat(),
        // Its own words, which begin with how long they are.
        5 => return heard.to_vec(),
        6 => {
            let count = dice.below(3000);
            return random(count, dice);
        }
        _ => return vec![0xff; 64],
    };
    [&(words.len() as u16).to_le_bytes()[..], &words].concat()
}
