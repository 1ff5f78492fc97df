//! A GGUF file, memory-mapped. Everything it says is checked against its own size before it is used.
//!
//! Format: GGUF versions 2 and 3, little-endian (ggml's docs/gguf.md).

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use cpu_kernels::Format;
use enginecmp_shim::{Failure, Result};
use memmap2::Mmap;

use crate::metadata::Value;

const MAGIC: &[u8] = b"GGUF";
const MOST_DIMENSIONS: usize = 4;
/// Values of an array that are kept; longer ones are a tokenizer's, which the engine does not read.
const MOST_KEPT: usize = 4096;
const MOST_NESTED: usize = 4;

/// Where a tensor lies and what it is made of.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Row length last, as the computation sees it; GGUF writes it first.
    pub shape: Vec<usize>,
    /// None for a type that no kernel here reads.
    pub format: Option<Format>,
    /// GGML's number of the type.
    pub type_number: u32,
    /// In the mapping; empty for a type that is not known.
    bytes: Range<usize>,
}

#[derive(Debug)]
pub struct GgufFile {
    map: Mmap,
    pub metadata: HashMap<String, Value>,
    pub tensors: HashMap<String, Tensor>,
}

impl GgufFile {
    /// Maps a file and reads its header.
    ///
    /// # Errors
    ///
    /// [`Failure::Unsupported`] for whatever is no whole, well-formed GGUF file.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let unreadable = |error: &dyn std::fmt::Display| {
            Failure::Unsupported(format!("expected a GGUF file that can be read at {shown}, got: {error}"))
        };
        let file = fs::File::open(path).map_err(|error| unreadable(&error))?;
        // SAFETY: the mapping is read only. Whoever shortens a file that is in use ends this process; every engine
        // that maps its weights has that in common.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| unreadable(&error))?;
        let (metadata, tensors) = read_header(&map).map_err(|said| unreadable(&said))?;
        Ok(Self { map, metadata, tensors })
    }

    /// The bytes of a tensor: rows of its format, one after the other.
    pub fn bytes(&self, tensor: &Tensor) -> &[u8] {
        &self.map[tensor.bytes.clone()]
    }

    /// Gives the pages of a tensor that has been copied back to the system; they are read again when they are needed.
    pub fn forget(&self, tensor: &Tensor) {
        #[cfg(unix)]
        {
            const PAGE: usize = 4096;
            let (start, end) = (tensor.bytes.start.next_multiple_of(PAGE), tensor.bytes.end / PAGE * PAGE);
            if start < end {
                // SAFETY: the mapping is of a file, private and never written, so its pages come back as they were.
                let done =
                    unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
                drop(done); // advice that is not taken costs memory and nothing else
            }
        }
    }

    /// Tells the system that the whole file is wanted soon.
    pub fn expect(&self) {
        #[cfg(unix)]
        drop(self.map.advise(memmap2::Advice::WillNeed));
    }
}

type Said<T> = std::result::Result<T, String>;
type Header = (HashMap<String, Value>, HashMap<String, Tensor>);

/// Reads the header of a file that is in memory.
pub fn read_header(bytes: &[u8]) -> Said<Header> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4)? != MAGIC {
        return Err("no GGUF magic at its start".to_owned());
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF version {version}, 2 and 3 are known"));
    }
    // The smallest tensor takes 32 bytes and the smallest key 13: no count makes anything larger than the file.
    let tensor_count = cursor.count(32, "tensors")?;
    let key_count = cursor.count(13, "keys")?;
    let mut metadata = HashMap::new();
    for _ in 0..key_count {
        let key = cursor.text()?.to_owned();
        let kind = cursor.u32()?;
        let value = cursor.value(kind, 0)?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("the key '{}' twice", shortened(&key)));
        }
    }
    let mut found = Vec::new();
    for _ in 0..tensor_count {
        let name = cursor.text()?.to_owned();
        let dimensions = cursor.u32()? as usize;
        if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
            return Err(format!("{dimensions} dimensions in tensor '{}'", shortened(&name)));
        }
        let mut shape = Vec::with_capacity(dimensions);
        for _ in 0..dimensions {
            shape.push(usize::try_from(cursor.u64()?).map_err(|_| "a dimension beyond memory".to_owned())?);
        }
        shape.reverse();
        let type_number = cursor.u32()?;
        let offset = usize::try_from(cursor.u64()?).map_err(|_| "an offset beyond memory".to_owned())?;
        found.push((name, shape, type_number, offset));
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => value.whole().filter(|n| n.is_power_of_two() && *n <= 1 << 20).ok_or("a wrong alignment")?,
    };
    let data_start = cursor.at.next_multiple_of(alignment);
    let mut tensors = HashMap::with_capacity(found.len());
    for (name, shape, type_number, offset) in found {
        let tensor = place(shape, type_number, data_start, offset, alignment, bytes.len())
            .map_err(|said| format!("tensor '{}' with {said}", shortened(&name)))?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(format!("the tensor '{}' twice", shortened(&name)));
        }
    }
    Ok((metadata, tensors))
}

