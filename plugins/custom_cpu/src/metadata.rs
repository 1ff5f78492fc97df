//! Typed access to a GGUF file's metadata below "<architecture>.".

use std::collections::HashMap;

use enginecmp_shim::{Failure, Result, refuse};

/// One value of a file's metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Number(f64),
    Flag(bool),
    Text(String),
    List(Vec<Value>),
    /// A list of so many values that were passed over.
    Long(usize),
}

impl Value {
    pub fn whole(&self) -> Option<usize> {
        match self {
            Self::Unsigned(number) => usize::try_from(*number).ok(),
            Self::Signed(number) => usize::try_from(*number).ok(),
            _ => None,
        }
    }

    fn is_nothing(&self) -> bool {
        match self {
            Self::Flag(flag) => !flag,
            Self::Number(number) => *number == 0.0,
            Self::Text(text) => text.is_empty(),
            Self::List(each) => each.iter().all(Self::is_nothing),
            Self::Long(count) => *count == 0,
            other => other.whole() == Some(0),
        }
    }

    fn shown(&self) -> String {
        format!("{self:?}").chars().take(40).flat_map(char::escape_default).collect()
    }
}

/// Metadata of one architecture; every getter names the key when it refuses a value.
pub struct Keys<'a> {
    pub architecture: &'a str,
    values: &'a HashMap<String, Value>,
}

impl<'a> Keys<'a> {
    pub fn new(values: &'a HashMap<String, Value>) -> Result<Self> {
        match values.get("general.architecture") {
            Some(Value::Text(name)) => Ok(Self { architecture: name, values }),
            _ => Err(refuse("metadata general.architecture", "none")),
        }
    }

    /// Refuses keys outside `known`: a key that changes the computation must not be passed over.
    pub fn refuse_unknown(&self, known: &[&str]) -> Result<()> {
        let prefix = format!("{}.", self.architecture);
        // A count of zero experts or a flag that is off asks for nothing.
        let unknown = self.values.iter().filter_map(|(name, value)| Some((name.strip_prefix(&prefix)?, value)));
        match unknown.filter(|(key, value)| !known.contains(key) && !value.is_nothing()).min_by_key(|(key, _)| *key) {
            Some((key, value)) => {
                let key: String = key.chars().take(60).flat_map(char::escape_default).collect();
                Err(refuse("only metadata that is implemented here", &format!("{prefix}{key} = {}", value.shown())))
            }
            None => Ok(()),
        }
    }

    /// A whole number; `default` where the key is missing, and without one the key must be there.
    pub fn integer(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let wrong = |value: &Value| refuse(&format!("a whole number in {}.{key}", self.architecture), &value.shown());
        match (self.value(key)?, default) {
            (Some(value), _) => value.whole().ok_or_else(|| wrong(value)),
            (None, Some(number)) => Ok(number),
            (None, None) => Err(self.missing(key)),
        }
    }

    /// As [`Keys::integer`], at least 1.
    pub fn positive(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match self.integer(key, default)? {
            0 => Err(refuse(&format!("{}.{key} to be at least 1", self.architecture), "0")),
            number => Ok(number),
        }
    }

    /// As [`Keys::integer`], for finite numbers with a fraction.
    pub fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        let number = match (self.value(key)?, default) {
            (Some(Value::Number(number)), _) => Some(*number),
            (Some(value), _) => value.whole().map(|number| number as f64),
            (None, Some(number)) => Some(number),
            (None, None) => return Err(self.missing(key)),
        };
        let got = || self.value(key).ok().flatten().map_or_else(String::new, Value::shown);
        number
            .filter(|number| number.is_finite())
            .ok_or_else(|| refuse(&format!("a number in {}.{key}", self.architecture), &got()))
    }

    pub fn text(&self, key: &str, default: &'a str) -> Result<&'a str> {
        match self.value(key)? {
            Some(Value::Text(text)) => Ok(text),
            Some(value) => Err(refuse(&format!("a text in {}.{key}", self.architecture), &value.shown())),
            None => Ok(default),
        }
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key)? {
            Some(Value::Flag(flag)) => Ok(*flag),
            Some(value) => Err(refuse(&format!("a flag in {}.{key}", self.architecture), &value.shown())),
            None => Ok(default),
        }
    }

    fn value(&self, key: &str) -> Result<Option<&'a Value>> {
        match self.values.get(&format!("{}.{key}", self.architecture)) {
            // Some converters write one value a layer.
            Some(Value::List(each)) => {
                let first = each.first();
                if each.iter().all(|value| Some(value) == first) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, Value)]) -> HashMap<String, Value> {
        let mut all: HashMap<_, _> = pairs.iter().map(|(key, value)| (format!("llama.{key}"), value.clone())).collect();
        all.insert("general.architecture".to_owned(), Value::Text("llama".to_owned()));
        all
    }

    #[test]
    fn numbers_are_read_whatever_wrote_them() {
        let all = values(&[
            ("a", Value::Unsigned(3)),
            ("b", Value::Signed(4)),
            ("c", Value::List(vec![Value::Unsigned(5), Value::Unsigned(5)])),
            ("d", Value::Number(0.5)),
            ("e", Value::Signed(-1)),
            ("f", Value::Number(f64::NAN)),
            ("g", Value::Unsigned(0)),
        ]);
        let keys = Keys::new(&all).unwrap();
        assert_eq!(["a", "b", "c"].map(|key| keys.integer(key, None).unwrap()), [3, 4, 5]);
        assert_eq!(["a", "d"].map(|key| keys.number(key, None).unwrap()), [3.0, 0.5]);
        assert!(keys.integer("e", None).unwrap_err().to_string().contains("a whole number in llama.e"));
        assert!(keys.number("f", None).unwrap_err().to_string().contains("a number in llama.f"));
        assert!(keys.positive("g", None).unwrap_err().to_string().contains("llama.g to be at least 1"));
        assert!(keys.integer("block_count", None).unwrap_err().to_string().contains("metadata llama.block_count"));
        assert_eq!(keys.integer("block_count", Some(7)).unwrap(), 7);
    }

    #[test]
    fn layers_that_differ_are_refused() {
        let all = values(&[("head_count", Value::List(vec![Value::Unsigned(5), Value::Unsigned(6)]))]);
        let failed = Keys::new(&all).unwrap().integer("head_count", None).unwrap_err();
        assert!(failed.to_string().contains("one llama.head_count for all layers"));
    }

    #[test]
    fn only_a_key_that_asks_for_something_is_refused() {
        let all = values(&[("expert_count", Value::Unsigned(0)), ("known", Value::Unsigned(9))]);
        Keys::new(&all).unwrap().refuse_unknown(&["known"]).unwrap();
        let all = values(&[("expert_count", Value::Unsigned(8))]);
        let failed = Keys::new(&all).unwrap().refuse_unknown(&["known"]).unwrap_err();
        assert!(failed.to_string().contains("llama.expert_count = Unsigned(8)"));
    }
}
