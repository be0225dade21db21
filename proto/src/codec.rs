//! How messages go into bytes and back: as tonic's own codec does it, with smaller buffers to begin with.
//!
//! tonic gives each message that is sent and each stream that is read 8 KiB. Most messages have a few hundred bytes, and a
//! daemon keeps a stream of heartbeats open for every VM that runs. Larger messages still grow their buffer once.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Bytes of a buffer at first.
const BUFFER: usize = 1 << 10;
/// Bytes of messages of one stream that are sent together, as tonic has it.
const TOGETHER: usize = 32 << 10;

/// The codec of all generated clients and servers.
#[derive(Clone, Copy, Debug)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, TOGETHER))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, TOGETHER))
    }
}
