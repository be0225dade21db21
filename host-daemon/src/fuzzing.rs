//! What guests and QEMU send, thrown at the code that reads it.
//!
//! `cargo xtask fuzz` runs each [`Target`] under libFuzzer, with coverage feedback; the committed corpus in
//! `fuzz/corpus/NAME` is where it starts, and every test run replays that. A target takes arbitrary bytes. It panics when
//! a promise is broken that the rest of the daemon builds on: a bound, a rectangle inside its frame, text without control
//! characters. What the bytes are worth is no failure: refusing them is what parsers are for.
//!
//! Part of the library only with the feature `fuzzing`.

use crate::display::fuzz as display;
use crate::guest::fuzz as guest;
use crate::hypervisor::qemu::fuzz as qemu;

/// Something that reads bytes from outside.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line and of its corpus.
    pub name: &'static str,
    /// Reads these bytes; panics when a promise is broken.
    pub run: fn(&[u8]),
}

/// All targets, by name.
pub const TARGETS: &[Target] = &[
    Target { name: "attach", run: guest::attach },
    Target { name: "clipboard", run: guest::clipboard },
    Target { name: "exec", run: guest::exec },
    Target { name: "file", run: guest::file },
    Target { name: "focus", run: guest::focus },
    Target { name: "heartbeat", run: guest::heartbeat },
    Target { name: "input", run: guest::input },
    Target { name: "preface", run: guest::preface },
    Target { name: "probe", run: guest::probe },
    Target { name: "qmp", run: qemu::qmp },
    Target { name: "screen", run: display::screen },
    Target { name: "screendump", run: qemu::screendump },
    Target { name: "session", run: guest::session },
    Target { name: "settle", run: guest::settle },
    Target { name: "status", run: guest::status },
    Target { name: "windows", run: guest::windows },
];

/// Most bytes that one input may make a target hold at once, beyond the input: what the largest message becomes when
/// it is read, and some frames of the size that [`display::MAX_PIXELS`] leaves.
pub const MAX_HELD: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_committed_corpus_breaks_no_promise() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for target in TARGETS {
            let folder = corpus.join(target.name);
            let files = std::fs::read_dir(&folder).expect("every target has a corpus");
            let mut seen = 0;
            for file in files {
                let path = file.expect("entry").path();
                let bytes = std::fs::read(&path).expect("read");
                let outcome = std::panic::catch_unwind(|| (target.run)(&bytes));
                assert!(outcome.is_ok(), "{} fails on {}", target.name, path.display());
                seen += 1;
            }
            assert!(seen > 0, "the corpus of {} is empty", target.name);
        }
        let folders = std::fs::read_dir(&corpus).expect("a corpus").count();
        assert_eq!(folders, TARGETS.len(), "a corpus of no target");
    }

    #[test]
    fn targets_are_in_order_and_named_once() {
        assert!(TARGETS.windows(2).all(|two| two[0].name < two[1].name));
    }
}