fn place(
    shape: Vec<usize>,
    type_number: u32,
    data_start: usize,
    offset: usize,
    alignment: usize,
    file_bytes: usize,
) -> Said<Tensor> {
    if !offset.is_multiple_of(alignment) {
        return Err(format!("an offset that is not a multiple of {alignment}"));
    }
    let format = format_of(type_number);
    let start = data_start.checked_add(offset).ok_or("an offset beyond memory")?;
    let Some(known) = format else {
        return Ok(Tensor { shape, format, type_number, bytes: 0..0 });
    };
    let (columns, rows) = (shape[shape.len() - 1], &shape[..shape.len() - 1]);
    if columns == 0 || rows.contains(&0) {
        return Err(format!("an empty shape {shape:?}"));
    }
    let size = known.row_bytes(columns).and_then(|row| rows.iter().try_fold(row, |size, n| size.checked_mul(*n)));
    let size = size.ok_or_else(|| format!("shape {shape:?}, which its type cannot have"))?;
    match start.checked_add(size) {
        Some(end) if end <= file_bytes => Ok(Tensor { shape, format, type_number, bytes: start..end }),
        _ => Err(format!("{size} bytes from byte {start} on, in a file of {file_bytes}")),
    }
}

/// The kernels' name of a GGML type (`enum ggml_type`).
fn format_of(type_number: u32) -> Option<Format> {
    Some(match type_number {
        0 => Format::F32,
        1 => Format::F16,
        2 => Format::Q4_0,
        3 => Format::Q4_1,
        6 => Format::Q5_0,
        7 => Format::Q5_1,
        8 => Format::Q8_0,
        12 => Format::Q4_K,
        13 => Format::Q5_K,
        14 => Format::Q6_K,
        30 => Format::BF16,
        _ => return None,
    })
}

/// Text of a file as an error shows it.
fn shortened(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_default).collect()
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Said<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("its end at byte {}, in the middle of the header", self.bytes.len()))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Said<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were taken"))
    }

    fn u32(&mut self) -> Said<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Said<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of things that take at least `least` bytes each in what is left of the file.
    fn count(&mut self, least: usize, what: &str) -> Said<usize> {
        let count = self.u64()?;
        let most = (self.bytes.len() - self.at) / least;
        usize::try_from(count).ok().filter(|count| *count <= most).ok_or_else(|| format!("{count} {what}"))
    }

    fn text(&mut self) -> Said<&'a str> {
        let length = self.count(1, "bytes of text")?;
        str::from_utf8(self.take(length)?).map_err(|_| "text that is no UTF-8".to_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Said<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.array::<1>()?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Number(f64::from(f32::from_le_bytes(self.array()?))),
            7 => Value::Flag(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?.to_owned()),
            9 => self.list(depth)?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Number(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("a value of type {other}")),
        })
    }

    fn list(&mut self, depth: usize) -> Said<Value> {
        if depth == MOST_NESTED {
            return Err(format!("lists {MOST_NESTED} deep"));
        }
        let kind = self.u32()?;
        let width = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            8 | 10 | 11 | 12 => 8,
            9 => 12,
            _ => 4,
        };
        let count = self.count(width, "values in a list")?;
        if count > MOST_KEPT {
            for _ in 0..count {
                if kind == 8 {
                    let length = self.count(1, "bytes of text")?;
                    self.take(length)?;
                } else {
                    self.value(kind, depth + 1)?;
                }
            }
            return Ok(Value::Long(count));
        }
        (0..count).map(|_| self.value(kind, depth + 1)).collect::<Said<_>>().map(Value::List)
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
