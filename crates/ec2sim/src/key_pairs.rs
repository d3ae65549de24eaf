//! Key pairs whose public half was brought by the user.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::call::Call;
use crate::error::ApiError;
use crate::filters::{Filter, TagSpecification, Tags, tag_set, tags_by_kind};
use crate::ledger::Kind;
use crate::xml;

/// A key pair, of which only the public half is known.
#[derive(Debug)]
pub(crate) struct KeyPair {
    id: String,
    name: String,
    pub(crate) public_key: String,
    fingerprint: String,
    key_type: &'static str,
    pub(crate) tags: Tags,
    made_at: Timestamp,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct NewKey {
    key_name: String,
    public_key_material: String,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// ImportKeyPair.
pub(crate) fn import_key_pair(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let new: NewKey = call.read()?;
    let tags = tags_by_kind(&new.tag_specifications, &["key-pair"])?.remove("key-pair");
    if tags.is_some() {
        call.permit("ec2:CreateTags")?;
    }
    let wrong = || ApiError::client("InvalidKey.Format", "Key is not in valid OpenSSH public key format");
    let material = STANDARD.decode(&new.public_key_material).map_err(|_| wrong())?;
    let public_key = String::from_utf8(material).map_err(|_| wrong())?;
    let mut words = public_key.split_whitespace();
    let key_type = match words.next() {
        Some("ssh-rsa") => "rsa",
        Some("ssh-ed25519") => "ed25519",
        _ => return Err(wrong()),
    };
    let blob = words.next().and_then(|blob| STANDARD.decode(blob).ok()).ok_or_else(wrong)?;
    if call.region().key_pairs.contains_key(&new.key_name) {
        let message = format!("The keypair '{}' already exists.", new.key_name);
        return Err(ApiError::client("InvalidKeyPair.Duplicate", message));
    }
    call.proceed()?;
    let (region, rest) = call.split();
    let key = KeyPair {
        id: rest.ids.resource("key"),
        name: new.key_name.clone(),
        fingerprint: STANDARD.encode(Sha256::digest(&blob)),
        public_key,
        key_type,
        tags: tags.unwrap_or_default(),
        made_at: rest.now,
    };
    rest.ledger.made(Kind::KeyPair, &new.key_name, &region.name, rest.action, rest.now, &key.tags);
    let answer = json!({
        "KeyName": key.name,
        "KeyPairId": key.id,
        "KeyFingerprint": key.fingerprint,
        "Tags": tag_set(&key.tags),
    });
    region.key_pairs.insert(new.key_name, key);
    Ok(answer)
}

/// How a key that is not there is refused.
pub(crate) fn not_found(name: &str) -> ApiError {
    ApiError::client("InvalidKeyPair.NotFound", format!("The key pair '{name}' does not exist"))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Asked {
    #[serde(default)]
    filters: Vec<Filter>,
    #[serde(default)]
    key_names: Vec<String>,
    #[serde(default)]
    include_public_key: bool,
}

/// DescribeKeyPairs.
pub(crate) fn describe_key_pairs(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: Asked = call.read()?;
    let keys = crate::network::select(&call.region().key_pairs, &asked.key_names, not_found)?;
    let rows = keys.into_iter().map(|key| {
        json!({
            "KeyName": key.name,
            "KeyPairId": key.id,
            "KeyFingerprint": key.fingerprint,
            "KeyType": key.key_type,
            "CreateTime": xml::time(key.made_at),
            "PublicKey": asked.include_public_key.then_some(&key.public_key),
            "Tags": tag_set(&key.tags),
        })
    });
    let paths = [("key-name", "KeyName"), ("key-pair-id", "KeyPairId"), ("fingerprint", "KeyFingerprint")];
    let rows = rows.collect();
    let rows = call.filters(asked.filters)?.keep(rows, &paths)?;
    Ok(json!({"KeyPairs": rows}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Deletion {
    key_name: String,
}

/// DeleteKeyPair: a key that is not there is as good as deleted.
pub(crate) fn delete_key_pair(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let name = call.read::<Deletion>()?.key_name;
    call.proceed()?;
    let (region, rest) = call.split();
    let removed = region.key_pairs.remove(&name);
    rest.ledger.gone(Kind::KeyPair, &name, rest.now);
    Ok(json!({"Return": true, "KeyPairId": removed.map(|key| key.id)}))
}
