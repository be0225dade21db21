//! The preface that starts a session on a guest stream, and how both ends find it again among stale bytes.
//!
//! A virtual port outlives the processes at its ends: after a resume or a crash either side may read the rest of an
//! older conversation. So a session starts with a fixed-size record from the guest, scanned for by its magic, and the
//! host's answer repeats the guest's nonce: an answer to an older preface cannot pass for the present one.
//!
//! ```text
//! guest -> host   HELLO   magic[16]  version u8  nonce[16]  secret[32]
//! host  -> guest  WELCOME magic[16]  version u8  nonce[16]  epoch u64 (big endian)
//! host  -> guest  HTTP/2 client preface, and gRPC from here on
//! ```
//!
//! A host that opens a port whose guest has not noticed that another host left hears nothing: closing and opening can be
//! too quick to be seen apart. After half a second of silence it sends [`Welcome::KNOCK`]; the guest drops the session it
//! had and sends a new HELLO. A host that has knocked may see more than one HELLO, of which the last one counts.
//!
//! `secret` proves the guest's identity where the transport does not (TCP); elsewhere it is all zeroes.

/// Version of this record and of the protocol behind it. A peer of another version is refused by name.
pub const VERSION: u8 = 1;

/// Starts the guest's record. The first byte occurs nowhere else in it, so a scanner never has to back up.
pub const HELLO_MAGIC: [u8; 16] = *b"\xf5hvkube-hello\r\n\x00";
/// Starts the host's record.
pub const WELCOME_MAGIC: [u8; 16] = *b"\xf6hvkube-welco\r\n\x00";

/// Bytes of a [`Hello`].
pub const HELLO_LEN: usize = 16 + 1 + 16 + 32;
/// Bytes of a [`Welcome`].
pub const WELCOME_LEN: usize = 16 + 1 + 16 + 8;

/// How many stale bytes a scanner skips before it gives the stream up: more than both ends' buffers can hold.
pub const MAX_SKIPPED: usize = 16 << 20;

/// The guest's half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Version the guest speaks.
    pub version: u8,
    /// Random per session.
    pub nonce: [u8; 16],
    /// Per-VM secret for transports without an identity of their own; zeroes elsewhere.
    pub secret: [u8; 32],
}

/// The host's half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Version the host speaks.
    pub version: u8,
    /// The nonce of the [`Hello`] this answers.
    pub nonce: [u8; 16],
    /// Epoch of the session.
    pub epoch: u64,
}

impl Hello {
    /// As bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let mut out = [0; HELLO_LEN];
        out[..16].copy_from_slice(&HELLO_MAGIC);
        out[16] = self.version;
        out[17..33].copy_from_slice(&self.nonce);
        out[33..].copy_from_slice(&self.secret);
        out
    }

    /// Whether it carries this secret; takes the same time wherever the two differ.
    #[must_use]
    pub fn proves(&self, secret: &[u8; 32]) -> bool {
        let difference = self.secret.iter().zip(secret).fold(0, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(difference) == 0
    }

    fn decode(body: &[u8; HELLO_LEN - 16]) -> Self {
        let mut hello = Self { version: body[0], nonce: [0; 16], secret: [0; 32] };
        hello.nonce.copy_from_slice(&body[1..17]);
        hello.secret.copy_from_slice(&body[17..]);
        hello
    }
}

impl Welcome {
    /// Answers no HELLO, since nonces are random: asks for a new one. Sent in a write of its own.
    pub const KNOCK: Self = Self { version: VERSION, nonce: [0; 16], epoch: 0 };

    /// As bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; WELCOME_LEN] {
        let mut out = [0; WELCOME_LEN];
        out[..16].copy_from_slice(&WELCOME_MAGIC);
        out[16] = self.version;
        out[17..33].copy_from_slice(&self.nonce);
        out[33..].copy_from_slice(&self.epoch.to_be_bytes());
        out
    }

    fn decode(body: &[u8; WELCOME_LEN - 16]) -> Self {
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&body[1..17]);
        let mut epoch = [0; 8];
        epoch.copy_from_slice(&body[17..]);
        Self { version: body[0], nonce, epoch: u64::from_be_bytes(epoch) }
    }
}

/// Finds one record in a stream, byte by byte, so that nothing behind it is consumed.
///
/// `N` is the record's length; feed bytes until [`Scanner::push`] gives the body behind the magic.
#[derive(Debug)]
struct Scanner<const N: usize> {
    magic: [u8; 16],
    have: [u8; N],
    len: usize,
    skipped: usize,
}

