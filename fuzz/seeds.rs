//! `seeds DIR TARGET`: writes the examples of a target into a folder.

use std::fs;
use std::path::Path;

use antiphon::fuzzing::TARGETS;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, name] = &args[..] else { panic!("seeds DIR TARGET") };
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    fs::create_dir_all(dir).expect("the folder can be made");
    for (number, example) in (target.examples)().iter().enumerate() {
        fs::write(Path::new(dir).join(format!("example-{number}")), example).expect("it can be written");
    }
}
