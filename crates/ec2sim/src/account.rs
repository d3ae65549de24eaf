//! Who the caller is, and what they may: the little of STS and IAM that a backend asks.

use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::auth::Credential;
use crate::call::Call;
use crate::error::ApiError;
use crate::xml;

/// The identifier that the owner of a key has.
const USER_ID: &str = "AIDAEXAMPLEEXAMPLE000";

/// When profiles and roles were made.
const MADE_AT: &str = "2026-01-01T00:00:00.000Z";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// GetCallerIdentity, which nobody can be forbidden.
pub(crate) fn get_caller_identity(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let Nothing {} = call.read()?;
    Ok(json!({"UserId": USER_ID, "Account": call.account(), "Arn": call.caller.arn}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedRole {
    role_arn: String,
    role_session_name: String,
    duration_seconds: Option<i64>,
    // Whoever may ask for the role may have it, with or without it.
    #[serde(rename = "ExternalId")]
    _external_id: Option<String>,
}

/// AssumeRole: keys for a time, with all that the asker may.
pub(crate) fn assume_role(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedRole = call.read()?;
    let account = call.account();
    let role = asked.role_arn.strip_prefix(&format!("arn:aws:iam::{account}:role/")).map(str::to_owned);
    let known = role.filter(|role| call.world.profiles.values().any(|known| known == role));
    let Some(role) = known else {
        let message = format!(
            "User: {} is not authorized to perform: sts:AssumeRole on resource: {}",
            call.caller.arn, asked.role_arn
        );
        return Err(ApiError::with_status(403, "AccessDenied", message));
    };
    let seconds = asked.duration_seconds.unwrap_or(3600);
    if !(900..=43_200).contains(&seconds) {
        let message = format!(
            "1 validation error detected: Value '{seconds}' at 'durationSeconds' must be from 900 to 43200"
        );
        return Err(ApiError::client("ValidationError", message));
    }
    let expires_at = call.now() + SignedDuration::from_secs(seconds);
    let arn = format!("arn:aws:sts::{account}:assumed-role/{role}/{}", asked.role_session_name);
    let (secret, token) = (call.split().1.ids.request(), call.split().1.ids.request());
    let access_key = call.split().1.ids.resource("ASIA").replace('-', "").to_uppercase();
    let credential = Credential {
        access_key: access_key.clone(),
        secret_key: Some(secret.clone()),
        session_token: Some(token.clone()),
        arn: arn.clone(),
        expires_at: Some(expires_at),
        allowed: call.caller.allowed.clone(),
    };
    call.world.credentials.push(credential);
    Ok(json!({
        "Credentials": {
            "AccessKeyId": access_key,
            "SecretAccessKey": secret,
            "SessionToken": token,
            "Expiration": xml::time(expires_at),
        },
        "AssumedRoleUser": {"AssumedRoleId": format!("AROAEXAMPLEEXAMPLE000:{}", asked.role_session_name), "Arn": arn},
    }))
}

fn role(account: &str, name: &str) -> Value {
    json!({
        "Path": "/",
        "RoleName": name,
        "RoleId": "AROAEXAMPLEEXAMPLE000",
        "Arn": format!("arn:aws:iam::{account}:role/{name}"),
        "CreateDate": MADE_AT,
        "AssumeRolePolicyDocument": "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%5D%7D",
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedProfile {
    instance_profile_name: String,
}

/// GetInstanceProfile.
pub(crate) fn get_instance_profile(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let name = call.read::<AskedProfile>()?.instance_profile_name;
    let account = call.account();
    let Some(role_name) = call.world.profiles.get(&name) else {
        let message = format!("Instance Profile {name} cannot be found.");
        return Err(ApiError::with_status(404, "NoSuchEntity", message));
    };
    Ok(json!({"InstanceProfile": {
        "Path": "/",
        "InstanceProfileName": name,
        "InstanceProfileId": "AIPAEXAMPLEEXAMPLE000",
        "Arn": format!("arn:aws:iam::{account}:instance-profile/{name}"),
        "CreateDate": MADE_AT,
        "Roles": [role(&account, role_name)],
    }}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedRoleName {
    role_name: String,
}

/// GetRole.
pub(crate) fn get_role(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let name = call.read::<AskedRoleName>()?.role_name;
    if !call.world.profiles.values().any(|known| *known == name) {
        let message = format!("The role with name {name} cannot be found.");
        return Err(ApiError::with_status(404, "NoSuchEntity", message));
    }
    Ok(json!({"Role": role(&call.account(), &name)}))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct AskedPolicy {
    policy_source_arn: String,
    action_names: Vec<String>,
    // What may be done here may be done to everything.
    #[serde(default, rename = "ResourceArns")]
    _resource_arns: Vec<String>,
}

/// SimulatePrincipalPolicy: what a key's owner may do.
pub(crate) fn simulate_principal_policy(call: &mut Call<'_>) -> Result<Value, ApiError> {
    let asked: AskedPolicy = call.read()?;
    let subject = call.world.credentials.iter().find(|known| known.arn == asked.policy_source_arn);
    let subject = subject.ok_or_else(|| {
        let message = format!("The principal {} cannot be found.", asked.policy_source_arn);
        ApiError::with_status(404, "NoSuchEntity", message)
    })?;
    let results = asked.action_names.iter().map(|action| {
        let decision = if subject.allows(action) { "allowed" } else { "implicitDeny" };
        json!({"EvalActionName": action, "EvalResourceName": "*", "EvalDecision": decision})
    });
    Ok(json!({"EvaluationResults": results.collect::<Vec<_>>(), "IsTruncated": false}))
}