impl<const N: usize> Scanner<N> {
    fn new(magic: [u8; 16]) -> Self {
        Self { magic, have: [0; N], len: 0, skipped: 0 }
    }

    /// How many more bytes can be read without passing the end of the record.
    fn wanted(&self) -> usize {
        if self.len < 16 { 16 - self.len } else { N - self.len }
    }

    fn push(&mut self, byte: u8) -> bool {
        self.have[self.len] = byte;
        self.len += 1;
        if self.len <= 16 && byte != self.magic[self.len - 1] {
            // The magic's first byte is unique in it, so only this byte can start a match.
            self.skipped += self.len;
            self.len = 0;
            if byte == self.magic[0] {
                self.have[0] = byte;
                self.len = 1;
                self.skipped -= 1;
            }
        }
        self.len == N
    }
}

/// Why a stream has no valid preface.
#[derive(Debug, PartialEq, Eq)]
pub enum PrefaceError {
    /// More than [`MAX_SKIPPED`] bytes went by.
    NotFound,
}

impl std::fmt::Display for PrefaceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound => write!(f, "no session preface in {MAX_SKIPPED} bytes"),
        }
    }
}

impl std::error::Error for PrefaceError {}

macro_rules! scanner {
    ($name:ident, $len:expr, $magic:expr, $record:ty, $doc:literal) => {
        #[doc = $doc]
        ///
        /// Read at most [`Self::wanted`] bytes, feed them, repeat until a record comes out.
        #[derive(Debug)]
        pub struct $name(Scanner<$len>);

        impl Default for $name {
            fn default() -> Self {
                Self(Scanner::new($magic))
            }
        }

        impl $name {
            /// How many bytes may be read next without passing the record's end.
            #[must_use]
            pub fn wanted(&self) -> usize {
                self.0.wanted()
            }

            /// Takes bytes in; gives the record once it is whole.
            ///
            /// # Errors
            /// [`PrefaceError::NotFound`] when too much else went by.
            pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<$record>, PrefaceError> {
                for &byte in bytes {
                    if self.0.push(byte) {
                        let mut body = [0; $len - 16];
                        body.copy_from_slice(&self.0.have[16..]);
                        self.0 = Scanner::new($magic);
                        return Ok(Some(<$record>::decode(&body)));
                    }
                }
                if self.0.skipped > MAX_SKIPPED { Err(PrefaceError::NotFound) } else { Ok(None) }
            }
        }
    };
}

scanner!(HelloScanner, HELLO_LEN, HELLO_MAGIC, Hello, "Finds the guest's [`Hello`] in a stream.");
scanner!(WelcomeScanner, WELCOME_LEN, WELCOME_MAGIC, Welcome, "Finds the host's [`Welcome`] in a stream.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_record_behind_stale_bytes_and_a_torn_magic() {
        let hello = Hello { version: 1, nonce: [7; 16], secret: [0xf5; 32] };
        let mut stream = b"old data".to_vec();
        stream.extend_from_slice(&HELLO_MAGIC[..9]);
        stream.extend_from_slice(&hello.encode());
        let mut scanner = HelloScanner::default();
        let mut at = 0;
        let found = loop {
            let n = scanner.wanted().min(stream.len() - at);
            assert!(n > 0, "stream ended before the record was found");
            let out = scanner.feed(&stream[at..at + n]).expect("bounded");
            at += n;
            if let Some(found) = out {
                break found;
            }
        };
        assert_eq!(found, hello);
        assert_eq!(at, stream.len(), "nothing behind the record was consumed, nothing of it was left");
    }

    #[test]
    fn only_the_whole_secret_proves_the_guest() {
        let mut secret = [9; 32];
        let hello = Hello { version: 1, nonce: [0; 16], secret };
        assert!(hello.proves(&secret));
        secret[31] = 8;
        assert!(!hello.proves(&secret));
    }

    #[test]
    fn welcome_round_trips_and_gives_up_on_endless_noise() {
        let welcome = Welcome { version: 1, nonce: [3; 16], epoch: u64::MAX - 5 };
        assert_eq!(WelcomeScanner::default().feed(&welcome.encode()), Ok(Some(welcome)));
        let mut scanner = WelcomeScanner::default();
        let noise = vec![0xf6; 1 << 20];
        let result = (0..=17).try_for_each(|_| scanner.feed(&noise).map(|found| assert!(found.is_none())));
        assert_eq!(result, Err(PrefaceError::NotFound));
    }
}
