//! What the segmented log promises, and what it must survive.
//!
//! `rig` drives a log on a simulated disk, step by step, beside a model of what was handed over and what was
//! confirmed; the other files are named after the promises that they check.
mod behaviour;
mod closing;
mod damage;
mod freeing;
mod full_disk;
mod histories;
mod kill_points;
mod leftovers;
mod rig;
mod slow_disk;
mod stores;
mod threads;
