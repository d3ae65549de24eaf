//! Gateways.

use anstyle::{AnsiColor, Style};
use api::gateways::{Gateway, GatewayStatus};

use super::format;
use super::runs::Times;
use super::{Cell, Table};
use crate::printer::{ERROR, SECONDARY, STRONG};

/// The table of gateways, in the order given.
pub(crate) fn table(gateways: &[Gateway], verbose: bool, times: &Times) -> Table {
    let mut titles = vec!["NAME", "BACKEND", "HOSTNAME", "DOMAIN", "DEFAULT", "STATUS"];
    titles.extend(verbose.then_some(["CREATED", "ERROR"]).into_iter().flatten());
    let mut table = Table::new(&titles);
    for gateway in gateways {
        let backend = match (&gateway.backend, &gateway.region) {
            (Some(backend), Some(region)) => format::place(*backend, region, None),
            _ => format::backend(gateway.configuration.backend, None).to_owned(),
        };
        let mut cells: Vec<Cell> = vec![
            Cell::styled(gateway.name.clone(), STRONG),
            backend.into(),
            gateway.hostname.clone().unwrap_or_default().into(),
            gateway.wildcard_domain.clone().unwrap_or_default().into(),
            if gateway.default { "✓" } else { "" }.into(),
            Cell::styled(status(gateway), style(gateway.status)),
        ];
        if verbose {
            cells.push(times.show(gateway.created_at).into());
            cells.push(Cell::styled(gateway.status_message.clone().unwrap_or_default(), ERROR));
        }
        table.row(cells);
    }
    table
}

// The only machine of a gateway is the gateway.
fn status(gateway: &Gateway) -> &str {
    match gateway.replicas.as_slice() {
        [only] => only.get("status").and_then(serde_json::Value::as_str),
        _ => None,
    }
    .unwrap_or(gateway.status.as_str())
}

fn style(status: GatewayStatus) -> Style {
    match status {
        GatewayStatus::Submitted => SECONDARY,
        GatewayStatus::Provisioning => AnsiColor::Cyan.on_default(),
        GatewayStatus::Running => Style::new(),
        GatewayStatus::Failed => ERROR,
    }
}
