//! Who asks: signatures of version 4, checked in form and, where the secret is known, in substance.
//!
//! The three kinds of service refuse the same mistakes with different words; each gets its own here.

use std::collections::BTreeMap;

use hmac::{Hmac, Mac as _};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::ApiError;
use crate::model::Protocol;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// How far the caller's clock may be away from ours.
const MOST_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// Keys that may be used.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// What names the key.
    pub access_key: String,
    /// What signs with it. Without one, signatures are checked in form only.
    #[serde(default)]
    pub secret_key: Option<String>,
    /// What must be sent with keys that were given out for a time.
    #[serde(default)]
    pub session_token: Option<String>,
    /// Whose key it is.
    pub arn: String,
    /// When the key stops being taken.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// The actions that the key may be used for, as `ec2:Describe*`. Without a list it may be used for all.
    #[serde(default)]
    pub allowed: Option<Vec<String>>,
}

impl Credential {
    /// Whether the policy lets `action` pass, as `ec2:RunInstances`.
    pub(crate) fn allows(&self, action: &str) -> bool {
        let Some(allowed) = &self.allowed else { return true };
        let action = action.to_ascii_lowercase();
        allowed.iter().any(|pattern| crate::filters::matches(&pattern.to_ascii_lowercase(), &action))
    }
}

/// A request as it came in.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The method, in capitals.
    pub method: String,
    /// The path.
    pub path: String,
    /// What follows the path behind a question mark.
    pub query: String,
    /// The headers, by their names in small letters.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What a signature says about the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) access_key: String,
    pub(crate) date: String,
    pub(crate) region: String,
    pub(crate) service: String,
    signed_headers: Vec<String>,
    signature: String,
}

/// Reads the header that holds the signature. Without one there is no telling which service is meant.
pub(crate) fn read_scope(request: &Request) -> Result<Scope, ApiError> {
    let missing =
        || ApiError::with_status(403, "MissingAuthenticationToken", "Request is missing Authentication Token");
    let incomplete = |what: &str| {
        let message = format!("Authorization header requires '{what}'");
        ApiError::with_status(403, "IncompleteSignature", message)
    };
    let header = request.header("authorization").ok_or_else(missing)?;
    let fields = header.strip_prefix(ALGORITHM).ok_or_else(|| incomplete(ALGORITHM))?;
    let fields: BTreeMap<&str, &str> =
        fields.split(',').filter_map(|field| field.trim().split_once('=')).collect();
    let field = |name: &str| fields.get(name).copied().ok_or_else(|| incomplete(name));
    let credential: Vec<&str> = field("Credential")?.split('/').collect();
    let [access_key, date, region, service, "aws4_request"] = credential[..] else {
        return Err(incomplete("Credential"));
    };
    let signature = field("Signature")?;
    let is_hash = signature.len() == 64 && signature.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hash {
        return Err(incomplete("Signature"));
    }
    Ok(Scope {
        access_key: access_key.to_owned(),
        date: date.to_owned(),
        region: region.to_owned(),
        service: service.to_owned(),
        signed_headers: field("SignedHeaders")?.split(';').map(str::to_owned).collect(),
        signature: signature.to_owned(),
    })
}

/// How each kind of service says that the caller is not believed.
struct Refusals(Protocol);

impl Refusals {
    fn unknown_key(&self) -> ApiError {
        match self.0 {
            Protocol::Ec2 => not_validated(),
            Protocol::Query => ApiError::with_status(
                403,
                "InvalidClientTokenId",
                "The security token included in the request is invalid.",
            ),
            Protocol::Json => ApiError::client(
                "UnrecognizedClientException",
                "The security token included in the request is invalid.",
            ),
        }
    }

    fn expired_key(&self) -> ApiError {
        const MESSAGE: &str = "The security token included in the request is expired";
        match self.0 {
            Protocol::Ec2 => ApiError::client("RequestExpired", "Request has expired."),
            Protocol::Query => ApiError::with_status(403, "ExpiredToken", MESSAGE),
            Protocol::Json => ApiError::client("ExpiredTokenException", MESSAGE),
        }
    }

    fn skewed(&self, sent: &str, now: Timestamp) -> ApiError {
        let message = format!("Signature expired: {sent} is now more than 5 min from {now:.0}");
        match self.0 {
            Protocol::Ec2 => ApiError::client("RequestExpired", "Request has expired."),
            Protocol::Query => ApiError::with_status(403, "SignatureDoesNotMatch", message),
            Protocol::Json => ApiError::client("InvalidSignatureException", message),
        }
    }

