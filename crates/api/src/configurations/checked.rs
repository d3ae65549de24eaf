//! Declares the structs of configurations: unknown keys are refused and the rules between keys are
//! checked wherever a value is read, be it YAML or JSON.

/// The rules between the keys of one mapping.
pub(crate) trait Check {
    /// Checks the rules and settles what only the whole can settle, such as default names.
    /// The error names the key in backticks; that is where the reader points.
    fn check(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// Declares a struct whose `Deserialize` refuses unknown keys and ends with [`Check::check`].
///
/// The fields are read into a twin, because a struct with a derived `Deserialize` has no place for
/// a check and a hand-written visitor would repeat every key.
macro_rules! checked {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)+
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(serde::Deserialize)]
                #[serde(deny_unknown_fields, expecting = "a mapping")]
                struct Fields {
                    $($(#[$field_meta])* $field: $type,)+
                }
                let fields = Fields::deserialize(deserializer)?;
                let mut value = $name { $($field: fields.$field,)+ };
                $crate::configurations::checked::Check::check(&mut value)
                    .map_err(serde::de::Error::custom)?;
                Ok(value)
            }
        }
    };
}
pub(crate) use checked;

/// Declares a type with one value, for discriminators such as `type: task`.
macro_rules! constant {
    ($(#[$meta:meta])* pub struct $name:ident = $text:literal;) => {
        $(#[$meta])*
        #[derive(
            Debug,
            Clone,
            Copy,
            Default,
            PartialEq,
            Eq,
            serde::Serialize,
            serde::Deserialize,
            schemars::JsonSchema,
        )]
        #[schemars(inline)]
        pub enum $name {
            /// The only value.
            #[default]
            #[serde(rename = $text)]
            Only,
        }
    };
}
pub(crate) use constant;
