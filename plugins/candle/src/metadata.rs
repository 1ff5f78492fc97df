//! Typed access to a GGUF file's metadata below "<architecture>.".

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use enginecmp_shim::{Failure, Result, refuse};

/// Metadata of one architecture; every getter names the key when it refuses a value.
pub struct Keys<'a> {
    pub architecture: String,
    values: &'a HashMap<String, Value>,
}

impl<'a> Keys<'a> {
    pub fn new(values: &'a HashMap<String, Value>) -> Result<Self> {
        match values.get("general.architecture") {
            Some(Value::String(name)) => Ok(Self { architecture: name.clone(), values }),
            _ => Err(refuse("metadata general.architecture", "none")),
        }
    }

    /// Refuses keys outside `known`: a key that changes the computation must not be passed over.
    pub fn refuse_unknown(&self, known: &[&str]) -> Result<()> {
        let prefix = format!("{}.", self.architecture);
        let mut unknown: Vec<_> = self
            .values
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(&prefix)?, value)))
            // A count of zero experts or a flag that is off asks for nothing.
            .filter(|(key, value)| !known.contains(key) && !is_nothing(value))
            .collect();
        unknown.sort_by_key(|(key, _)| *key);
        match unknown.first() {
            Some((key, value)) => {
                let shown: String = format!("{value:?}").chars().take(40).collect();
                Err(refuse("only metadata that is implemented here", &format!("{prefix}{key} = {shown}")))
            }
            None => Ok(()),
        }
    }

    /// A whole number; `default` where the key is missing, and without one the key must be there.
    pub fn integer(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match (self.value(key)?, default) {
            (Some(value), _) => whole(value)
                .ok_or_else(|| refuse(&format!("a whole number in {}.{key}", self.architecture), &shown(value))),
            (None, Some(number)) => Ok(number),
            (None, None) => Err(self.missing(key)),
        }
    }

    /// As [`Keys::integer`], for numbers with a fraction.
    pub fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match (self.value(key)?, default) {
            (Some(Value::F32(number)), _) => Ok(f64::from(*number)),
            (Some(Value::F64(number)), _) => Ok(*number),
            (Some(value), _) => whole(value)
                .map(|number| number as f64)
                .ok_or_else(|| refuse(&format!("a number in {}.{key}", self.architecture), &shown(value))),
            (None, Some(number)) => Ok(number),
            (None, None) => Err(self.missing(key)),
        }
    }

    pub fn text(&self, key: &str, default: &str) -> Result<String> {
        match self.value(key)? {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(value) => Err(refuse(&format!("a text in {}.{key}", self.architecture), &shown(value))),
            None => Ok(default.to_owned()),
        }
    }

    fn value(&self, key: &str) -> Result<Option<&'a Value>> {
        match self.values.get(&format!("{}.{key}", self.architecture)) {
            // Some converters write one value a layer.
            Some(Value::Array(each)) => {
                let first = each.first();
                if each.iter().all(|value| Some(shown(value)) == first.map(shown)) {
                    return Ok(first);
                }
                Err(refuse(&format!("one {}.{key} for all layers", self.architecture), "several"))
            }
            found => Ok(found),
        }
    }

    fn missing(&self, key: &str) -> Failure {
        refuse(&format!("metadata {}.{key}", self.architecture), "none")
    }
}

fn whole(value: &Value) -> Option<usize> {
    let number = match value {
        Value::U64(number) => *number,
        Value::I64(number) => u64::try_from(*number).ok()?,
        Value::I32(number) => u64::try_from(*number).ok()?,
        Value::I16(number) => u64::try_from(*number).ok()?,
        Value::I8(number) => u64::try_from(*number).ok()?,
        other => other.to_u64().ok()?,
    };
    usize::try_from(number).ok()
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Bool(flag) => !flag,
        Value::F32(number) => *number == 0.0,
        Value::F64(number) => *number == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Array(each) => each.iter().all(is_nothing),
        other => whole(other) == Some(0),
    }
}

fn shown(value: &Value) -> String {
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, Value)]) -> HashMap<String, Value> {
        let mut all: HashMap<_, _> = pairs.iter().map(|(key, value)| (format!("llama.{key}"), value.clone())).collect();
        all.insert("general.architecture".to_owned(), Value::String("llama".to_owned()));
        all
    }

    #[test]
    fn numbers_of_every_width_are_read() {
        let all = values(&[
            ("a", Value::U32(3)),
            ("b", Value::I64(4)),
            ("c", Value::Array(vec![Value::U8(5), Value::U8(5)])),
            ("d", Value::F64(0.5)),
            ("e", Value::I32(-1)),
        ]);
        let keys = Keys::new(&all).unwrap();
        assert_eq!(keys.integer("a", None).unwrap(), 3);
        assert_eq!(keys.integer("b", None).unwrap(), 4);
        assert_eq!(keys.integer("c", None).unwrap(), 5);
        assert!((keys.number("d", None).unwrap() - 0.5).abs() < 1e-12);
        assert!((keys.number("a", None).unwrap() - 3.0).abs() < 1e-12);
        assert!(keys.integer("e", None).unwrap_err().to_string().contains("a whole number in llama.e"));
    }

    #[test]
    fn a_missing_key_is_named() {
        let all = values(&[]);
        let keys = Keys::new(&all).unwrap();
        assert!(keys.integer("block_count", None).unwrap_err().to_string().contains("metadata llama.block_count"));
        assert_eq!(keys.integer("block_count", Some(7)).unwrap(), 7);
    }

    #[test]
    fn layers_that_differ_are_refused() {
        let all = values(&[("head_count", Value::Array(vec![Value::U32(5), Value::U32(6)]))]);
        let failed = Keys::new(&all).unwrap().integer("head_count", None).unwrap_err();
        assert!(failed.to_string().contains("one llama.head_count for all layers"));
    }

    #[test]
    fn only_a_key_that_asks_for_something_is_refused() {
        let all = values(&[("expert_count", Value::U32(0)), ("known", Value::U32(9))]);
        Keys::new(&all).unwrap().refuse_unknown(&["known"]).unwrap();
        let all = values(&[("expert_count", Value::U32(8))]);
        let failed = Keys::new(&all).unwrap().refuse_unknown(&["known"]).unwrap_err();
        assert!(failed.to_string().contains("llama.expert_count = U32(8)"));
    }
}