    fn malformed(&self, message: &str) -> ApiError {
        match self.0 {
            Protocol::Ec2 => not_validated(),
            Protocol::Query => ApiError::with_status(403, "SignatureDoesNotMatch", message),
            Protocol::Json => ApiError::client("InvalidSignatureException", message),
        }
    }
}

fn not_validated() -> ApiError {
    ApiError::with_status(401, "AuthFailure", "AWS was not able to validate the provided access credentials")
}

/// Whether the region of a signature is one that the service answers in.
pub(crate) fn wrong_region(protocol: Protocol, region: &str) -> ApiError {
    Refusals(protocol).malformed(&format!("Credential should be scoped to a valid region, not '{region}'."))
}

/// Finds whose request it is, and refuses it where that is not certain.
pub(crate) fn check<'a>(
    request: &Request,
    scope: &Scope,
    protocol: Protocol,
    credentials: &'a [Credential],
    now: Timestamp,
    skew_matters: bool,
) -> Result<&'a Credential, ApiError> {
    let refusals = Refusals(protocol);
    let sent = request.header("x-amz-date").unwrap_or_default();
    let time = read_time(sent).ok_or_else(|| refusals.malformed("Date must be in ISO-8601 'basic format'."))?;
    if !sent.starts_with(&scope.date) {
        return Err(
            refusals.malformed("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date")
        );
    }
    let is_signed = |name: &str| scope.signed_headers.iter().any(|signed| signed == name);
    let must_be_signed = ["host", "x-amz-date", "x-amz-security-token", "x-amz-target"];
    let forgotten = must_be_signed.iter().find(|name| request.headers.contains_key(**name) && !is_signed(name));
    if let Some(name) = forgotten {
        return Err(refusals.malformed(&format!("'{name}' must be a 'SignedHeader' in the AWS Authorization.")));
    }
    if let Some(name) = scope.signed_headers.iter().find(|name| !request.headers.contains_key(*name)) {
        return Err(refusals.malformed(&format!("The signed header '{name}' was not sent.")));
    }
    if skew_matters && MOST_SKEW < now.duration_since(time).abs() {
        return Err(refusals.skewed(sent, now));
    }
    let token = request.header("x-amz-security-token");
    let known = credentials.iter().find(|known| known.access_key == scope.access_key);
    let known = known.ok_or_else(|| refusals.unknown_key())?;
    if known.session_token.as_deref() != token {
        return Err(refusals.unknown_key());
    }
    if known.expires_at.is_some_and(|end| end <= now) {
        return Err(refusals.expired_key());
    }
    if let Some(secret) = &known.secret_key
        && sign(request, scope, secret, sent) != scope.signature
    {
        return Err(refusals.malformed(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
                 Access Key and signing method. Consult the service documentation for details.",
        ));
    }
    Ok(known)
}

/// Reads a time as `20261123T021731Z`.
fn read_time(text: &str) -> Option<Timestamp> {
    let digits = text.len() == 16 && text.is_ascii();
    let parts = digits.then(|| {
        let (date, time) = (&text[..8], &text[9..15]);
        format!("{}-{}-{}T{}:{}:{}Z", &date[..4], &date[4..6], &date[6..], &time[..2], &time[2..4], &time[4..])
    })?;
    parts.parse().ok()
}

/// The signature that the holder of the secret would send.
fn sign(request: &Request, scope: &Scope, secret: &str, sent: &str) -> String {
    let mut canonical = format!("{}\n{}\n{}\n", request.method, request.path, canonical_query(&request.query));
    for name in &scope.signed_headers {
        let value = request.header(name).unwrap_or_default();
        let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
        canonical += &format!("{name}:{value}\n");
    }
    let body_hash = hex(&Sha256::digest(&request.body));
    canonical += &format!("\n{}\n{body_hash}", scope.signed_headers.join(";"));
    let Scope { date, region, service, .. } = scope;
    let text = format!(
        "{ALGORITHM}\n{sent}\n{date}/{region}/{service}/aws4_request\n{}",
        hex(&Sha256::digest(canonical.as_bytes()))
    );
    let parts = [date.as_str(), region, service, "aws4_request"];
    let key = parts.iter().fold(format!("AWS4{secret}").into_bytes(), |key, part| hmac(&key, part.as_bytes()));
    hex(&hmac(&key, text.as_bytes()))
}

fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
    pairs.sort_unstable();
    pairs.join("&")
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPE: &str = "AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request";

    /// The example that AWS's documentation of signatures works through.
    fn example() -> Request {
        let headers = [
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
            ("host", "iam.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date, \
                 Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
            ),
        ];
        Request {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            query: "Action=ListUsers&Version=2010-05-08".to_owned(),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            body: vec![],
        }
    }

    fn keys(expires_at: Option<&str>) -> Vec<Credential> {
        vec![Credential {
            access_key: "AKIDEXAMPLE".to_owned(),
            secret_key: Some("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned()),
            session_token: None,
            arn: "arn:aws:iam::123456789012:user/a".to_owned(),
            expires_at: expires_at.map(|time| time.parse().unwrap()),
            allowed: None,
        }]
    }

    #[track_caller]
    fn check_one(change: impl FnOnce(&mut Request), expires_at: Option<&str>, protocol: Protocol, expected: &str) {
        let mut request = example();
        change(&mut request);
        let now = "2015-08-30T12:37:00Z".parse().unwrap();
        let result = read_scope(&request)
            .and_then(|scope| check(&request, &scope, protocol, &keys(expires_at), now, true).map(|_| ()));
        assert_eq!(result.map_or_else(|error| error.code.into_owned(), |()| "taken".to_owned()), expected);
    }

    fn authorize(from: &'static str, to: &'static str) -> impl FnOnce(&mut Request) {
        move |request| {
            let header = request.headers.get_mut("authorization").unwrap();
            assert!(header.contains(from));
            *header = header.replace(from, to);
        }
    }

    #[test]
    fn a_right_signature_is_taken() {
        check_one(|_| {}, None, Protocol::Query, "taken");
        assert_eq!(read_scope(&example()).unwrap().region, SCOPE.split('/').nth(2).unwrap());
    }

    #[test]
    fn wrong_signatures_are_refused_in_the_words_of_the_service() {
        let cases = [
            ("5d672d79", "5d672d78", "SignatureDoesNotMatch", "AuthFailure", "InvalidSignatureException"),
            ("AKIDEXAMPLE", "AKIDANOTHER", "InvalidClientTokenId", "AuthFailure", "UnrecognizedClientException"),
            ("host;", "", "SignatureDoesNotMatch", "AuthFailure", "InvalidSignatureException"),
            ("20150830/", "20150831/", "SignatureDoesNotMatch", "AuthFailure", "InvalidSignatureException"),
            ("aws4_request", "aws5", "IncompleteSignature", "IncompleteSignature", "IncompleteSignature"),
        ];
        for (from, to, query, ec2, json) in cases {
            check_one(authorize(from, to), None, Protocol::Query, query);
            check_one(authorize(from, to), None, Protocol::Ec2, ec2);
            check_one(authorize(from, to), None, Protocol::Json, json);
        }
    }

    #[test]
    fn old_requests_and_old_keys_are_refused() {
        let expired = Some("2015-08-30T12:36:30Z");
        check_one(|_| {}, expired, Protocol::Ec2, "RequestExpired");
        check_one(|_| {}, expired, Protocol::Query, "ExpiredToken");
        check_one(|_| {}, expired, Protocol::Json, "ExpiredTokenException");
        let old = |request: &mut Request| {
            request.headers.insert("x-amz-date".to_owned(), "20150830T123000Z".to_owned());
        };
        check_one(old, None, Protocol::Ec2, "RequestExpired");
        check_one(old, None, Protocol::Query, "SignatureDoesNotMatch");
    }

    #[test]
    fn a_request_without_a_signature_is_refused() {
        let unsigned = |request: &mut Request| drop(request.headers.remove("authorization"));
        check_one(unsigned, None, Protocol::Query, "MissingAuthenticationToken");
    }

    #[test]
    fn a_policy_is_a_list_of_patterns() {
        let mut key = keys(None).remove(0);
        assert!(key.allows("ec2:RunInstances"));
        key.allowed = Some(vec!["ec2:Describe*".to_owned(), "sts:getcalleridentity".to_owned()]);
        assert!(key.allows("ec2:DescribeVpcs") && key.allows("sts:GetCallerIdentity"));
        assert!(!key.allows("ec2:RunInstances"));
    }
}
