use super::*;

/// A file of one key of every kind and two tensors.
fn file() -> Vec<u8> {
    let mut bytes = Vec::new();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    bytes.extend(MAGIC);
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    bytes.extend(4_u64.to_le_bytes());
    text(&mut bytes, "general.architecture");
    bytes.extend(8_u32.to_le_bytes());
    text(&mut bytes, "llama");
    text(&mut bytes, "llama.block_count");
    bytes.extend(4_u32.to_le_bytes());
    bytes.extend(7_u32.to_le_bytes());
    text(&mut bytes, "llama.epsilon");
    bytes.extend(6_u32.to_le_bytes());
    bytes.extend(0.5_f32.to_le_bytes());
    text(&mut bytes, "llama.list");
    bytes.extend(9_u32.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    bytes.extend([255, 1]);
    for (name, shape, kind, offset) in [("a", &[32_u64, 3][..], 8_u32, 0_u64), ("b", &[4], 0, 128)] {
        text(&mut bytes, name);
        bytes.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|extent| bytes.extend(extent.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32) + 128 + 16, 9);
    bytes
}

#[test]
fn a_header_says_what_was_written() {
    let bytes = file();
    let (metadata, tensors) = read_header(&bytes).unwrap();
    assert_eq!(metadata["general.architecture"], Value::Text("llama".to_owned()));
    assert_eq!(metadata["llama.block_count"], Value::Unsigned(7));
    assert_eq!(metadata["llama.epsilon"], Value::Number(0.5));
    assert_eq!(metadata["llama.list"], Value::List(vec![Value::Signed(-1), Value::Signed(1)]));
    assert_eq!((&tensors["a"].shape[..], tensors["a"].format), (&[3, 32][..], Some(Format::Q8_0)));
    assert_eq!(tensors["a"].bytes.len(), 102);
    assert_eq!(tensors["b"].bytes, bytes.len() - 16..bytes.len());
}

#[test]
fn every_cut_is_refused() {
    let bytes = file();
    for end in 0..bytes.len() {
        assert!(read_header(&bytes[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let bytes = file();
    let at = |text: &[u8]| bytes.windows(text.len()).position(|window| window == text).unwrap() + text.len();
    let changed = |at: usize, value: u64| {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        read_header(&bytes).map(drop).unwrap_err()
    };
    let tensor = at(b"\x01\0\0\0\0\0\0\0a");
    assert!(changed(8, u64::MAX).contains("tensors"));
    assert!(changed(16, 1 << 60).contains("keys"));
    assert!(changed(24, u64::MAX - 7).contains("bytes of text"));
    assert!(changed(tensor + 4, 33).contains("which its type cannot have"));
    assert!(changed(tensor + 4, 1 << 62).contains("in a file of"));
    assert!(changed(tensor + 12, 1 << 62).contains("which its type cannot have"));
    assert!(changed(tensor + 12, 0).contains("an empty shape"));
    assert!(changed(tensor + 12, 9).contains("in a file of"));
    assert!(changed(tensor + 24, 1).contains("not a multiple of 32"));
    assert!(changed(tensor + 24, u64::MAX - 31).contains("an offset beyond memory"));
}

/// Deterministic damage: whatever comes of it, it comes back.
#[test]
fn damaged_headers_neither_panic_nor_take_memory() {
    let bytes = file();
    let mut random = 1_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let (mut read, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut damaged = bytes.clone();
        for _ in 0..1 + next(4) {
            let at = next(damaged.len());
            damaged[at] = [0, 1, 0x7f, 0x80, 0xff, next(256) as u8][next(6)];
        }
        match read_header(&damaged) {
            Ok((_, tensors)) => {
                read += 1;
                assert!(tensors.values().all(|tensor| tensor.bytes.end <= damaged.len()));
            }
            Err(_) => refused += 1,
        }
    }
    assert!(read > 1000 && refused > 1000, "{read} were read, {refused} refused");
}
