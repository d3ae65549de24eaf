//! Volumes.

use anstyle::{AnsiColor, Style};
use api::volumes::{Volume, VolumeStatus};

use super::format;
use super::runs::Times;
use super::{Cell, Table};
use crate::printer::{ERROR, SECONDARY, STRONG};

/// The table of volumes, in the order given.
pub(crate) fn table(volumes: &[Volume], verbose: bool, times: &Times) -> Table {
    let mut titles = vec!["NAME", "BACKEND", "STATUS", "CREATED"];
    titles.extend(verbose.then_some("ERROR"));
    let mut table = Table::new(&titles);
    for volume in volumes {
        let configuration = &volume.configuration;
        let zone = volume.provisioning_data.as_ref().and_then(|data| data.availability_zone.as_deref());
        let mut cells: Vec<Cell> = vec![
            Cell::styled(volume.name.clone(), STRONG),
            format::place(configuration.backend, &configuration.region, zone.filter(|_| verbose)).into(),
            Cell::styled(volume.status.as_str(), style(volume.status)),
            times.show(volume.created_at).into(),
        ];
        if verbose {
            cells.push(Cell::styled(volume.status_message.clone().unwrap_or_default(), ERROR));
        }
        table.row(cells);
    }
    table
}

fn style(status: VolumeStatus) -> Style {
    match status {
        VolumeStatus::Submitted => SECONDARY,
        VolumeStatus::Provisioning => AnsiColor::Cyan.on_default(),
        VolumeStatus::Active => Style::new(),
        VolumeStatus::Failed => ERROR,
    }
}
