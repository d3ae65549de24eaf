//! Which clients this server speaks to: every older one, and newer patches.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::error::Error;
use api::error::ErrorCode;

/// The official version whose API this server speaks.
pub const SERVER_VERSION: &str = env!("CARGO_PKG_VERSION");

const HEADER: &str = "x-api-version";

/// Refuses clients that are too new, before anything else is looked at.
pub async fn check(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_api = path.starts_with("/api/") && path != "/api/docs";
    if is_api && let Some(value) = request.headers().get(HEADER) {
        let version = String::from_utf8_lossy(value.as_bytes());
        if let Err(error) = check_version(&version) {
            return error.into_response();
        }
    }
    next.run(request).await
}

fn check_version(text: &str) -> Result<(), Error> {
    let is_development = text == "latest" || text.starts_with("0.0.0");
    if is_development {
        return Ok(());
    }
    let client = parse(text).ok_or_else(|| Error::uncoded(format!("Invalid version: {text}")))?;
    let server = parse(SERVER_VERSION).unwrap_or_default();
    // A newer patch is fine, and so is every older version.
    if (server.0, server.1) < (client.0, client.1) {
        let message =
            format!("The client/CLI version ({text}) is incompatible with the server version ({SERVER_VERSION}).");
        return Err(Error::coded(ErrorCode::Error, message));
    }
    Ok(())
}

/// The major, minor and patch numbers; what follows them (`rc1`, `.dev0`) is not compared.
fn parse(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.trim().trim_start_matches('v').splitn(3, '.');
    let major = parts.next()?.parse().ok()?;
    let Some(minor) = parts.next() else { return Some((major, 0, 0)) };
    let minor = minor.parse().ok()?;
    let Some(patch) = parts.next() else { return Some((major, minor, 0)) };
    let digits = patch.find(|c: char| !c.is_ascii_digit()).unwrap_or(patch.len());
    Some((major, minor, patch[..digits].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_refused_only_when_a_newer_minor_or_unreadable() {
        let too_new = |version: &str| {
            format!(
                "400 {{\"detail\":[{{\"code\":\"error\",\"msg\":\"The client/CLI version ({version}) is incompatible \
                 with the server version (0.22.5).\"}}]}}"
            )
        };
        let invalid = |version: &str| {
            format!("400 {{\"detail\":[{{\"code\":null,\"msg\":\"Invalid version: {version}\"}}]}}")
        };
        for (version, expected) in [
            ("0.22.5", None),
            ("0.22.99", None),
            ("0.22", None),
            ("0.19.3", None),
            ("0.0.0", None),
            ("0.0.0.dev1", None),
            ("latest", None),
            ("0.22.6rc1", None),
            ("0.23.0", Some(too_new("0.23.0"))),
            ("0.23", Some(too_new("0.23"))),
            ("1.0.0", Some(too_new("1.0.0"))),
            ("abc", Some(invalid("abc"))),
            ("", Some(invalid(""))),
            ("0.x.1", Some(invalid("0.x.1"))),
        ] {
            let answer = check_version(version).err().map(|error| error.to_string());
            assert_eq!(answer, expected, "{version}");
        }
    }
}
