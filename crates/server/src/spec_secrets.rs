//! The secrets inside submissions: rows keep them sealed, clients see them as they sent them.

use api::configurations::RegistryAuth;
use api::jobs::JobSpec;
use api::runs::RunSpec;

use crate::sealing::{Sealer, SealingError};

fn seal(sealer: &Sealer, auth: Option<&mut RegistryAuth>) {
    if let Some(auth) = auth {
        auth.password = sealer.seal(&auth.password);
    }
}

fn unseal(sealer: &Sealer, auth: Option<&mut RegistryAuth>) -> Result<(), SealingError> {
    if let Some(auth) = auth {
        auth.password = sealer.unseal(&auth.password)?;
    }
    Ok(())
}

/// Seals what is secret in a submission.
pub fn seal_run_spec(sealer: &Sealer, spec: &mut RunSpec) {
    seal(sealer, spec.configuration.common_mut().registry_auth.as_mut());
}

/// Opens what is secret in a submission. On an error nothing is changed.
pub fn unseal_run_spec(sealer: &Sealer, spec: &mut RunSpec) -> Result<(), SealingError> {
    unseal(sealer, spec.configuration.common_mut().registry_auth.as_mut())
}

/// Seals what is secret in a job.
pub fn seal_job_spec(sealer: &Sealer, spec: &mut JobSpec) {
    seal(sealer, spec.registry_auth.as_mut());
}

/// Opens what is secret in a job. On an error nothing is changed.
pub fn unseal_job_spec(sealer: &Sealer, spec: &mut JobSpec) -> Result<(), SealingError> {
    unseal(sealer, spec.registry_auth.as_mut())
}

/// Opens what is secret in a submission that is shown. What cannot be read is left empty: one text that is broken
/// must not hide every run.
pub fn show_run_spec(sealer: &Sealer, spec: &mut RunSpec) {
    show(sealer, spec.configuration.common_mut().registry_auth.as_mut());
}

/// Opens what is secret in a job that is shown; what cannot be read is left empty.
pub fn show_job_spec(sealer: &Sealer, spec: &mut JobSpec) {
    show(sealer, spec.registry_auth.as_mut());
}

fn show(sealer: &Sealer, auth: Option<&mut RegistryAuth>) {
    let Some(auth) = auth else { return };
    auth.password = sealer.unseal(&auth.password).unwrap_or_else(|error| {
        tracing::warn!("the password of `registry_auth` cannot be shown: {error}");
        String::new()
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ids::Ids;

    #[test]
    fn a_sealed_submission_shows_no_password_and_opens_again() {
        let sealer = Sealer::ephemeral(&Ids::seeded(1));
        let configuration = json!({
            "type": "task", "image": "x", "registry_auth": { "username": "me", "password": "hush-hush" },
        });
        let written: RunSpec = serde_json::from_value(json!({ "configuration": configuration })).unwrap();
        let mut spec = written.clone();
        seal_run_spec(&sealer, &mut spec);
        assert!(!serde_json::to_string(&spec).unwrap().contains("hush"));
        let sealed = spec.clone();
        unseal_run_spec(&sealer, &mut spec).unwrap();
        assert_eq!(spec, written);
        let mut shown = sealed.clone();
        show_run_spec(&sealer, &mut shown);
        assert_eq!(shown, written);
        // Without the key everything else is still shown.
        let mut shown = sealed;
        show_run_spec(&Sealer::ephemeral(&Ids::seeded(2)), &mut shown);
        let auth = shown.configuration.common().registry_auth.clone().unwrap();
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("me", ""));
    }
}
