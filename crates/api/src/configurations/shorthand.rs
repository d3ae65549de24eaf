//! Reading of values that people may write in several forms, such as `8`, `"8GB..16GB"` or
//! `{min: 8}`.
//!
//! Serde's own unions (`untagged`, `flatten`, `tag`) buffer their input, and a buffered value no
//! longer knows its line. So each such type says what it makes of each form, and one visitor here
//! does the rest.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};

/// Asks our YAML reader for numbers as they are written, so that `3.10` does not become `3.1`.
/// Other formats pass the value through.
pub(crate) const AS_WRITTEN: &str = "$dstack::as_written";

/// Why a value is not taken.
pub(crate) enum Refusal {
    /// Nothing of this kind is accepted; the message names what is.
    WrongKind,
    /// The kind is right and the value is not.
    Because(String),
    /// The text is none of these words.
    UnknownWord(String, &'static [&'static str]),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Refusal::Because(reason)
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Self {
        Refusal::Because(reason.to_owned())
    }
}

/// A type with more than one written form. What a type does not define, it refuses.
pub(crate) trait Shorthand: Sized {
    /// What is accepted, for "expected …".
    const EXPECTING: &'static str;
    /// Whether numbers arrive as text, digit for digit as written.
    const NUMBERS_AS_WRITTEN: bool = false;

    fn from_null() -> Result<Self, Refusal> {
        Err(Refusal::WrongKind)
    }

    fn from_bool(_value: bool) -> Result<Self, Refusal> {
        Err(Refusal::WrongKind)
    }

    fn from_integer(_value: i64) -> Result<Self, Refusal> {
        Err(Refusal::WrongKind)
    }

    fn from_number(_value: f64) -> Result<Self, Refusal> {
        Err(Refusal::WrongKind)
    }

    fn from_text(_text: &str) -> Result<Self, Refusal> {
        Err(Refusal::WrongKind)
    }

    fn from_list<'de, A: SeqAccess<'de>>(_list: A) -> Result<Self, A::Error> {
        Err(de::Error::invalid_type(Unexpected::Seq, &Self::EXPECTING))
    }

    fn from_map<'de, A: MapAccess<'de>>(_map: A) -> Result<Self, A::Error> {
        Err(de::Error::invalid_type(Unexpected::Map, &Self::EXPECTING))
    }
}

/// Reads `T` in whichever form it comes.
pub(crate) fn parse<'de, T: Shorthand, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let visitor = ShorthandVisitor(PhantomData);
    if T::NUMBERS_AS_WRITTEN {
        deserializer.deserialize_newtype_struct(AS_WRITTEN, visitor)
    } else {
        deserializer.deserialize_any(visitor)
    }
}

/// Reads the mapping form of a value into `T`.
pub(crate) fn fields<'de, T: Deserialize<'de>, A: MapAccess<'de>>(map: A) -> Result<T, A::Error> {
    T::deserialize(MapAccessDeserializer::new(map))
}

/// Reads the list form of a value.
pub(crate) fn items<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(list: A) -> Result<Vec<T>, A::Error> {
    Vec::deserialize(SeqAccessDeserializer::new(list))
}

/// Gives a [`Shorthand`] type its `Deserialize`.
macro_rules! impl_shorthand {
    ($($type:ty),+ $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::configurations::shorthand::parse(deserializer)
            }
        }
    )+};
}
pub(crate) use impl_shorthand;

struct ShorthandVisitor<T>(PhantomData<T>);

impl<T: Shorthand> ShorthandVisitor<T> {
    fn answer<E: de::Error>(result: Result<T, Refusal>, found: Unexpected<'_>) -> Result<T, E> {
        result.map_err(|refusal| match refusal {
            Refusal::WrongKind => E::invalid_type(found, &T::EXPECTING),
            Refusal::Because(reason) => E::custom(reason),
            Refusal::UnknownWord(word, known) => E::unknown_variant(&word, known),
        })
    }
}

impl<'de, T: Shorthand> Visitor<'de> for ShorthandVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTING)
    }

    fn visit_unit<E: de::Error>(self) -> Result<T, E> {
        Self::answer(T::from_null(), Unexpected::Unit)
    }

    fn visit_none<E: de::Error>(self) -> Result<T, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<T, E> {
        Self::answer(T::from_bool(value), Unexpected::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        Self::answer(T::from_integer(value), Unexpected::Signed(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        let result = match i64::try_from(value) {
            Ok(value) => T::from_integer(value),
            Err(_) => Err(format!("`{value}` is too large").into()),
        };
        Self::answer(result, Unexpected::Unsigned(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<T, E> {
        Self::answer(T::from_number(value), Unexpected::Float(value))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        Self::answer(T::from_text(text), Unexpected::Str(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::from_list(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::from_map(map)
    }
}

/// An integer from `MIN` to `MAX`, also written as text (`"2"`), for `deserialize_with`.
pub(crate) fn integer<'de, D, T, const MIN: i64, const MAX: i64>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i64>,
{
    let Integer(value) = parse::<Integer<MIN, MAX>, D>(deserializer)?;
    T::try_from(value).map_err(|_| de::Error::custom(format!("`{value}` is out of range")))
}

/// As [`integer`], or null.
pub(crate) fn optional_integer<'de, D, T, const MIN: i64, const MAX: i64>(
    deserializer: D,
) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<i64>,
{
    let Some(Integer(value)) = Option::<Integer<MIN, MAX>>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let value = T::try_from(value).map_err(|_| de::Error::custom(format!("`{value}` is out of range")))?;
    Ok(Some(value))
}

struct Integer<const MIN: i64, const MAX: i64>(i64);

impl<const MIN: i64, const MAX: i64> Shorthand for Integer<MIN, MAX> {
    const EXPECTING: &'static str = "an integer";

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        if (MIN..=MAX).contains(&value) {
            return Ok(Integer(value));
        }
        // A limit that is only the width of the type would tell the user nothing.
        let bounds =
            if MAX < i32::MAX.into() { format!("from {MIN} to {MAX}") } else { format!("of at least {MIN}") };
        Err(format!("expected an integer {bounds}, found `{value}`").into())
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        let value: i64 = text.trim().parse().map_err(|_| Refusal::WrongKind)?;
        Self::from_integer(value)
    }
}

impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for Integer<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse(deserializer)
    }
}

/// A number above zero or null, for `deserialize_with`.
pub(crate) fn optional_positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Ok(Option::<Positive>::deserialize(deserializer)?.map(|positive| positive.0))
}

/// A number above zero, for `deserialize_with`.
pub(crate) fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Positive::deserialize(deserializer)?.0)
}

struct Positive(f64);

impl Shorthand for Positive {
    const EXPECTING: &'static str = "a number above 0";

    fn from_integer(value: i64) -> Result<Self, Refusal> {
        Self::from_number(value as f64)
    }

    fn from_number(value: f64) -> Result<Self, Refusal> {
        if value.is_finite() && 0.0 < value {
            return Ok(Positive(value));
        }
        Err(format!("expected a number above 0, found `{value}`").into())
    }

    fn from_text(text: &str) -> Result<Self, Refusal> {
        let value: f64 = text.trim().parse().map_err(|_| Refusal::WrongKind)?;
        Self::from_number(value)
    }
}

impl_shorthand!(Positive);

/// Text or null, null being the empty text, for `deserialize_with`.
pub(crate) fn text_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}
