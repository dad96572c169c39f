//! Decoding a layer blob to its tar, by what its first bytes say rather than by its media type.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

/// Bytes read from the source at a time: large enough that a system call costs nothing beside
/// inflating what it brought.
const READ_BYTES: usize = 128 << 10;

/// Bytes that tell the encodings apart.
const MAGIC_BYTES: usize = 6;

/// How a layer blob is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames, skippable frames among them.
    Zstd,
    /// The tar itself.
    Plain,
}

impl Encoding {
    /// The encoding of a blob that begins with `head`.
    ///
    /// `Err` names a compression that OCI layers do not have.
    pub fn detect(head: &[u8]) -> Result<Self, &'static str> {
        match head {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err("xz"),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => Err("bzip2"),
            _ => Ok(Self::Plain),
        }
    }

    /// Its name as a user knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Plain => "tar",
        }
    }
}

/// The tar inside a layer blob, as a reader with constant memory.
pub struct Decoder<R: BufRead> {
    encoding: Encoding,
    inner: Inner<R>,
}

impl<R: BufRead> std::fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("encoding", &self.encoding)
            .finish_non_exhaustive()
    }
}

enum Inner<R: BufRead> {
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(zstd::stream::read::Decoder<'static, R>),
    Plain(R),
}

type Buffered<R> = BufReader<io::Chain<io::Cursor<Vec<u8>>, R>>;

/// Looks at the first bytes of `blob` and decodes it accordingly.
///
/// Errors of kind `InvalidData` say that the blob, not the reading of it, is at fault.
pub fn decode<R: Read>(mut blob: R) -> io::Result<Decoder<Buffered<R>>> {
    let mut head = Vec::with_capacity(MAGIC_BYTES);
    blob.by_ref()
        .take(MAGIC_BYTES as u64)
        .read_to_end(&mut head)?;
    let encoding = Encoding::detect(&head).map_err(|name| {
        let text = format!("it is compressed with {name}; only gzip and zstd are understood");
        io::Error::new(io::ErrorKind::InvalidData, text)
    })?;
    let blob = BufReader::with_capacity(READ_BYTES, io::Cursor::new(head).chain(blob));
    let inner = match encoding {
        Encoding::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(blob))),
        Encoding::Zstd => Inner::Zstd(zstd::stream::read::Decoder::with_buffer(blob)?),
        Encoding::Plain => Inner::Plain(blob),
    };
    Ok(Decoder { encoding, inner })
}

impl<R: BufRead> Decoder<R> {
    /// The encoding that was found.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Gzip(gzip) => gzip.read(buffer).map_err(|e| damaged(&e, "gzip")),
            Inner::Zstd(zstd) => zstd.read(buffer).map_err(|e| damaged(&e, "zstd")),
            Inner::Plain(blob) => blob.read(buffer),
        }
    }
}

/// Words a decoder's complaint as what is wrong with the blob.
///
/// An error of the reader below arrives here too; who owns that reader asks it first.
fn damaged(error: &io::Error, name: &str) -> io::Error {
    let text = match error.kind() {
        // To the decoder, a few bytes after the last member are the start of another one.
        io::ErrorKind::UnexpectedEof if name == "gzip" => {
            "its gzip stream is cut off, or followed by bytes that are not gzip".into()
        }
        io::ErrorKind::UnexpectedEof => format!("its {name} stream is cut off"),
        _ => format!("its {name} stream is damaged ({error})"),
    };
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decoded(blob: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decode(blob)?.read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn every_encoding_gives_back_the_tar() {
        let tar = vec![7_u8; 300_000];
        let members = [gzip(&tar[..1000]), gzip(&[]), gzip(&tar[1000..])].concat();
        let skippable = [&[0x5b, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..]].concat();
        let frame = zstd::bulk::compress(&tar[..5000], 3).unwrap();
        let rest = zstd::bulk::compress(&tar[5000..], 3).unwrap();
        let frames = [&frame[..], &skippable, &rest, &skippable].concat();
        for blob in [tar.clone(), gzip(&tar), members, frames] {
            assert_eq!(decoded(&blob).unwrap(), tar);
        }
        assert_eq!(decoded(b"").unwrap(), b"");
    }

    #[test]
    fn a_cut_off_stream_is_called_cut_off() {
        let tar: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let zstd = zstd::bulk::compress(&tar, 1).unwrap();
        for blob in [&gzip(&tar)[..5000], &zstd[..5000]] {
            let error = decoded(blob).unwrap_err();
            assert!(error.to_string().contains("cut off"), "{error}");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn damage_and_foreign_compressions_are_named() {
        let mut blob = gzip(&vec![1; 100_000]);
        blob[40] ^= 0xff;
        let error = decoded(&blob).unwrap_err().to_string();
        assert!(error.contains("gzip stream is damaged"), "{error}");
        let error = decoded(b"\xfd7zXZ\0rest").unwrap_err().to_string();
        assert!(error.contains("xz"), "{error}");
    }
}
