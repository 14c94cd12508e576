//! The contents of one file on the simulated disk, now and after a power loss.
//!
//! A file is a sparse map of 512-byte sectors, because that is the unit that real disks write or do not
//! write. For each sector the file remembers what is durable and which versions were written since: a power
//! loss leaves any one of them, independently of all other sectors. The same goes for the length. This is
//! harsher than most file systems, and it is exactly what the rules of [`super::disk`] allow.
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

pub(super) const SECTOR_BYTES: usize = 512;
/// Versions kept per unsynced sector: enough for "older than the newest, newer than the durable one".
const VERSIONS_MAX: usize = 4;

/// `None` reads as zeroes.
type Sector = Option<Arc<[u8; SECTOR_BYTES]>>;

/// A small, seeded source of numbers (splitmix64): simulations need repeatable ones, not good ones.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 if `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.roll() % end }
    }
}

#[derive(Clone, Default)]
pub(super) struct SimContent {
    current: BTreeMap<u64, Arc<[u8; SECTOR_BYTES]>>,
    durable: BTreeMap<u64, Arc<[u8; SECTOR_BYTES]>>,
    unsynced: BTreeMap<u64, Vec<Sector>>,
    len_bytes: u64,
    durable_len_bytes: u64,
    unsynced_lens_bytes: Vec<u64>,
}

impl SimContent {
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub(super) fn read(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let end = offset_bytes.saturating_add(buf.len() as u64);
        if end > self.len_bytes {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "read past the end of the file"));
        }
        for_each_sector(offset_bytes, buf.len(), |sector, in_sector, in_buf, count| {
            let target = &mut buf[in_buf..in_buf + count];
            match self.current.get(&sector) {
                Some(bytes) => target.copy_from_slice(&bytes[in_sector..in_sector + count]),
                None => target.fill(0),
            }
        });
        Ok(())
    }

    pub(super) fn write(&mut self, buf: &[u8], offset_bytes: u64) {
        for_each_sector(offset_bytes, buf.len(), |sector, in_sector, in_buf, count| {
            let source = &buf[in_buf..in_buf + count];
            if !self.current.contains_key(&sector) && source.iter().all(|byte| *byte == 0) {
                return;
            }
            let mut bytes = self.current.get(&sector).map_or([0; SECTOR_BYTES], |bytes| **bytes);
            bytes[in_sector..in_sector + count].copy_from_slice(source);
            self.put(sector, Some(Arc::new(bytes)));
        });
        let end = offset_bytes + buf.len() as u64;
        if end > self.len_bytes {
            self.change_len(end);
        }
    }

    pub(super) fn set_len(&mut self, len_bytes: u64) {
        if len_bytes < self.len_bytes {
            let first_gone = len_bytes.div_ceil(SECTOR_BYTES as u64);
            let gone: Vec<u64> = self.current.range(first_gone..).map(|(sector, _)| *sector).collect();
            for sector in gone {
                self.put(sector, None);
            }
            let in_sector = (len_bytes % SECTOR_BYTES as u64) as usize;
            let sector = len_bytes / SECTOR_BYTES as u64;
            if in_sector > 0
                && let Some(bytes) = self.current.get(&sector)
            {
                let mut bytes = **bytes;
                bytes[in_sector..].fill(0);
                self.put(sector, Some(Arc::new(bytes)));
            }
        }
        if len_bytes != self.len_bytes {
            self.change_len(len_bytes);
        }
    }

    pub(super) fn sync(&mut self) {
        for sector in std::mem::take(&mut self.unsynced).into_keys() {
            match self.current.get(&sector) {
                Some(bytes) => self.durable.insert(sector, bytes.clone()),
                None => self.durable.remove(&sector),
            };
        }
        self.unsynced_lens_bytes.clear();
        self.durable_len_bytes = self.len_bytes;
    }

    /// A sync that failed: as on real systems, what it should have written is forgotten and still readable,
    /// and no later sync will write it.
    pub(super) fn fail_sync(&mut self) {
        self.unsynced.clear();
        self.unsynced_lens_bytes.clear();
    }

    /// What a power loss leaves.
    pub(super) fn after_power_loss(&self, dice: &mut Dice) -> Self {
        let mut left = self.durable.clone();
        for (sector, versions) in &self.unsynced {
            let pick = dice.below(versions.len() as u64 + 1) as usize;
            match versions.get(pick) {
                Some(Some(bytes)) => {
                    left.insert(*sector, bytes.clone());
                }
                Some(None) => {
                    left.remove(sector);
                }
                None => {}
            }
        }
        let pick = dice.below(self.unsynced_lens_bytes.len() as u64 + 1) as usize;
        let len_bytes = self.unsynced_lens_bytes.get(pick).copied().unwrap_or(self.durable_len_bytes);
        let mut content = Self { current: left, len_bytes: u64::MAX, ..Self::default() };
        content.set_len(len_bytes);
        content.settle();
        content
    }

    /// Makes the present contents durable in both senses, without counting as a sync: for damage helpers.
    pub(super) fn settle(&mut self) {
        self.durable = self.current.clone();
        self.durable_len_bytes = self.len_bytes;
        self.unsynced.clear();
        self.unsynced_lens_bytes.clear();
    }

    fn put(&mut self, sector: u64, bytes: Sector) {
        match &bytes {
            Some(bytes) => self.current.insert(sector, bytes.clone()),
            None => self.current.remove(&sector),
        };
        let versions = self.unsynced.entry(sector).or_default();
        if versions.len() == VERSIONS_MAX {
            versions.remove(1);
        }
        versions.push(bytes);
    }

    fn change_len(&mut self, len_bytes: u64) {
        self.len_bytes = len_bytes;
        self.unsynced_lens_bytes.push(len_bytes);
    }
}

/// Calls `visit(sector, first byte in the sector, first byte in the buffer, bytes)` for each piece.
fn for_each_sector(offset_bytes: u64, len: usize, mut visit: impl FnMut(u64, usize, usize, usize)) {
    let mut done = 0;
    while done < len {
        let at = offset_bytes + done as u64;
        let in_sector = (at % SECTOR_BYTES as u64) as usize;
        let count = (SECTOR_BYTES - in_sector).min(len - done);
        visit(at / SECTOR_BYTES as u64, in_sector, done, count);
        done += count;
    }
}
